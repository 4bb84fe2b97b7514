"""Launchers of the CuPy backend against the operations they serve and the kernels they start."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import minitf_cupy
import numpy as np
import pytest
from minitf_cupy import module

from minitf.ops.kernels import DEFINITIONS

from .emulator.signatures import kernels

NAMES = sorted(minitf_cupy.KERNELS)
LAUNCHERS = sorted(p for p in module.FOLDER.glob("*.py") if p.stem not in ("__init__", "module"))


@pytest.mark.parametrize("name", NAMES)
def test_takes_the_arguments_of_the_definition(name):
    kernel, order = minitf_cupy.KERNELS[name], list(DEFINITIONS[name][1].parameters)
    # `bind` raises TypeError where they do not fit.
    for function, args in (
        (kernel.forward, order),
        (kernel.supports, order),
        (kernel.vjp, ("residuals", "g")),
    ):
        inspect.signature(function).bind(*args)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_numpy_arrays_in_words(name):
    order = DEFINITIONS[name][1].parameters
    a = np.ones((2, 2, 2, 2), "float32")
    given = [a if p.default is p.empty else p.default for p in order.values()]
    why = minitf_cupy.KERNELS[name].supports(*given)
    assert why and "not a CuPy array" in why, f"{name} says {why!r} of NumPy arrays"


def launches(path):
    """(file, kernel) of every call of `launch` in a launcher."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "launch":
            names = [a.value for a in node.args[:2] if isinstance(a, ast.Constant)]
            if len(names) == 2:
                yield tuple(names)


def test_every_launch_names_a_kernel():
    for path in LAUNCHERS:
        for file, kernel in launches(path):
            assert kernel in kernels(module.source(f"{file}.cu")), f"{path.name}: no {kernel} in {file}.cu"


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda p: p.stem)
def test_launchers_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 40, f"{path.name}: {node.name} has {lines} lines"


def test_importing_needs_no_cupy():
    code = (
        "import minitf_cupy as m, sys; [m.KERNELS[name] for name in m.KERNELS]; print('cupy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stdout + run.stderr


def test_refusals_without_a_card():
    """`supports` sees what kind of array it has without importing CuPy."""

    class Array(np.ndarray):
        __module__ = "cupy"

    class Large:
        __module__, dtype, size = "cupy", np.dtype("float32"), 2**31

    assert module.refusal("x", np.ones(3).view(Array)) is None
    assert "float16, float32, float64" in str(module.refusal("x", np.ones(3, int).view(Array)))
    assert "2^31" in str(module.refusal("x", Large()))

"""The emulation of CUDA's threads: what it computes, and that it finds mistakes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from minitf_cupy import module

from .cuda import nvrtc
from .emulator import stand_in
from .emulator.signatures import kernels, wrong

pytestmark = pytest.mark.skipif(stand_in.missing() is not None, reason=str(stand_in.missing()))

PROBES = stand_in.HEADER.with_name("probes.cu")


def text() -> str:
    return re.sub(
        r'^#include "([\w.]+)"$', lambda m: module.source(m[1]), PROBES.read_text(), flags=re.MULTILINE
    )


@pytest.fixture(scope="module")
def probes():
    return stand_in.RawModule(text(), module.options("float16", {}))


def card(a):
    return stand_in.asarray(a)


def bfloat16(x):
    """To the nearest number of 8 binary digits, ties to even, in float32."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def test_tile_product(probes):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((16, 16)).astype("float16"), rng.standard_normal((16, 8)).astype("float16")
    c = stand_in.empty((16, 8), "float32")
    probes.get_function("product")((1,), (32,), (card(a), card(b), c))
    err = np.abs(c.get() - a.astype(float) @ b.astype(float)).max()
    assert err <= 1e-5, f"ldmatrix and mma give the product of the matrices, off by {err}"


def test_tile_product_of_bfloat16():
    found = stand_in.RawModule(text(), module.options("bfloat16", {}))
    rng = np.random.default_rng(1)
    a, b = bfloat16(rng.standard_normal((16, 16))), bfloat16(rng.standard_normal((16, 8)))
    c = stand_in.empty((16, 8), "float32")
    halves = [card((x.view(np.uint32) >> 16).astype(np.uint16)) for x in (a, b)]
    run = found.get_function("product")
    run.parameters = [p._replace(kind="void") for p in run.parameters]
    run((1,), (32,), (*halves, c))
    err = np.abs(c.get() - a.astype(float) @ b.astype(float)).max()
    assert err <= 1e-5, f"bfloat16: off by {err}"


def test_a_copy_arrives_when_it_is_waited_for(probes):
    c = stand_in.empty(256, "float16")
    probes.get_function("impatient")((1,), (32,), (card(np.ones(256, "float16")), c))
    assert np.isnan(c.get()).all(), "without a wait the old contents (NaN) are read"


def test_sums_and_exchanges(probes):
    x = np.random.default_rng(2).standard_normal(96).astype("float32") * 1e3
    rounded, y = stand_in.empty(96, "float16"), stand_in.empty((96, 4), "float32")
    probes.get_function("sums")((1,), (96,), (card(x), rounded, y))
    assert np.array_equal(rounded.get(), x.astype("float16")), "float16 rounds as NumPy does"
    y = y.get()
    assert np.allclose(y[:, 0], x.sum(), rtol=1e-5, atol=1e-2) and (y[:, 0] == y[0, 0]).all()
    assert (y[:, 1] == x.max()).all()
    warps = x.reshape(3, 32)
    assert np.array_equal(y[:, 2].reshape(3, 32), np.c_[warps[:, :1], warps[:, :-1]])
    assert np.array_equal(y[:, 3].reshape(3, 32), np.repeat(warps[:, :1], 32, axis=1))


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("deserted", (), "63 at __syncthreads, 0 at an exchange of a warp, 1 ended"),
        ("parted", (), "wait for each other for ever"),
        ("too_far", (np.int32(1),), "past the end"),
        ("too_far", (np.int32(-1),), "before the start"),
        ("too_far", (np.int32(2**30),), "far outside"),
    ],
)
def test_finds(probes, name, args, words):
    c = stand_in.empty(64, "float32")
    with pytest.raises(AssertionError, match=words):
        probes.get_function(name)((1,), (64,), (c, *args))


def test_finds_a_race(probes, monkeypatch):
    found = []
    for order in "01":
        monkeypatch.setenv("MINITF_EMULATOR_REVERSE", order)
        c = stand_in.empty(64, "float32")
        probes.get_function("racing")((1,), (64,), (c,))
        found.append(c.get())
    assert not np.array_equal(*found, equal_nan=True), "the order of threads shows in the result"


def test_launches_that_no_card_takes(probes):
    run, c = probes.get_function("racing"), stand_in.empty(2048, "float32")
    for grid, block, shared, words in (
        ((1,), (2048,), 0, "threads"),
        ((1,), (40,), 0, "whole warps"),
        ((1, 70000), (32,), 0, "blocks"),
        ((0,), (32,), 0, "empty launch"),
        ((1,), (32,), 50000, "shared memory"),
    ):
        with pytest.raises(AssertionError, match=words):
            run(grid, block, (c,), shared_mem=shared)


def test_arguments_are_compared_with_the_parameters():
    parameters = kernels('extern "C" __global__ void f(const REAL* x, int n, double eps) {}')["f"]
    x, n, eps = card(np.ones(3, "float32")), np.int32(3), np.float64(1)
    defines = {"REAL": "float"}

    def say(*args):
        return wrong(parameters, args, defines, stand_in.ndarray)

    assert say(x, n, eps) == "" and say(np.uint64(0), n, eps) == ""
    assert say(x, n) == "2 arguments for 3 parameters"
    assert "float64" in say(x.astype("float64"), n, eps)
    assert "n is int" in say(x, eps, eps) and "x is a pointer" in say(n, n, eps)


def test_the_stand_in_is_as_strict_as_cupy():
    x = card(np.ones(3, "float32"))
    with pytest.raises(TypeError, match="do not mix"):
        x + np.ones(3)
    with pytest.raises(TypeError, match="get"):
        np.asarray(x)
    assert isinstance(np.exp(x), stand_in.ndarray) and isinstance(x.sum(), stand_in.ndarray)
    assert np.isnan(stand_in.empty(3, "float16").get()).all()
    # What NumPy does with its own arrays, and CuPy with none.
    with pytest.raises(TypeError, match="initial"):
        np.max(x, initial=0.0)
    with pytest.raises(AttributeError, match="astype"):
        np.where(True, x, 0.0)
    with pytest.raises(NotImplementedError, match=r"maximum\.accumulate"):
        np.maximum.accumulate(x)
    with pytest.raises(TypeError, match="integer"):
        range(stand_in.asarray(3))
    assert np.array_equal(np.add.accumulate(x).get(), [1, 2, 3])


@pytest.mark.parametrize("chip", ["sm_75", "sm_80", "sm_90"])
def test_probes_compile(chip):
    """The probes are true CUDA: the tensor-core and copy instructions pass the compiler."""
    if not nvrtc.compilers():
        pytest.skip("not run: neither NVRTC nor nvcc")
    name, compiler = next(iter(nvrtc.compilers().items()))
    for dtype in ("float16", "bfloat16"):
        made, log = compiler(text(), (*module.options(dtype, {}), f"-arch={chip}"))
        assert made, f"{name} {chip} {dtype}: {log}"

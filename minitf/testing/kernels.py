"""Whether a kernel computes what its definition does: for whoever writes a backend.

    check_kernel("layer_norm", "numba", {"x": x, "weight": w, "bias": None}, dtype="float32")

How far a kernel may be off is earned by the definition: it is run in float32 and in float64, and the
difference is its own error. A kernel may have twice that and a few roundings. In float64 nothing more exact
is at hand: the own error is taken to be that of float32 by the ratio of the precisions, and since the
definition has it too, a kernel may differ by three times that. Besides, outputs are written in full,
arguments are left alone, and two runs agree in every bit, as do views of other memory layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor, array_module, to_device

from .checks.backends import poisoned

# Roundings that any kernel is allowed, in units of the precision times the largest value. In float64 those of
# the definition come on top.
ROUNDINGS = {"float16": 16, "float32": 16, "float64": 32}


def computed(name: str, mode: str, args: Mapping[str, Any], dtype: str, seed: int) -> dict[str, Array]:
    """Every output of the operation and every gradient under a random cotangent, by name, as NumPy arrays.

    The arrays of `args` may live on either device; floating ones are differentiated.
    """
    operation = getattr(ops, name)
    xp = next((array_module(a) for a in args.values() if array_module(a) is not np), np)
    with ops.kernels.use(mode), poisoned(xp):
        # Tensors of the very arrays, so that their memory layout reaches the kernel.
        given = {
            key: Tensor(a, requires_grad=True) if isinstance(a, xp.ndarray) and a.dtype.kind == "f" else a
            for key, a in args.items()
        }
        out = operation(**given)
        outputs = out if isinstance(out, tuple) else (out,)
        found = {
            f"output {i}": to_device(y.data if isinstance(y, Tensor) else y, "cpu")
            for i, y in enumerate(outputs)
        }
        rng = np.random.default_rng(seed)
        total: Any = 0.0
        for y, value in zip(outputs, list(found.values()), strict=True):
            if isinstance(y, Tensor) and y.dtype.kind == "f" and y.requires_grad:
                # An output of -inf (an empty row's log-sum-exp) takes no part.
                finite = np.isfinite(value)
                g = np.where(finite, rng.standard_normal(y.shape), 0.0).astype(dtype)
                total = total + (ops.where(xp.asarray(finite), y, 0.0) * xp.asarray(g)).sum()
        if isinstance(total, Tensor):
            total.backward()
        for key, leaf in given.items():
            if isinstance(leaf, Tensor):
                grad = leaf.grad
                found[f"gradient of {key}"] = np.zeros(leaf.shape, dtype) if grad is None else grad.numpy()
        return found


def cast(args: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    return {
        key: value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
        for key, value in args.items()
    }


def layouts(a: Array) -> list[tuple[str, Array]]:
    """The same values in other memory layouts."""
    frozen = a.copy()
    frozen.setflags(write=False)
    found = [("read-only", frozen)]
    if a.ndim:
        backwards = tuple(slice(None, None, -1) for _ in a.shape)
        found.append(("reversed in memory", a[backwards].copy()[backwards]))
        found.append(("with axes exchanged in memory", np.asfortranarray(a)))
        found.append(("every second element of a wider array", np.repeat(a, 2, axis=-1)[..., ::2]))
    return found


def check_kernel(
    name: str, backend: str, args: Mapping[str, Any], dtype: str = "float32", seed: int = 0
) -> None:
    """Compare the kernel of `backend` for the operation `name` with the definition, on `args`.

    Args:
        name: of a kernelized operation. backend: as in `mt.use`.
        args: the operation's arguments by name. Arrays of floats are differentiated, and cast to `dtype`.
        dtype: "float32" or "float64". seed: of the cotangents.

    Raises:
        AssertionError: the kernel differs; the text says where and by how much.
        BackendError: the kernel does not take these arguments.
    """
    single, narrow = cast(args, "float32"), cast(args, dtype)
    before = {key: value.copy() for key, value in narrow.items() if isinstance(value, np.ndarray)}
    # Of the same rounded arguments, so that only the operation's own roundings differ.
    exact = computed(name, "reference", cast(narrow, "float64"), "float64", seed)
    plain = computed(name, "reference", single, "float32", seed)
    precise = (
        exact if dtype == "float32" else computed(name, "reference", cast(single, "float64"), "float64", seed)
    )
    earned = float(np.finfo(dtype).eps / np.finfo("float32").eps)
    fast = computed(name, backend, narrow, dtype, seed)
    for key, value in before.items():
        assert np.array_equal(narrow[key], value, equal_nan=value.dtype.kind == "f"), (
            f"{name}: the kernel changed its argument {key}"
        )
    for key, value in fast.items():
        right = exact[key].astype(dtype) if exact[key].dtype.kind == "f" else exact[key]
        assert value.shape == right.shape and value.dtype == right.dtype, (
            f"{name}: {key} is {value.dtype} {value.shape}, the definition gives {right.dtype} {right.shape}"
        )
        words = f"{name} {dtype}: {key}"
        if right.dtype.kind == "f":
            close(words, value, exact[key], earned * error_of(plain[key], precise[key]), dtype)
        else:
            assert np.array_equal(value, right), f"{words} differs from the definition's"
    same(name, fast, computed(name, backend, narrow, dtype, seed), "two runs")
    for key, value in narrow.items():
        if not isinstance(value, np.ndarray):
            continue
        for words, view in layouts(value):
            again = computed(name, backend, {**narrow, key: view}, dtype, seed)
            same(name, fast, again, f"{key} as it is and {words}")


def error_of(plain: Array, precise: Array) -> float:
    """The largest error of the definition in float32."""
    both = np.isfinite(plain) & np.isfinite(precise)
    return float(np.max(np.abs(plain[both] - precise[both]), initial=0.0))


def close(words: str, value: Array, exact: Array, own: float, dtype: str) -> None:
    """Assert that `value` is off by no more than the definition's `own` error allows."""
    finite = np.isfinite(exact)
    assert np.array_equal(value[~finite], exact[~finite].astype(dtype), equal_nan=True), (
        f"{words} has infinities or NaN in other places than the definition"
    )
    value, exact = value[finite], exact[finite]
    scale = np.max(np.abs(exact), initial=1.0)
    times = 3 if dtype == "float64" else 2
    allowed = times * own + ROUNDINGS[dtype] * np.finfo(dtype).eps * scale
    error = np.max(np.abs(value - exact), initial=0.0)
    assert error <= allowed, f"{words} is off by {error:.3g}; the definition's own error allows {allowed:.3g}"


def same(name: str, first: dict[str, Array], second: dict[str, Array], words: str) -> None:
    for key, value in first.items():
        assert np.array_equal(value, second[key], equal_nan=value.dtype.kind == "f"), (
            f"{name}: {words} give different bits in {key}"
        )

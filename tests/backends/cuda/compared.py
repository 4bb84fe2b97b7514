"""A kernel of the CuPy backend against its definition, which runs on NumPy arrays.

As `minitf.testing.check_kernel` does it, with arrays on the card (or in the stand-in for CuPy).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from minitf import ops
from minitf.testing.kernels import cast, close, computed, error_of, same


def layouts(cupy: Any, a: Any) -> list[tuple[str, Any]]:
    """The same values in other memory layouts."""
    backwards = tuple(slice(None, None, -1) for _ in a.shape)
    found = [("reversed in memory", a[backwards].copy(order="C")[backwards])]
    if a.ndim > 1:
        found.append(("with axes exchanged in memory", cupy.asfortranarray(a)))
    if a.ndim:
        found.append(("every second element of a wider array", cupy.repeat(a, 2, axis=-1)[..., ::2]))
    return found


def arguments_of(name: str, args: Mapping[str, Any]) -> tuple[Any, ...]:
    """All arguments in the order of the definition."""
    bound = ops.kernels.DEFINITIONS[name][1].bind(**args)
    bound.apply_defaults()
    return bound.args


def refused(name: str, args: Mapping[str, Any], dtype: str) -> str | None:
    """Why the CuPy kernel does not take `args` (NumPy arrays), or None."""
    import cupy
    from minitf_cupy import KERNELS

    given = {k: cupy.asarray(a) if isinstance(a, np.ndarray) else a for k, a in cast(args, dtype).items()}
    return KERNELS[name].supports(*arguments_of(name, given))


def check_on_card(
    name: str,
    args: Mapping[str, Any],
    dtype: str,
    seed: int = 0,
    views: bool = True,
    otherwise: Any = nullcontext,
) -> None:
    """Compare the CuPy kernel for the operation `name` with the definition, on `args` (NumPy arrays).

    `views`: also in other memory layouts. `otherwise`: the second run, which must give the same bits, is made
    within this context.

    Raises:
        AssertionError: the kernel differs; the text says where and by how much.
        BackendError: the kernel does not take these arguments.
    """
    import cupy

    single, narrow = cast(args, "float32"), cast(args, dtype)
    exact = computed(name, "reference", cast(narrow, "float64"), "float64", seed)
    plain = computed(name, "reference", single, "float32", seed)
    precise = (
        exact if dtype == "float32" else computed(name, "reference", cast(single, "float64"), "float64", seed)
    )
    earned = float(np.finfo(dtype).eps / np.finfo("float32").eps)
    given = {key: cupy.asarray(a) if isinstance(a, np.ndarray) else a for key, a in narrow.items()}
    fast = computed(name, "cupy", given, dtype, seed)
    for key, a in narrow.items():
        if isinstance(a, np.ndarray):
            kept = given[key].get()
            assert np.array_equal(kept, a, equal_nan=a.dtype.kind == "f"), f"{name}: the kernel changed {key}"
    for key, value in fast.items():
        right = exact[key].astype(dtype) if exact[key].dtype.kind == "f" else exact[key]
        assert value.shape == right.shape and value.dtype == right.dtype, (
            f"{name}: {key} is {value.dtype} {value.shape}, the definition gives {right.dtype} {right.shape}"
        )
        words = f"{name} {dtype} on the card: {key}"
        if right.dtype.kind == "f":
            own = earned * error_of(plain[key], precise[key])
            # In float64 the definition is what is compared with, and no more exact than this.
            own += 32 * float(np.finfo(dtype).eps) if dtype == "float64" else 0.0
            close(words, value, exact[key], own, dtype)
        else:
            assert np.array_equal(value, right), f"{words} differs from the definition's"
    with otherwise():
        same(name, fast, computed(name, "cupy", given, dtype, seed), "two runs")
    for key, a in given.items():
        if views and isinstance(a, cupy.ndarray):
            for words, view in layouts(cupy, a):
                again = computed(name, "cupy", {**given, key: view}, dtype, seed)
                same(name, fast, again, f"{key} as it is and {words}")

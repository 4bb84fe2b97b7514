"""First-order recurrences: launchers of diagonal_scan.cu, whose head explains the kernels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .module import blocks, launch, refusal

DTYPES = ("float32", "float64")


def supports(a: Any, b: Any, state: Any) -> str | None:
    if why := refusal("b", b, DTYPES) or refusal("a", a, (str(b.dtype),)):
        return why
    if b.ndim < 2 or not b.size or a.ndim != b.ndim:
        return f"b {b.shape} has no tokens, or a {a.shape} other axes"
    if any(i not in (1, j) for i, j in zip(a.shape, b.shape, strict=True)):
        return f"a {a.shape} does not broadcast to b {b.shape}"
    if state is not None and (why := refusal("state", state, (str(b.dtype),))):
        return why
    if state is not None and state.shape != (b.shape[0], *b.shape[2:]):
        return f"the state {state.shape} does not fit b {b.shape}"
    return None


def forward(a: Any, b: Any, state: Any) -> tuple[Any, Any]:
    import cupy

    batch, tokens, width = b.shape[0], b.shape[1], math.prod(b.shape[2:])
    full = cupy.ascontiguousarray(cupy.broadcast_to(a, (*a.shape[:2], *b.shape[2:])))
    # Steps in a from one batch element, and from one token, to the next.
    step = np.int64(width if a.shape[1] > 1 else 0)
    sizes = (batch, tokens, width, np.int64(a.shape[1] * width if a.shape[0] > 1 else 0), step)
    rows, first = cupy.ascontiguousarray(b), None if state is None else cupy.ascontiguousarray(state)
    h = cupy.empty_like(rows)
    launch(
        "diagonal_scan", "diagonal_scan", b.dtype, blocks(batch * width, 64), 64, full, rows, first, h, *sizes
    )
    return h, (full, first, h, sizes, a.shape)


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    import cupy

    a, state, h, sizes, a_shape = residuals
    (batch, tokens, width), each = sizes[:3], sizes[4] > 0
    da = cupy.empty((batch, tokens if each else 1, *h.shape[2:]), h.dtype)
    db, dstate = cupy.empty_like(h), None if state is None else cupy.empty_like(state)
    args = (cupy.ascontiguousarray(g), a, state, h, da, db, dstate, *sizes)
    launch("diagonal_scan", "diagonal_scan_backward", h.dtype, blocks(batch * width, 64), 64, *args)
    axes = tuple(i for i, size in enumerate(a_shape) if size == 1 and da.shape[i] > 1)
    if axes:
        da = da.sum(axis=axes, keepdims=True, dtype="float64").astype(h.dtype)
    return da, db, dstate


KERNELS = {"diagonal_scan": Kernel(forward, vjp, supports)}

"""The k largest: launchers of topk.cu, whose head explains the kernels."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .module import blocks, launch, refusal

# Above this, sorting the whole row is faster.
MOST = 64


def supports(x: Any, k: Any, axis: Any) -> str | None:
    if why := refusal("x", x):
        return why
    if not isinstance(k, int | np.integer) or not isinstance(axis, int | np.integer):
        return "k or the axis is not an integer"
    if not -x.ndim <= axis < x.ndim or not 0 <= k <= x.shape[axis]:
        return f"k = {k} or axis {axis} does not fit x {x.shape}"
    if k > MOST:
        return f"k = {k}: above {MOST} sorting the row is faster"
    return "there is nothing to select" if k == 0 or not x.size else None


def forward(x: Any, k: int, axis: int) -> tuple[Any, Any]:
    import cupy

    k, axis = operator.index(k), operator.index(axis) % x.ndim
    turned = cupy.moveaxis(x, axis, -1)
    rows = cupy.ascontiguousarray(turned).reshape(-1, x.shape[axis])
    values, index = cupy.empty((len(rows), k), x.dtype), cupy.empty((len(rows), k), "int64")
    # About four elements for each thread.
    threads = min(256, 32 * blocks(rows.shape[1], 128))
    launch("topk", "topk", x.dtype, len(rows), threads, rows, values, index, rows.shape[1], k)
    shape = (*turned.shape[:-1], k)
    both = tuple(cupy.moveaxis(a.reshape(shape), -1, axis) for a in (values, index))
    return both, (index, turned.shape, axis)


def vjp(residuals: Any, g: Any) -> tuple[Any, None, None]:
    import cupy

    index, shape, axis = residuals
    k, n = index.shape[1], shape[-1]
    rows = cupy.ascontiguousarray(cupy.moveaxis(g[0], axis, -1)).reshape(-1, k)
    dx = cupy.empty((math.prod(shape[:-1]), n), rows.dtype)
    launch("topk", "topk_backward", dx.dtype, len(dx), 256, rows, index, dx, n, k)
    return cupy.moveaxis(dx.reshape(shape), -1, axis), None, None


KERNELS = {"topk": Kernel(forward, vjp, supports)}

"""Layer and RMS normalisation, each row read once forward and once backward.

    for each row:                      forward: two sums, then one pass that writes y
        mean, rstd                     kept for the backward
    for each row:                      backward, with xh = (x - mean) rstd and gw = g * weight
        dx = rstd (gw - mean(gw) - xh mean(gw xh))          RMS: without mean(gw)
        dweight += g xh,  dbias += g                        summed in row order, so runs are bit-equal

Sums are accumulated in float64: an RMS over float32 rows would otherwise lose digits with the width.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel


@cache
def compiled() -> tuple[Any, Any]:
    """The two loops, compiled by Numba on first use."""
    from numba import njit

    @njit(cache=True, error_model="numpy")
    def forward(x, weight, bias, eps, centre, y, mean, rstd):  # type: ignore[no-untyped-def]
        rows, width = x.shape
        for i in range(rows):
            total = 0.0
            if centre:
                for j in range(width):
                    total += x[i, j]
                total /= width
            square = 0.0
            for j in range(width):
                d = x[i, j] - total
                square += d * d
            r = 1.0 / np.sqrt(square / width + eps)
            mean[i] = total
            rstd[i] = r
            for j in range(width):
                y[i, j] = (x[i, j] - total) * r * weight[j] + bias[j]

    @njit(cache=True, error_model="numpy")
    def backward(g, x, weight, centre, mean, rstd, dx, dweight, dbias):  # type: ignore[no-untyped-def]
        rows, width = x.shape
        for i in range(rows):
            m, r = mean[i], rstd[i]
            first = 0.0
            second = 0.0
            for j in range(width):
                xh = (x[i, j] - m) * r
                gw = g[i, j] * weight[j]
                first += gw
                second += gw * xh
                dweight[j] += g[i, j] * xh
                dbias[j] += g[i, j]
            first = first / width if centre else 0.0
            second /= width
            for j in range(width):
                xh = (x[i, j] - m) * r
                dx[i, j] = r * (g[i, j] * weight[j] - first - xh * second)

    return forward, backward


def reasons(x: Any, weight: Any, bias: Any = None) -> str | None:
    """None, or why the kernel cannot take these arrays."""
    if type(x) is not np.ndarray:
        return "x is not a NumPy array"
    if x.dtype not in (np.float32, np.float64):
        return f"x is {x.dtype}; the kernel takes float32 and float64"
    if x.ndim == 0 or x.shape[-1] == 0:
        return "the last axis is empty"
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and (getattr(part, "dtype", None) != x.dtype or part.shape != x.shape[-1:]):
            return f"{name} must be {x.shape[-1:]} of {x.dtype}"
    return None


def run(x: Any, weight: Any, bias: Any, eps: float, centre: bool) -> tuple[Any, Any]:
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    w = np.ones(x.shape[-1], x.dtype) if weight is None else np.ascontiguousarray(weight)
    b = np.zeros(x.shape[-1], x.dtype) if bias is None else np.ascontiguousarray(bias)
    y = np.empty_like(rows)
    mean, rstd = np.empty(len(rows)), np.empty(len(rows))
    compiled()[0](rows, w, b, eps, centre, y, mean, rstd)
    return y.reshape(x.shape), (rows, w, mean, rstd, centre)


def back(residuals: Any, g: Any) -> tuple[Any, Any, Any]:
    rows, w, mean, rstd, centre = residuals
    g_rows = np.ascontiguousarray(g).reshape(rows.shape)
    dx = np.empty_like(rows)
    dweight, dbias = np.zeros(len(w)), np.zeros(len(w))
    compiled()[1](g_rows, rows, w, centre, mean, rstd, dx, dweight, dbias)
    return dx.reshape(g.shape), dweight.astype(rows.dtype), dbias.astype(rows.dtype)


LAYER_NORM = Kernel(
    forward=lambda x, weight, bias, eps: run(x, weight, bias, eps, True),
    vjp=lambda residuals, g: (*back(residuals, g), None),
    supports=lambda x, weight, bias, eps: reasons(x, weight, bias),
)
RMS_NORM = Kernel(
    forward=lambda x, weight, eps: run(x, weight, None, eps, False),
    vjp=lambda residuals, g: (*back(residuals, g)[:2], None),
    supports=lambda x, weight, eps: reasons(x, weight),
)

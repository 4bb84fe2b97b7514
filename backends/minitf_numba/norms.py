"""Layer and RMS normalisation, each row read once forward and once backward.

    for each row:                      forward: two sums, then one pass that writes y
        mean, rstd                     kept for the backward
    for each row:                      backward, with xh = (x - mean) rstd and gw = g * weight
        dx = rstd (gw - mean(gw) - xh mean(gw xh))          RMS: without mean(gw)
        dweight += g xh,  dbias += g                        by blocks of rows, then in their order

Sums over a row are taken in float64: an RMS over float32 rows would otherwise lose digits with the width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .runtime import jit, parallel_jit, parts, prange

# Sums may be taken in any order, so that they vectorise. No infinity is added on purpose here.
SUMS = {"reassoc", "contract"}


@jit(fastmath=SUMS)
def forward_rows(lo, hi, x, weight, bias, eps, centre, y, mean, rstd):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    for i in range(lo, hi):
        row, out = x[i], y[i]
        m = 0.0
        if centre:
            for j in range(width):
                m += row[j]
            m /= width
        square = 0.0
        for j in range(width):
            d = row[j] - m
            square += d * d
        r = 1.0 / np.sqrt(square / width + eps)
        mean[i], rstd[i] = m, r
        m, r = x.dtype.type(m), x.dtype.type(r)
        for j in range(width):
            out[j] = (row[j] - m) * r * weight[j] + bias[j]


@jit(fastmath=SUMS)
def backward_rows(lo, hi, g, x, weight, centre, mean, rstd, dx, dweight, dbias):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    for i in range(lo, hi):
        row, gi, out = x[i], g[i], dx[i]
        m, r = x.dtype.type(mean[i]), x.dtype.type(rstd[i])
        first, second = 0.0, 0.0
        for j in range(width):
            xh = (row[j] - m) * r
            gw = gi[j] * weight[j]
            first += gw
            second += gw * xh
        a = x.dtype.type(first / width if centre else 0.0)
        b = x.dtype.type(second / width)
        for j in range(width):
            xh = (row[j] - m) * r
            dweight[j] += gi[j] * xh
            dbias[j] += gi[j]
            out[j] = r * (gi[j] * weight[j] - a - xh * b)


@parallel_jit
def forward_all(cut, x, weight, bias, eps, centre, y, mean, rstd):  # type: ignore[no-untyped-def]
    n = len(x)
    if cut == 1:
        forward_rows(0, n, x, weight, bias, eps, centre, y, mean, rstd)
    else:
        for p in prange(cut):
            lo, hi = n * p // cut, n * (p + 1) // cut
            forward_rows(lo, hi, x, weight, bias, eps, centre, y, mean, rstd)


@parallel_jit
def backward_all(cut, g, x, weight, centre, mean, rstd, dx, dweight, dbias):  # type: ignore[no-untyped-def]
    n = len(x)
    if cut == 1:
        backward_rows(0, n, g, x, weight, centre, mean, rstd, dx, dweight[0], dbias[0])
    else:
        for p in prange(cut):
            lo, hi = n * p // cut, n * (p + 1) // cut
            backward_rows(lo, hi, g, x, weight, centre, mean, rstd, dx, dweight[p], dbias[p])


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
    width = x.shape[-1]
    rows = np.ascontiguousarray(x).reshape(-1, width)
    w = np.ones(width, x.dtype) if weight is None else np.ascontiguousarray(weight)
    b = np.zeros(width, x.dtype) if bias is None else np.ascontiguousarray(bias)
    y = np.empty_like(rows)
    mean, rstd = np.empty(len(rows)), np.empty(len(rows))
    forward_all(parts(len(rows), 4 * rows.size), rows, w, b, float(eps), centre, y, mean, rstd)
    return y.reshape(x.shape), (rows, w, mean, rstd, centre)


def back(residuals: Any, g: Any) -> tuple[Any, Any, Any]:
    rows, w, mean, rstd, centre = residuals
    g_rows = np.ascontiguousarray(g).reshape(rows.shape)
    dx = np.empty_like(rows)
    cut = parts(len(rows), 8 * rows.size)
    dweight, dbias = np.zeros((2, cut, len(w)))
    backward_all(cut, g_rows, rows, w, centre, mean, rstd, dx, dweight, dbias)
    return dx.reshape(g.shape), dweight.sum(0).astype(rows.dtype), dbias.sum(0).astype(rows.dtype)


KERNELS = {
    "layer_norm": Kernel(
        forward=lambda x, weight, bias, eps: run(x, weight, bias, eps, True),
        vjp=lambda residuals, g: (*back(residuals, g), None),
        supports=lambda x, weight, bias, eps: reasons(x, weight, bias),
    ),
    "rms_norm": Kernel(
        forward=lambda x, weight, eps: run(x, weight, None, eps, False),
        vjp=lambda residuals, g: (*back(residuals, g)[:2], None),
        supports=lambda x, weight, eps: reasons(x, weight),
    ),
}

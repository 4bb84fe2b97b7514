"""Layer and RMS normalisation, each row read once forward and once backward, also of a sum x + r.

    for each row:                      forward
        s = x + r                      where there is an r
        mean, rstd                     two sums over s, kept for the backward
        y = (s - mean) rstd weight + bias
    for each row:                      backward, with sh = (s - mean) rstd and gw = g * weight
        ds = rstd (gw - mean(gw) - sh mean(gw sh))          RMS: without mean(gw)
        dx = dr = ds + the gradient that reaches s itself
        dweight += g sh,  dbias += g                        by blocks of rows, then in their order

Sums over a row run over spans of 256 in the array's own precision, and the spans are added in float64: a wide
float32 row loses no digits, and the loops stay vector code of full width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .runtime import contiguous, inner, jit, parts, share_out

# Sums may be taken in any order, so that they vectorise. No infinity is added on purpose here.
SUMS = {"reassoc", "contract"}
SPAN = 256


@inner(fastmath=SUMS)
def forward_rows(p, cut, x, r, weight, bias, eps, centre, s, y, mean, rstd):  # type: ignore[no-untyped-def]
    (n, width), zero = x.shape, x.dtype.type(0)
    for i in range(n * p // cut, n * (p + 1) // cut):
        row, out = s[i], y[i]
        if len(r):
            first, second = x[i], r[i]
            for j in range(width):
                row[j] = first[j] + second[j]
        total = 0.0
        if centre:
            for start in range(0, width, SPAN):
                part = zero
                for j in range(start, min(start + SPAN, width)):
                    part += row[j]
                total += part
        m = x.dtype.type(total / width)
        total = 0.0
        for start in range(0, width, SPAN):
            part = zero
            for j in range(start, min(start + SPAN, width)):
                part += (row[j] - m) * (row[j] - m)
            total += part
        scale = x.dtype.type(1.0 / np.sqrt(total / width + eps))
        mean[i], rstd[i] = m, scale
        for j in range(width):
            out[j] = (row[j] - m) * scale * weight[j] + bias[j]


@inner(fastmath=SUMS)
def backward_rows(p, cut, g, gs, s, weight, centre, mean, rstd, dx, dweights, dbiases):  # type: ignore[no-untyped-def]
    (n, width), zero = s.shape, s.dtype.type(0)
    dweight, dbias = dweights[p], dbiases[p]
    for j in range(width):
        dweight[j] = zero
        dbias[j] = zero
    for i in range(n * p // cut, n * (p + 1) // cut):
        row, gi, out = s[i], g[i], dx[i]
        m, scale = mean[i], rstd[i]
        first, second = 0.0, 0.0
        for start in range(0, width, SPAN):
            one, two = zero, zero
            for j in range(start, min(start + SPAN, width)):
                gw = gi[j] * weight[j]
                one += gw
                two += gw * ((row[j] - m) * scale)
            first += one
            second += two
        a = s.dtype.type(first / width if centre else 0.0)
        b = s.dtype.type(second / width)
        for j in range(width):
            sh = (row[j] - m) * scale
            dweight[j] += gi[j] * sh
            dbias[j] += gi[j]
            out[j] = scale * (gi[j] * weight[j] - a - sh * b)
        if len(gs):
            more = gs[i]
            for j in range(width):
                out[j] += more[j]


@jit
def forward_all(cut, x, r, weight, bias, eps, centre, s, y, mean, rstd):  # type: ignore[no-untyped-def]
    share_out(forward_rows, cut, x, r, weight, bias, eps, centre, s, y, mean, rstd)


@jit
def backward_all(cut, g, gs, s, weight, centre, mean, rstd, dx, dweights, dbiases):  # type: ignore[no-untyped-def]
    share_out(backward_rows, cut, g, gs, s, weight, centre, mean, rstd, dx, dweights, dbiases)


def reasons(x: Any, r: Any, weight: Any, bias: Any = None) -> str | None:
    """None, or why the kernel cannot take these arrays."""
    if type(x) is not np.ndarray:
        return "x is not a NumPy array"
    if x.dtype not in (np.float32, np.float64):
        return f"x is {x.dtype}; the kernel takes float32 and float64"
    if x.ndim == 0 or x.shape[-1] == 0:
        return "the last axis is empty"
    if r is not None and (type(r) is not np.ndarray or r.dtype != x.dtype or r.shape != x.shape):
        return f"r must be {x.shape} of {x.dtype}"
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and (
            type(part) is not np.ndarray or part.dtype != x.dtype or part.shape != x.shape[-1:]
        ):
            return f"{name} must be {x.shape[-1:]} of {x.dtype}"
    return None


def run(x: Any, r: Any, weight: Any, bias: Any, eps: float, centre: bool) -> tuple[Any, Any, Any]:
    """y, s and what the backward needs."""
    width = x.shape[-1]
    rows = contiguous(x).reshape(-1, width)
    w = np.ones(width, x.dtype) if weight is None else contiguous(weight)
    b = np.zeros(width, x.dtype) if bias is None else contiguous(bias)
    more, s = np.empty((0, width), x.dtype), rows
    if r is not None:
        more, s = contiguous(r).reshape(-1, width), np.empty_like(rows)
    y = np.empty_like(rows)
    mean, rstd = np.empty((2, len(rows)), x.dtype)
    forward_all(parts(len(rows), 4 * rows.size), rows, more, w, b, float(eps), centre, s, y, mean, rstd)
    return y.reshape(x.shape), s.reshape(x.shape), (s, w, mean, rstd, centre)


def back(residuals: Any, g: Any, gs: Any = None) -> tuple[Any, Any, Any]:
    """The gradients of x, weight and bias, for the gradients of y and, where given, of s."""
    s, w, mean, rstd, centre = residuals
    g_rows = contiguous(g).reshape(s.shape)
    gs_rows = np.empty((0, s.shape[1]), s.dtype) if gs is None else contiguous(gs).reshape(s.shape)
    dx = np.empty_like(s)
    cut = parts(len(s), 8 * s.size)
    dweight, dbias = np.empty((2, cut, len(w)), s.dtype)
    backward_all(cut, g_rows, gs_rows, s, w, centre, mean, rstd, dx, dweight, dbias)
    total = dweight.sum(0, dtype=np.float64), dbias.sum(0, dtype=np.float64)
    return dx.reshape(g.shape), total[0].astype(s.dtype), total[1].astype(s.dtype)


def run_sum(x: Any, r: Any, weight: Any, bias: Any, eps: float, centre: bool) -> tuple[Any, Any]:
    y, s, residuals = run(x, r, weight, bias, eps, centre)
    return (y, s), residuals


def back_sum(residuals: Any, g: Any) -> tuple[Any, Any, Any, Any]:
    """As `back`, for [gradient of y, gradient of s], either None."""
    gy, gs = g
    if gy is None:
        zeros = np.zeros_like(residuals[1])
        return gs, gs, zeros, zeros
    dx, dweight, dbias = back(residuals, gy, gs)
    return dx, dx, dweight, dbias


def run_one(x: Any, weight: Any, bias: Any, eps: float, centre: bool) -> tuple[Any, Any]:
    y, _, residuals = run(x, None, weight, bias, eps, centre)
    return y, residuals


KERNELS = {
    "layer_norm": Kernel(
        forward=lambda x, weight, bias, eps: run_one(x, weight, bias, eps, True),
        vjp=lambda residuals, g: (*back(residuals, g), None),
        supports=lambda x, weight, bias, eps: reasons(x, None, weight, bias),
    ),
    "rms_norm": Kernel(
        forward=lambda x, weight, eps: run_one(x, weight, None, eps, False),
        vjp=lambda residuals, g: (*back(residuals, g)[:2], None),
        supports=lambda x, weight, eps: reasons(x, None, weight),
    ),
    "add_layer_norm": Kernel(
        forward=lambda x, r, weight, bias, eps: run_sum(x, r, weight, bias, eps, True),
        vjp=lambda residuals, g: (*back_sum(residuals, g), None),
        supports=lambda x, r, weight, bias, eps: reasons(x, r, weight, bias),
    ),
    "add_rms_norm": Kernel(
        forward=lambda x, r, weight, eps: run_sum(x, r, weight, None, eps, False),
        vjp=lambda residuals, g: (*back_sum(residuals, g)[:3], None),
        supports=lambda x, r, weight, eps: reasons(x, r, weight),
    ),
}

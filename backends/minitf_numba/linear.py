"""y = x W + b and its gradients, cut into blocks of rows or columns, one BLAS product for each.

    y  = b in every row, then y += x W        the sum happens inside the product
    dx = g W^T          dW = x^T g          db = sum over rows of g

The larger side of a result is cut, at multiples of 16, into a few large products for each core.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .blas import MISSING, gemm
from .runtime import CORES, inner, jit, parts, share_out


@inner
def block(ta, tb, a, b, beta, c, row, rows, column, columns):  # type: ignore[no-untyped-def]
    """The block of C = op(A) op(B) + beta C that starts at (row, column)."""
    left = a[:, row:] if ta else a[row:]
    right = b[column:] if tb else b[:, column:]
    k = a.shape[0] if ta else a.shape[1]
    one = a.dtype.type(1)
    gemm(
        ta, tb, rows, columns, k, one, left, a.shape[1], right, b.shape[1], beta, c[row:, column:], c.shape[1]
    )


@inner
def edge(n, p, cut):  # type: ignore[no-untyped-def]
    """Where part p of n begins: a multiple of 16, but for the end."""
    return n if p == cut else n * p // cut // 16 * 16


@inner
def fill(c, bias):  # type: ignore[no-untyped-def]
    for i in range(c.shape[0]):
        to = c[i]
        for j in range(len(bias)):
            to[j] = bias[j]


@inner
def product_part(p, cut, ta, tb, a, b, bias, c):  # type: ignore[no-untyped-def]
    m, n = c.shape
    beta = a.dtype.type(1 if len(bias) else 0)
    if m >= n:
        row, rows, column, columns = edge(m, p, cut), edge(m, p + 1, cut) - edge(m, p, cut), 0, n
    else:
        row, rows, column, columns = 0, m, edge(n, p, cut), edge(n, p + 1, cut) - edge(n, p, cut)
    if len(bias):
        fill(c[row : row + rows, column : column + columns], bias[column : column + columns])
    block(ta, tb, a, b, beta, c, row, rows, column, columns)


@jit
def product(cut, ta, tb, a, b, bias, c):  # type: ignore[no-untyped-def]
    """C = op(A) op(B), plus bias in every row where there is one (a vector of length 0: none)."""
    share_out(product_part, cut, ta, tb, a, b, bias, c)


@jit
def column_sums(g, out):  # type: ignore[no-untyped-def]
    for j in range(g.shape[1]):
        out[j] = 0
    for i in range(g.shape[0]):
        for j in range(g.shape[1]):
            out[j] += g[i, j]


def supports(x: Any, weight: Any, bias: Any) -> str | None:
    if type(x) is not np.ndarray or type(weight) is not np.ndarray:
        return "x or the weight is not a NumPy array"
    if x.dtype not in (np.float32, np.float64) or weight.dtype != x.dtype:
        return f"x is {x.dtype} and the weight {weight.dtype}; the kernel takes two of float32 or of float64"
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[0]:
        return f"x {x.shape} does not fit the weight {weight.shape}"
    if bias is not None and (getattr(bias, "dtype", None) != x.dtype or bias.shape != weight.shape[1:]):
        return f"the bias must be {weight.shape[1:]} of {x.dtype}"
    if not x.size or not weight.size:
        return "an axis is empty"
    return MISSING


def multiplied(ta: int, tb: int, a: Any, b: Any, bias: Any, m: int, n: int) -> Any:
    c = np.empty((m, n), a.dtype)
    k = a.shape[0] if ta else a.shape[1]
    # Two parts for each core, of 64 rows or columns at least.
    product(parts(max(m, n) // 64, m * n * k // 8, 2 * CORES), ta, tb, a, b, bias, c)
    return c


def forward(x: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
    rows, w = np.ascontiguousarray(x).reshape(-1, x.shape[-1]), np.ascontiguousarray(weight)
    b = np.empty(0, x.dtype) if bias is None else np.ascontiguousarray(bias)
    y = multiplied(0, 0, rows, w, b, len(rows), w.shape[1])
    return y.reshape(*x.shape[:-1], w.shape[1]), (rows, w, x.shape, bias is not None)


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    rows, w, shape, biased = residuals
    g = np.ascontiguousarray(g).reshape(len(rows), -1)
    none = np.empty(0, g.dtype)
    dx = multiplied(0, 1, g, w, none, *rows.shape).reshape(shape)
    dw = multiplied(1, 0, rows, g, none, *w.shape)
    if not biased:
        return dx, dw, None
    db = np.empty(w.shape[1], g.dtype)
    column_sums(g, db)
    return dx, dw, db


KERNELS = {"linear": Kernel(forward, vjp, supports)}

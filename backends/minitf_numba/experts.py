"""Products by group of rows, for experts that hold different numbers of tokens, and the sum that follows.

    y  = x_e w_e      rows cut into equal parts, however they are grouped; a product for each (part, group)
    dx = g_e w_e^T    likewise
    dw_e = x_e^T g_e  P F columns of work stand in a line, P_e for each column of group e; cut into equal
                      parts at multiples of 16 columns, so that no two parts write the same place

    combine: out_m = sum of weights_i y_i over the places i that name m, listed by counting, in their order
    its backward reads the other way: dy_i = weights_i g_m,  dweights_i = y_i g_m^T

A part is a share of the work, not a group: one expert that takes everything is no slower than even ones.
With `rows`, the rows of x are collected first; dx is added up as in `combine`, without weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .blas import MISSING, gemm
from .runtime import CORES, inner, jit, parts, share_out

# A sum over a row may be taken in any order, so that it vectorises.
SUMS = {"reassoc", "contract"}


@inner
def products(p, cut, a, tb, w, ends, c):  # type: ignore[no-untyped-def]
    """Rows of C, each row of `a` times op(w) of its group."""
    lo, hi = len(a) * p // cut, len(a) * (p + 1) // cut
    k, n = a.shape[1], c.shape[1]
    one, zero = a.dtype.type(1), a.dtype.type(0)
    first = 0
    for e in range(len(ends)):
        i, j = max(lo, first), min(hi, ends[e])
        if i < j:
            gemm(0, tb, j - i, n, k, one, a[i:], k, w[e], w.shape[2], zero, c[i:], n)
        first = ends[e]


@jit
def multiply(cut, a, tb, w, ends, c):  # type: ignore[no-untyped-def]
    share_out(products, cut, a, tb, w, ends, c)


@inner
def pick_rows(p, cut, x, rows, picked):  # type: ignore[no-untyped-def]
    n = len(rows)
    for i in range(n * p // cut, n * (p + 1) // cut):
        row, to = x[rows[i]], picked[i]
        for j in range(len(row)):
            to[j] = row[j]


@jit
def pick(cut, x, rows, picked):  # type: ignore[no-untyped-def]
    share_out(pick_rows, cut, x, rows, picked)


@inner
def column(unit, first, count, width):  # type: ignore[no-untyped-def]
    """The column of a group at which the work of `unit` columns of one row is done: a multiple of 16."""
    done = unit - first * width
    return width if done >= count * width else max(0, done) // count // 16 * 16


@inner
def weight_columns(p, cut, x, g, ends, dw):  # type: ignore[no-untyped-def]
    depth, width = x.shape[1], g.shape[1]
    one, zero = x.dtype.type(1), x.dtype.type(0)
    units, first = len(x) * width, 0
    for e in range(len(ends)):
        count = ends[e] - first
        if count:
            lo = column(units * p // cut, first, count, width)
            hi = column(units * (p + 1) // cut, first, count, width)
            gemm(
                1, 0, depth, hi - lo, count, one, x[first:], depth, g[first:, lo:], width,
                zero, dw[e][:, lo:], width
            )  # fmt: skip
        elif p == 0:
            dw[e] = zero
        first = ends[e]


@jit
def backward_weights(cut, x, g, ends, dw):  # type: ignore[no-untyped-def]
    share_out(weight_columns, cut, x, g, ends, dw)


@jit
def listed(rows, starts, places):  # type: ignore[no-untyped-def]
    """places[starts[m] : starts[m + 1]] become the places that name m, in their order."""
    starts[:] = 0
    for m in rows:
        starts[m + 1] += 1
    for m in range(1, len(starts)):
        starts[m] += starts[m - 1]
    # Filling moves every start to the next one; afterwards they are moved back.
    for i in range(len(rows)):
        places[starts[rows[i]]] = i
        starts[rows[i]] += 1
    for m in range(len(starts) - 1, 0, -1):
        starts[m] = starts[m - 1]
    starts[0] = 0


@inner
def sum_rows(p, cut, y, weights, starts, places, out):  # type: ignore[no-untyped-def]
    n = len(out)
    for m in range(n * p // cut, n * (p + 1) // cut):
        total = out[m]
        total[:] = 0
        for s in range(starts[m], starts[m + 1]):
            row = y[places[s]]
            a = weights[places[s]] if len(weights) else y.dtype.type(1)
            for j in range(len(row)):
                total[j] += a * row[j]


@jit
def sums(cut, y, weights, starts, places, out):  # type: ignore[no-untyped-def]
    """out_m = sum of weights_i y_i over its places. No weights: all 1."""
    share_out(sum_rows, cut, y, weights, starts, places, out)


@inner(fastmath=SUMS)
def spread_rows(p, cut, g, rows, weights, y, dy, dweights):  # type: ignore[no-untyped-def]
    n = len(y)
    for i in range(n * p // cut, n * (p + 1) // cut):
        from_, to, row, a = g[rows[i]], dy[i], y[i], weights[i]
        total = 0.0
        for j in range(len(row)):
            to[j] = a * from_[j]
            total += row[j] * from_[j]
        dweights[i] = total


@jit
def spread(cut, g, rows, weights, y, dy, dweights):  # type: ignore[no-untyped-def]
    share_out(spread_rows, cut, g, rows, weights, y, dy, dweights)


def whole(a: Any, shape: Any, least: int, most: int, name: str) -> str | None:
    """None, or why `a` is no array of integers of that shape, from `least` to `most`."""
    if type(a) is not np.ndarray or a.dtype.kind not in "iu":
        return f"{name} are not a NumPy array of integers"
    if a.shape != shape:
        return f"{name} {a.shape} must be {shape}"
    if a.size and (a.min() < least or a.max() > most):
        return f"{name} must lie in {least}..{most}"
    return None


def floats(x: Any, other: Any, name: str) -> str | None:
    if type(x) is not np.ndarray or type(other) is not np.ndarray:
        return f"x or {name} is not a NumPy array"
    if x.dtype not in (np.float32, np.float64) or other.dtype != x.dtype:
        return f"the arrays are {x.dtype} and {other.dtype}; the kernel takes two of float32 or of float64"
    return None


def supports_product(x: Any, w: Any, counts: Any, rows: Any) -> str | None:
    if why := floats(x, w, "w"):
        return why
    if x.ndim != 2 or w.ndim != 3 or x.shape[1] != w.shape[1]:
        return f"x {x.shape} does not fit w {w.shape}"
    if not w.size:
        return "an axis of w is empty"
    if rows is not None and (why := whole(rows, (getattr(rows, "size", 0),), 0, len(x) - 1, "rows")):
        return why
    taken = len(x) if rows is None else len(rows)
    if why := whole(counts, w.shape[:1], 0, taken, "counts"):
        return why
    if int(counts.sum()) != taken:
        return f"counts must add up to {taken}"
    return MISSING


def forward_product(x: Any, w: Any, counts: Any, rows: Any) -> tuple[Any, Any]:
    x, w, ends = np.ascontiguousarray(x), np.ascontiguousarray(w), np.cumsum(counts, dtype=np.int64)
    picked, names = x, None
    if rows is not None:
        names = np.ascontiguousarray(rows, np.int64)
        picked = np.empty((len(names), x.shape[1]), x.dtype)
        pick(parts(len(picked), picked.size), x, names, picked)
    y = np.empty((len(picked), w.shape[2]), x.dtype)
    multiply(shares(y, w), picked, 0, w, ends, y)
    return y, (picked, w, ends, names, x.shape)


def vjp_product(residuals: Any, g: Any) -> tuple[Any, Any, None, None]:
    x, w, ends, names, shape = residuals
    g = np.ascontiguousarray(g)
    dx, dw = np.empty_like(x), np.empty_like(w)
    cut = shares(g, w)
    multiply(cut, g, 1, w, ends, dx)
    backward_weights(cut, x, g, ends, dw)
    if names is not None:
        dx = summed(dx, names, np.empty(0, x.dtype), shape)
    return dx, dw, None, None


def shares(y: Any, w: Any) -> int:
    return parts(len(y), y.size * w.shape[1] // 8, CORES)


def summed(y: Any, names: Any, weights: Any, shape: Any) -> Any:
    starts, places, out = np.empty(shape[0] + 1, np.int64), np.empty_like(names), np.empty(shape, y.dtype)
    listed(names, starts, places)
    sums(parts(shape[0], y.size), y, weights, starts, places, out)
    return out


def supports_combine(y: Any, rows: Any, weights: Any, n: Any) -> str | None:
    if why := floats(y, weights, "weights"):
        return why
    if y.ndim != 2 or weights.shape != y.shape[:1]:
        return f"y {y.shape} and weights {weights.shape} must be (P, F) and (P,)"
    if not isinstance(n, int | np.integer):
        return "n is not an integer"
    return whole(rows, y.shape[:1], 0, n - 1, "rows")


def forward_combine(y: Any, rows: Any, weights: Any, n: int) -> tuple[Any, Any]:
    y, weights = np.ascontiguousarray(y), np.ascontiguousarray(weights)
    names = np.ascontiguousarray(rows, np.int64)
    return summed(y, names, weights, (n, y.shape[1])), (y, names, weights)


def vjp_combine(residuals: Any, g: Any) -> tuple[Any, None, Any, None]:
    y, names, weights = residuals
    dy, dweights = np.empty_like(y), np.empty_like(weights)
    spread(parts(len(y), 2 * y.size), np.ascontiguousarray(g), names, weights, y, dy, dweights)
    return dy, None, dweights, None


KERNELS = {
    "grouped_matmul": Kernel(forward_product, vjp_product, supports_product),
    "combine_rows": Kernel(forward_combine, vjp_combine, supports_combine),
}

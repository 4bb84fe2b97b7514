"""Attention inside the windows of a grid, each window gathered, worked on in cache, and put back.

    for each window of each head:                 forward: Q, K, V its cells, n of them
        S = scale K Q^T + bias^T                  keys x queries
        P = exp(S - top), top the maximum over keys; total = sum P
        o = P^T V / total                         top and 1 / total are kept
    for each window of each head:                 backward, delta = sum(g o)
        P = exp(S - top) / total,  D = P (V g^T - delta)
        dv = P g,  dk = scale D Q,  dq = scale D^T K,  dbias^T += D

dbias has contributions of all windows of a head: by parts of the windows, which are added in order. Windows
at the borders have fewer cells; `places` says which they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel
from minitf.ops.sparse_attention import checked_windows

from .blas import MISSING, gemm
from .runtime import CORES, inner, jit, parts, share_out
from .sparse_tiles import gather, plain, slopes, soften


@inner
def cells_of(w, across, sizes, cells, places):  # type: ignore[no-untyped-def]
    """The cells of window w of a grid that has `across` windows side by side, their places, and how many."""
    rows, columns, height, width, top, left = sizes
    r0, c0, count = w // across * height - top, w % across * width - left, 0
    for r in range(max(r0, 0), min(r0 + height, rows)):
        for c in range(max(c0, 0), min(c0 + width, columns)):
            cells[count] = r * columns + c
            places[count] = (r - r0) * width + c - c0
            count += 1
    return count


@inner
def scatter(tile, cells, count, table):  # type: ignore[no-untyped-def]
    for i in range(count):
        source, target = tile[i], table[cells[i]]
        for x in range(table.shape[1]):
            target[x] = source[x]


@inner
def biased(s, count, places, bias):  # type: ignore[no-untyped-def]
    """S += bias of the places, keys x queries. bias of length 0: none."""
    if count == len(bias):
        for c in range(count):
            row, more = s[c], bias[c]
            for r in range(count):
                row[r] += more[r]
    elif len(bias):
        for c in range(count):
            row, more = s[c], bias[places[c]]
            for r in range(count):
                row[r] += more[places[r]]


@inner
def collected(ds, count, places, dbias):  # type: ignore[no-untyped-def]
    """dbias of the places += D."""
    if count == len(dbias):
        for c in range(count):
            row, total = ds[c], dbias[c]
            for r in range(count):
                total[r] += row[r]
    elif len(dbias):
        for c in range(count):
            row, total = ds[c], dbias[places[c]]
            for r in range(count):
                total[places[r]] += row[r]


@inner
def cut_up(scratch, n, d, dv):  # type: ignore[no-untyped-def]
    """Four tiles (n, d), three (n, dv), two of scores (n, n), and four rows of n."""
    a, b = 4 * n * d, 3 * n * dv
    return (
        scratch[:a].reshape(4, n, d),
        scratch[a : a + b].reshape(3, n, dv),
        scratch[a + b : a + b + 2 * n * n].reshape(2, n, n),
        scratch[a + b + 2 * n * n : a + b + 2 * n * n + 4 * n].reshape(4, n),
    )


@inner
def forward_windows(u, q, k, v, bias, sizes, counts, scale, o, tops, inverses, spots, scratch):  # type: ignore[no-untyped-def]
    """The windows of unit u: a part of those of one head."""
    batch, heads, pieces, windows, across = counts
    h, piece = u // pieces, u % pieces
    # Not unpacked: the compiler would forget that they are contiguous.
    cells, places = spots[0], spots[1]
    n, d, dv = len(cells), q.shape[3], v.shape[3]
    one, zero = q.dtype.type(1), q.dtype.type(0)
    keyed, valued, scores, rows = cut_up(scratch, n, d, dv)
    qt, kt, vt, ot, s = keyed[0], keyed[1], valued[0], valued[1], scores[0]
    top, base, total, factor = rows[0], rows[1], rows[2], rows[3]
    for t in range(batch * windows * piece // pieces, batch * windows * (piece + 1) // pieces):
        b = t // windows
        m = cells_of(t % windows, across, sizes, cells, places)
        gather(q[b, h], cells, m, qt)
        gather(k[b, h], cells, m, kt)
        gather(v[b, h], cells, m, vt)
        gemm(0, 1, m, m, d, scale, kt, d, qt, d, zero, s, n)
        biased(s, m, places, bias[h])
        top[:m], total[:m] = -np.inf, zero
        soften(s, m, m, top, base, total, factor)
        gemm(1, 0, m, dv, m, one, s, n, vt, dv, zero, ot, dv)
        for i in range(m):
            inverse = zero if total[i] == zero else one / total[i]
            tops[b, h, cells[i]], inverses[b, h, cells[i]] = base[i], inverse
            target = o[b, h, cells[i]]
            for x in range(dv):
                target[x] = ot[i, x] * inverse


@inner
def backward_windows(  # type: ignore[no-untyped-def]
    u, g, q, k, v, bias, sizes, counts, scale, o, tops, inverses, dq, dk, dv, dbias, spots, scratch
):
    """The windows of unit u. dbias (n, n), keys x queries, is added to."""
    batch, heads, pieces, windows, across = counts
    h, piece = u // pieces, u % pieces
    cells, places = spots[0], spots[1]
    n, d, wide = len(cells), q.shape[3], v.shape[3]
    one, zero = q.dtype.type(1), q.dtype.type(0)
    keyed, valued, scores, rows = cut_up(scratch, n, d, wide)
    qt, kt, dqt, dkt = keyed[0], keyed[1], keyed[2], keyed[3]
    vt, gt, dvt, s, ds = valued[0], valued[1], valued[2], scores[0], scores[1]
    top, inverse, delta = rows[0], rows[1], rows[2]
    for t in range(batch * windows * piece // pieces, batch * windows * (piece + 1) // pieces):
        b = t // windows
        m = cells_of(t % windows, across, sizes, cells, places)
        gather(q[b, h], cells, m, qt)
        gather(k[b, h], cells, m, kt)
        gather(v[b, h], cells, m, vt)
        gather(g[b, h], cells, m, gt)
        for i in range(m):
            top[i], inverse[i], delta[i] = tops[b, h, cells[i]], inverses[b, h, cells[i]], zero
            out = o[b, h, cells[i]]
            for x in range(wide):
                delta[i] += gt[i, x] * out[x]
        gemm(0, 1, m, m, d, scale, kt, d, qt, d, zero, s, n)
        biased(s, m, places, bias[h])
        gemm(0, 1, m, m, wide, one, vt, wide, gt, wide, zero, ds, n)
        slopes(s, ds, m, m, top, inverse, delta)
        collected(ds, m, places, dbias)
        gemm(0, 0, m, wide, m, one, s, n, gt, wide, zero, dvt, wide)
        gemm(0, 0, m, d, m, scale, ds, n, qt, d, zero, dkt, d)
        gemm(1, 0, m, d, m, scale, ds, n, kt, d, zero, dqt, d)
        scatter(dqt, cells, m, dq[b, h])
        scatter(dkt, cells, m, dk[b, h])
        scatter(dvt, cells, m, dv[b, h])


@inner
def some_forward(p, cut, q, k, v, bias, sizes, counts, scale, o, tops, inverses, spots, scratch):  # type: ignore[no-untyped-def]
    for u in range(len(spots) * p // cut, len(spots) * (p + 1) // cut):
        forward_windows(u, q, k, v, bias, sizes, counts, scale, o, tops, inverses, spots[u], scratch[u])


@jit
def forward_all(cut, q, k, v, bias, sizes, counts, scale, o, tops, inverses, spots, scratch):  # type: ignore[no-untyped-def]
    share_out(some_forward, cut, q, k, v, bias, sizes, counts, scale, o, tops, inverses, spots, scratch)


@inner
def some_backward(  # type: ignore[no-untyped-def]
    p, cut, g, q, k, v, bias, sizes, counts, scale, o, tops, inverses, dq, dk, dv, dbias, spots, scratch
):
    for u in range(len(spots) * p // cut, len(spots) * (p + 1) // cut):
        backward_windows(
            u, g, q, k, v, bias, sizes, counts, scale, o, tops, inverses, dq, dk, dv, dbias[u], spots[u],
            scratch[u],
        )  # fmt: skip


@jit
def backward_all(  # type: ignore[no-untyped-def]
    cut, g, q, k, v, bias, sizes, counts, scale, o, tops, inverses, dq, dk, dv, dbias, spots, scratch
):
    share_out(
        some_backward, cut, g, q, k, v, bias, sizes, counts, scale, o, tops, inverses, dq, dk, dv, dbias,
        spots, scratch,
    )  # fmt: skip


def supports(q: Any, k: Any, v: Any, window: Any, bias: Any, shift: Any, scale: Any) -> str | None:
    for a in (q, k, v):
        if type(a) is not np.ndarray:
            return "q, k or v is not a NumPy array"
        if a.dtype != q.dtype or a.dtype not in (np.float32, np.float64):
            return f"q, k or v is {a.dtype}; the kernel takes three of float32 or of float64"
        if a.ndim != 5 or not a.size:
            return "q, k, v must have five axes, none of them empty"
    if bias is not None and (type(bias) is not np.ndarray or bias.dtype != q.dtype or bias.ndim != 3):
        return f"the bias must have three axes and be of {q.dtype}"
    if not isinstance(scale, (int, float, type(None))):
        return "the scale is not a Python number"
    return MISSING


def memory(units: int, n: int, d: int, dv: int, dtype: Any) -> tuple[Any, Any]:
    """For every unit the cells and places of a window, and the numbers that `cut_up` cuts up."""
    return np.empty((units, 2, n), np.int64), np.empty((units, n * (4 * d + 3 * dv + 2 * n + 4)), dtype)


def forward(
    q: Any, k: Any, v: Any, window: Any, bias: Any, shift: Any, scale: float | None
) -> tuple[Any, Any]:
    (height, width), (top, left) = checked_windows(q, k, v, window, bias, shift)
    batch, heads, rows, columns, d = q.shape
    dv, n = v.shape[4], height * width
    q, k, v = (plain(x).reshape(batch, heads, rows * columns, -1) for x in (q, k, v))
    by_key = np.empty((heads, 0, 0), q.dtype) if bias is None else plain(bias.swapaxes(1, 2))
    across = -(-(left + columns) // width)
    windows = -(-(top + rows) // height) * across
    work = q.size // d * n * (d + dv + 8) // 4
    pieces = parts(batch * windows, work, -(-4 * CORES // heads))
    sizes, counts = (rows, columns, height, width, top, left), (batch, heads, pieces, windows, across)
    factor = q.dtype.type(1.0 / math.sqrt(d) if scale is None else scale)
    o = np.empty((batch, heads, rows * columns, dv), q.dtype)
    tops, inverses = np.empty((2, batch, heads, rows * columns), q.dtype)
    cut = 1 if parts(heads * pieces, work) == 1 else heads * pieces
    kept = (q, k, v, by_key, sizes, counts, factor, o, tops, inverses)
    forward_all(cut, *kept, *memory(heads * pieces, n, d, dv, q.dtype))
    return o.reshape(batch, heads, rows, columns, dv), (kept, cut, bias is not None)


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    kept, cut, biased = residuals
    q, k, v, by_key, (rows, columns, height, width, _, _), (_, heads, pieces, _, _) = kept[:6]
    units, n = heads * pieces, height * width
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    dbias = np.zeros((units, *by_key.shape[1:]), q.dtype)
    backward_all(
        cut, plain(g).reshape(v.shape), *kept, dq, dk, dv, dbias,
        *memory(units, n, q.shape[3], v.shape[3], q.dtype),
    )  # fmt: skip
    grids = [x.reshape(*x.shape[:2], rows, columns, x.shape[3]) for x in (dq, dk, dv)]
    # The sum of the parts of each head, query first again.
    total = dbias.reshape(heads, pieces, *by_key.shape[1:]).sum(1).swapaxes(1, 2) if biased else None
    return *grids, None, total, None, None


KERNELS = {"window_attention": Kernel(forward, vjp, supports)}

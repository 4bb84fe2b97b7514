"""The loops of `block_sparse_attention`: over the tiles of keys that rows of queries see."""

from __future__ import annotations

import numpy as np

from .blas import gemm
from .runtime import inner
from .sparse_tiles import gather, scatter_add, slopes, soften

# Queries that are worked on together.
QUERIES = 64


@inner
def next_tile(indices, p, end, block, bound, room, keys):  # type: ignore[no-untyped-def]
    """Write into `keys` those below `bound` of the next listed blocks that fit into `room`.

    Returns where the list goes on, how many keys, and whether they lie side by side.
    """
    count, together = 0, True
    while p < end:
        lo = indices[p] * block
        hi = min(lo + block, bound)
        if lo < hi:
            if count + hi - lo > room:
                break
            if count > 0 and keys[count - 1] + 1 != lo:
                together = False
            for j in range(lo, hi):
                keys[count] = j
                count += 1
        p += 1
    return p, count, together


@inner
def hide(s, keys, count, first, m, ahead, mask):  # type: ignore[no-untyped-def]
    """-inf where key j > i + ahead, or where mask (Nq or 1, Nk or 1) is false; query i = first + r."""
    for c in range(count):
        for r in range(min(m, max(0, keys[c] - ahead - first))):
            s[c, r] = -np.inf
    if mask.size > 1 or not mask[0, 0]:
        for c in range(count):
            column = keys[c] if mask.shape[1] > 1 else 0
            for r in range(m):
                if not mask[first + r if mask.shape[0] > 1 else 0, column]:
                    s[c, r] = -np.inf


@inner
def layer_of(mask, b, h):  # type: ignore[no-untyped-def]
    return mask[b if mask.shape[0] > 1 else 0, h if mask.shape[1] > 1 else 0]


@inner
def place_of(row, blocks, heads, indptr):  # type: ignore[no-untyped-def]
    """Batch, head and query block of a row, and where its list begins and ends."""
    i, h, b = row % blocks, row // blocks % heads, row // blocks // heads
    line = layer_of(indptr, b, h)
    return b, h, i, line[i], line[i + 1]


@inner
def clear(row, count, value):  # type: ignore[no-untyped-def]
    for r in range(count):
        row[r] = value


@inner
def forward_rows(p, cut, bounds, q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, memory):  # type: ignore[no-untyped-def]
    keys, k_tile, v_tile, s, rows = memory[0][p], memory[1][p], memory[2][p], memory[3][p, 0], memory[4][p]
    block_q, block_k, ahead = sizes
    heads, nq, d = q.shape[1:]
    nk, dv = v.shape[2:]
    group, blocks = heads // k.shape[1], indptr.shape[2] - 1
    one, zero = q.dtype.type(1), q.dtype.type(0)
    room, step = len(keys), min(block_q, QUERIES, nq)
    top, base, total, factor = rows[0], rows[1], rows[2], rows[3]
    for row in range(bounds[p], bounds[p + 1]):
        b, h, i, begin, end = place_of(row, blocks, heads, indptr)
        kb, vb, shown = k[b, h // group], v[b, h // group], layer_of(mask, b, h)
        stop = min((i + 1) * block_q, nq)
        for first in range(i * block_q, stop, step):
            m, at = min(step, stop - first), begin
            qb, ob = q[b, h, first:], o[b, h, first:]
            for r in range(m):
                top[r], total[r], base[r] = -np.inf, zero, zero
                clear(ob[r], dv, zero)
            while True:
                at, count, together = next_tile(
                    indices, at, end, block_k, min(nk, first + m + ahead), room, keys
                )
                if count == 0:
                    break
                if together:
                    kt, vt = kb[keys[0] :], vb[keys[0] :]
                else:
                    gather(kb, keys, count, k_tile)
                    gather(vb, keys, count, v_tile)
                    kt, vt = k_tile, v_tile
                gemm(0, 1, count, m, d, scale, kt, d, qb, d, zero, s, step)
                hide(s, keys, count, first, m, ahead, shown)
                soften(s, count, m, top, base, total, factor)
                for r in range(m):
                    if factor[r] != one:
                        for x in range(dv):
                            ob[r, x] *= factor[r]
                gemm(1, 0, m, dv, count, one, s, step, vt, dv, one, ob, dv)
            for r in range(m):
                inverse = zero if total[r] == zero else one / total[r]
                tops[b, h, first + r], inverses[b, h, first + r] = base[r], inverse
                for x in range(dv):
                    ob[r, x] *= inverse


@inner
def backward_rows(  # type: ignore[no-untyped-def]
    p, cut, bounds, g, q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, dq, dks, dvs, memory
):
    """The rows of some units; dks (units, Nk, d) and dvs (units, Nk, dv) are added to."""
    keys, k_tile, v_tile = memory[0][p], memory[1][p], memory[2][p]
    s, ds, delta = memory[3][p, 0], memory[3][p, 1], memory[4][p, 0]
    block_q, block_k, ahead = sizes
    heads, nq, d = q.shape[1:]
    nk, wide = v.shape[2:]
    group, blocks = heads // k.shape[1], indptr.shape[2] - 1
    one, zero = q.dtype.type(1), q.dtype.type(0)
    room, step = len(keys), min(block_q, QUERIES, nq)
    u, last = len(dks) * p // cut, len(dks) * (p + 1) // cut
    for row in range(bounds[u], bounds[last]):
        while row >= bounds[u + 1]:
            u += 1
        dk, dv = dks[u], dvs[u]
        b, h, i, begin, end = place_of(row, blocks, heads, indptr)
        kb, vb, shown = k[b, h // group], v[b, h // group], layer_of(mask, b, h)
        stop = min((i + 1) * block_q, nq)
        for first in range(i * block_q, stop, step):
            m, at = min(step, stop - first), begin
            qb, ob, gb, dqb = q[b, h, first:], o[b, h, first:], g[b, h, first:], dq[b, h, first:]
            top, inverse = tops[b, h, first:], inverses[b, h, first:]
            for r in range(m):
                clear(dqb[r], d, zero)
                delta[r] = zero
                for x in range(wide):
                    delta[r] += gb[r, x] * ob[r, x]
            while True:
                at, count, together = next_tile(
                    indices, at, end, block_k, min(nk, first + m + ahead), room, keys
                )
                if count == 0:
                    break
                if together:
                    kt, vt = kb[keys[0] :], vb[keys[0] :]
                else:
                    gather(kb, keys, count, k_tile)
                    gather(vb, keys, count, v_tile)
                    kt, vt = k_tile, v_tile
                gemm(0, 1, count, m, d, scale, kt, d, qb, d, zero, s, step)
                hide(s, keys, count, first, m, ahead, shown)
                gemm(0, 1, count, m, wide, one, vt, wide, gb, wide, zero, ds, step)
                slopes(s, ds, count, m, top, inverse, delta)
                gemm(1, 0, m, d, count, scale, ds, step, kt, d, one, dqb, d)
                if together:
                    gemm(0, 0, count, wide, m, one, s, step, gb, wide, one, dv[keys[0] :], wide)
                    gemm(0, 0, count, d, m, scale, ds, step, qb, d, one, dk[keys[0] :], d)
                else:
                    gemm(0, 0, count, wide, m, one, s, step, gb, wide, zero, v_tile, wide)
                    gemm(0, 0, count, d, m, scale, ds, step, qb, d, zero, k_tile, d)
                    scatter_add(v_tile, keys, count, dv)
                    scatter_add(k_tile, keys, count, dk)

"""Attention to listed blocks of keys, with running sums over tiles of keys, and its gradients in one pass.

    for each block of queries, 64 at a time:                     forward
        top = -inf, total = 0, o = 0
        for each tile: up to 128 keys of the listed blocks
            S = scale K Q^T                                      keys x queries
            top, before = max(top, S), top
            P = exp(S - top),  total = total exp(before - top) + sum P
            o = o exp(before - top) + P^T V
        o = o / total                                            top and 1 / total are kept

    for each block of queries, for each tile:                    backward, delta = sum(g o)
        P = exp(S - top) / total,  D = P (V g^T - delta)
        dv += P g,  dk += scale D Q,  dq += scale D^T K

A tile whose keys lie side by side is used where it is; others are gathered.

dk and dv have contributions of many rows: the rows of one head of k are cut into units, each with a dk and dv
of its own, which are added in order. There is one unit for a head of k unless these are few.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel
from minitf.ops.sparse_attention import REPEATS, checked_blocks

from .blas import MISSING, gemm
from .runtime import CORES, jit, parallel_jit, parts, prange
from .sparse_tiles import gather, plain, scatter_add, slopes, soften

QUERIES, KEYS = 64, 128


@jit
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


@jit
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


@jit
def layer_of(mask, b, h):  # type: ignore[no-untyped-def]
    return mask[b if mask.shape[0] > 1 else 0, h if mask.shape[1] > 1 else 0]


@jit
def place_of(row, blocks, heads, indptr):  # type: ignore[no-untyped-def]
    """Batch, head and query block of a row, and where its list begins and ends."""
    i, h, b = row % blocks, row // blocks % heads, row // blocks // heads
    line = layer_of(indptr, b, h)
    return b, h, i, line[i], line[i + 1]


@jit
def cut_up(scratch, room, step, d, dv):  # type: ignore[no-untyped-def]
    """Tiles of keys (room, d), of values (room, dv), two of scores (room, step), and four rows of step."""
    a, b, c = room * d, room * dv, room * step
    return (
        scratch[:a].reshape(room, d), scratch[a : a + b].reshape(room, dv),
        scratch[a + b : a + b + c].reshape(room, step), scratch[a + b + c : a + b + 2 * c].reshape(room, step),
        scratch[a + b + 2 * c : a + b + 2 * c + 4 * step].reshape(4, step),
    )  # fmt: skip


@jit
def forward_rows(
    lo, hi, q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, keys, scratch
):  # type: ignore[no-untyped-def]
    block_q, block_k, ahead = sizes
    heads, nq, d = q.shape[1:]
    nk, dv = v.shape[2:]
    group, blocks = heads // k.shape[1], indptr.shape[2] - 1
    one, zero = q.dtype.type(1), q.dtype.type(0)
    room, step = len(keys), min(block_q, QUERIES, nq)
    k_tile, v_tile, s, _, (top, base, total, factor) = cut_up(scratch, room, step, d, dv)
    for row in range(lo, hi):
        b, h, i, begin, end = place_of(row, blocks, heads, indptr)
        kb, vb, shown = k[b, h // group], v[b, h // group], layer_of(mask, b, h)
        stop = min((i + 1) * block_q, nq)
        for first in range(i * block_q, stop, step):
            m, p = min(step, stop - first), begin
            qb, ob = q[b, h, first:], o[b, h, first:]
            top[:m], total[:m], base[:m], ob[:m] = -np.inf, zero, zero, zero
            while True:
                p, count, together = next_tile(
                    indices, p, end, block_k, min(nk, first + m + ahead), room, keys
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


@jit
def backward_rows(
    lo, hi, g, q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, dq, dk, dv, keys, scratch
):  # type: ignore[no-untyped-def]
    """Rows of one head of k; dk (Nk, d) and dv (Nk, dv) are added to."""
    block_q, block_k, ahead = sizes
    heads, nq, d = q.shape[1:]
    nk, wide = v.shape[2:]
    group, blocks = heads // k.shape[1], indptr.shape[2] - 1
    one, zero = q.dtype.type(1), q.dtype.type(0)
    room, step = len(keys), min(block_q, QUERIES, nq)
    k_tile, v_tile, s, ds, (delta, _, _, _) = cut_up(scratch, room, step, d, wide)
    for row in range(lo, hi):
        b, h, i, begin, end = place_of(row, blocks, heads, indptr)
        kb, vb, shown = k[b, h // group], v[b, h // group], layer_of(mask, b, h)
        stop = min((i + 1) * block_q, nq)
        for first in range(i * block_q, stop, step):
            m, p = min(step, stop - first), begin
            qb, ob, gb, dqb = q[b, h, first:], o[b, h, first:], g[b, h, first:], dq[b, h, first:]
            top, inverse = tops[b, h, first:], inverses[b, h, first:]
            dqb[:m] = zero
            for r in range(m):
                delta[r] = zero
                for x in range(wide):
                    delta[r] += gb[r, x] * ob[r, x]
            while True:
                p, count, together = next_tile(
                    indices, p, end, block_k, min(nk, first + m + ahead), room, keys
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


@parallel_jit
def forward_all(
    bounds, q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, keys, scratch
):  # type: ignore[no-untyped-def]
    if len(keys) == 1:
        forward_rows(
            bounds[0], bounds[1], q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, keys[0],
            scratch[0],
        )  # fmt: skip
    else:
        for p in prange(len(keys)):
            forward_rows(
                bounds[p], bounds[p + 1], q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses,
                keys[p], scratch[p],
            )  # fmt: skip


@jit
def backward_units(
    first, last, bounds, g, q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, dq, dk, dv, keys,
    scratch,
):  # type: ignore[no-untyped-def]  # fmt: skip
    for u in range(first, last):
        backward_rows(
            bounds[u], bounds[u + 1], g, q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, dq,
            dk[u], dv[u], keys, scratch,
        )  # fmt: skip


@parallel_jit
def backward_all(
    bounds, g, q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, dq, dk, dv, keys, scratch
):  # type: ignore[no-untyped-def]
    units, cut = len(bounds) - 1, len(keys)
    if cut == 1:
        backward_units(
            0, units, bounds, g, q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, dq, dk, dv,
            keys[0], scratch[0],
        )  # fmt: skip
    else:
        for p in prange(cut):
            backward_units(
                units * p // cut, units * (p + 1) // cut, bounds, g, q, k, v, indptr, indices, sizes, mask,
                scale, o, tops, inverses, dq, dk, dv, keys[p], scratch[p],
            )  # fmt: skip


@jit
def repeated(indptr, indices, seen):  # type: ignore[no-untyped-def]
    """Whether a row lists a block twice. seen: zeros, one for each block of keys."""
    row = 0
    for b in range(indptr.shape[0]):
        for h in range(indptr.shape[1]):
            for i in range(indptr.shape[2] - 1):
                row += 1
                for p in range(indptr[b, h, i], indptr[b, h, i + 1]):
                    if seen[indices[p]] == row:
                        return True
                    seen[indices[p]] = row
    return False


def full_mask(mask: Any) -> Any:
    """The mask with four axes, each of size 1 where it is broadcast."""
    if mask is None:
        return np.ones((1, 1, 1, 1), bool)
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    return plain(mask[tuple(slice(0, 1) if step == 0 else slice(None) for step in mask.strides)])


def memory(cut: int, q: Any, v: Any, sizes: tuple[int, int, int]) -> tuple[Any, Any]:
    """For every part the places of the keys of a tile, and the numbers that `cut_up` cuts up."""
    room, step = max(KEYS, min(sizes[1], v.shape[2])), min(sizes[0], QUERIES, q.shape[2])
    numbers = room * (q.shape[3] + v.shape[3] + 2 * step) + 4 * step
    return np.empty((cut, room), np.int64), np.empty((cut, numbers), q.dtype)


def supports(
    q: Any, k: Any, v: Any, indptr: Any, indices: Any, block_q: Any, block_k: Any, mask: Any, causal: Any,
    scale: Any,
) -> str | None:  # fmt: skip
    for a in (q, k, v, indptr, indices):
        if type(a) is not np.ndarray:
            return "an argument is not a NumPy array"
    if q.dtype not in (np.float32, np.float64) or k.dtype != q.dtype or v.dtype != q.dtype:
        return f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; the kernel takes three of float32 or of float64"
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or not (q.size and k.size and v.size):
        return "q, k, v must have four axes, none of them empty"
    if mask is not None:
        if type(mask) is not np.ndarray or mask.dtype != bool or mask.ndim > 4:
            return "the mask is not a boolean NumPy array of at most four axes"
        full = (*q.shape[:3], k.shape[2])[4 - mask.ndim :]
        if any(n not in (1, whole) for n, whole in zip(mask.shape, full, strict=True)):
            return f"the mask {mask.shape} does not fit {full}"
    if type(block_q) is not int or type(block_k) is not int or not isinstance(scale, (int, float, type(None))):
        return "block sizes and scale must be Python numbers"
    return MISSING


def forward(
    q: Any, k: Any, v: Any, indptr: Any, indices: Any, block_q: int, block_k: int, mask: Any, causal: bool,
    scale: float | None,
) -> tuple[Any, Any]:  # fmt: skip
    indptr, indices = checked_blocks(q, k, v, indptr, indices, block_q, block_k)
    indptr, indices, nk = plain(indptr), plain(indices), k.shape[2]
    if repeated(indptr, indices, np.zeros(-(-nk // block_k), np.int64)):
        raise ValueError(REPEATS)
    q, k, v = plain(q), plain(k), plain(v)
    batch, heads, nq, d = q.shape
    factor = q.dtype.type(1.0 / math.sqrt(d) if scale is None else scale)
    # How far ahead of its own place a query sees; without `causal`, to the end.
    sizes = (block_q, block_k, nk - nq if causal else nk)
    o = np.empty((batch, heads, nq, v.shape[3]), q.dtype)
    tops, inverses = np.empty((2, batch, heads, nq), q.dtype)
    shown = full_mask(mask)
    # What the rows before each one cost: pairs of blocks, and one for the row itself.
    cost = np.broadcast_to(np.diff(indptr, axis=-1) + 1, (batch, heads, indptr.shape[2] - 1))
    cost = np.append(0, np.cumsum(cost))
    work = int(cost[-1]) * min(block_q, nq) * min(block_k, nk) * (d + v.shape[3]) // 8
    share = parts(len(cost) - 1, work)
    bounds = np.searchsorted(cost, np.arange(share + 1) * cost[-1] // share)
    forward_all(
        bounds, q, k, v, indptr, indices, sizes, shown, factor, o, tops, inverses, *memory(share, q, v, sizes)
    )
    return o, (q, k, v, indptr, indices, sizes, shown, factor, o, tops, inverses, cost, work)


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    *kept, cost, work = residuals
    q, k, v, indptr = kept[:4]
    # Units: equal parts of the rows of each head of k, at least four for each core.
    heads = k.shape[0] * k.shape[1]
    pieces = 1 if heads >= 4 * CORES else parts((len(cost) - 1) // heads, work, -(-4 * CORES // heads))
    edges = np.arange(heads + 1) * ((len(cost) - 1) // heads)
    span = (cost[edges[1:]] - cost[edges[:-1]])[:, None]
    bounds = np.searchsorted(cost, cost[edges[:-1], None] + span * np.arange(pieces) // pieces).reshape(-1)
    bounds = np.append(bounds, edges[-1])
    dq = np.empty_like(q)
    dk, dv = (np.zeros((heads * pieces, *x.shape[2:]), q.dtype) for x in (k, v))
    cut = parts(heads * pieces, work)
    backward_all(bounds, plain(g), *kept, dq, dk, dv, *memory(cut, q, v, kept[5]))
    dk, dv = (x.reshape(heads, pieces, -1).sum(1) if pieces > 1 else x for x in (dk, dv))
    return dq, dk.reshape(k.shape), dv.reshape(v.shape), *(None,) * 7


KERNELS = {"block_sparse_attention": Kernel(forward, vjp, supports)}

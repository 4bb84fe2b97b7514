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

from .blas import MISSING
from .block_sparse_rows import QUERIES, backward_rows, forward_rows
from .runtime import CORES, jit, parts, share_out
from .sparse_tiles import plain

KEYS = 128


@jit
def forward_all(cut, bounds, q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, memory):  # type: ignore[no-untyped-def]
    share_out(
        forward_rows, cut, bounds, q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, memory
    )


@jit
def backward_all(  # type: ignore[no-untyped-def]
    cut, bounds, g, q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, dq, dk, dv, memory
):
    share_out(
        backward_rows, cut, bounds, g, q, k, v, indptr, indices, sizes, mask, scale, o, tops, inverses, dq,
        dk, dv, memory,
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


def memory(cut: int, q: Any, v: Any, sizes: tuple[int, int, int]) -> tuple[Any, ...]:
    """For every part: the places of the keys of a tile, the keys, the values, two tiles of scores, 4 rows."""
    room, step = max(KEYS, min(sizes[1], v.shape[2])), min(sizes[0], QUERIES, q.shape[2])
    shapes = (room, q.shape[3]), (room, v.shape[3]), (2, room, step), (4, step)
    return np.empty((cut, room), np.int64), *(np.empty((cut, *shape), q.dtype) for shape in shapes)


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
    if (
        type(block_q) is not int
        or type(block_k) is not int
        or not isinstance(scale, (int, float, type(None)))
    ):
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
    kept = (q, k, v, indptr, indices, sizes, shown, factor, o, tops, inverses)
    forward_all(share, bounds, *kept, memory(share, q, v, sizes))
    return o, (*kept, cost, work)


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
    backward_all(cut, bounds, plain(g), *kept, dq, dk, dv, memory(cut, q, v, kept[5]))
    dk, dv = (x.reshape(heads, pieces, -1).sum(1) if pieces > 1 else x for x in (dk, dv))
    return dq, dk.reshape(k.shape), dv.reshape(v.shape), *(None,) * 7


KERNELS = {"block_sparse_attention": Kernel(forward, vjp, supports)}

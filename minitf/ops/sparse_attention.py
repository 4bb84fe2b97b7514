"""Attention that touches a part of the keys only: listed blocks of a sequence, and windows of a grid."""

from __future__ import annotations

import math
from operator import index
from typing import Any

import numpy as np

from minitf.engine import Array, ShapeError, Tensor, array_module, to_device

from .attention import softmax_attention
from .elementwise import Like
from .kernels import kernelized
from .shape import concat, pad, permute_dims, reshape


def on_cpu(a: Any) -> Array:
    """The values of a tensor or an array, as a NumPy array."""
    return to_device(a.data if isinstance(a, Tensor) else np.asarray(a) if isinstance(a, list) else a, "cpu")


def csr_of(block_mask: Like) -> tuple[Array, Array]:
    """The lists of visible blocks that `block_sparse_attention` takes, of a boolean block mask.

    Args:
        block_mask: (B or 1, H or 1, Mq, Mk), True where a query block sees a key block.

    Returns:
        indptr (B or 1, H or 1, Mq + 1) and indices, 1-D: row i of head h lists
        indices[indptr[b, h, i] : indptr[b, h, i + 1]].

    Raises:
        ShapeError: not four axes. TypeError: not boolean.
    """
    mask = on_cpu(block_mask)
    if mask.ndim != 4:
        raise ShapeError(f"csr_of: the block mask must be (B or 1, H or 1, Mq, Mk), not {mask.shape}")
    if mask.dtype != bool:
        raise TypeError(f"csr_of: the block mask must be boolean, not {mask.dtype}")
    batch, heads, rows, _ = mask.shape
    before = np.append(0, np.cumsum(mask.sum(axis=-1)))
    first = np.arange(batch * heads).reshape(batch, heads, 1) * rows
    return before[first + np.arange(rows + 1)], np.nonzero(mask)[-1]


def checked_blocks(
    q: Any, k: Any, v: Any, indptr: Any, indices: Any, block_q: int, block_k: int
) -> tuple[Array, Array]:
    """indptr and indices as NumPy arrays of int64, after every check that does not look for repeats.

    Raises:
        ShapeError, TypeError, ValueError: as in `block_sparse_attention`.
    """
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise ShapeError(
            f"block_sparse_attention: q {q.shape} must be (B, H, Nq, d) and k {k.shape} (B, Hkv, Nk, d)"
        )
    if not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ShapeError(
            f"block_sparse_attention: the {k.shape[1]} heads of k must divide the {q.shape[1]} of q"
        )
    if v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        raise ShapeError(f"block_sparse_attention: v {v.shape} must have the B, Hkv and Nk of k {k.shape}")
    if block_q < 1 or block_k < 1:
        raise ValueError(
            f"block_sparse_attention: block_q={block_q} and block_k={block_k} must be at least 1"
        )
    indptr, indices = on_cpu(indptr), on_cpu(indices)
    for name, a in (("indptr", indptr), ("indices", indices)):
        if a.dtype.kind not in "iu":
            raise TypeError(f"block_sparse_attention: {name} must be integers, not {a.dtype}")
    rows, columns = -(-q.shape[2] // block_q), -(-k.shape[2] // block_k)
    fits = indptr.ndim == 3 and indptr.shape[2] == rows + 1
    if not fits or indptr.shape[0] not in (1, q.shape[0]) or indptr.shape[1] not in (1, q.shape[1]):
        raise ShapeError(
            f"block_sparse_attention: indptr {indptr.shape} must be (B or 1, H or 1, Mq + 1), with "
            f"B, H = {q.shape[:2]} and Mq = {rows} blocks of {block_q} for {q.shape[2]} queries"
        )
    if indices.ndim != 1:
        raise ShapeError(f"block_sparse_attention: indices {indices.shape} must have one axis")
    if np.any(indptr[..., 1:] < indptr[..., :-1]):
        raise ValueError("block_sparse_attention: indptr must not decrease along its last axis")
    if indptr.size and (indptr.min() < 0 or indptr.max() > len(indices)):
        raise ValueError(
            f"block_sparse_attention: indptr must point into the {len(indices)} indices, "
            f"found {indptr.min()}..{indptr.max()}"
        )
    if len(indices) and (indices.min() < 0 or indices.max() >= columns):
        raise ValueError(
            f"block_sparse_attention: indices must be blocks 0..{columns - 1}, of {block_k} for {k.shape[2]} "
            f"keys, found {indices.min()}..{indices.max()}"
        )
    return indptr.astype(np.int64), indices.astype(np.int64)


REPEATS = "block_sparse_attention: a row of indices lists a block more than once"


@kernelized("block_sparse_attention")
def block_sparse_attention(
    q: Like,
    k: Like,
    v: Like,
    indptr: Like,
    indices: Like,
    block_q: int = 16,
    block_k: int = 16,
    mask: Like = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention in which every block of queries sees the blocks of keys that are listed for it.

        L_I = indices[indptr[b, h, I] : indptr[b, h, I + 1]]         the blocks that query block I sees
        o_i = sum_j P_ij v_j,    P_ij = softmax of scale q_i . k_j   over the keys j of the blocks L_I, i in I

    The lists are those of `csr_of`. Rows are taken together with others of like length, 1, 2, 3-4, 5-8 ...
    blocks, filled up to the longest with keys that are hidden: so the work is at most twice that of the
    blocks that are listed.

    Args:
        q: queries (B, H, Nq, d).
        k: keys (B, Hkv, Nk, d); Hkv divides H, and query head h uses key head h // (H / Hkv).
        v: values (B, Hkv, Nk, dv).
        indptr: integers (B or 1, H or 1, Mq + 1), Mq = ceil(Nq / block_q).
        indices: integers, 1-D, from 0 to Mk - 1, Mk = ceil(Nk / block_k); in any order, without repeats in a
            row. Several rows may share a part of it.
        block_q, block_k: tokens in a block; the last block may be shorter.
        mask: boolean, broadcastable to (B, H, Nq, Nk), hides more. A query that sees nothing gives zeros.
        causal: hide key j from query i unless j <= i + (Nk - Nq).
        scale: factor on q k^T, default 1 / sqrt(d).

    Returns:
        (B, H, Nq, dv).

    Raises:
        ShapeError: shapes that do not fit each other.
        TypeError: indptr or indices that are not integers.
        ValueError: an indptr that decreases or points elsewhere, indices out of range or repeated in a row,
            blocks of no tokens.
    """
    indptr, indices = checked_blocks(q, k, v, indptr, indices, block_q, block_k)
    batch, heads, n_queries, d = q.shape
    kv_heads, n_keys, dv = k.shape[1], k.shape[2], v.shape[3]
    scale = 1.0 / math.sqrt(d) if scale is None else scale
    xp = array_module(q.data if isinstance(q, Tensor) else q)
    blocks = indptr.shape[2] - 1
    if not (batch * heads * n_queries and n_keys):
        return Tensor(xp.zeros((batch, heads, n_queries, dv), dtype=q.dtype))
    # So that an empty list has something to point to.
    indices = np.append(indices, 0)
    # A row is one query block of one head: where its list begins, and how long it is, (B H Mq,)
    begin, end = (
        np.broadcast_to(x, (batch, heads, blocks)).reshape(-1) for x in (indptr[..., :-1], indptr[..., 1:])
    )
    length = end - begin
    width = 2 ** np.ceil(np.log2(np.maximum(length, 1))).astype(int)
    if mask is not None:
        mask = xp.asarray(mask.data if isinstance(mask, Tensor) else mask)
        mask = xp.broadcast_to(mask, (*q.shape[:3], n_keys))
    q, k, v = (reshape(x, (-1, x.shape[-1])) for x in (q, k, v))
    outputs, order = [], []
    for w in np.unique(width):
        rows = np.flatnonzero(width == w)
        order.append(rows)
        b, h = rows // (heads * blocks), rows // blocks % heads
        # Blocks of keys (R, w), and which of them are in the list.
        slot = np.arange(w)
        listed = indices[np.minimum(begin[rows, None] + slot, len(indices) - 1)]
        real = slot < length[rows, None]
        if np.any(np.diff(np.sort(np.where(real, listed, n_keys + slot)), axis=1) == 0):
            raise ValueError(REPEATS)
        # Tokens: i (R, block_q) and j (R, w block_k). What stands behind the end is token n - 1, and hidden.
        i = (rows % blocks * block_q)[:, None] + np.arange(block_q)
        j = (listed[..., None] * block_k + np.arange(block_k)).reshape(len(rows), -1)
        visible = (np.repeat(real, block_k, axis=1) & (j < n_keys))[:, None, :]
        i, j = np.minimum(i, n_queries - 1), np.minimum(j, n_keys - 1)
        if causal:
            visible = visible & (j[:, None, :] <= i[:, :, None] + (n_keys - n_queries))
        visible = xp.asarray(visible)
        if mask is not None:
            visible = visible & mask[b[:, None, None], h[:, None, None], i[:, :, None], j[:, None, :]]
        mine = ((b * heads + h) * n_queries)[:, None] + i
        theirs = ((b * kv_heads + h // (heads // kv_heads)) * n_keys)[:, None] + j
        # (1, R, block_q, dv)
        outputs.append(
            softmax_attention(
                q[mine][None], k[theirs][None], v[theirs][None], mask=visible[None], scale=scale
            )
        )
    o = concat(outputs, axis=1)[0][np.argsort(np.concatenate(order))]
    return reshape(o, (batch, heads, blocks * block_q, dv))[:, :, :n_queries]


def both(value: int | tuple[int, int]) -> tuple[int, int]:
    """One number for rows and columns, or one for each."""
    rows, columns = value if isinstance(value, (tuple, list)) else (value, value)
    return index(rows), index(columns)


def checked_windows(
    q: Any, k: Any, v: Any, window: Any, bias: Any, shift: Any
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The window's (rows, columns), and how many of them the first one has outside the grid.

    Raises:
        ShapeError, ValueError: as in `window_attention`.
    """
    w, s = both(window), both(shift)
    if q.ndim != 5 or q.shape != k.shape or v.ndim != 5 or v.shape[:4] != k.shape[:4]:
        raise ShapeError(
            f"window_attention: q {q.shape} and k {k.shape} must be (B, H, rows, columns, d), and v "
            f"{v.shape} the same but for its last axis"
        )
    if min(w) < 1 or not (0 <= s[0] < w[0] and 0 <= s[1] < w[1]):
        raise ValueError(
            f"window_attention: window={window} must be at least 1, and shift={shift} from 0 to window - 1"
        )
    n = w[0] * w[1]
    if bias is not None and tuple(bias.shape) != (q.shape[1], n, n):
        raise ShapeError(f"window_attention: bias {bias.shape} must be (H, n, n) = {(q.shape[1], n, n)}")
    return w, (-s[0] % w[0], -s[1] % w[1])


@kernelized("window_attention")
def window_attention(
    q: Like,
    k: Like,
    v: Like,
    window: int | tuple[int, int],
    bias: Like = None,
    shift: int | tuple[int, int] = 0,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention inside the windows of a grid (Liu et al., 2021, section 3.2).

        S_ij = scale * q_i . k_j + bias_{p(i) p(j)},    P = softmax of S over the window of i,    o = P v

    The grid is cut before rows s, s + w, s + 2 w, ... and before such columns; s = 0 cuts it from its corner.
    p(i) = ((r - s) mod w) w + (c - s) mod w, the place of cell i = (r, c) in its window. Windows at the
    borders may be smaller, and have those places that lie on the grid. Rolling the grid by -s and hiding what
    meets only through the roll gives the same.

    Args:
        q, k: (B, H, rows, columns, d). v: (B, H, rows, columns, dv).
        window: w, or one number for rows and one for columns.
        bias: (H, n, n), for every two places of a window of n = w w cells, query first.
        shift: s, from 0 to w - 1, or one number for rows and one for columns.
        scale: factor on q k^T, default 1 / sqrt(d).

    Returns:
        (B, H, rows, columns, dv).

    Raises:
        ShapeError: shapes that do not fit each other.
        ValueError: a window below 1, a shift outside 0..w-1.
    """
    (height, width), before = checked_windows(q, k, v, window, bias, shift)
    batch, heads, rows, columns, _ = q.shape
    xp = array_module(q.data if isinstance(q, Tensor) else q)
    top, left = before
    # Empty cells around the grid, so that it is full windows: (B, H, R w, C w, d)
    fill = ((top, -(top + rows) % height), (left, -(left + columns) % width))
    r, c = (top + rows + fill[0][1]) // height, (left + columns + fill[1][1]) // width

    def cut(x: Like) -> Tensor:
        """(B, H, rows, columns, d) -> (B R C, H, n, d)."""
        x = pad(x, ((0, 0), (0, 0), *fill, (0, 0)))
        x = reshape(x, (batch, heads, r, height, c, width, x.shape[-1]))
        return reshape(permute_dims(x, (0, 2, 4, 1, 3, 5, 6)), (-1, heads, height * width, x.shape[-1]))

    mask = None
    if np.any(fill):
        # No query sees an empty cell: (B R C, 1, 1, n)
        real = np.pad(np.ones((rows, columns), bool), fill).reshape(r, height, c, width)
        mask = xp.asarray(np.tile(real.swapaxes(1, 2).reshape(r * c, 1, 1, -1), (batch, 1, 1, 1)))
    o = softmax_attention(cut(q), cut(k), cut(v), mask=mask, bias=bias, scale=scale)
    o = permute_dims(reshape(o, (batch, r, c, heads, height, width, -1)), (0, 3, 1, 4, 2, 5, 6))
    o = reshape(o, (batch, heads, r * height, c * width, -1))
    return o[:, :, top : top + rows, left : left + columns]

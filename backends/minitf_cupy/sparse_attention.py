"""Attention over listed blocks and inside windows: launchers of sparse_attention.cu, which explains them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minitf.ops.kernels import Kernel
from minitf.ops.sparse_attention import REPEATS, checked_blocks, checked_windows

from .attention_problem import FAR, unfit
from .module import blocks, launch, refusal, summed_in

WIDTHS = (32, 64, 128, 256)
# A block's threads are so many warps, and each owns a row.
WARPS = 4
# Partial sums of the bias's gradient that keep a card busy.
PARTIAL = 2**18


class Lists(NamedTuple):
    """For each row of every pattern the blocks that it names: starts (rows + 1,) int64, blocks (n,) int32."""

    starts: Any
    blocks: Any


class Kept(NamedTuple):
    """What the backward pass needs; `told`: the first arguments of every kernel, `more`: the operation's."""

    q: Any
    k: Any
    v: Any
    told: tuple[Any, ...]
    more: tuple[Any, ...]
    o: Any
    # Of every query: the largest score, and 1 / sum exp(score - largest).
    top: Any
    inverse: Any


def contiguous(*arrays: Any) -> tuple[Any, ...]:
    import cupy

    return tuple(None if a is None else cupy.ascontiguousarray(a) for a in arrays)


def run(kernel: str, q: Any, v: Any, rows: int, *args: Any) -> None:
    """A warp for each of `rows`."""
    width = min(w for w in WIDTHS if w >= max(q.shape[-1], v.shape[-1]))
    launch("sparse_attention", kernel, q.dtype, blocks(rows, WARPS), 32 * WARPS, *args, WIDTH=width)


def attended(kernel: str, q: Any, v: Any, rows: int, *args: Any) -> tuple[Any, Any, Any]:
    """The output, the largest score and 1 / sum of every query."""
    import cupy

    o = cupy.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
    top, inverse = (cupy.empty(q.shape[:-1], summed_in(q.dtype)) for _ in range(2))
    run(kernel, q, v, rows, *args, o, top, inverse)
    return o, top, inverse


def listed(indptr: Any, indices: Any, columns: int) -> tuple[Lists, Lists]:
    """The blocks of keys of every block of queries, and the other way round. NumPy arrays.

    Raises:
        ValueError: a row names a block twice.
    """
    length = np.diff(indptr).reshape(-1)
    starts = np.append(0, np.cumsum(length))
    # Of every entry: its row among those of all patterns, and its block.
    row = np.repeat(np.arange(len(length)), length)
    inside = np.arange(len(row)) - starts[row]
    block = indices[indptr[..., :-1].reshape(-1)[row] + inside]
    rows = indptr.shape[-1] - 1
    column = row // max(rows, 1) * columns + block
    order = np.argsort(column, kind="stable")
    if np.any((np.diff(column[order]) == 0) & (np.diff(row[order]) == 0)):
        raise ValueError(REPEATS)
    patterns = indptr.shape[0] * indptr.shape[1]
    begin = np.append(0, np.cumsum(np.bincount(column, minlength=patterns * columns)))
    back = row[order] % max(rows, 1)
    return Lists(starts, block.astype("int32")), Lists(begin, back.astype("int32"))


def on_card(lists: Lists) -> tuple[Any, ...]:
    import cupy

    return cupy.asarray(lists.starts.astype("int64")), cupy.asarray(lists.blocks)


def mask_strides(mask: Any, pairs: tuple[int, ...]) -> tuple[int, ...]:
    """In elements, along batch, head, query and key; 0 where the mask is repeated."""
    if mask is None:
        return (0, 0, 0, 0)
    sizes = (1,) * (4 - mask.ndim) + mask.shape
    own = (math.prod(sizes[i + 1 :]) for i in range(4))
    return tuple(step if size > 1 else 0 for step, size in zip(own, sizes, strict=True))


def block_forward(
    q: Any,
    k: Any,
    v: Any,
    indptr: Any,
    indices: Any,
    block_q: int,
    block_k: int,
    mask: Any,
    causal: bool,
    scale: float | None,
) -> tuple[Any, Kept]:
    indptr, indices = checked_blocks(q, k, v, indptr, indices, block_q, block_k)
    q, k, v, mask = contiguous(q, k, v, mask)
    (b, h, n, d), (kv_heads, m) = q.shape, k.shape[1:3]
    # A block beyond the end is as long as all.
    sizes = min(int(block_q), max(n, 1)), min(int(block_k), max(m, 1))
    forth, back = listed(indptr, indices, blocks(m, sizes[1]))
    factor = 1 / math.sqrt(d) if scale is None else float(scale)
    pattern = (indptr.shape[1] if indptr.shape[0] > 1 else 0, 1 if indptr.shape[1] > 1 else 0)
    shown = (n, m, bool(causal), factor, mask, *mask_strides(mask, (b, h, n, m)))
    told = (h, kv_heads, d, v.shape[-1], *shown, *pattern, *sizes)
    lists = on_card(forth)
    rows = b * h * n
    found = attended("block_sparse_forward", q, v, rows, q, k, v, rows, *told, *lists)
    return found[0], Kept(q, k, v, told, (lists, back), *found)


def block_backward(kept: Kept, g: Any) -> tuple[Any, ...]:
    import cupy

    q, k, v, told, (forth, back), o, top, inverse = kept
    (g,) = contiguous(g)
    dq, dk, dv, delta = (cupy.empty_like(a) for a in (q, k, v, top))
    rows, keys = top.size, math.prod(k.shape[:3])
    known = (g, top, inverse)
    run("block_sparse_queries", q, v, rows, q, k, v, rows, *told, *forth, o, *known, dq, delta)
    run("block_sparse_keys", q, v, keys, q, k, v, keys, *told, *on_card(back), *known, delta, dk, dv)
    return dq, dk, dv, *(None,) * 7


def window_forward(
    q: Any, k: Any, v: Any, window: Any, bias: Any, shift: Any, scale: float | None
) -> tuple[Any, Kept]:
    size, before = checked_windows(q, k, v, window, bias, shift)
    q, k, v, bias = contiguous(q, k, v, bias)
    _, heads, rows, columns, d = q.shape
    factor = 1 / math.sqrt(d) if scale is None else float(scale)
    told = (math.prod(q.shape[:4]), heads, d, v.shape[-1], rows, columns, *size, *before, factor, bias)
    found = attended("window_forward", q, v, told[0], q, k, v, *told)
    return found[0], Kept(q, k, v, told, (size, before, bias), *found)


def window_backward(kept: Kept, g: Any) -> tuple[Any, ...]:
    import cupy

    q, k, v, told, (_, _, bias), o, top, inverse = kept
    (g,) = contiguous(g)
    dq, dk, dv, delta = (cupy.empty_like(a) for a in (q, k, v, top))
    known = (g, top, inverse)
    run("window_queries", q, v, told[0], q, k, v, *told, o, *known, dq, delta)
    run("window_keys", q, v, told[0], q, k, v, *told, *known, delta, dk, dv)
    dbias = None if bias is None else bias_gradient(kept, (*known, delta))
    return dq, dk, dv, None, dbias, None, None


def bias_gradient(kept: Kept, known: tuple[Any, ...]) -> Any:
    import cupy

    q, k, v, told, (size, before, bias), _, top, _ = kept
    images, _, rows, columns, _ = q.shape
    across = (blocks(b + n, s) for n, s, b in zip((rows, columns), size, before, strict=True))
    # By sizes only, so that every card gives the same bits.
    parts = max(1, min(images * math.prod(across), blocks(PARTIAL, max(bias.size, 1))))
    partial = cupy.empty((parts, *bias.shape), top.dtype)
    # A thread for each pair of places.
    warps = parts * blocks(bias.size, 32 * WARPS) * WARPS
    run("window_bias", q, v, warps, q, k, v, *told, *known, images, parts, partial)
    return partial.sum(axis=0).astype(bias.dtype)


def unequal(q: Any, k: Any, v: Any, axes: int) -> str | None:
    """None, or why q, k and v are no arrays that the kernels take."""
    for name, part in (("q", q), ("k", k), ("v", v)):
        if why := refusal(name, part):
            return why
        if part.ndim != axes or part.dtype != q.dtype:
            return f"{name} must have {axes} axes and the type of q"
    d, dv = q.shape[-1], v.shape[-1]
    if not 0 < min(d, dv) <= max(d, dv) <= WIDTHS[-1]:
        return f"heads are {d} and {dv} wide; the kernel takes 1 to {WIDTHS[-1]}"
    if max(math.prod(a.shape[:-1]) for a in (q, k)) >= FAR:
        return f"more than {FAR} queries or keys"
    return None


def block_reasons(
    q: Any,
    k: Any,
    v: Any,
    indptr: Any,
    indices: Any,
    block_q: int,
    block_k: int,
    mask: Any,
    causal: bool,
    scale: float | None,
) -> str | None:
    """None, or why the kernels cannot take these arguments. What the lists hold is looked at later."""
    if why := unequal(q, k, v, 4):
        return why
    (b, h, n, d), (kv_heads, m) = q.shape, k.shape[1:3]
    if k.shape != (b, kv_heads, m, d) or v.shape[:3] != k.shape[:3] or not kv_heads or h % kv_heads:
        return f"q {q.shape}, k {k.shape} and v {v.shape} do not fit each other"
    if mask is not None:
        return refusal("mask", mask, ("bool",)) or unfit("mask", mask, (b, h, n, m))
    return None


def window_reasons(
    q: Any, k: Any, v: Any, window: Any, bias: Any, shift: Any, scale: float | None
) -> str | None:
    """None, or why the kernels cannot take these arguments."""
    if why := unequal(q, k, v, 5):
        return why
    if q.shape != k.shape or q.shape[:4] != v.shape[:4]:
        return f"q {q.shape}, k {k.shape} and v {v.shape} do not fit each other"
    sides = window if isinstance(window, tuple | list) else (window,)
    if any(hasattr(w, "__index__") and w >= FAR for w in sides):
        return f"a window of {FAR} or more rows or columns"
    return None if bias is None else refusal("bias", bias, (str(q.dtype),))


KERNELS = {
    "block_sparse_attention": Kernel(block_forward, block_backward, block_reasons),
    "window_attention": Kernel(window_forward, window_backward, window_reasons),
}

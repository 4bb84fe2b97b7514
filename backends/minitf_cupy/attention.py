"""Softmax attention: launchers of attention.cu, attention_mma.cu and attention_decode.cu.

The heads of those files explain the kernels. Which one runs:

    one query over a long cache                                       attention_decode.cu, then its merge
    float16 or bfloat16 from sm_80 on; causal, window, packed only    attention_mma.cu, on the tensor cores
    everything else                                                   attention.cu
"""

from __future__ import annotations

from typing import Any

from minitf.ops.kernels import Kernel

from .attention_problem import TILES, Problem, prepared, reasons
from .module import blocks, launch, summed_in

# 16 rows that a warp of attention_mma_forward owns, so many times.
TALL = 2
# Keys from which a single query is worth parts, the keys of a part, and the blocks that keep a card busy.
LONG, PART, BLOCKS = 512, 256, 1024


def forward(*args: Any) -> tuple[tuple[Any, Any], Any]:
    """((o, log-sum-exp in the type of sums), residuals)"""
    p = prepared(*args)
    n, m = p.pairs[2:]
    if n == 1 and m >= LONG:
        o, lse = decoded(p)
    else:
        o, lse = (on_tensor_cores if p.on_tensor_cores else anywhere)(p)
    return (o, lse), (p, o, lse)


def tiles(p: Problem) -> dict[str, Any]:
    sizes = TILES[summed_in(p.q.dtype)]
    width = min(w for w in sizes if w >= p.width)
    return {"WIDTH": width, **dict(zip(("ROWS", "COLUMNS", "SIDE"), sizes[width], strict=True))}


def wide(p: Problem) -> dict[str, Any]:
    return {"WIDTH": 64 if p.width <= 64 else 128, "TALL": TALL}


def anywhere(p: Problem) -> tuple[Any, Any]:
    import cupy

    b, h, n, _ = p.q.shape
    o = cupy.empty((b, h, n, p.v.shape[-1]), p.q.dtype)
    lse = cupy.empty((b, h, n), summed_in(o.dtype))
    cut = tiles(p)
    grid = b * h * blocks(n, cut["ROWS"])
    launch("attention", "attention_forward", o.dtype, grid, 256, *p.told(), o, lse, **cut)
    return o, lse


def widened(a: Any, width: int) -> Any:
    """Zeros beside the last axis, up to `width`: they change no product."""
    import cupy

    if a.shape[-1] == width:
        return cupy.ascontiguousarray(a)
    wide = cupy.zeros((*a.shape[:-1], width), a.dtype)
    wide[..., : a.shape[-1]] = a
    return wide


def on_tensor_cores(p: Problem) -> tuple[Any, Any]:
    import cupy

    b, h, n, _ = p.q.shape
    cut, rows = wide(p), 64 * TALL
    width = cut["WIDTH"]
    q, k, v = (widened(a, width) for a in (p.q, p.k, p.v))
    o, lse = cupy.empty((b, h, n, width), q.dtype), cupy.empty((b, h, n), "float32")
    # COLUMNS of the kernel.
    columns = 32 if width * TALL > 128 else 64
    launch(
        "attention_mma", "attention_mma_forward", q.dtype, b * h * blocks(n, rows), 128,
        q, k, v, h, k.shape[1], *p.visible, p.scale, o, lse,
        shared=2 * width * (rows + 2 * columns), **cut,
    )  # fmt: skip
    return cupy.ascontiguousarray(o[..., : p.v.shape[-1]]), lse


def decoded(p: Problem) -> tuple[Any, Any]:
    import cupy

    (b, h, _, d), dv, m = p.q.shape, p.v.shape[-1], p.k.shape[2]
    # By sizes only, so that every card gives the same bits.
    parts = max(1, min(blocks(m, PART), blocks(BLOCKS, b * h)))
    piece = 16 // p.q.dtype.itemsize
    piece = 1 if d % piece or dv % piece else piece
    cut: dict[str, Any] = {"WIDTH": 64 if p.width <= 64 else 128, "PIECE": piece}
    part_o = cupy.empty((b, h, parts, dv), summed_in(p.q.dtype))
    part_lse = cupy.empty((b, h, parts), part_o.dtype)
    o, lse = cupy.empty((b, h, 1, dv), p.q.dtype), cupy.empty((b, h, 1), part_o.dtype)
    args = (*p.told(), parts, part_o, part_lse)
    launch("attention_decode", "attention_decode", o.dtype, b * h * parts, 128, *args, **cut)
    args = (part_o, part_lse, o, lse, parts, dv)
    launch("attention_decode", "attention_merge", o.dtype, b * h, 128, *args, **cut)
    return o, lse


def backward(residuals: Any, g: Any, g_lse: Any = None) -> tuple[Any, ...]:
    """The gradient of every argument. g or g_lse may be None."""
    import cupy

    p, o, lse = residuals
    g = cupy.zeros_like(o) if g is None else cupy.ascontiguousarray(g)
    g_lse = None if g_lse is None else cupy.ascontiguousarray(g_lse.astype(lse.dtype))
    delta, rows = cupy.empty_like(lse), lse.size
    file, cut = ("attention_mma", wide(p)) if p.on_tensor_cores else ("attention", tiles(p))
    args = (o, g, g_lse, delta, rows, o.shape[-1])
    launch(file, "attention_delta", o.dtype, blocks(rows, 128), 128, *args, **cut)
    if p.on_tensor_cores:
        dq, dk, dv = backward_on_tensor_cores(p, g, lse, delta)
        return dq, dk, dv, *(None,) * 8
    dq, dk, dv, dbias, dslopes = backward_anywhere(p, g, lse, delta, g_lse)
    return dq, dk, dv, None, None, None, dbias, None, None, dslopes, None


def backward_anywhere(p: Problem, g: Any, lse: Any, delta: Any, g_lse: Any) -> tuple[Any, ...]:
    import cupy

    cut = tiles(p)
    (b, h, n, m), kv_heads, args = p.pairs, p.k.shape[1], (*p.told(), g, lse, delta)
    dq, dk, dv = (cupy.empty_like(a) for a in (p.q, p.k, p.v))
    far = None if p.slopes is None else cupy.empty_like(lse)
    rows, columns = blocks(n, cut["SIDE"]), blocks(m, cut["SIDE"])
    launch("attention", "attention_keys", g.dtype, b * kv_heads * columns, 256, *args, dk, dv, **cut)
    launch("attention", "attention_queries", g.dtype, b * h * rows, 256, *args, dq, far, g_lse, **cut)
    dbias = dslopes = None
    if far is not None:
        dslopes = -far.sum(axis=(0, 2)).astype(g.dtype)
    if p.bias is not None:
        along = p.strides(p.bias)
        shape = (b if along[0] else 1, h if along[1] else 1, n, m)
        pairs = cupy.zeros(shape, lse.dtype)
        grid = shape[0] * shape[1] * rows * columns
        launch("attention", "attention_bias", g.dtype, grid, 256, *args, b, pairs, **cut)
        own = (1,) * (4 - p.bias.ndim) + p.bias.shape
        repeated = tuple(i for i in (2, 3) if own[i] == 1)
        dbias = pairs.sum(axis=repeated, keepdims=True).reshape(p.bias.shape).astype(g.dtype)
    return dq, dk, dv, dbias, dslopes


def backward_on_tensor_cores(p: Problem, g: Any, lse: Any, delta: Any) -> tuple[Any, ...]:
    import cupy

    b, h, n, m = p.pairs
    cut = wide(p)
    width = cut["WIDTH"]
    # STEP of the kernels; both keep 64 rows of two arrays, and STEP rows of two more, twice.
    step = 64 if width == 64 else 32
    shared = 2 * width * (2 * 64 + 4 * step)
    q, k, v, g = (widened(a, width) for a in (p.q, p.k, p.v, g))
    dq, dk, dv = (cupy.empty_like(a) for a in (q, k, v))
    args = (q, k, v, h, k.shape[1], *p.visible, p.scale, g, lse, delta)
    launch(
        "attention_mma", "attention_mma_keys", q.dtype, b * k.shape[1] * blocks(m, 64), 128, *args, dk, dv,
        shared=shared + 16 * step, **cut,
    )  # fmt: skip
    launch(
        "attention_mma", "attention_mma_queries", q.dtype, b * h * blocks(n, 64), 128, *args, dq,
        shared=shared, **cut,
    )  # fmt: skip
    narrow = ((dq, p.q), (dk, p.k), (dv, p.v))
    return tuple(cupy.ascontiguousarray(a[..., : like.shape[-1]]) for a, like in narrow)


def with_logsumexp(*args: Any) -> tuple[tuple[Any, Any], Any]:
    (o, lse), residuals = forward(*args)
    return (o, lse.astype(o.dtype)), residuals


def only_output(*args: Any) -> tuple[Any, Any]:
    (o, _), residuals = forward(*args)
    return o, residuals


KERNELS = {
    "softmax_attention": Kernel(only_output, backward, reasons),
    "attention_with_logsumexp": Kernel(with_logsumexp, lambda kept, g: backward(kept, *g), reasons),
}

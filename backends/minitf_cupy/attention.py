"""Softmax attention: launchers of attention.cu, attention_mma.cu and attention_decode.cu.

The heads of those files explain the kernels. Which one runs:

    one query over a long cache                                       attention_decode.cu, then its merge
    float16 or bfloat16 from sm_80 on; causal, window, packed only    attention_mma.cu, on the tensor cores
    everything else                                                   attention.cu
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from minitf.ops.attention import segments
from minitf.ops.kernels import Kernel

from .module import blocks, launch, refusal, summed_in

# Type of sums -> WIDTH -> ROWS, COLUMNS, SIDE of attention.cu.
TILES = {
    "float32": {32: (64, 64, 32), 64: (64, 32, 32), 128: (32, 32, 16)},
    "float64": {64: (32, 16, 16), 80: (32, 16, 16)},
}
# 16 rows that a warp of attention_mma_forward owns, so many times.
TALL = 2
# Keys from which a single query is worth parts, the keys of a part, and the blocks that keep a card busy.
LONG, PART, BLOCKS = 512, 256, 1024
# Positions and windows stay below this, so that their sums fit 32 bits.
FAR = 2**29


class Problem(NamedTuple):
    """The arguments, with contiguous arrays and defaults filled in."""

    q: Any
    k: Any
    v: Any
    # Nq, Nk, causal, window, starts, ends
    visible: tuple[Any, ...]
    scale: float
    softcap: float
    slopes: Any
    bias: Any
    mask: Any

    @property
    def width(self) -> int:
        return max(self.q.shape[-1], self.v.shape[-1])

    @property
    def pairs(self) -> tuple[int, ...]:
        return (*self.q.shape[:3], self.k.shape[2])

    @property
    def on_tensor_cores(self) -> bool:
        import cupy

        plain = self.bias is None and self.mask is None and self.slopes is None and not self.softcap
        return plain and self.q.dtype.itemsize == 2 and int(cupy.cuda.Device().compute_capability) >= 80

    def told(self) -> tuple[Any, ...]:
        """The first arguments of the kernels of attention.cu and attention_decode.cu."""
        q, k, v = self.q, self.k, self.v
        sizes = (q.shape[1], k.shape[1], q.shape[3], v.shape[3])
        scores = (self.scale, self.softcap, self.slopes, self.bias, *self.strides(self.bias))
        return (q, k, v, *sizes, *self.visible, *scores, self.mask, *self.strides(self.mask))

    def strides(self, a: Any) -> tuple[int, ...]:
        """In elements, along batch, head, query and key; 0 where `a` is repeated."""
        import cupy

        if a is None:
            return (0, 0, 0, 0)
        wide = cupy.broadcast_to(a, self.pairs)
        first = (1,) * (4 - a.ndim) + a.shape
        return tuple(s // a.itemsize if n > 1 else 0 for s, n in zip(wide.strides, first, strict=True))


def prepared(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    causal: bool,
    scale: float | None,
    bias: Any,
    window: int | None,
    softcap: float | None,
    slopes: Any,
    cu_seqlens: Any,
) -> Problem:
    import cupy

    n, m = q.shape[2], k.shape[2]
    starts = ends = None
    if cu_seqlens is not None:
        mine = segments(cu_seqlens, n, m)
        cuts = cupy.asarray(cu_seqlens).astype("int32")
        starts, ends = cuts[cupy.asarray(mine - 1)], cuts[cupy.asarray(mine)]
    q, k, v, slopes, bias, mask = (
        None if a is None else cupy.ascontiguousarray(a) for a in (q, k, v, slopes, bias, mask)
    )
    near = FAR if window is None else min(int(window), FAR)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    visible = (n, m, bool(causal), near, starts, ends)
    return Problem(q, k, v, visible, factor, float(softcap or 0), slopes, bias, mask)


def forward(*args: Any) -> tuple[tuple[Any, Any], Any]:
    """((o, log-sum-exp in the type of sums), residuals)"""
    p = prepared(*args)
    n, m = p.pairs[2:]
    if n == 1 and m >= LONG:
        o, lse = decoded(p)
    else:
        o, lse = (on_tensor_cores if p.on_tensor_cores else anywhere)(p)
    return (o, lse), (p, o, lse)


def tiles(p: Problem) -> dict[str, int]:
    sizes = TILES[summed_in(p.q.dtype)]
    width = min(w for w in sizes if w >= p.width)
    return {"WIDTH": width, **dict(zip(("ROWS", "COLUMNS", "SIDE"), sizes[width], strict=True))}


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
    width, rows = (64 if p.width <= 64 else 128), 64 * TALL
    q, k, v = (widened(a, width) for a in (p.q, p.k, p.v))
    o, lse = cupy.empty((b, h, n, width), q.dtype), cupy.empty((b, h, n), "float32")
    # COLUMNS of the kernel.
    columns = 32 if width * TALL > 128 else 64
    launch(
        "attention_mma", "attention_mma_forward", q.dtype, b * h * blocks(n, rows), 128,
        q, k, v, h, k.shape[1], *p.visible, p.scale, o, lse,
        shared=2 * width * (rows + 2 * columns), WIDTH=width, TALL=TALL,
    )  # fmt: skip
    return cupy.ascontiguousarray(o[..., : p.v.shape[-1]]), lse


def decoded(p: Problem) -> tuple[Any, Any]:
    import cupy

    (b, h, _, d), dv, m = p.q.shape, p.v.shape[-1], p.k.shape[2]
    # By sizes only, so that every card gives the same bits.
    parts = max(1, min(blocks(m, PART), blocks(BLOCKS, b * h)))
    piece = 16 // p.q.dtype.itemsize
    piece = 1 if d % piece or dv % piece else piece
    cut = {"WIDTH": 64 if p.width <= 64 else 128, "PIECE": piece}
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
    delta = cupy.empty_like(lse)
    rows, cut = lse.size, tiles(p)
    args = (o, g, g_lse, delta, rows, o.shape[-1])
    launch("attention", "attention_delta", o.dtype, blocks(rows, 4), 128, *args, **cut)
    how = backward_on_tensor_cores if p.on_tensor_cores else backward_anywhere
    dq, dk, dv, dbias, dslopes = how(p, g, lse, delta)
    return dq, dk, dv, None, None, None, dbias, None, None, dslopes, None


def backward_anywhere(p: Problem, g: Any, lse: Any, delta: Any) -> tuple[Any, ...]:
    import cupy

    cut = tiles(p)
    (b, h, n, m), kv_heads, args = p.pairs, p.k.shape[1], (*p.told(), g, lse, delta)
    dq, dk, dv = (cupy.empty_like(a) for a in (p.q, p.k, p.v))
    far = None if p.slopes is None else cupy.empty_like(lse)
    rows, columns = blocks(n, cut["SIDE"]), blocks(m, cut["SIDE"])
    launch("attention", "attention_keys", g.dtype, b * kv_heads * columns, 256, *args, dk, dv, **cut)
    launch("attention", "attention_queries", g.dtype, b * h * rows, 256, *args, dq, far, **cut)
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
    width = 64 if p.width <= 64 else 128
    # STEP of the kernels; both keep 64 rows of two arrays, and STEP rows of two more, twice.
    step = 64 if width == 64 else 32
    shared = 2 * width * (2 * 64 + 4 * step)
    q, k, v, g = (widened(a, width) for a in (p.q, p.k, p.v, g))
    dq, dk, dv = (cupy.empty_like(a) for a in (q, k, v))
    args = (q, k, v, h, k.shape[1], *p.visible, p.scale, g, lse, delta)
    launch(
        "attention_mma", "attention_mma_keys", q.dtype, b * k.shape[1] * blocks(m, 64), 128, *args, dk, dv,
        shared=shared + 16 * step, WIDTH=width, TALL=TALL,
    )  # fmt: skip
    launch(
        "attention_mma", "attention_mma_queries", q.dtype, b * h * blocks(n, 64), 128, *args, dq,
        shared=shared, WIDTH=width, TALL=TALL,
    )  # fmt: skip
    narrow = ((dq, p.q), (dk, p.k), (dv, p.v))
    return (*(cupy.ascontiguousarray(a[..., : like.shape[-1]]) for a, like in narrow), None, None)


def reasons(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    causal: bool,
    scale: float | None,
    bias: Any,
    window: int | None,
    softcap: float | None,
    slopes: Any,
    cu_seqlens: Any,
) -> str | None:
    """None, or why the kernels cannot take these arguments."""
    for name, part in (("q", q), ("k", k), ("v", v)):
        if why := refusal(name, part, ("float16", "bfloat16", "float32", "float64")):
            return why
        if part.ndim != 4 or part.dtype != q.dtype:
            return f"{name} must have 4 axes and the type of q"
    (b, h, n, d), (kv_heads, m) = q.shape, k.shape[1:3]
    if k.shape != (b, kv_heads, m, d) or v.shape[:3] != k.shape[:3] or not kv_heads or h % kv_heads:
        return f"q {q.shape}, k {k.shape} and v {v.shape} do not fit each other"
    widest = max(TILES[summed_in(q.dtype)])
    if not 0 < min(d, v.shape[-1]) <= max(d, v.shape[-1]) <= widest:
        return f"heads are {d} and {v.shape[-1]} wide; the kernel takes 1 to {widest} in {q.dtype}"
    if max(n, m) >= FAR:
        return f"more than {FAR} queries or keys"
    for name, part, dtype in (("mask", mask, "bool"), ("bias", bias, str(q.dtype))):
        if part is not None and (why := refusal(name, part, (dtype,)) or unfit(name, part, (b, h, n, m))):
            return why
    if slopes is not None and (why := refusal("slopes", slopes, (str(q.dtype),))):
        return why
    if slopes is not None and slopes.shape != (h,):
        return f"slopes must be ({h},)"
    if (window is not None and window < 1) or (softcap is not None and not softcap > 0):
        return "window must be at least 1, and softcap above 0"
    if cu_seqlens is not None and n != m:
        return "cu_seqlens needs as many queries as keys"
    return None


def unfit(name: str, part: Any, pairs: tuple[int, ...]) -> str | None:
    """None, or that `part` does not broadcast to the pairs."""
    sizes = zip(part.shape[::-1], pairs[::-1], strict=False)
    fits = part.ndim <= 4 and all(size in (1, most) for size, most in sizes)
    return None if fits else f"{name} {part.shape} does not broadcast to {pairs}"


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

"""Softmax attention in tiles: N x N scores are never stored.

    for each block of queries, on some thread:      m = -inf, z = 0, o = 0 for each of its rows
        for each block of keys that it sees:
            S = scale q k^T                         then cap, bias, slopes, mask (attention_tiles.py)
            m' = max(m, row maximum of S)
            P = exp(S - m')                         0 outside the range that a query sees
            o = exp(m - m') o + P v                 rows whose maximum stayed are not rescaled
            z = exp(m - m') z + row sum of P
        o = o / z,   lse = m + log z                0 and -inf for a row that saw nothing
        keep m and 1 / z                            for the backward (attention_backward.py)

m and z are kept apart: exp(S - lse) would lose the digits that lse has before the point. A few queries over
many keys go to decode.py. Blocks are dealt to the parts there and back (0 1 1 0 0 1 ...), because causal
blocks grow with their place.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .attention_backward import backward
from .attention_tiles import (
    NOTHING,
    TILE,
    address,
    adjust,
    broadcast_place,
    cap,
    clear,
    columns,
    exponentials,
    height,
    hidden,
    larger,
    largest,
    like_rows,
    memory,
    place,
    ranges,
    readable,
    rows_at_once,
)
from .blas import MISSING, gemm
from .decode import decode, few
from .runtime import CORES, inner, jit, parts, share_out
from .vector import exp


@inner
def scale_row(row, factor):  # type: ignore[no-untyped-def]
    for c in range(len(row)):
        row[c] *= factor


@inner
def block(unit, keys, sizes, at, kept, ends, rules, s):  # type: ignore[no-untyped-def]
    """o, and what is kept, of queries i0 .. i1 - 1 of head (b, h); s: a tile of scores, (queries, keys)."""
    (b, h, kv, i0, i1), (q, k, v, o), (first, last) = unit, at, ends
    mask, bias, slopes, scale, bound = rules
    _, _, _, n_queries, n_keys, d, dv = sizes
    zero, one, width = s.dtype.type(0), s.dtype.type(1), s.shape[1]
    off = n_keys - n_queries
    size = s.itemsize
    top, total, lse = kept[0, b, h], kept[1, b, h], kept[2, b, h]
    for i in range(i0, i1):
        top[i], total[i] = -np.inf, 0
        clear(memory(o, b, h, i, dv, scale))
    j1 = first[i0]
    while j1 < last[i1 - 1]:
        j0, j1 = j1, min(j1 + keys, last[i1 - 1])
        r1 = i0
        while r1 < i1:
            r0, r1 = r1, rows_at_once(r1, i1, j0, j1, ends)
            c0, c1 = max(j0, first[r0]), min(j1, last[r1 - 1])
            if c0 >= c1 or hidden(mask, b, h, r0, r1, c0, c1):
                continue
            gemm(0, 1, r1 - r0, c1 - c0, d, scale, memory(q, b, h, r0, d, scale), q[3] // size,
                 memory(k, b, kv, c0, d, scale), k[3] // size, zero, s[0], width)  # fmt: skip
            for i in range(r0, r1):
                row, (lo, hi) = s[i - r0], columns(i, c0, c1, ends)
                x = row[lo:hi]
                if bound:
                    cap(x, bound)
                adjust(x, c0 + lo, b, h, i, off, mask, bias, slopes)
                m = larger(top[i], largest(x))
                shift = zero if m == -np.inf else m
                if m != top[i]:
                    factor = exp(top[i] - shift)
                    total[i] *= factor
                    scale_row(memory(o, b, h, i, dv, scale), factor)
                    top[i] = m
                total[i] += exponentials(x, shift)
                clear(row[:lo])
                clear(row[hi : c1 - c0])
            gemm(0, 0, r1 - r0, dv, c1 - c0, one, s[0], width, memory(v, b, kv, c0, dv, scale), v[3] // size,
                 one, memory(o, b, h, r0, dv, scale), o[3] // size)  # fmt: skip
    for i in range(i0, i1):
        z = total[i]
        lse[i] = top[i] + np.log(z) if z != 0 else -np.inf
        # Kept: 1 / z, and for an empty row what makes its P zero.
        total[i] = one / z if z != 0 else zero
        top[i] = top[i] if z != 0 else zero
        scale_row(memory(o, b, h, i, dv, scale), total[i])


@inner
def some_blocks(p, cut, queries, keys, s, sizes, at, kept, ends, rules):  # type: ignore[no-untyped-def]
    batch, heads, kv_heads, n_queries, _, _, _ = sizes
    blocks = -(-n_queries // queries)
    units = batch * heads * blocks
    for turn in range(-(-units // cut)):
        unit = turn * cut + (cut - 1 - p if turn % 2 else p)
        if unit < units:
            head, i0 = unit // blocks, unit % blocks * queries
            b, h, i1 = head // heads, head % heads, min(i0 + queries, n_queries)
            block((b, h, h * kv_heads // heads, i0, i1), keys, sizes, at, kept, ends, rules, s[p])


@jit
def forward_all(cut, queries, keys, s, first, last, sizes, at, kept, sight, rules):  # type: ignore[no-untyped-def]
    ranges(sizes[4], sight, first, last)
    share_out(some_blocks, cut, queries, keys, s, sizes, at, kept, (first, last), rules)


REAL = (np.float32, np.float64)
NUMBER, INTEGER = (int, float, np.number), (int, np.integer)


def supports(
    q: Any, k: Any, v: Any, mask: Any, causal: Any, scale: Any, bias: Any, window: Any, softcap: Any,
    slopes: Any, cu_seqlens: Any,
) -> str | None:  # fmt: skip
    if type(q) is not np.ndarray or type(k) is not np.ndarray or type(v) is not np.ndarray:
        return "q, k or v is not a NumPy array"
    if q.dtype not in REAL or k.dtype != q.dtype or v.dtype != q.dtype:
        return f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; the kernel takes float32 or float64"
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or not q.size or not k.size or not v.size:
        return "q, k and v must have 4 axes, none of them empty"
    (b, h, n, d), (kb, kv, m, kd) = q.shape, k.shape
    if kb != b or kd != d or h % kv or v.shape[:3] != k.shape[:3]:
        return f"q {q.shape}, k {k.shape} and v {v.shape} do not fit each other"
    if max(n, m) >= 2**31:
        return "more than 2^31 tokens"
    if scale is not None and not isinstance(scale, NUMBER):
        return "scale is not a Python number"
    if mask is not None and (getattr(mask, "dtype", None) != np.bool_ or type(mask) is not np.ndarray):
        return "the mask is not a boolean NumPy array"
    if bias is not None and (type(bias) is not np.ndarray or bias.dtype not in REAL):
        return "the bias is not a NumPy array of float32 or float64"
    for name, x in (("mask", mask), ("bias", bias)):
        if x is not None and not broadcasts(x.shape, (b, h, n, m)):
            return f"the {name} {x.shape} does not fit scores {(b, h, n, m)}"
    if window is not None and not (isinstance(window, INTEGER) and window >= 1):
        return f"window={window} is not an integer from 1 on"
    if softcap is not None and not (isinstance(softcap, NUMBER) and 0 < softcap < math.inf):
        return f"softcap={softcap} is not a Python number above 0"
    if slopes is not None and (
        type(slopes) is not np.ndarray or slopes.dtype not in REAL or slopes.shape != (h,)
    ):
        return f"slopes is not a NumPy array of {h} floats"
    if cu_seqlens is not None and not rising(cu_seqlens, n, m):
        return f"cu_seqlens is not a NumPy array of integers that rise from 0 to {m}, with {m} queries"
    return MISSING


def broadcasts(shape: tuple[int, ...], scores: tuple[int, ...]) -> bool:
    if len(shape) > 4:
        return False
    return all(n in (1, m) for n, m in zip(shape[::-1], scores[::-1], strict=False))


def rising(cuts: Any, n: int, m: int) -> bool:
    if type(cuts) is not np.ndarray or cuts.ndim != 1 or len(cuts) < 2 or cuts.dtype.kind not in "iu":
        return False
    return n == m and cuts[0] == 0 and cuts[-1] == m and not np.any(cuts[1:] < cuts[:-1])


def forward(
    q: Any, k: Any, v: Any, mask: Any, causal: Any, scale: Any, bias: Any, window: Any, softcap: Any,
    slopes: Any, cu_seqlens: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """(o, lse), and what the backward needs: arguments, o, and three numbers for each query."""
    b, h, n, d = q.shape
    kv, m, dv = v.shape[1:]
    kind = q.dtype.type
    q, k, v = readable(q), readable(k), readable(v)
    o, kept = like_rows(q, dv), np.empty((3, b, h, n), q.dtype)
    mask_at = bias_at = NOTHING
    if mask is not None:
        mask, mask_at = broadcast_place(mask, np.bool_)
    given = bias
    if bias is not None:
        bias, bias_at = broadcast_place(bias, kind)
    fall = None if slopes is None else np.ascontiguousarray(slopes, kind)
    slopes_at = NOTHING[:4] if fall is None else (address(fall), 0, fall.itemsize, 0)
    cuts = None if cu_seqlens is None else np.ascontiguousarray(cu_seqlens, np.int64)
    sight = (int(bool(causal)), int(window or 0), 0 if cuts is None else address(cuts))
    factor = 1.0 / math.sqrt(d) if scale is None else scale
    rules = (mask_at, bias_at, slopes_at, kind(factor), kind(softcap or 0.0))
    sizes, at = (b, h, kv, n, m, d, dv), (place(q), place(k), place(v), place(o))
    if few(sizes):
        decode(sizes, at, kept, sight, rules)
    else:
        queries, keys = height(b * h, n), min(TILE, m)
        cut = parts(b * h * -(-n // queries), b * h * n * m * (d + dv) // 16, CORES)
        s, ends = np.empty((cut, queries, keys), q.dtype), np.empty((2, n), np.int64)
        forward_all(cut, queries, keys, s, *ends, sizes, at, kept, sight, rules)
    # The arrays behind the addresses in `rules` are kept alive beside them.
    return (o, kept[2]), (
        sizes,
        at,
        kept,
        sight,
        rules,
        (q, k, v, o),
        (mask, bias, fall, cuts),
        (given, slopes),
    )


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    return backward(residuals, g, None)


def vjp_both(residuals: Any, g: Any) -> tuple[Any, ...]:
    return backward(residuals, *g)


def output_only(*args: Any) -> tuple[Any, Any]:
    (o, _), residuals = forward(*args)
    return o, residuals


KERNELS = {
    "softmax_attention": Kernel(output_only, vjp, supports),
    "attention_with_logsumexp": Kernel(forward, vjp_both, supports),
}

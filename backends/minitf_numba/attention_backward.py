"""The gradients of softmax attention in tiles; P is computed again.

    delta_i = sum_c g_ic o_ic - glse_i                 for each query
    for each block of keys, and each block of queries that sees it:
        S as in the forward,   P = exp(S - m) / z,   dP = g v^T
        dS = P (dP - delta)                            dbias += dS;  dslope -= sum of dS |distance|
        dX = dS (1 - tanh^2)                           with a cap, else dX = dS
        dv += P^T g,   dk += scale dX^T q,   dq += scale dX k

A unit of work is (batch, key head, group of key blocks): it alone writes its dk and dv, and a dq of its
group; the dq of several groups are summed in their order. A bias that heads or batches share makes them one
unit, so that its gradient too is written by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .attention_tiles import (
    NOTHING,
    TILE,
    address,
    adjust,
    cap,
    clear,
    columns,
    height,
    hidden,
    like_rows,
    memory,
    place,
    ranges,
    readable,
    rows_at_once,
)
from .blas import gemm
from .runtime import CORES, inner, jit, parts, share_out
from .vector import exp

SUMS = {"reassoc", "contract"}


@inner(fastmath={"contract"})
def dot(a, b):  # type: ignore[no-untyped-def]
    """In the order in which BLAS takes dP: where P is 1 for a single key, dP - delta is then exactly 0."""
    total = a.dtype.type(0)
    for c in range(len(a)):
        total += a[c] * b[c]
    return total


@inner
def differences(p, cut, sizes, g, o, glse, delta, like):  # type: ignore[no-untyped-def]
    """delta; the rows of a part are counted over (B, H, Nq)."""
    batch, heads, _, n, _, _, dv = sizes
    rows = batch * heads * n
    for x in range(rows * p // cut, rows * (p + 1) // cut):
        b, h, i = x // (heads * n), x // n % heads, x % n
        delta[b, h, i] = dot(memory(g, b, h, i, dv, like), memory(o, b, h, i, dv, like))
        if glse[0]:
            delta[b, h, i] -= memory(glse, b, h, i, 1, like)[0]


@inner
def softmax_row(p, dp, top, part, delta):  # type: ignore[no-untyped-def]
    """p = exp(scores - top) * part and dp = p (dp - delta), in place."""
    for j in range(len(p)):
        e = exp(p[j] - top) * part
        p[j] = e
        dp[j] = e * (dp[j] - delta)


@inner(fastmath=SUMS)
def add_distances(p, ds, here, falls):  # type: ignore[no-untyped-def]
    """falls += sums over a row of dS |distance|, dS, and P |distance|; distances of key j from `here`."""
    first, second, third = 0.0, 0.0, 0.0
    here = np.int32(here)
    for j in range(len(ds)):
        far = ds.dtype.type(abs(np.int32(here - np.int32(j))))
        first += ds[j] * far
        second += ds[j]
        third += p[j] * far
    falls[0] += first
    falls[1] += second
    falls[2] += third


@inner(fastmath=SUMS)
def add_to_bias(dbias, b, h, i, j0, ds):  # type: ignore[no-untyped-def]
    n, total = len(ds), ds.dtype.type(0)
    if dbias[4]:
        row = memory(dbias, b, h, i, j0 + n, total)[j0:]
        for j in range(n):
            row[j] += ds[j]
    else:
        for j in range(n):
            total += ds[j]
        memory(dbias, b, h, i, 1, total)[0] += total


@inner
def squares(x, bound, fall):  # type: ignore[no-untyped-def]
    """fall = 1 - tanh^2 of capped scores x."""
    for j in range(len(x)):
        fall[j] = x.dtype.type(1) - (x[j] / bound) * (x[j] / bound)


@inner
def multiply(x, by):  # type: ignore[no-untyped-def]
    for j in range(len(x)):
        x[j] *= by[j]


@inner
def key_block(unit, queries, sizes, at, kept, delta, to, falls, ends, rules, scratch):  # type: ignore[no-untyped-def]
    """What head h of batch b adds to every gradient through keys j0 .. j1 - 1."""
    (b, h, kv, j0, j1), (q, k, v, g, _), (first, last) = unit, at, ends
    mask, bias, slopes, scale, bound = rules
    dq, dk, dv_, dbias = to
    s, t, fall = scratch
    _, _, _, n_queries, n_keys, d, dv = sizes
    zero, one, width, size = s.dtype.type(0), s.dtype.type(1), s.shape[1], s.itemsize
    off = n_keys - n_queries
    begin, end = 0, n_queries
    while begin < end and last[begin] <= j0:
        begin += 1
    while begin < end and first[end - 1] >= j1:
        end -= 1
    i1 = begin
    while i1 < end:
        i0, i1 = i1, rows_at_once(i1, min(i1 + queries, end), j0, j1, ends)
        c0, c1 = max(j0, first[i0]), min(j1, last[i1 - 1])
        if c0 >= c1 or hidden(mask, b, h, i0, i1, c0, c1):
            continue
        rows, wide = i1 - i0, c1 - c0
        q_at, g_at = memory(q, b, h, i0, d, scale), memory(g, b, h, i0, dv, scale)
        k_at, v_at = memory(k, b, kv, c0, d, scale), memory(v, b, kv, c0, dv, scale)
        gemm(0, 1, rows, wide, d, scale, q_at, q[3] // size, k_at, k[3] // size, zero, s[0], width)
        gemm(0, 1, rows, wide, dv, one, g_at, g[3] // size, v_at, v[3] // size, zero, t[0], width)
        for i in range(i0, i1):
            lo, hi = columns(i, c0, c1, ends)
            p, ds = s[i - i0, lo:hi], t[i - i0, lo:hi]
            if bound:
                cap(p, bound)
                squares(p, bound, fall)
            adjust(p, c0 + lo, b, h, i, off, mask, bias, slopes)
            softmax_row(p, ds, kept[0, b, h, i], kept[1, b, h, i], delta[b, h, i])
            if dbias[0]:
                add_to_bias(dbias, b, h, i, c0 + lo, ds)
            if slopes[0]:
                add_distances(p, ds, i + off - c0 - lo, falls[b, h, i])
            if bound:
                multiply(ds, fall)
            for x in (s, t):
                clear(x[i - i0, :lo])
                clear(x[i - i0, hi:wide])
        gemm(1, 0, wide, dv, rows, one, s[0], width, g_at, g[3] // size, one,
             memory(dv_, b, kv, c0, dv, scale), dv_[3] // size)  # fmt: skip
        gemm(1, 0, wide, d, rows, scale, t[0], width, q_at, q[3] // size, one,
             memory(dk, b, kv, c0, d, scale), dk[3] // size)  # fmt: skip
        gemm(0, 0, rows, d, wide, scale, t[0], width, k_at, k[3] // size, one,
             memory(dq, b, h, i0, d, scale), dq[3] // size)  # fmt: skip


@inner
def some_blocks(p, cut, groups, shared, scratch, ends, sizes, at, kept, delta, to, step, falls, rules):  # type: ignore[no-untyped-def]
    batch, heads, kv_heads, _, n_keys, _, _ = sizes
    s, t, fall = scratch
    _, queries, keys = s.shape
    dq, dk, dv_, dbias = to
    batch_units, head_units = 1 if shared[0] else batch, 1 if shared[1] else kv_heads
    units, blocks, repeat = batch_units * head_units * groups, -(-n_keys // keys), heads // kv_heads
    for unit in range(units * p // cut, units * (p + 1) // cut):
        ub, uh, group = unit // groups // head_units, unit // groups % head_units, unit % groups
        mine = ((dq[0] + group * step, dq[1], dq[2], dq[3]), dk, dv_, dbias)
        for b in range(ub, batch, batch_units):
            for kv in range(uh, kv_heads, head_units):
                for turn in range(-(-blocks // groups)):
                    block = turn * groups + (groups - 1 - group if turn % 2 else group)
                    if block < blocks:
                        j0, j1 = block * keys, min(block * keys + keys, n_keys)
                        for h in range(kv * repeat, kv * repeat + repeat):
                            key_block((b, h, kv, j0, j1), queries, sizes, at, kept, delta, mine,
                                      falls[group], ends, rules, (s[p], t[p], fall[p]))  # fmt: skip


@jit
def backward_all(  # type: ignore[no-untyped-def]
    cut, groups, shared, scratch, ends, sizes, at, glse, kept, delta, to, step, falls, sight, rules
):
    ranges(sizes[4], sight, ends[0], ends[1])
    share_out(differences, cut, sizes, at[3], at[4], glse, delta, rules[3])
    share_out(some_blocks, cut, groups, shared, scratch, ends, sizes, at, kept, delta, to, step, falls, rules)


def groups_of(units: int, blocks: int) -> int:
    """Into how many groups the key blocks of a unit go, so that the cores have equal work."""
    for groups in range(1, min(blocks, 4 * CORES)):
        if units * groups % CORES == 0 or units * groups >= 4 * CORES:
            return groups
    return min(blocks, 4 * CORES)


def backward(residuals: Any, g: Any, glse: Any) -> tuple[Any, ...]:
    sizes, at, kept, sight, rules, (q, k, v, o), (_, bias, _, _), (given, slopes) = residuals
    b, h, kv, n, m, d, dv = sizes
    g = np.zeros_like(o) if g is None else readable(g)
    glse_at = (0, 0, 0, 0) if glse is None else place(glse[..., None])
    dbias: Any = None
    dbias_at, shared = NOTHING, (False, False)
    if bias is not None:
        dbias = np.zeros(bias.shape, q.dtype)
        steps = (0 if size == 1 else step for size, step in zip(dbias.shape, dbias.strides, strict=True))
        dbias_at = (address(dbias), *steps)
        shared = (bias.shape[0] < b, bias.shape[1] < h)
    units = (1 if shared[0] else b) * (1 if shared[1] else kv)
    queries, keys = min(TILE, n), height(units, m)
    cut = parts(b * h * n, b * h * n * m * (d + dv) // 16, CORES)
    groups = 1
    if cut > 1 and not (bias is not None and bias.shape[3] < m):
        groups = groups_of(units, -(-m // keys))
    dk, dv_ = like_rows(k, d, zero=True), like_rows(v, dv, zero=True)
    dq = like_rows(q, d, zero=True) if groups == 1 else np.zeros((groups, b, h, n, d), q.dtype)
    falls = np.zeros((groups, b, h, n, 3) if slopes is not None else (groups, 0, 0, 0, 0))
    cut = min(cut, units * groups)
    s, t = np.empty((2, cut, queries, keys), q.dtype)
    scratch, first = (s, t, np.empty((cut, keys), q.dtype)), dq if groups == 1 else dq[0]
    to = (place(first), place(dk), place(dv_), dbias_at)
    backward_all(
        cut, groups, shared, scratch, tuple(np.empty((2, n), np.int64)), sizes, (*at[:3], place(g), at[3]),
        glse_at, kept, np.empty((b, h, n), q.dtype), to, dq.strides[0] if groups > 1 else 0, falls, sight,
        rules,
    )  # fmt: skip
    if groups > 1:
        merged = like_rows(q, d)
        dq.sum(axis=0, out=merged)
        dq = merged
    if given is not None:
        dbias = dbias.reshape(given.shape).astype(given.dtype, copy=False)
    ds = None
    if slopes is not None:
        # A row of dS sums to glse but for rounding, which long distances would enlarge: what is too much is
        # taken off in proportion to P.
        far, rest, mean = np.moveaxis(falls.sum(axis=0), -1, 0)
        rest = rest if glse is None else rest - glse
        ds = -(far - rest * mean).sum(axis=(0, 2)).astype(slopes.dtype)
    return dq, dk, dv_, None, None, None, dbias, None, None, ds, None

"""The gated scan, token by token with the state in the cache: no chunk of scores, no exponent of a sum.

    rows, for 16 columns of the state at a time, two tokens at once:
        for each row c:   s = a_c s + k_c v,  o += q_c s       v and o stay in registers, a = exp(g)
    columns, the same of the transposed state:
        for each row j:   s = a s + v_j k,  o += q_j s         a, k and o stay in registers

    forward:      o  = rows of (q, k, v)
    backward:     dv = rows of (k, q, do) in reverse, each token with the decay of the one after it
                  dk = columns of (v, do, q) in reverse likewise
                  dq = columns of (do, v, k)
                  dg_t = dg_{t+1} + q dq - k dk

In reverse s is the gradient D of the state. The last line follows from S_t = a S_{t-1} + k v and needs no
product of two states. Its sum would gather roundings, so it starts anew after every span of 128 tokens, with
dg = sum_j D S there. The forward keeps the state before each span; the backward takes spans in reverse and
does all three passes of one while its tokens are in the second cache.

A state of 64 x 64 is 16 KiB and stays in the first cache. Each pass takes 2 multiply-adds per element of the
state and token; a chunked form with matrix products takes as many, and its scores besides. No exponent is
above 0, whatever the decay: exp(-inf) = 0 forgets everything. A g of zeros skips the decay. The vectors of a
token lie a row apart, which the hardware does not foresee, so they are asked for a few tokens ahead.

Heads are shared out to the threads; where they are few, so are the columns of the state, which do not mix.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .gated_scan_shared import (
    SPAN,
    Sizes,
    copied,
    decayed,
    decays,
    decays_of_heads,
    edge,
    gate_end,
    gate_span,
    of,
    reasons,
    summed,
    transposed,
    unpanel,
)
from .lanes import BYTES, fma, load, mul, prefetch, spread, store, zeros
from .runtime import inner, jit, share_out

# Tokens between asking for a vector and using it.
AHEAD = 8


@inner
def rows(start, end, dk, dv, first, last, across, along, back, q, k, v, a, s, o):  # type: ignore[no-untyped-def]
    """Columns first .. last. Row c of token t decays by a[(t + back) * across + c * along]."""
    lanes, step = BYTES // v.itemsize, 1 - 2 * back
    for j in range(first, last, lanes):
        for i in range(start, end, 2):
            t = start + end - 1 - i if back else i
            u = t + step
            v0, v1 = load(v, t * dv + j), load(v, u * dv + j)
            for y in (t + AHEAD * step, u + AHEAD * step):
                prefetch(v, y * dv + j)
                prefetch(o, y * dv + j)
            o0, o1 = zeros(v), zeros(v)
            for c in range(dk):
                at, then = t * dk + c, u * dk + c
                x = decayed(load(s, c * dv + j), a, (t + back) * across + c * along)
                x = fma(spread(k, at), v0, x)
                o0 = fma(spread(q, at), x, o0)
                x = decayed(x, a, (u + back) * across + c * along)
                x = fma(spread(k, then), v1, x)
                o1 = fma(spread(q, then), x, o1)
                store(s, c * dv + j, x)
            store(o, t * dv + j, o0)
            store(o, u * dv + j, o1)


@inner
def columns(start, end, dk, dv, first, width, across, along, back, q, v, k, a, s, o):  # type: ignore[no-untyped-def]
    """Tokens start .. end: q and v are read by rows j, k and o are vectors."""
    lanes, step = BYTES // v.itemsize, 1 - 2 * back
    for c in range(0, dk, lanes):
        for i in range(start, end, 2):
            t = start + end - 1 - i if back else i
            u = t + step
            a0 = decays(v, a, t + back, c, across, along)
            a1 = decays(v, a, u + back, c, across, along)
            k0, k1 = load(k, t * dk + c), load(k, u * dk + c)
            for y in (t + AHEAD * step, u + AHEAD * step):
                prefetch(k, y * dk + c)
                prefetch(o, y * dk + c)
            o0, o1 = zeros(v), zeros(v)
            for j in range(width):
                at, then = t * dv + first + j, u * dv + first + j
                x = load(s, j * dk + c)
                x = fma(spread(v, at), k0, x if a is None else mul(x, a0))
                o0 = fma(spread(q, at), x, o0)
                x = fma(spread(v, then), k1, x if a is None else mul(x, a1))
                o1 = fma(spread(q, then), x, o1)
                store(s, j * dk + c, x)
            store(o, t * dk + c, o0)
            store(o, u * dk + c, o1)


@inner
def some_forward(p, cut, groups, n, dk, dv, along, q, k, v, a, s, states, o):  # type: ignore[no-untyped-def]
    count, lanes = len(q) * groups, BYTES // v.itemsize
    across, order = dk if along else 1, np.int64(0)
    for i in range(count * p // cut, count * (p + 1) // cut):
        h, m = i // groups, i % groups
        first, last = edge(dv, lanes, m, groups), edge(dv, lanes, m + 1, groups)
        for start in range(0, n, SPAN):
            end = min(n, start + SPAN)
            copied(dk, dv, first, last, s[h], states[h, start // SPAN])
            rows(
                start, end, dk, dv, first, last, across, along, order, q[h], k[h], v[h], of(a, h), s[h], o[h]
            )


@jit
def forward_all(cut, groups, n, dk, dv, along, q, k, v, g, a, s, states, o):  # type: ignore[no-untyped-def]
    if g is not None:
        share_out(decays_of_heads, cut, n, g, a)
    share_out(some_forward, cut, groups, n, dk, dv, along, q, k, v, a, s, states, o)


@inner
def some_backward(  # type: ignore[no-untyped-def]
    p, cut, groups, n, dk, dv, along, q, k, v, a, states, do, d, dq, dk_, dv_, dg, turned, s, x
):
    """d: the gradient of the last state, then of the first. states[h, m]: the state before span m."""
    count, lanes = len(q) * groups, BYTES // v.itemsize
    across, order, reverse = dk if along else 1, np.int64(0), np.int64(1)
    for i in range(count * p // cut, count * (p + 1) // cut):
        h, m = i // groups, i % groups
        first, last = edge(dv, lanes, m, groups), edge(dv, lanes, m + 1, groups)
        width, ah, qh, kh, vh, gh, dh = last - first, of(a, h), q[h], k[h], v[h], do[h], d[h]
        dqh, dkh, now, then, end_of_g = dq[m, h], dk_[m, h], s[p, 0], turned[p, 0], x[p]
        transposed(dk, dv, first, width, dh, then)
        for span in range((n + SPAN - 1) // SPAN - 1, -1, -1):
            start, end = span * SPAN, min(n, (span + 1) * SPAN)
            transposed(dk, dv, first, width, states[h, span], now)
            columns(start, end, dk, dv, first, width, across, along, order, gh, vh, kh, ah, now, dqh)
            gate_end(end, dk, width, across, along, ah, now, then, end_of_g)
            rows(start, end, dk, dv, first, last, across, along, reverse, kh, qh, gh, ah, dh, dv_[h])
            columns(start, end, dk, dv, first, width, across, along, reverse, vh, gh, qh, ah, then, dkh)
            gate_span(start, end, dk, along, qh, kh, dqh, dkh, None, end_of_g, dg[m, h])
        if a is not None:
            for c in range(dk):
                for j in range(first, last):
                    dh[c * dv + j] *= a[h, c * along]


@jit
def backward_all(cut, groups, n, dk, dv, along, q, k, v, a, states, do, d, dq, dk_, dv_, dg, turned, s, x):  # type: ignore[no-untyped-def]
    share_out(
        some_backward, cut, groups, n, dk, dv, along,
        q, k, v, a, states, do, d, dq, dk_, dv_, dg, turned, s, x,
    )  # fmt: skip


def supports(q: Any, k: Any, v: Any, g: Any, state: Any, chunk: Any) -> str | None:
    return reasons(q, k, v, (("g", g),), state, chunk)


def forward(q: Any, k: Any, v: Any, g: Any, state: Any, chunk: int) -> tuple[Any, Any]:
    size = Sizes(q, v)
    gates, a, along = size.decays(g)
    qp, kp, vp, last = size.keys(q), size.keys(k), size.values(v), size.state(state, v)
    o, states = np.empty_like(vp), size.states(v.dtype)
    forward_all(size.cut, size.groups, size.n, size.dk, size.dv, along, qp, kp, vp, gates, a, last, states, o)
    out = (
        unpanel(o, size.n, size.dv, v.shape),
        unpanel(last, size.dk, size.dv, (*q.shape[:2], q.shape[3], v.shape[3])),
    )
    return out, (size, along, qp, kp, vp, a, states, g.shape, state is not None)


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    size, along, q, k, v, a, states, gates, given = residuals
    do = np.zeros_like(v) if g[0] is None else size.values(g[0])
    d = size.state(g[1], v)
    dq, dk = size.sums(size.dk, v.dtype), size.sums(size.dk, v.dtype)
    dv, dg = size.sums(size.dv, v.dtype, 1), size.sums(size.dk if along else 1, v.dtype)
    turned, s, x = size.scratch(v.dtype), size.scratch(v.dtype), np.empty((size.cut, size.dk), v.dtype)
    backward_all(
        size.cut, size.groups, size.n, size.dk, size.dv, along,
        q, k, v, a, states, do, d,
        size.parts(dq), size.parts(dk), size.parts(dv)[0], size.parts(dg), turned, s, x,
    )  # fmt: skip
    batch, heads, tokens, width = size.shape
    return (
        summed(dq, size.shape),
        summed(dk, size.shape),
        summed(dv, (batch, heads, tokens, size.width)),
        summed(dg, gates),
        unpanel(d, size.dk, size.dv, (batch, heads, width, size.width)) if given else None,
        None,
    )


KERNELS = {"gated_scan": Kernel(forward, vjp, supports)}

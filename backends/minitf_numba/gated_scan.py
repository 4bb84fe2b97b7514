"""The gated scan, token by token with the state in the cache: no chunk of scores, no exponent of a sum.

    forward, for 16 columns of the state at a time, for two tokens at once:
        for each row c:   s = a_c s + k_c v,  o += q_c s         v and o stay in registers, a = exp(g)

    backward, tokens in reverse:                                 D: the gradient of the state
        for each row c:   D = a' D + q_c do,  dv += k_c D,  dk_c = D . v         a': of the next token
    then tokens in order, on the transposed state:
        for each row j:   s = a s + v_j k,  dq += do_j s
        dg_t = dg_{t+1} + q dq - k dk

The last line follows from S_t = a S_{t-1} + k v and needs no product of two states. Its sum would gather
roundings, so it starts anew after every 64 tokens, with dg = sum_j D S there.

A state of 64 x 64 is 16 KiB and stays in the first cache. The recurrence takes 2 multiply-adds per element of
the state and token, and 5 backward; a chunked form with matrix products takes as many, and its scores too.
No exponent is above 0, whatever the decay: exp(-inf) = 0 forgets everything. A g of zeros skips the decay.

Heads are shared out to the threads; where they are few, so are the columns of the state, which do not mix.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .gated_scan_lanes import BYTES, fma, load, mul, spread, store, zeros
from .gated_scan_shared import SPAN, Sizes, decayed, decays, edge, gate_row, of, reasons, row_totals, unpanel
from .runtime import jit, parallel_jit, prange


@jit
def forward_head(n, dk, dv, first, last, across, along, q, k, v, a, s, o):  # type: ignore[no-untyped-def]
    """Columns first .. last of one head. The decay of token t and row c is a[t * across + c * along]."""
    lanes = BYTES // v.itemsize
    for start in range(0, n, SPAN):
        for j in range(first, last, lanes):
            for t in range(start, min(n, start + SPAN), 2):
                v0, v1 = load(v, t * dv + j), load(v, (t + 1) * dv + j)
                o0, o1 = zeros(v), zeros(v)
                for c in range(dk):
                    at, then = t * dk + c, (t + 1) * dk + c
                    x = decayed(load(s, c * dv + j), a, t * across + c * along)
                    x = fma(spread(k, at), v0, x)
                    o0 = fma(spread(q, at), x, o0)
                    x = decayed(x, a, (t + 1) * across + c * along)
                    x = fma(spread(k, then), v1, x)
                    o1 = fma(spread(q, then), x, o1)
                    store(s, c * dv + j, x)
                store(o, t * dv + j, o0)
                store(o, (t + 1) * dv + j, o1)


@jit
def reverse_head(n, dk, dv, first, last, across, along, q, k, v, a, do, d, sums, dk_, dv_, kept):  # type: ignore[no-untyped-def]
    """dk and dv, tokens in reverse. d: the gradient of the last state, then of the first.

    kept[m]: the gradient, transposed, of the state after the tokens of span m.
    """
    lanes, width = BYTES // v.itemsize, last - first
    for t in range(n - 1, -1, -1):
        if t == n - 1 or (t + 1) % SPAN == 0:
            for c in range(dk):
                for j in range(width):
                    x = d[c * dv + first + j]
                    kept[t // SPAN, j * dk + c] = x if a is None else x * a[(t + 1) * across + c * along]
        for j in range(first, last):
            dv_[t * dv + j] = 0
        for c in range(0, dk, 2):
            at, then = t * dk + c, (t + 1) * across + c * along
            q0, q1, k0, k1 = spread(q, at), spread(q, at + 1), spread(k, at), spread(k, at + 1)
            sum0, sum1 = zeros(v), zeros(v)
            for j in range(first, last, lanes):
                g, row = load(do, t * dv + j), load(v, t * dv + j)
                x0 = fma(q0, g, decayed(load(d, c * dv + j), a, then))
                x1 = fma(q1, g, decayed(load(d, (c + 1) * dv + j), a, then + along))
                store(d, c * dv + j, x0)
                store(d, (c + 1) * dv + j, x1)
                store(dv_, t * dv + j, fma(k1, x1, fma(k0, x0, load(dv_, t * dv + j))))
                sum0, sum1 = fma(x0, row, sum0), fma(x1, row, sum1)
            store(sums, c * lanes, sum0)
            store(sums, (c + 1) * lanes, sum1)
        row_totals(dk, lanes, sums, dk_, t * dk)
    if a is not None:
        for c in range(dk):
            for j in range(first, last):
                d[c * dv + j] *= a[c * along]


@jit
def queries_head(n, dk, dv, first, last, across, along, q, k, v, a, do, s, kept, dk_, x, dq, dg):  # type: ignore[no-untyped-def]
    """dq and dg, tokens in order. s: the transposed state, rows of dk, before the first token."""
    lanes, width = BYTES // v.itemsize, last - first
    for start in range(0, n, SPAN):
        end = min(n, start + SPAN)
        for c in range(0, dk, lanes):
            for t in range(start, end, 2):
                a0, a1 = decays(v, a, t, c, across, along), decays(v, a, t + 1, c, across, along)
                k0, k1 = load(k, t * dk + c), load(k, (t + 1) * dk + c)
                dq0, dq1 = zeros(v), zeros(v)
                for j in range(width):
                    at, then = t * dv + first + j, (t + 1) * dv + first + j
                    y = load(s, j * dk + c)
                    y = fma(spread(v, at), k0, y if a is None else mul(y, a0))
                    dq0 = fma(spread(do, at), y, dq0)
                    y = fma(spread(v, then), k1, y if a is None else mul(y, a1))
                    dq1 = fma(spread(do, then), y, dq1)
                    store(s, j * dk + c, y)
                store(dq, t * dk + c, dq0)
                store(dq, (t + 1) * dk + c, dq1)
            # dg after the span: the product of the state and of its gradient.
            y = zeros(v)
            for j in range(width):
                y = fma(load(s, j * dk + c), load(kept[start // SPAN], j * dk + c), y)
            store(x, c, y)
        for t in range(end - 1, start - 1, -1):
            gate_row(dk, t, along, q, k, dq, dk_, x, dg)


@parallel_jit
def forward_all(cut, groups, n, dk, dv, along, q, k, v, a, s, o):  # type: ignore[no-untyped-def]
    count, lanes = len(q) * groups, BYTES // v.itemsize
    across = dk if along else 1
    for p in prange(cut):
        for i in range(count * p // cut, count * (p + 1) // cut):
            h, first, last = (
                i // groups,
                edge(dv, lanes, i % groups, groups),
                edge(dv, lanes, i % groups + 1, groups),
            )
            forward_head(n, dk, dv, first, last, across, along, q[h], k[h], v[h], of(a, h), s[h], o[h])


@parallel_jit
def backward_all(cut, groups, n, dk, dv, along, q, k, v, a, s, do, d, dq, dk_, dv_, dg, kept, rest):  # type: ignore[no-untyped-def]
    count, lanes = len(q) * groups, BYTES // v.itemsize
    across = dk if along else 1
    for p in prange(cut):
        state, sums, x = rest[p, : dk * dv], rest[p, dk * dv : -dk], rest[p, -dk:]
        for i in range(count * p // cut, count * (p + 1) // cut):
            h, m = i // groups, i % groups
            first, last, ah = edge(dv, lanes, m, groups), edge(dv, lanes, m + 1, groups), of(a, h)
            reverse_head(
                n, dk, dv, first, last, across, along,
                q[h], k[h], v[h], ah, do[h], d[h], sums, dk_[m, h], dv_[h], kept[p],
            )  # fmt: skip
            for c in range(dk):
                for j in range(last - first):
                    state[j * dk + c] = s[h, c * dv + first + j]
            queries_head(
                n, dk, dv, first, last, across, along,
                q[h], k[h], v[h], ah, do[h], state, kept[p], dk_[m, h], x, dq[m, h], dg[m, h],
            )  # fmt: skip


def supports(q: Any, k: Any, v: Any, g: Any, state: Any, chunk: Any) -> str | None:
    return reasons(q, k, v, (("g", g),), state, chunk)


def forward(q: Any, k: Any, v: Any, g: Any, state: Any, chunk: int) -> tuple[Any, Any]:
    size = Sizes(q, v)
    a, along = size.decays(g)
    qp, kp, vp, first = size.keys(q), size.keys(k), size.values(v), size.state(state, v)
    o, last = np.empty_like(vp), first.copy()
    forward_all(size.cut, size.groups, size.n, size.dk, size.dv, along, qp, kp, vp, a, last, o)
    out = (
        unpanel(o, size.n, size.dv, v.shape),
        unpanel(last, size.dk, size.dv, (*q.shape[:2], q.shape[3], v.shape[3])),
    )
    return out, (size, along, qp, kp, vp, a, first, g.shape, state is not None)


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    size, along, q, k, v, a, first, gates, given = residuals
    batch, heads, tokens, _ = shape = size.shape
    shape_v, shape_s = (batch, heads, tokens, size.width), (batch, heads, shape[3], size.width)
    do = np.zeros_like(v) if g[0] is None else size.values(g[0])
    d = size.state(g[1], v)
    dq, dk = np.empty((2, size.groups, *q.shape), v.dtype)
    dg = np.empty((size.groups, len(q), size.n * (size.dk if along else 1)), v.dtype)
    dv = np.empty_like(v)
    kept, rest = size.scratch(v.dtype)
    backward_all(
        size.cut, size.groups, size.n, size.dk, size.dv, along,
        q, k, v, a, first, do, d, dq, dk, dv, dg, kept, rest,
    )  # fmt: skip
    dq, dk, dg = (x[0] if size.groups == 1 else x.sum(axis=0) for x in (dq, dk, dg))
    return (
        unpanel(dq, size.n, size.dk, shape),
        unpanel(dk, size.n, size.dk, shape),
        unpanel(dv, size.n, size.dv, shape_v),
        unpanel(dg, size.n, size.dk if along else 1, gates),
        unpanel(d, size.dk, size.dv, shape_s) if given else None,
        None,
    )


KERNELS = {"gated_scan": Kernel(forward, vjp, supports)}

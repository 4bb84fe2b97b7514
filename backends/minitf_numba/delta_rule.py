"""The delta rule, token by token with the state in the cache; see `gated_scan.py` for the way of working.

    forward, for 16 columns of the state at a time:              w = k_t S', S' = a_t S, known beforehand
        e = v_t - w,  u = beta_t e                               e is kept for the backward
        for each row c:   s = a_c s + k_c u,  o += q_c s,  w' += k'_c a'_c s         ': of the next token

    backward, tokens in reverse:                                 D: the gradient of the state
        for each row c:   D = a'_c D - k'_c a'_c dv' + q_c do,  du += k_c D
        dbeta = du . e,  dv = beta du
    again, on the transposed D:
        for each row j:   D = a' D - dv'_j k' a' + do_j q,  dk += u_j D
    then tokens in order, on the transposed state:
        for each row j:   s' = a s,  s = s' + u_j k,  dq += do_j s,  less += dv_j s'
        dg_t = dg_{t+1} + q dq - k dk - k less,  then dk -= less

So the state is read once for each token in every pass: what the next token reads from it is summed while this
one writes. No triangular system is solved, and no exponent is above 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .delta_rule_backward import erasers, some_backward
from .gated_scan_shared import (
    SPAN,
    Sizes,
    decayed,
    decays_of_heads,
    edge,
    of,
    panel,
    reasons,
    summed,
    unpanel,
)
from .lanes import BYTES, add, fma, load, mul, spread, store, zeros
from .runtime import inner, jit, share_out


@inner
def forward_head(n, dk, dv, first, last, across, along, q, k, v, beta, a, s, o, e, erase):  # type: ignore[no-untyped-def]
    """Columns first .. last of one head. The decay of token t and row c is a[t * across + c * along]."""
    lanes = BYTES // v.itemsize
    for start in range(0, n, SPAN):
        for j in range(first, last, lanes):
            w = zeros(v)
            for c in range(dk):
                w = fma(spread(erase, start * dk + c), load(s, c * dv + j), w)
            for t in range(start, min(n, start + SPAN)):
                error = add(load(v, t * dv + j), w)
                u = mul(spread(beta, t), error)
                store(e, t * dv + j, error)
                # Two sums each, for even and for odd rows: one would wait for its own last step.
                o0, o1, w0, w1 = zeros(v), zeros(v), zeros(v), zeros(v)
                for c in range(0, dk, 2):
                    at, then, gate = t * dk + c, (t + 1) * dk + c, t * across + c * along
                    x = fma(spread(k, at), u, decayed(load(s, c * dv + j), a, gate))
                    y = fma(spread(k, at + 1), u, decayed(load(s, (c + 1) * dv + j), a, gate + along))
                    store(s, c * dv + j, x)
                    store(s, (c + 1) * dv + j, y)
                    o0, o1 = fma(spread(q, at), x, o0), fma(spread(q, at + 1), y, o1)
                    w0, w1 = fma(spread(erase, then), x, w0), fma(spread(erase, then + 1), y, w1)
                store(o, t * dv + j, add(o0, o1))
                w = add(w0, w1)


@inner
def some_forward(p, cut, groups, n, dk, dv, along, q, k, v, beta, a, s, o, e, erase):  # type: ignore[no-untyped-def]
    count, lanes = len(q) * groups, BYTES // v.itemsize
    across = dk if along else 1
    for i in range(count * p // cut, count * (p + 1) // cut):
        h, m = i // groups, i % groups
        first, last, ah = edge(dv, lanes, m, groups), edge(dv, lanes, m + 1, groups), of(a, h)
        erasers(n, dk, across, along, k[h], ah, erase[p])
        forward_head(
            n, dk, dv, first, last, across, along, q[h], k[h], v[h], beta[h], ah, s[h], o[h], e[h], erase[p]
        )


@jit
def forward_all(cut, groups, n, dk, dv, along, q, k, v, beta, g, a, s, o, e, erase):  # type: ignore[no-untyped-def]
    if g is not None:
        share_out(decays_of_heads, cut, n, g, a)
    share_out(some_forward, cut, groups, n, dk, dv, along, q, k, v, beta, a, s, o, e, erase)


@jit
def backward_all(  # type: ignore[no-untyped-def]
    cut, groups, n, dk, dv, along, q, k, beta, a, e, s, do, d,
    dq, dk_, dv_, dbeta, dg, erase, u, less, kept, turned, x,
):  # fmt: skip
    share_out(
        some_backward, cut, groups, n, dk, dv, along, q, k, beta, a, e, s, do, d,
        dq, dk_, dv_, dbeta, dg, erase, u, less, kept, turned, x,
    )  # fmt: skip


def supports(q: Any, k: Any, v: Any, beta: Any, g: Any, state: Any, chunk: Any) -> str | None:
    gates = (("beta", beta),) if g is None else (("beta", beta), ("g", g))
    why = reasons(q, k, v, gates, state, chunk)
    if why is None and beta.shape[3] != 1:
        return f"beta {beta.shape} is not (B, H, N, 1)"
    return why


def forward(q: Any, k: Any, v: Any, beta: Any, g: Any, state: Any, chunk: int) -> tuple[Any, Any]:
    size = Sizes(q, v)
    gates, a, along = size.decays(g)
    qp, kp, vp, bp = size.keys(q), size.keys(k), size.values(v), panel(beta, size.n, 1)
    last = size.state(state, v)
    o, e, first = np.empty_like(vp), np.empty_like(vp), last.copy()
    erase = np.empty((size.cut, (size.n + 1) * size.dk), v.dtype)
    forward_all(
        size.cut, size.groups, size.n, size.dk, size.dv, along, qp, kp, vp, bp, gates, a, last, o, e, erase
    )
    shape_s = (*q.shape[:2], q.shape[3], v.shape[3])
    out = unpanel(o, size.n, size.dv, v.shape), unpanel(last, size.dk, size.dv, shape_s)
    return out, (size, along, qp, kp, bp, a, e, first, None if g is None else g.shape, state is not None)


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    size, along, q, k, beta, a, e, first, gates, given = residuals
    batch, heads, tokens, _ = shape = size.shape
    shape_v, shape_s = (batch, heads, tokens, size.width), (batch, heads, shape[3], size.width)
    do = np.zeros_like(e) if g[0] is None else size.values(g[0])
    d = size.state(g[1], e)
    dq, dk = size.sums(size.dk, e.dtype), size.sums(size.dk, e.dtype)
    dv, dbeta = size.sums(size.dv, e.dtype, 1), size.sums(1, e.dtype)
    dg = size.sums(size.dk if along else 1, e.dtype)
    erase = np.empty((size.cut, (size.n + 1) * size.dk), e.dtype)
    u, less = np.empty((size.cut, size.n * size.dv), e.dtype), np.empty((size.cut, SPAN * size.dk), e.dtype)
    kept, turned = size.scratch(e.dtype, -(-size.n // SPAN)), size.scratch(e.dtype)
    backward_all(
        size.cut, size.groups, size.n, size.dk, size.dv, along, q, k, beta, a, e, first, do, d,
        size.parts(dq), size.parts(dk), size.parts(dv)[0], size.parts(dbeta), size.parts(dg),
        erase, u, less, kept, turned, np.empty((size.cut, size.dk), e.dtype),
    )  # fmt: skip
    return (
        summed(dq, shape),
        summed(dk, shape),
        summed(dv, shape_v),
        summed(dbeta, (batch, heads, tokens, 1)),
        None if gates is None else summed(dg, gates),
        unpanel(d, size.dk, size.dv, shape_s) if given else None,
        None,
    )


KERNELS = {"delta_rule": Kernel(forward, vjp, supports)}

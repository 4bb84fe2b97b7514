"""The three backward passes of the delta rule over one head; `delta_rule.py` says what they compute."""

from __future__ import annotations

from .gated_scan_shared import SPAN, decayed, decays, edge, gate_end, gate_span, of, transposed
from .lanes import BYTES, add, fma, load, mul, spread, store, total, zeros
from .runtime import inner


@inner
def erasers(n, dk, across, along, k, a, out):  # type: ignore[no-untyped-def]
    """-k_t a_t, what a token takes from the state before it, and zeros after the last token."""
    for c in range(n * dk):
        out[c] = -k[c]
    for c in range(n * dk, (n + 1) * dk):
        out[c] = 0
    if a is not None:
        for t in range(n):
            for c in range(dk):
                out[t * dk + c] *= a[t * across + c * along]


@inner
def values_head(n, dk, dv, first, last, across, along, q, k, beta, a, e, do, d, erase, u, dv_, dbeta):  # type: ignore[no-untyped-def]
    """dv, dbeta and u = beta e, tokens in reverse. d: the gradient of the last state, then of the first."""
    lanes = BYTES // e.itemsize
    for t in range(n):
        dbeta[t] = 0
    for m in range((n + SPAN - 1) // SPAN - 1, -1, -1):
        start, end = m * SPAN, min(n, (m + 1) * SPAN)
        for j in range(first, last, lanes):
            # dv of the next token.
            behind = load(dv_, end * dv + j) if end < n else zeros(e)
            for t in range(end - 1, start - 1, -1):
                g, du0, du1 = load(do, t * dv + j), zeros(e), zeros(e)
                for c in range(0, dk, 2):
                    at, then, gate = t * dk + c, (t + 1) * dk + c, (t + 1) * across + c * along
                    x = fma(spread(erase, then), behind, decayed(load(d, c * dv + j), a, gate))
                    y = decayed(load(d, (c + 1) * dv + j), a, gate + along)
                    y = fma(spread(erase, then + 1), behind, y)
                    x, y = fma(spread(q, at), g, x), fma(spread(q, at + 1), g, y)
                    store(d, c * dv + j, x)
                    store(d, (c + 1) * dv + j, y)
                    du0, du1 = fma(spread(k, at), x, du0), fma(spread(k, at + 1), y, du1)
                du = add(du0, du1)
                error, b = load(e, t * dv + j), spread(beta, t)
                dbeta[t] += total(mul(du, error))
                store(u, t * dv + j, mul(b, error))
                behind = mul(b, du)
                store(dv_, t * dv + j, behind)
    for c in range(dk):
        for j in range(first, last):
            x = d[c * dv + j] if a is None else d[c * dv + j] * a[c * along]
            d[c * dv + j] = x + erase[c] * dv_[j]


@inner
def keys_span(n, start, end, dk, dv, first, width, across, along, q, a, do, d, erase, dv_, u, kept, dk_):  # type: ignore[no-untyped-def]
    """dk but for what `less` takes, one span in reverse. d: the transposed gradient of the state.

    kept: that after the span.
    """
    lanes = BYTES // u.itemsize
    # Nothing follows the last token: `erase` is 0 there.
    after = min(end, n - 1) * dv + first
    for c in range(0, dk, lanes):
        gate, less = decays(u, a, end, c, across, along), load(erase, end * dk + c)
        for j in range(width):
            x = load(d, j * dk + c)
            store(kept, j * dk + c, fma(spread(dv_, after + j), less, x if a is None else mul(x, gate)))
        for t in range(end - 1, start - 1, -1):
            gate, less = decays(u, a, t + 1, c, across, along), load(erase, (t + 1) * dk + c)
            read, row, behind = load(q, t * dk + c), t * dv + first, min(t + 1, n - 1) * dv + first
            sum0, sum1 = zeros(u), zeros(u)
            for j in range(0, width, 2):
                x, y = load(d, j * dk + c), load(d, (j + 1) * dk + c)
                if a is not None:
                    x, y = mul(x, gate), mul(y, gate)
                x, y = fma(spread(dv_, behind + j), less, x), fma(spread(dv_, behind + j + 1), less, y)
                x, y = fma(spread(do, row + j), read, x), fma(spread(do, row + j + 1), read, y)
                store(d, j * dk + c, x)
                store(d, (j + 1) * dk + c, y)
                sum0, sum1 = fma(spread(u, row + j), x, sum0), fma(spread(u, row + j + 1), y, sum1)
            store(dk_, t * dk + c, add(sum0, sum1))


@inner
def queries_span(start, end, dk, dv, first, width, across, along, k, a, do, s, dv_, u, less, dq):  # type: ignore[no-untyped-def]
    """dq and what comes off dk, one span in order. s: the transposed state."""
    lanes = BYTES // u.itemsize
    for c in range(0, dk, lanes):
        for t in range(start, end):
            gate, write, row = decays(u, a, t, c, across, along), load(k, t * dk + c), t * dv + first
            dq0, dq1, less0, less1 = zeros(u), zeros(u), zeros(u), zeros(u)
            for j in range(0, width, 2):
                x, y = load(s, j * dk + c), load(s, (j + 1) * dk + c)
                if a is not None:
                    x, y = mul(x, gate), mul(y, gate)
                less0, less1 = fma(spread(dv_, row + j), x, less0), fma(spread(dv_, row + j + 1), y, less1)
                x, y = fma(spread(u, row + j), write, x), fma(spread(u, row + j + 1), write, y)
                dq0, dq1 = fma(spread(do, row + j), x, dq0), fma(spread(do, row + j + 1), y, dq1)
                store(s, j * dk + c, x)
                store(s, (j + 1) * dk + c, y)
            store(dq, t * dk + c, add(dq0, dq1))
            store(less, (t - start) * dk + c, add(less0, less1))


@inner
def some_backward(  # type: ignore[no-untyped-def]
    p, cut, groups, n, dk, dv, along, q, k, beta, a, e, s, do, d,
    dq, dk_, dv_, dbeta, dg, erase, u, less, kept, turned, x,
):  # fmt: skip
    """d: the gradient of the last state, then of the first. s: the first state."""
    count, lanes, across = len(q) * groups, BYTES // e.itemsize, dk if along else 1
    spans = (n + SPAN - 1) // SPAN
    less, u, x, taken, state, kept = less[p], u[p], x[p], erase[p], turned[p, 0], kept[p]
    for i in range(count * p // cut, count * (p + 1) // cut):
        h, m = i // groups, i % groups
        first, last = edge(dv, lanes, m, groups), edge(dv, lanes, m + 1, groups)
        width, ah, qh, kh, bh, eh = last - first, of(a, h), q[h], k[h], beta[h], e[h]
        gh, dh, dqh, dkh, dvh = do[h], d[h], dq[m, h], dk_[m, h], dv_[h]
        erasers(n, dk, across, along, kh, ah, taken)
        transposed(dk, dv, first, width, dh, state)
        values_head(
            n, dk, dv, first, last, across, along, qh, kh, bh, ah, eh, gh, dh, taken, u, dvh, dbeta[m, h]
        )
        for span in range(spans - 1, -1, -1):
            start, end = span * SPAN, min(n, (span + 1) * SPAN)
            keys_span(
                n, start, end, dk, dv, first, width, across, along,
                qh, ah, gh, state, taken, dvh, u, kept[span], dkh,
            )  # fmt: skip
        transposed(dk, dv, first, width, s[h], state)
        for span in range(spans):
            start, end = span * SPAN, min(n, (span + 1) * SPAN)
            queries_span(
                start, end, dk, dv, first, width, across, along, kh, ah, gh, state, dvh, u, less, dqh
            )
            gate_end(end, dk, width, across, along, None, state, kept[span], x)
            gate_span(start, end, dk, along, qh, kh, dqh, dkh, less, x, dg[m, h])

"""The three backward passes of the delta rule over one head; `delta_rule.py` says what they compute."""

from __future__ import annotations

from .gated_scan_lanes import BYTES, add, fma, load, mul, spread, store, total, zeros
from .gated_scan_shared import SPAN, decayed, decays, gate_end, gate_span, transposed
from .runtime import inner


@inner()
def erasers(n, dk, across, along, k, a, out):  # type: ignore[no-untyped-def]
    """-k_t a_t, what a token takes from the state before it, and zeros after the last token."""
    for t in range(n):
        for c in range(dk):
            out[t * dk + c] = -k[t * dk + c]
        if a is not None:
            for c in range(dk):
                out[t * dk + c] *= a[t * across + c * along]
    for c in range(dk):
        out[n * dk + c] = 0


@inner()
def values_head(n, dk, dv, first, last, across, along, q, k, beta, a, e, do, d, erase, dv_, dbeta):  # type: ignore[no-untyped-def]
    """dv and dbeta, tokens in reverse. d: the gradient of the last state, then of the first."""
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
                dbeta[t] += total(mul(du, load(e, t * dv + j)))
                behind = mul(spread(beta, t), du)
                store(dv_, t * dv + j, behind)
    for c in range(dk):
        for j in range(first, last):
            x = d[c * dv + j] if a is None else d[c * dv + j] * a[c * along]
            d[c * dv + j] = x + erase[c] * dv_[j]


@inner()
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


@inner()
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


@inner()
def backward_head(  # type: ignore[no-untyped-def]
    n, dk, dv, first, last, across, along, q, k, beta, a, e, s, do, d,
    dq, dk_, dv_, dbeta, dg, erase, u, less, kept, turned, x,
):  # fmt: skip
    width, lanes = last - first, BYTES // e.itemsize
    spans = (n + SPAN - 1) // SPAN
    erasers(n, dk, across, along, k, a, erase)
    transposed(dk, dv, first, width, d, turned)
    values_head(n, dk, dv, first, last, across, along, q, k, beta, a, e, do, d, erase, dv_, dbeta)
    for t in range(n):
        for j in range(first, last, lanes):
            store(u, t * dv + j, mul(spread(beta, t), load(e, t * dv + j)))
    for m in range(spans - 1, -1, -1):
        start, end = m * SPAN, min(n, (m + 1) * SPAN)
        keys_span(
            n, start, end, dk, dv, first, width, across, along, q, a, do, turned, erase, dv_, u, kept[m], dk_
        )
    transposed(dk, dv, first, width, s, turned)
    for m in range(spans):
        start, end = m * SPAN, min(n, (m + 1) * SPAN)
        queries_span(start, end, dk, dv, first, width, across, along, k, a, do, turned, dv_, u, less, dq)
        gate_end(end, dk, width, across, along, None, turned, kept[m], x)
        gate_span(start, end, dk, along, q, k, dq, dk_, less, x, dg)

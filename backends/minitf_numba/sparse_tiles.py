"""What attention to gathered keys shares: tiles of rows, and softmax with the queries side by side.

Scores are keys x queries, so that maxima, sums and exponentials of many queries are vector code without any
change of order, also where scores are infinite.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .runtime import inner
from .vector import exp


@inner
def gather(table, keys, count, out):  # type: ignore[no-untyped-def]
    for c in range(count):
        source, target = table[keys[c]], out[c]
        for x in range(table.shape[1]):
            target[x] = source[x]


@inner
def scatter_add(rows, keys, count, table):  # type: ignore[no-untyped-def]
    for c in range(count):
        source, target = rows[c], table[keys[c]]
        for x in range(table.shape[1]):
            target[x] += source[x]


@inner(fastmath={"contract"})
def exponentials(s, count, m, base):  # type: ignore[no-untyped-def]
    """S -> exp(S - base) in the first `count` rows; what is beyond column m is anything."""
    for c in range(count):
        row = s[c]
        for r in range(m):
            row[r] -= base[r]
    # All rows as one: vector code leaves no remainder in each of them.
    flat = s.reshape(s.size)
    for x in range(count * s.shape[1]):
        flat[x] = exp(flat[x])


@inner
def soften(s, count, m, top, base, total, factor):  # type: ignore[no-untyped-def]
    """S -> exp(S - base), base = the largest so far; total and factor = exp(before - base) for each query."""
    zero = s.dtype.type(0)
    for r in range(m):
        factor[r] = top[r]
    for c in range(count):
        row = s[c]
        for r in range(m):
            top[r] = row[r] if row[r] > top[r] else top[r]
    for r in range(m):
        base[r] = top[r] if top[r] > -np.inf else zero
        factor[r] = exp(factor[r] - base[r])
        total[r] *= factor[r]
        # Sums of one tile first: fewer roundings than one long sum.
        top[r] = zero
    exponentials(s, count, m, base)
    for c in range(count):
        row = s[c]
        for r in range(m):
            top[r] += row[r]
    for r in range(m):
        total[r] += top[r]
        top[r] = base[r]


@inner(fastmath={"contract"})
def slopes(s, ds, count, m, base, inverse, delta):  # type: ignore[no-untyped-def]
    """S -> P = exp(S - base) inverse, and dP -> P (dP - delta)."""
    exponentials(s, count, m, base)
    for c in range(count):
        row, slope = s[c], ds[c]
        for r in range(m):
            p = row[r] * inverse[r]
            row[r] = p
            slope[r] = p * (slope[r] - delta[r])


def plain(a: Any) -> Any:
    """The array, contiguous and writable: one type for the compiler."""
    a = np.ascontiguousarray(a)
    return a if a.flags.writeable else a.copy()

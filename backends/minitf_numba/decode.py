"""Softmax attention of a few queries over many keys, as in decoding: bounded by reading k and v once.

for each chunk of keys, on some thread:      for all queries that share the key head
    S = scale q k^T                          then cap, bias, slopes, mask (attention_tiles.py)
    m = row maximum,   P = exp(S - m),   z = row sum of P,   o = P v
(m, z, o) of two pieces merge to             m' = max(m1, m2),   w_n = exp(m_n - m')
    (m', w1 z1 + w2 z2, w1 o1 + w2 o2)       associative; here in the order of the chunks
o = o / z,   lse = m + log z

Memory gives a core more when it reads at several places at once: the keys j, j + n / 4, j + n / 2 and
j + 3 n / 4 of a chunk of n are multiplied side by side, and the values likewise, with vectors in registers
(lanes.py): the fewer instructions for a key, the more keys are on their way from memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .attention_tiles import adjust, cap, clear, exponentials, largest, memory, ranges
from .lanes import add, fma, lanes, load, mul, spread, store, total, zeros
from .runtime import CORES, inner, jit, parts, share_out
from .vector import exp

SUMS = {"reassoc", "contract"}
# Keys of a chunk: for many queries, so that it stays in the cache, and for one query of a long cache.
CHUNK, LONG = 512, 2048
# Most queries of a key head.
ROWS = 16


def few(sizes: tuple[int, ...]) -> bool:
    """Whether there are few queries and many keys."""
    _, h, kv, n, m, _, _ = sizes
    return n * (h // kv) <= ROWS and m >= 2 * CHUNK


@inner(fastmath=SUMS)
def add_dots(query, keys, step, scale, x):  # type: ignore[no-untyped-def]
    """x[j] += scale * query . key j, keys `step` elements apart."""
    for j in range(len(x)):
        product, key = x.dtype.type(0), keys[j * step :]
        for c in range(len(query)):
            product += query[c] * key[c]
        x[j] += scale * product


@inner
def dots(query, keys, step, scale, x):  # type: ignore[no-untyped-def]
    """x[j] = scale * query . key j."""
    n, width = len(x) // 4, lanes(x)
    wide = len(query) // width * width
    for j in range(n):
        at0, at1, at2, at3 = j * step, (j + n) * step, (j + 2 * n) * step, (j + 3 * n) * step
        x0 = x1 = x2 = x3 = zeros(x)
        for c in range(0, wide, width):
            q = load(query, c)
            x0, x1 = fma(q, load(keys, at0 + c), x0), fma(q, load(keys, at1 + c), x1)
            x2, x3 = fma(q, load(keys, at2 + c), x2), fma(q, load(keys, at3 + c), x3)
        x[j], x[j + n] = scale * total(x0), scale * total(x1)
        x[j + 2 * n], x[j + 3 * n] = scale * total(x2), scale * total(x3)
    # The columns and keys that are left.
    if wide < len(query):
        add_dots(query[wide:], keys[wide:], step, scale, x[: 4 * n])
    clear(x[4 * n :])
    add_dots(query, keys[4 * n * step :], step, scale, x[4 * n :])


@inner(fastmath={"contract"})
def add_values(x, values, step, out):  # type: ignore[no-untyped-def]
    """out += sum over j of x[j] * value j, values `step` elements apart."""
    for j in range(len(x)):
        value = values[j * step :]
        for c in range(len(out)):
            out[c] += x[j] * value[c]


@inner
def weighted(x, values, step, out):  # type: ignore[no-untyped-def]
    """out += sum over j of x[j] * value j."""
    n, width = len(x) // 8 * 2, lanes(x)
    wide = len(out) // width * width
    for j in range(0, n, 2):
        at0, at1, at2, at3 = j * step, (j + n) * step, (j + 2 * n) * step, (j + 3 * n) * step
        x0, x1, x2, x3 = spread(x, j), spread(x, j + n), spread(x, j + 2 * n), spread(x, j + 3 * n)
        i = j + 1
        y0, y1, y2, y3 = spread(x, i), spread(x, i + n), spread(x, i + 2 * n), spread(x, i + 3 * n)
        for c in range(0, wide, width):
            a, b = fma(x0, load(values, at0 + c), load(out, c)), mul(x1, load(values, at1 + c))
            a, b = fma(x2, load(values, at2 + c), a), fma(x3, load(values, at3 + c), b)
            next_c = c + step
            a, b = fma(y0, load(values, at0 + next_c), a), fma(y1, load(values, at1 + next_c), b)
            a, b = fma(y2, load(values, at2 + next_c), a), fma(y3, load(values, at3 + next_c), b)
            store(out, c, add(a, b))
    # The columns and keys that are left.
    if wide < len(out):
        add_values(x[: 4 * n], values[wide:], step, out[wide:])
    add_values(x[4 * n :], values[4 * n * step :], step, out)


@inner
def piece(b, kv, j0, j1, sizes, at, ends, rules, s, part):  # type: ignore[no-untyped-def]
    """part (R, dv + 2): o, m and z of the R queries that share key head kv, over keys j0 .. j1 - 1."""
    _, heads, kv_heads, n_queries, n_keys, d, dv = sizes
    (q, k, v, _), (first, last), (mask, bias, slopes, scale, bound) = at, ends, rules
    repeat, size = heads // kv_heads, s.itemsize
    for r in range(repeat * n_queries):
        h, i = kv * repeat + r // n_queries, r % n_queries
        out = part[r]
        clear(out)
        lo, hi = max(first[i], j0), min(last[i], j1)
        out[dv] = -np.inf
        if lo < hi:
            x, n = s[r, : hi - lo], hi - lo
            keys = memory(k, b, kv, lo, n * (k[3] // size), scale)
            values = memory(v, b, kv, lo, n * (v[3] // size), scale)
            dots(memory(q, b, h, i, d, scale), keys, k[3] // size, scale, x)
            if bound:
                cap(x, bound)
            adjust(x, lo, b, h, i, n_keys - n_queries, mask, bias, slopes)
            m = largest(x)
            out[dv] = m
            out[dv + 1] = exponentials(x, m if m != -np.inf else s.dtype.type(0))
            weighted(x, values, v[3] // size, out[:dv])


@inner
def merge(b, kv, sizes, pieces, o, kept, like):  # type: ignore[no-untyped-def]
    """o and lse of the queries of key head kv from the pieces (chunks, R, dv + 2)."""
    _, heads, kv_heads, n_queries, _, _, dv = sizes
    repeat = heads // kv_heads
    for r in range(repeat * n_queries):
        h, i = kv * repeat + r // n_queries, r % n_queries
        zero, one, top = kept.dtype.type(0), kept.dtype.type(1), kept.dtype.type(-np.inf)
        for c in range(len(pieces)):
            top = max(top, pieces[c, r, dv])
        shift = zero if top == -np.inf else top
        out, z = memory(o, b, h, i, dv, like), zero
        clear(out)
        for c in range(len(pieces)):
            w = exp(pieces[c, r, dv] - shift)
            z += w * pieces[c, r, dv + 1]
            for x in range(dv):
                out[x] += w * pieces[c, r, x]
        if z != 0:
            for x in range(dv):
                out[x] /= z
        # As in attention.py.
        kept[0, b, h, i], kept[1, b, h, i] = shift, one / z if z != 0 else zero
        kept[2, b, h, i] = top + np.log(z) if z != 0 else -np.inf


@inner
def some_pieces(p, cut, keys, start, pieces, s, ends, sizes, at, rules):  # type: ignore[no-untyped-def]
    kv_heads, n_keys, (heads, chunks) = sizes[2], sizes[4], pieces.shape[:2]
    units = heads * chunks
    for unit in range(units * p // cut, units * (p + 1) // cut):
        head, chunk = unit // chunks, unit % chunks
        j0 = (start + chunk) * keys
        piece(head // kv_heads, head % kv_heads, j0, min(j0 + keys, n_keys), sizes, at, ends, rules, s[p],
              pieces[head, chunk])  # fmt: skip


@jit
def decode_all(keys, start, pieces, s, first, last, sizes, at, kept, sight, rules):  # type: ignore[no-untyped-def]
    kv_heads, n_keys = sizes[2], sizes[4]
    ranges(n_keys, sight, first, last)
    share_out(some_pieces, len(s), keys, start, pieces, s, (first, last), sizes, at, rules)
    for head in range(len(pieces)):
        merge(head // kv_heads, head % kv_heads, sizes, pieces[head], at[3], kept, rules[3])


def decode(sizes: Any, at: Any, kept: Any, sight: Any, rules: Any) -> None:
    b, h, kv, n, m, d, dv = sizes
    rows = n * (h // kv)
    keys = LONG if rows == 1 and b * kv * m >= 4 * CORES * LONG else CHUNK
    # Chunks before the window of the first query are left out; with few queries the rest are seen.
    window = sight[1]
    start = max(m - n - window + 1, 0) // keys if window else 0
    chunks = -(-m // keys) - start
    cut = parts(b * kv * chunks, b * h * n * m * (d + dv) // 8, CORES)
    pieces = np.empty((b * kv, chunks, rows, dv + 2), kept.dtype)
    s, ends = np.empty((cut, rows, keys), kept.dtype), np.empty((2, n), np.int64)
    decode_all(keys, start, pieces, s, *ends, sizes, at, kept, sight, rules)

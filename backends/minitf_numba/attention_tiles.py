"""What the attention kernels share: which keys a query sees, and how raw products become scores.

    query i sees keys first[i] .. last[i] - 1      of what causal, window and cu_seqlens leave
    of these only those where mask is True
    S = c tanh(x / c) + bias - slope |i + (Nk - Nq) - j|           in place, for a row of raw products x

`first` and `last` never fall with i. So the keys that a block of queries sees, and the queries that see a
block of keys, are ranges too, and what lies outside them is never looked at. A tile that is not seen whole,
as on the diagonal, is taken in strips of its rows, each with the keys that some row of it sees.

Arrays come as (address, bytes from one batch to the next, one head to the next, one row to the next), with
0 bytes along axes that are broadcast, and bias and mask with a fifth number for the last axis. Kernels read
every memory layout so, and are compiled once for each precision. Address 0: there is none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .runtime import CORES, inner
from .vector import exp, tanh

SUMS = {"reassoc", "contract"}
# Most queries and keys of a tile, and queries of a strip of a tile that its queries see different parts of.
TILE, STRIP = 256, 64
# Called from compiled code without the typing context that Python code would see.
operation: Any = intrinsic


@operation
def memory(typing, x, b, h, i, n, like):  # type: ignore[no-untyped-def]
    """n numbers of the type of `like` from the beginning of row (b, h, i) of x on."""
    row, word = types.Array(like, 1, "C"), types.int64

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        place, *index, n, _ = args
        start, *steps = cgutils.unpack_tuple(builder, place)
        for step, number in zip(steps, index, strict=False):
            start = builder.add(start, builder.mul(step, number))
        made = context.make_array(row)(context, builder)
        size = context.get_constant(types.intp, like.bitwidth // 8)
        data = builder.inttoptr(start, made.data.type)
        populate_array(made, data=data, shape=[n], strides=[size], itemsize=size, meminfo=None)
        return made._getvalue()

    return row(x, word, word, word, word, like), generate


@operation
def larger(typing, a, b):  # type: ignore[no-untyped-def]
    """The larger of two floats, or NaN. With `max` the order matters for NaN, so nothing vectorises."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        number = args[0].type
        kind, name = ir.FunctionType(number, [number] * 2), f"llvm.maximum.f{a.bitwidth}"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return a(a, a), generate


@inner
def ranges(n_keys, sight, first, last):  # type: ignore[no-untyped-def]
    """Fill first and last (Nq,). sight: causal; window, 0 for none; address of cu_seqlens, 0 for none."""
    causal, window, cuts = sight
    n_queries, segment = len(first), 0
    begins = memory((cuts, 0, 0, 0), 0, 0, 0, n_queries + 1, np.int64(0))
    for i in range(n_queries):
        lo, hi = 0, n_keys
        if cuts:
            while begins[segment + 1] <= i:
                segment += 1
            lo, hi = begins[segment], begins[segment + 1]
        here = i + n_keys - n_queries
        if window:
            lo, hi = max(lo, here - window + 1), min(hi, here + window)
        if causal:
            hi = min(hi, here + 1)
        first[i] = min(lo, n_keys)
        last[i] = max(first[i], hi)


@inner
def rows_at_once(i, end, j0, j1, ends):  # type: ignore[no-untyped-def]
    """Where a tile of queries i .. end - 1 stops: after a strip, if not all of them see keys j0 .. j1 - 1."""
    first, last = ends
    return end if first[end - 1] <= j0 and last[i] >= j1 else min(i + STRIP, end)


@inner
def columns(i, c0, c1, ends):  # type: ignore[no-untyped-def]
    """Which of the keys c0 .. c1 - 1, counted from c0, query i sees."""
    first, last = ends
    lo = min(max(first[i], c0), c1)
    return lo - c0, max(min(last[i], c1), lo) - c0


@inner
def hidden(mask, b, h, i0, i1, j0, j1):  # type: ignore[no-untyped-def]
    """Whether the mask hides every pair of queries i0 .. i1 - 1 and keys j0 .. j1 - 1."""
    if mask[0] == 0:
        return False
    if mask[3] == 0:
        i1 = i0 + 1
    for i in range(i0, i1):
        row = memory(mask, b, h, i, j1, np.uint8(0))
        for j in range(j0, j1):
            if row[j * mask[4]]:
                return False
    return True


# Loops below run from 0: with another lower limit Numba allows for negative places, and nothing vectorises.
@inner
def cap(x, bound):  # type: ignore[no-untyped-def]
    for j in range(len(x)):
        x[j] = bound * tanh(x[j] / bound)


@inner
def adjust(x, j0, b, h, i, off, mask, bias, slopes):  # type: ignore[no-untyped-def]
    """Add bias and slope to x, the scores of query i with keys from j0 on; -inf where the mask hides."""
    n, zero = len(x), x.dtype.type(0)
    if bias[0]:
        if bias[4]:
            more = memory(bias, b, h, i, j0 + n, zero)[j0:]
            for j in range(n):
                x[j] += more[j]
        else:
            one = memory(bias, b, h, i, 1, zero)[0]
            for j in range(n):
                x[j] += one
    if slopes[0]:
        slope, here = memory(slopes, 0, h, 0, 1, zero)[0], np.int32(i + off - j0)
        for j in range(n):
            x[j] -= slope * x.dtype.type(abs(np.int32(here - np.int32(j))))
    if mask[0]:
        nothing = x.dtype.type(-np.inf)
        if mask[4]:
            seen = memory(mask, b, h, i, j0 + n, np.uint8(0))[j0:]
            for j in range(n):
                x[j] = x[j] if seen[j] else nothing
        elif not memory(mask, b, h, i, 1, np.uint8(0))[0]:
            for j in range(n):
                x[j] = nothing


@inner
def largest(x):  # type: ignore[no-untyped-def]
    """The maximum of x; -inf if x is empty."""
    top = x.dtype.type(-np.inf)
    for j in range(len(x)):
        top = larger(top, x[j])
    return top


@inner(fastmath=SUMS)
def exponentials(x, shift):  # type: ignore[no-untyped-def]
    """x becomes exp(x - shift); its sum."""
    total = x.dtype.type(0)
    for j in range(len(x)):
        p = exp(x[j] - shift)
        x[j] = p
        total += p
    return total


@inner
def clear(x):  # type: ignore[no-untyped-def]
    for j in range(len(x)):
        x[j] = 0


def height(heads: int, n: int) -> int:
    """Rows of n tokens in a tile: fewer where the cores would not have equal work."""
    rows = TILE
    while rows > STRIP and heads * -(-n // rows) < 4 * CORES:
        rows //= 2
    return min(rows, n)


def address(x: Any) -> int:
    found: int = x.__array_interface__["data"][0]
    return found


def place(x: Any) -> tuple[int, ...]:
    """(address, bytes from one row to the next along each axis but the last) of an array (B, H, N, d)."""
    return (address(x), *x.strides[:3])


def readable(x: Any) -> Any:
    """x (B, H, N, d), or a copy where BLAS could not read its rows."""
    size, step = x.itemsize, x.strides
    width = x.shape[3] * size
    if step[3] == size and step[2] >= width and not (step[0] | step[1] | step[2]) % size:
        return x
    return np.array(x, order="C")


def like_rows(x: Any, width: int, zero: bool = False) -> Any:
    """An array (B, H, N, width) in memory as x is: by heads, or token by token with heads side by side.

    The second is what `split_heads` gives and `merge_heads` undoes: neither then has to copy.
    """
    b, h, n, _ = x.shape
    make = np.zeros if zero else np.empty
    if x.strides[1] < x.strides[2]:
        return make((b, n, h, width), x.dtype).transpose(0, 2, 1, 3)
    return make((b, h, n, width), x.dtype)


def broadcast_place(x: Any, kind: Any) -> tuple[Any, tuple[int, ...]]:
    """x, (..., Nq, Nk) with axes left out or of length 1, and (address, bytes along each of 4 axes).

    Copied where rows are not contiguous or x is of another kind, but not along axes that it is repeated on.
    """
    x = x.reshape((1,) * (4 - x.ndim) + x.shape)
    if x.dtype != kind or (x.shape[3] > 1 and x.strides[3] not in (0, x.itemsize)):
        once = x[tuple(slice(0, 1) if step == 0 else slice(None) for step in x.strides)]
        x = np.broadcast_to(np.array(once, kind, order="C"), x.shape)
    steps = (0 if n == 1 else step for n, step in zip(x.shape, x.strides, strict=True))
    return x, (address(x), *steps)


NOTHING: tuple[int, ...] = (0, 0, 0, 0, 0)

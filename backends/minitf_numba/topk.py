"""The k largest of every row and where they are; among equals the lower position first, NaN above all.

    forward: best = positions 0 .. k-1, sorted by rank
             for j = k .. n-1:   x_j before the last of best?
                 small k: insert it      large k: collect it, and when k are there: sort them, merge
    backward: dx = 0, dx at the positions = g

Whatever ties with the last of best comes later than it, and stays out. Positions are sorted by merging, which
keeps the order of equals: n log k comparisons for a row that rises, the worst case, and in a random one few
get further than the comparison with the last. A block of 16 elements none of which does is passed over.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .runtime import inner, jit, parts, share_out

# Up to this k insertion beats collecting.
SHORT = 32
BLOCK = 16
# Positions that are sorted by insertion before merging starts.
RUN = 8


@inner
def before(a, b):  # type: ignore[no-untyped-def]
    """Whether `a`, whose position is the higher one, ranks before `b`."""
    return a > b or (a != a and b == b)


@inner
def insert(row, best, lo, j, hi):  # type: ignore[no-untyped-def]
    """Put j in its place in the sorted list best[lo:hi]; the last one falls out."""
    s = hi - 1
    while s > lo and before(row[j], row[best[s - 1]]):
        best[s] = best[s - 1]
        s -= 1
    best[s] = j


@inner
def merge(row, a, i, i_end, b, j, j_end, out, lo, hi):  # type: ignore[no-untyped-def]
    """Fill out[lo:hi] with the first of two sorted lists, a[i:i_end] holding the lower positions."""
    for s in range(lo, hi):
        if i < i_end and (j == j_end or not before(row[b[j]], row[a[i]])):
            out[s] = a[i]
            i += 1
        else:
            out[s] = b[j]
            j += 1


@inner
def sort(row, a, n, spare):  # type: ignore[no-untyped-def]
    """Sort the rising positions a[:n] by rank."""
    for j in range(n):
        insert(row, a, j // RUN * RUN, a[j], j + 1)
    width = RUN
    while width < n:
        for lo in range(0, n, 2 * width):
            middle, hi = min(lo + width, n), min(lo + 2 * width, n)
            merge(row, a, lo, middle, a, middle, hi, spare, lo, hi)
        copy(spare, a, n)
        width *= 2


@inner
def copy(a, b, n):  # type: ignore[no-untyped-def]
    for i in range(n):
        b[i] = a[i]


@inner
def passed(row, j, worst):  # type: ignore[no-untyped-def]
    """Whether nothing in the block at j ranks before `worst`."""
    found = False
    for i in range(BLOCK):
        # True for NaN too.
        found |= not (row[j + i] <= worst)
    return not found


@inner
def select(row, k, best, more, spare):  # type: ignore[no-untyped-def]
    """The first k positions of the row by rank; `more` and `spare` hold k + BLOCK."""
    n, count = len(row), 0
    if k > SHORT:
        for j in range(k):
            best[j] = j
        sort(row, best, k, spare)
    for block in range(k if k > SHORT else 0, n, BLOCK):
        end = min(block + BLOCK, n)
        if block < k or end < block + BLOCK or not passed(row, block, row[best[k - 1]]):
            for j in range(block, end):
                if j >= k and not before(row[j], row[best[k - 1]]):
                    continue
                if k <= SHORT:
                    insert(row, best, 0, j, min(j + 1, k))
                else:
                    more[count] = j
                    count += 1
        if count >= k or (count and end == n):
            sort(row, more, count, spare)
            merge(row, best, 0, k, more, 0, count, spare, 0, k)
            copy(spare, best, k)
            count = 0


@inner
def select_rows(p, cut, x, k, values, index, scratch):  # type: ignore[no-untyped-def]
    n, more, spare = len(x), scratch[p, 0], scratch[p, 1]
    for i in range(n * p // cut, n * (p + 1) // cut):
        select(x[i], k, index[i], more, spare)
        for s in range(k):
            values[i, s] = x[i, index[i, s]]


@jit
def select_all(cut, x, k, values, index, scratch):  # type: ignore[no-untyped-def]
    share_out(select_rows, cut, x, k, values, index, scratch)


@inner
def place_rows(p, cut, g, index, dx):  # type: ignore[no-untyped-def]
    n = len(dx)
    for i in range(n * p // cut, n * (p + 1) // cut):
        for j in range(dx.shape[1]):
            dx[i, j] = 0
        for s in range(index.shape[1]):
            dx[i, index[i, s]] = g[i, s]


@jit
def place_all(cut, g, index, dx):  # type: ignore[no-untyped-def]
    share_out(place_rows, cut, g, index, dx)


def supports(x: Any, k: Any, axis: Any) -> str | None:
    if type(x) is not np.ndarray:
        return "x is not a NumPy array"
    if x.dtype not in (np.float32, np.float64):
        return f"x is {x.dtype}; the kernel takes float32 and float64"
    if not isinstance(k, int | np.integer) or not isinstance(axis, int | np.integer):
        return "k or the axis is not an integer"
    if not -x.ndim <= axis < x.ndim:
        return f"axis {axis} is not one of the {x.ndim} axes of x"
    return None if 0 <= k <= x.shape[axis] else f"k = {k} is outside 0..{x.shape[axis]}"


def as_rows(a: Any, axis: int) -> Any:
    """(R, n): the axis last, the others as one."""
    last = np.moveaxis(a, axis, -1)
    return np.ascontiguousarray(last).reshape(math.prod(last.shape[:-1]), a.shape[axis])


def as_before(rows: Any, shape: tuple[int, ...], axis: int) -> Any:
    """Undo `as_rows` for an array of `shape` but for the size of the axis."""
    others = [n for i, n in enumerate(shape) if i != axis]
    return np.moveaxis(rows.reshape(*others, rows.shape[1]), -1, axis)


def forward(x: Any, k: int, axis: int) -> tuple[Any, Any]:
    k, axis = operator.index(k), operator.index(axis) % x.ndim
    rows = as_rows(x, axis)
    values, index = np.empty((len(rows), k), x.dtype), np.empty((len(rows), k), np.intp)
    if k:
        cut = parts(len(rows), 2 * rows.size + 64 * values.size)
        select_all(cut, rows, k, values, index, np.empty((cut, 2, k + BLOCK), np.intp))
    return (as_before(values, x.shape, axis), as_before(index, x.shape, axis)), (index, x.shape, axis)


def vjp(residuals: Any, g: Any) -> tuple[Any, None, None]:
    index, shape, axis = residuals
    dx = np.empty((len(index), shape[axis]), g[0].dtype)
    place_all(parts(len(dx), dx.size // 4), as_rows(g[0], axis), index, dx)
    return as_before(dx, shape, axis), None, None


KERNELS = {"topk": Kernel(forward, vjp, supports)}

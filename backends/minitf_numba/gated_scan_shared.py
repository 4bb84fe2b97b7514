"""What the gated scan and the delta rule share: layouts, decays, sums over the lanes.

A head is one row of memory: q and k are (B H, n dk), v is (B H, n dv), with N rounded up to an even n and the
widths to whole vectors. Zeros fill the rest and change nothing: there k = 0 and the decay is 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from .lanes import BYTES, add, fma, load, mul, negative, spread, store, total, zeros
from .runtime import CORES, LINKED, contiguous, inner, parts
from .vector import exp

# Tokens between two states that the gated scan keeps, and between two fresh starts of the gradient of g.
SPAN = 128


@inner
def decayed(x, a, i):  # type: ignore[no-untyped-def]
    """Element i of a times x; x where there is no decay."""
    return x if a is None else mul(x, spread(a, i))


@inner
def decays(like, a, t, c, across, along):  # type: ignore[no-untyped-def]
    """The decays of a vector of channels from c on, for token t."""
    if a is None:
        return zeros(like)
    return load(a, t * across + c) if along else spread(a, t * across)


@inner
def transposed(dk, dv, first, width, s, out):  # type: ignore[no-untyped-def]
    """Columns first .. first + width of a state as rows of dk."""
    for j in range(width):
        for c in range(dk):
            out[j * dk + c] = s[c * dv + first + j]


@inner
def copied(dk, dv, first, last, s, out):  # type: ignore[no-untyped-def]
    """Columns first .. last of a state."""
    for c in range(dk):
        for j in range(first, last, BYTES // s.itemsize):
            store(out, c * dv + j, load(s, c * dv + j))


@inner
def gate_end(end, dk, width, across, along, a, s, d, x):  # type: ignore[no-untyped-def]
    """x: the gradient of g behind the last token of a span, sum_j D S. d: D before the decay of the next."""
    for c in range(0, dk, BYTES // x.itemsize):
        y = zeros(x)
        for j in range(width):
            y = fma(load(s, j * dk + c), load(d, j * dk + c), y)
        store(x, c, y if a is None else mul(y, decays(x, a, end, c, across, along)))


@inner
def gate_span(start, end, dk, along, q, k, dq, dk_, less, x, dg):  # type: ignore[no-untyped-def]
    """dg of a span of tokens: dg_t = dg_{t+1} + q dq - k dk, from x on. One decay per head: all channels.

    less, of the delta rule: k less comes off dg too, and less off dk.
    """
    lanes = BYTES // x.itemsize
    for t in range(end - 1, start - 1, -1):
        whole = zeros(x)
        for c in range(0, dk, lanes):
            i = t * dk + c
            y = fma(load(q, i), load(dq, i), load(x, c))
            y = fma(load(k, i), negative(load(dk_, i)), y)
            if less is not None:
                minus = negative(load(less, (t - start) * dk + c))
                y = fma(load(k, i), minus, y)
                store(dk_, i, add(load(dk_, i), minus))
            store(x, c, y)
            whole = add(whole, y)
            if along:
                store(dg, i, y)
        if not along:
            dg[t] = total(whole)


@inner
def edge(dv, lanes, group, groups):  # type: ignore[no-untyped-def]
    """Where a group of columns begins: at a multiple of the lanes."""
    return dv // lanes * group // groups * lanes


def of(a, head):  # type: ignore[no-untyped-def]
    """a[head], or None."""
    raise NotImplementedError("only in compiled code")


@overload(of, jit_options=LINKED)  # type: ignore[untyped-decorator]
def of_type(a, head):  # type: ignore[no-untyped-def]
    if isinstance(a, types.NoneType):
        return lambda a, head: None
    return lambda a, head: a[head]


@inner
def decays_of_heads(p, cut, n, g, a):  # type: ignore[no-untyped-def]
    """a = exp(g) for heads of one part, and 1 in the places that g (heads, tokens, width) lacks."""
    heads, tokens, width = g.shape
    across = a.shape[1] // (n + 1)
    for h in range(heads * p // cut, heads * (p + 1) // cut):
        for t in range(n + 1):
            used = width if t < tokens else 0
            for c in range(used):
                a[h, t * across + c] = exp(g[h, t, c])
            for c in range(used, across):
                a[h, t * across + c] = 1


class Sizes:
    """Shapes after rounding up, and into how many parts the work is cut."""

    def __init__(self, q: Any, v: Any):
        lanes = BYTES // q.itemsize
        self.shape, self.width = q.shape, v.shape[3]
        self.heads = q.shape[0] * q.shape[1]
        self.n, self.dk, self.dv = (
            q.shape[2] + q.shape[2] % 2,
            -(-q.shape[3] // lanes) * lanes,
            -(-v.shape[3] // lanes) * lanes,
        )
        # Columns are cut until every core has the same number of items, or enough of them.
        self.groups, most = 1, self.dv // lanes
        while (
            self.groups < most and self.heads * self.groups % CORES and self.heads * self.groups < 4 * CORES
        ):
            self.groups += 1
        items = self.heads * self.groups
        self.cut = parts(items, self.heads * self.n * self.dk * self.dv)

    def decays(self, g: Any) -> tuple[Any, Any, bool]:
        """g, room for exp(g) with one token more, and whether each channel has its own; None for zeros."""
        along = g is not None and g.shape[3] == self.shape[3] and g.shape[3] > 1
        if g is None or (g[0, 0, 0, 0] == 0 and not g.any()):
            return None, None, along
        a = np.empty((self.heads, (self.n + 1) * (self.dk if along else 1)), g.dtype)
        return contiguous(g).reshape(self.heads, *g.shape[2:]), a, along

    def states(self, real: Any) -> Any:
        """Room for the state before every span."""
        return aligned((self.heads, -(-self.n // SPAN), self.dk * self.dv), real)

    def scratch(self, real: Any, states: int = 1) -> Any:
        """Room for so many states in each part."""
        columns = -(-self.dv * real.itemsize // BYTES // self.groups) * BYTES // real.itemsize
        return aligned((self.cut, states, self.dk * columns), real)

    def sums(self, width: int, real: Any, groups: int | None = None) -> Any:
        """Room for a gradient, once for each group of columns. One group: an array that owns its memory."""
        groups = self.groups if groups is None else groups
        shape = (*self.shape[:2], self.n, width)
        return np.empty(shape if groups == 1 else (groups, *shape), real)

    def parts(self, x: Any) -> Any:
        """(groups, B H, n d)."""
        return x.reshape(-1, self.heads, self.n * x.shape[-1])

    def keys(self, x: Any) -> Any:
        return panel(x, self.n, self.dk)

    def values(self, x: Any) -> Any:
        return panel(x, self.n, self.dv)

    def state(self, x: Any, like: Any) -> Any:
        """A copy of the state, or zeros, to be written over."""
        out = aligned((self.heads, self.dk * self.dv), like.dtype)
        out[:] = 0 if x is None else panel(x, self.dk, self.dv)
        return out


def reasons(q: Any, k: Any, v: Any, gates: Any, state: Any, chunk: Any) -> str | None:
    """None, or why the kernel cannot take these arrays. gates: names and arrays like q or one per head."""
    if type(q) is not np.ndarray or type(k) is not np.ndarray or type(v) is not np.ndarray:
        return "q, k or v is not a NumPy array"
    real = q.dtype
    if real not in (np.float32, np.float64) or k.dtype != real or v.dtype != real:
        return f"q is {real}, k {k.dtype} and v {v.dtype}; the kernel takes all of float32 or of float64"
    if q.ndim != 4 or v.ndim != 4 or k.shape != q.shape or v.shape[:3] != q.shape[:3]:
        return f"q {q.shape}, k {k.shape} and v {v.shape} do not fit each other"
    if not q.size or not v.size:
        return "an axis is empty"
    for name, gate in gates:
        if type(gate) is not np.ndarray or gate.dtype != real:
            return f"{name} is not an array of {real}"
        if gate.shape != q.shape and gate.shape != (*q.shape[:3], 1):
            return f"{name} {gate.shape} does not fit q {q.shape}"
    if state is not None and (
        type(state) is not np.ndarray
        or state.dtype != real
        or state.shape != (*q.shape[:2], q.shape[3], v.shape[3])
    ):
        return f"the state is not a (B, H, dk, dv) array of {real}"
    if type(chunk) is not int or chunk < 1:
        return f"chunk must be an integer of at least 1, not {chunk!r}"
    return None


def aligned(shape: tuple[int, ...], real: Any) -> Any:
    """Like np.empty, from the start of a cache line on: half of all accesses would touch two lines."""
    size = math.prod(shape)
    room = np.empty(size + BYTES // real.itemsize, real)
    start = -room.ctypes.data % BYTES // real.itemsize
    return room[start : start + size].reshape(shape)


def panel(x: Any, rows: int, columns: int) -> Any:
    """(B, H, N, d) -> (B H, rows * columns), zeros where the array is smaller."""
    heads = x.shape[0] * x.shape[1]
    if x.shape[2:] == (rows, columns):
        return np.ascontiguousarray(x).reshape(heads, rows * columns)
    out = np.zeros((heads, rows, columns), x.dtype)
    out[:, : x.shape[2], : x.shape[3]] = x.reshape(heads, *x.shape[2:])
    return out.reshape(heads, rows * columns)


def unpanel(x: Any, rows: int, columns: int, shape: tuple[int, ...]) -> Any:
    """The way back: the first rows and columns of each head."""
    x = x.reshape(*shape[:2], rows, columns)
    return x if x.shape == shape else x[:, :, : shape[2], : shape[3]].copy()


def summed(x: Any, shape: tuple[int, ...]) -> Any:
    """The sum over groups of columns, then the first rows and columns of each head."""
    x = x if x.ndim == 4 else x.sum(axis=0)
    return x if x.shape == shape else x[:, :, : shape[2], : shape[3]].copy()

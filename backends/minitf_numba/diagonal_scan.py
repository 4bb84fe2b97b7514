"""h_t = a_t * h_{t-1} + b_t along the tokens, in blocks of columns, each block read once.

    for each batch element and block of columns:          forward
        for t:  h[t] = a[t] * h[t-1] + b[t]               h[-1]: the state
    for each batch element and block of columns:          backward, from the last token to the first
        for t:  db[t] = g[t] + a[t+1] * db[t+1]
                da[t] = db[t] * h[t-1]                    summed over t where a is the same for all tokens
    dstate = a[0] * db[0]

The rule is that of an analytic function, so the same loops serve complex numbers (see the engine's tape).
Sums over tokens are taken in double precision.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .runtime import contiguous, inner, jit, parts, share_out

DTYPES = tuple(map(np.dtype, ("float32", "float64", "complex64", "complex128")))
# Columns that one pass over the tokens takes along.
COLUMNS = 128


@inner(fastmath={"contract"})
def forward_columns(z, lo, hi, a, b, state, h):  # type: ignore[no-untyped-def]
    """Columns lo to hi of batch element z: a (B or 1, N or 1, E), b, h (B, N, E), state (B, E) or empty."""
    za = z if len(a) > 1 else 0
    for t in range(b.shape[1]):
        at, bt, out = a[za, t if a.shape[1] > 1 else 0, lo:hi], b[z, t, lo:hi], h[z, t, lo:hi]
        if t == 0 and len(state) == 0:
            for i in range(len(bt)):
                out[i] = bt[i]
        else:
            before = h[z, t - 1, lo:hi] if t > 0 else state[z, lo:hi]
            for i in range(len(bt)):
                out[i] = at[i] * before[i] + bt[i]


@inner(fastmath={"contract"})
def backward_columns(z, lo, hi, a, state, h, g, da, db, total, dstate):  # type: ignore[no-untyped-def]
    """da (B, N, E), or (B, 0, E) where a is the same for all tokens: then total (B, E) is its sum."""
    za, n = z if len(a) > 1 else 0, g.shape[1]
    same, stateful = a.shape[1] == 1, len(state) > 0
    for t in range(n - 1, -1, -1):
        gt, out = g[z, t, lo:hi], db[z, t, lo:hi]
        if t == n - 1:
            for i in range(len(gt)):
                out[i] = gt[i]
        else:
            at, after = a[za, 0 if same else t + 1, lo:hi], db[z, t + 1, lo:hi]
            for i in range(len(gt)):
                out[i] = gt[i] + at[i] * after[i]
        if t > 0 or stateful:
            before = h[z, t - 1, lo:hi] if t > 0 else state[z, lo:hi]
            if same:
                sums = total[z, lo:hi]
                for i in range(len(gt)):
                    sums[i] += out[i] * before[i]
            else:
                dat = da[z, t, lo:hi]
                for i in range(len(gt)):
                    dat[i] = out[i] * before[i]
        elif not same:
            da[z, t, lo:hi] = 0
    if stateful:
        for i in range(lo, hi):
            dstate[z, i] = a[za, 0, i] * db[z, 0, i]


@inner
def place(item, width):  # type: ignore[no-untyped-def]
    """Batch element, and the columns from lo to hi, of an item."""
    blocks = (width + COLUMNS - 1) // COLUMNS
    lo = item % blocks * COLUMNS
    return item // blocks, lo, min(width, lo + COLUMNS)


@inner
def some_forward(p, cut, items, a, b, state, h):  # type: ignore[no-untyped-def]
    for item in range(items * p // cut, items * (p + 1) // cut):
        z, lo, hi = place(item, b.shape[2])
        forward_columns(z, lo, hi, a, b, state, h)


@jit
def forward_all(cut, items, a, b, state, h):  # type: ignore[no-untyped-def]
    share_out(some_forward, cut, items, a, b, state, h)


@inner
def some_backward(p, cut, items, a, state, h, g, da, db, total, dstate):  # type: ignore[no-untyped-def]
    for item in range(items * p // cut, items * (p + 1) // cut):
        z, lo, hi = place(item, g.shape[2])
        backward_columns(z, lo, hi, a, state, h, g, da, db, total, dstate)


@jit
def backward_all(cut, items, a, state, h, g, da, db, total, dstate):  # type: ignore[no-untyped-def]
    share_out(some_backward, cut, items, a, state, h, g, da, db, total, dstate)


def supports(a: Any, b: Any, state: Any) -> str | None:
    for name, part in (("a", a), ("b", b), ("state", state)):
        if type(part) is not np.ndarray and not (part is None and name == "state"):
            return f"{name} is not a NumPy array"
    if b.dtype not in DTYPES or a.dtype != b.dtype or (state is not None and state.dtype != b.dtype):
        return (
            f"a is {a.dtype}, b {b.dtype}, the state {None if state is None else state.dtype}; the kernel "
            "takes one type for all: float32, float64, complex64 or complex128"
        )
    if b.ndim < 2 or not b.size or a.ndim != b.ndim:
        return f"b {b.shape} has no tokens, or a {a.shape} other axes"
    if a.shape != b.shape and any(i not in (1, j) for i, j in zip(a.shape, b.shape, strict=True)):
        return f"a {a.shape} does not broadcast to b {b.shape}"
    if state is not None and state.shape != (b.shape[0], *b.shape[2:]):
        return f"the state {state.shape} does not fit b {b.shape}"
    return None


def forward(a: Any, b: Any, state: Any) -> tuple[Any, Any]:
    batch, tokens, width = b.shape[0], b.shape[1], math.prod(b.shape[2:])
    full = a if a.shape[2:] == b.shape[2:] else np.broadcast_to(a, (*a.shape[:2], *b.shape[2:]))
    full = contiguous(full).reshape(*a.shape[:2], width)
    rows = contiguous(b).reshape(batch, tokens, width)
    first = np.zeros((0, 0), b.dtype)
    if state is not None:
        first = contiguous(state).reshape(batch, width)
    h = np.empty_like(rows)
    items = batch * -(-width // COLUMNS)
    forward_all(parts(items, b.size), items, full, rows, first, h)
    return h.reshape(b.shape), (full, first, h, a.shape, b.shape)


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    a, state, h, a_shape, shape = residuals
    batch, tokens, width = h.shape
    each = 0 if a.shape[1] == 1 else tokens
    da, db, dstate = np.empty((batch, each, width), h.dtype), np.empty_like(h), np.empty_like(state)
    total = np.zeros((batch, width), np.result_type(h.dtype, np.float64))
    items = batch * -(-width // COLUMNS)
    g = contiguous(g).reshape(h.shape)
    backward_all(parts(items, 2 * h.size), items, a, state, h, g, da, db, total, dstate)
    da = da if each else total[:, None]
    da = da.reshape(batch, da.shape[1], *shape[2:])
    if da.shape != a_shape:
        axes = tuple(i for i, size in enumerate(a_shape) if size == 1 and da.shape[i] > 1)
        da = da.sum(axis=axes, keepdims=True, dtype=total.dtype)
    dstate = dstate.reshape(shape[0], *shape[2:]) if len(state) else None
    return da.astype(h.dtype, copy=False), db.reshape(shape), dstate


KERNELS = {"diagonal_scan": Kernel(forward, vjp, supports)}

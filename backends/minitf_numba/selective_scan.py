"""The selective scan, for blocks of channels, with the states of one chunk at a time.

    for each batch element and block of W channels:       forward; a and x (n, W) stay in the cache
        for t:  x[j] = exp(dt a[j]) * x[j] + dt u b[t, j],   y[t] = sum_j x[j] c[t, j]
        x at the start of every chunk of C tokens is kept, nothing else
    for each batch element and block, chunks from last to first:       backward
        forward once more through the chunk: x and exp(dt a) of its tokens
        for t, from last to first, with p the gradient of x_t:
            p[j] += g[t] c[t, j]
            dc[t, j] = sum over channels of g[t] x_t[j]
            db[t, j] = sum over channels of p[j] dt u
            dz = p[j] exp(dt a[j]) x_{t-1}[j]             z = dt a
            da[j] += dz dt,  ddt += sum_j dz a[j] + u sum_j p[j] b[t, j],  du = dt sum_j p[j] b[t, j]
            p[j] <- p[j] exp(dt a[j])

Loops run over the channels of a block, so any n is fast. Rows that one loop needs lie a fixed distance apart
in one array: LLVM vectorises a loop only if few pairs of arrays could overlap. db and dc are summed up by
blocks, then over blocks in their order; da by chunks, then in double precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .runtime import contiguous, inner, jit, parts, share_out
from .vector import exp

# Channels of a block, and tokens between two states that are kept.
W, C = 64, 16


@inner(fastmath={"contract"})
def forward_block(lo, hi, u, dt, a, b, c, state, y, starts, tile, rows):  # type: ignore[no-untyped-def]
    """Channels lo to hi of one batch element: u, dt, y (N, E), a and state (n, E), starts (M + 1, n, E)."""
    width, n = hi - lo, len(a)
    # Rows of `tile` for each j: a, x. Rows of `rows`: dt, dt u, y.
    for j in range(n):
        for e in range(width):
            tile[j * 2 * W + e], tile[j * 2 * W + W + e] = a[j, lo + e], state[j, lo + e]
    for t in range(len(u)):
        if t % C == 0:
            for j in range(n):
                for e in range(width):
                    starts[t // C, j, lo + e] = tile[j * 2 * W + W + e]
        for e in range(width):
            rows[e], rows[W + e], rows[2 * W + e] = dt[t, lo + e], dt[t, lo + e] * u[t, lo + e], 0
        for j in range(n):
            s, bj, cj = tile[j * 2 * W : (j + 1) * 2 * W], b[t, j], c[t, j]
            for e in range(width):
                x = exp(rows[e] * s[e]) * s[W + e] + rows[W + e] * bj
                s[W + e] = x
                rows[2 * W + e] += x * cj
        for e in range(width):
            y[t, lo + e] = rows[2 * W + e]
    for j in range(n):
        for e in range(width):
            starts[len(starts) - 1, j, lo + e] = tile[j * 2 * W + W + e]


@inner(fastmath={"contract"})
def again(first, last, lo, hi, u, dt, b, start, tile, rows, history):  # type: ignore[no-untyped-def]
    """The states of a chunk and its exp(dt a): history rows (t, j) of x_{t-1}, and of exp at t + 1."""
    width, n = hi - lo, len(start)
    for j in range(n):
        for e in range(width):
            history[j * 2 * W + e] = start[j, lo + e]
    for t in range(first, last):
        for e in range(width):
            rows[e], rows[W + e] = dt[t, lo + e], dt[t, lo + e] * u[t, lo + e]
        for j in range(n):
            at, bj = ((t - first) * n + j) * 2 * W, b[t, j]
            before, after = history[at : at + 2 * W], history[at + n * 2 * W : at + (n + 1) * 2 * W]
            s = tile[j * 3 * W : (j + 1) * 3 * W]
            for e in range(width):
                decay = exp(rows[e] * s[e])
                after[e] = decay * before[e] + rows[W + e] * bj
                after[W + e] = decay


@inner(fastmath={"reassoc", "contract"})
def backward_chunk(first, last, lo, hi, u, dt, b, c, g, tile, rows, history, du, ddt, db, dc):  # type: ignore[no-untyped-def]
    width, n = hi - lo, b.shape[1]
    for t in range(last - 1, first - 1, -1):
        for e in range(width):
            rows[e], rows[W + e], rows[2 * W + e] = dt[t, lo + e], dt[t, lo + e] * u[t, lo + e], g[t, lo + e]
            rows[3 * W + e], rows[4 * W + e] = 0, 0
        for j in range(n):
            at, bj, cj = ((t - first) * n + j) * 2 * W, b[t, j], c[t, j]
            before, after = history[at : at + 2 * W], history[at + n * 2 * W : at + (n + 1) * 2 * W]
            s = tile[j * 3 * W : (j + 1) * 3 * W]
            dbj, dcj = bj * 0, cj * 0
            for e in range(width):
                p = s[W + e] + rows[2 * W + e] * cj
                dcj += rows[2 * W + e] * after[e]
                dbj += p * rows[W + e]
                rows[3 * W + e] += p * bj
                p = p * after[W + e]
                s[W + e] = p
                dz = p * before[e]
                rows[4 * W + e] += dz * s[e]
                s[2 * W + e] += dz * rows[e]
            db[t, j], dc[t, j] = dbj, dcj
        for e in range(width):
            ddt[t, lo + e] = rows[4 * W + e] + rows[3 * W + e] * u[t, lo + e]
            du[t, lo + e] = rows[3 * W + e] * rows[e]


@inner
def backward_block(lo, hi, u, dt, a, b, c, starts, g, glast, tile, rows, past, du, ddt, da, db, dc, dstate):  # type: ignore[no-untyped-def]
    """As `forward_block`; g (N, E), glast and dstate (n, E), da (n, E) in double, db, dc (N, n)."""
    n = len(a)
    # Rows of `tile` for each j: a, the gradient of x, da of the chunk. Of `rows`: dt, dt u, g, d(dt u), ddt.
    for j in range(n):
        for e in range(hi - lo):
            at = j * 3 * W + e
            tile[at], tile[at + W], tile[at + 2 * W] = a[j, lo + e], glast[j, lo + e], 0
            da[j, lo + e] = 0
    for m in range(len(starts) - 2, -1, -1):
        first, last = m * C, min(len(u), (m + 1) * C)
        again(first, last, lo, hi, u, dt, b, starts[m], tile, rows, past)
        backward_chunk(first, last, lo, hi, u, dt, b, c, g, tile, rows, past, du, ddt, db, dc)
        for j in range(n):
            for e in range(hi - lo):
                da[j, lo + e] += tile[j * 3 * W + 2 * W + e]
                tile[j * 3 * W + 2 * W + e] = 0
    for j in range(n):
        for e in range(hi - lo):
            dstate[j, lo + e] = tile[j * 3 * W + W + e]


@inner
def some_forward(p, cut, items, u, dt, a, b, c, state, y, starts, tiles, rows):  # type: ignore[no-untyped-def]
    blocks, tile, row = (u.shape[2] + W - 1) // W, tiles[p], rows[p]
    for item in range(items * p // cut, items * (p + 1) // cut):
        z, lo = item // blocks, item % blocks * W
        hi = min(u.shape[2], lo + W)
        forward_block(lo, hi, u[z], dt[z], a, b[z], c[z], state[z], y[z], starts[z], tile, row)


@jit
def forward_all(cut, items, u, dt, a, b, c, state, y, starts, tiles, rows):  # type: ignore[no-untyped-def]
    share_out(some_forward, cut, items, u, dt, a, b, c, state, y, starts, tiles, rows)


@inner
def some_backward(p, cut, items, u, dt, a, b, c, starts, g, glast, rooms, du, ddt, da, db, dc, dstate):  # type: ignore[no-untyped-def]
    """db, dc: (blocks, B, N, n). A room: for `tile`, `rows` and `past`, one after the other."""
    room, n = rooms[p], len(a)
    tile, rows, past = room[: 3 * W * n], room[3 * W * n :], room[3 * W * n + 5 * W :]
    for item in range(items * p // cut, items * (p + 1) // cut):
        z, k = item // len(db), item % len(db)
        lo, hi = k * W, min(u.shape[2], (k + 1) * W)
        backward_block(
            lo, hi, u[z], dt[z], a, b[z], c[z], starts[z], g[z], glast[z], tile, rows, past, du[z], ddt[z],
            da[z], db[k, z], dc[k, z], dstate[z],
        )  # fmt: skip


@jit
def backward_all(cut, items, u, dt, a, b, c, starts, g, glast, rooms, du, ddt, da, db, dc, dstate):  # type: ignore[no-untyped-def]
    share_out(some_backward, cut, items, u, dt, a, b, c, starts, g, glast, rooms, du, ddt, da, db, dc, dstate)


def supports(u: Any, dt: Any, a: Any, b: Any, c: Any, state: Any, chunk: Any) -> str | None:
    given = (u, dt, a, b, c) if state is None else (u, dt, a, b, c, state)
    if any(type(part) is not np.ndarray for part in given):
        return "an argument is not a NumPy array"
    if u.dtype not in (np.float32, np.float64) or any(part.dtype != u.dtype for part in given):
        kinds = ", ".join(str(part.dtype) for part in given)
        return f"the arguments are {kinds}; the kernel takes float32 or float64 for all"
    if u.ndim != 3 or a.ndim != 2 or not u.size or not a.size:
        return f"u {u.shape} must be (B, N, E) and a {a.shape} (E, n), without empty axes"
    (batch, tokens, width), n = u.shape, a.shape[1]
    fits = dt.shape == u.shape and a.shape[0] == width and b.shape == c.shape == (batch, tokens, n)
    if not fits or (state is not None and state.shape != (batch, width, n)):
        return "the shapes do not fit each other"
    return None if type(chunk) is int and chunk > 0 else f"chunk must be at least 1, not {chunk}"


def forward(u: Any, dt: Any, a: Any, b: Any, c: Any, state: Any, chunk: int) -> tuple[Any, Any]:
    (batch, tokens, width), n = u.shape, a.shape[1]
    u, dt, b, c = (contiguous(part) for part in (u, dt, b, c))
    # Channels last: (n, E) and (B, n, E)
    a = contiguous(a.T)
    first = np.zeros((batch, n, width), u.dtype)
    if state is not None:
        first = contiguous(state.swapaxes(1, 2))
    y = np.empty_like(u)
    starts = np.empty((batch, -(-tokens // C) + 1, n, width), u.dtype)
    items = batch * -(-width // W)
    cut = parts(items, 8 * u.size * n)
    tile, rows = np.empty((cut, n * 2 * W), u.dtype), np.empty((cut, 3 * W), u.dtype)
    forward_all(cut, items, u, dt, a, b, c, first, y, starts, tile, rows)
    last = contiguous(starts[:, -1].swapaxes(1, 2))
    return (y, last), (u, dt, a, b, c, starts, state is not None)


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    u, dt, a, b, c, starts, stateful = residuals
    gy = np.zeros_like(u) if g[0] is None else contiguous(g[0])
    batch, width = u.shape[0], u.shape[2]
    glast = np.zeros((batch, *a.shape), u.dtype)
    if g[1] is not None:
        glast = contiguous(g[1].swapaxes(1, 2))
    blocks = -(-width // W)
    du, ddt, dstate = np.empty_like(u), np.empty_like(u), np.empty_like(glast)
    da = np.empty((batch, *a.shape))
    db, dc = np.empty((blocks, *b.shape), u.dtype), np.empty((blocks, *b.shape), u.dtype)
    cut = parts(batch * blocks, 16 * u.size * len(a))
    n = len(a)
    room = np.empty((cut, (3 * n + 5 + 2 * (C + 1) * n) * W), u.dtype)
    backward_all(cut, batch * blocks, u, dt, a, b, c, starts, gy, glast, room, du, ddt, da, db, dc, dstate)
    db, dc = (part[0] if blocks == 1 else part.sum(axis=0) for part in (db, dc))
    da = np.ascontiguousarray(da.sum(axis=0).T).astype(u.dtype, copy=False)
    first = contiguous(dstate.swapaxes(1, 2)) if stateful else None
    return du, ddt, da, db, dc, first, None


KERNELS = {"selective_scan": Kernel(forward, vjp, supports)}

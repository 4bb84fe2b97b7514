"""Rotary positions: each vector read once and written once; the backward turns by the opposite angle.

    for each row (batch, head, place):    c, s = cos, sin of its place, one for each pair
        (a, b) -> (a c - b s, a s + b c)       pairs are neighbours, or the two halves

Heads split from (B, N, H d) are a permuted view whose memory is (B, N, H, d): it is worked on as it lies, and
the result lies likewise, so that nothing is copied. cos and sin come from the definition's own table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel
from minitf.ops.rotary import rotation

from .runtime import contiguous, inner, jit, parts, share_out


@inner(fastmath={"contract"})
def turn_rows(p, cut, x, cos, sin, outer, places, within, batched, sign, interleaved, y):  # type: ignore[no-untyped-def]
    """Rows are counted (outer, places, within) for one batch after the other."""
    half = x.shape[1] // 2
    for i in range(len(x) * p // cut, len(x) * (p + 1) // cut):
        n = i // within % places
        if batched:
            n += i // (outer * places * within) * places
        row, out, c, s = x[i], y[i], cos[n], sin[n]
        if interleaved:
            for j in range(half):
                a, b, t = row[2 * j], row[2 * j + 1], sign * s[j]
                out[2 * j] = a * c[j] - b * t
                out[2 * j + 1] = a * t + b * c[j]
        else:
            for j in range(half):
                a, b, t = row[j], row[half + j], sign * s[j]
                out[j] = a * c[j] - b * t
                out[half + j] = a * t + b * c[j]


@jit
def turn_all(cut, x, cos, sin, outer, places, within, batched, sign, interleaved, y):  # type: ignore[no-untyped-def]
    share_out(turn_rows, cut, x, cos, sin, outer, places, within, batched, sign, interleaved, y)


def turned(x: Any, cos: Any, sin: Any, batched: bool, sign: int, interleaved: bool) -> Any:
    """x (B, H, N, d) turned, in memory as x is."""
    heads, places = x.shape[1:3]
    swapped = x.transpose(0, 2, 1, 3)
    as_split = not x.flags.carray and swapped.flags.carray
    rows = (swapped if as_split else contiguous(x)).reshape(-1, x.shape[-1])
    outer, within = (1, heads) if as_split else (heads, 1)
    y = np.empty_like(rows)
    turn_all(
        parts(len(rows), 3 * rows.size), rows, cos, sin, outer, places, within, batched,
        x.dtype.type(sign), interleaved, y,
    )  # fmt: skip
    return y.reshape(swapped.shape).transpose(0, 2, 1, 3) if as_split else y.reshape(x.shape)


def supports(x: Any, positions: Any, base: Any, interleaved: Any) -> str | None:
    if type(x) is not np.ndarray or type(positions) is not np.ndarray:
        return "x or the positions are not a NumPy array"
    if x.dtype not in (np.float32, np.float64):
        return f"x is {x.dtype}; the kernel takes float32 and float64"
    if x.ndim != 4 or x.shape[-1] % 2 or not x.size:
        return f"x is {x.shape}; the kernel takes four axes, the last one even, none empty"
    if positions.shape not in ((x.shape[2],), (x.shape[0], x.shape[2])):
        return f"positions {positions.shape} do not fit x {x.shape}"
    if positions.dtype.kind not in "iuf":
        return f"the positions are {positions.dtype}"
    return None


def forward(x: Any, positions: Any, base: float, interleaved: bool) -> tuple[Any, Any]:
    d, kind = x.shape[-1], positions.dtype.str
    cos, sin = rotation(positions.tobytes(), positions.shape, kind, d, base, x.dtype.str)
    table = cos.reshape(-1, d // 2), sin.reshape(-1, d // 2), positions.ndim == 2
    y = turned(x, *table, 1, bool(interleaved))
    return y, (*table, bool(interleaved))


def vjp(residuals: Any, g: Any) -> tuple[Any, None, None, None]:
    cos, sin, batched, interleaved = residuals
    return turned(g, cos, sin, batched, -1, interleaved), None, None, None


KERNELS = {"rope": Kernel(forward, vjp, supports)}

"""Dropout whose mask is computed, not stored: the hash of the key and of the element's number, as in
`minitf.ops.keyed_dropout`.

    for each element i, in C order:      y[i] = x[i] * (scale if hash(key, i) >= threshold else 0)

The backward is the same function of the gradient. 64-bit products are scalar code here, about a nanosecond an
element: less than reading a stored mask would cost with its page faults.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel
from minitf.ops.random import FIRST, GAMMA, SECOND, threshold

from .runtime import contiguous, inner, jit, parts, share_out

u = np.uint64
STEP, MIX1, MIX2 = u(GAMMA), u(FIRST), u(SECOND)


@inner
def span(p, cut, x, key, limit, scale, y):  # type: ignore[no-untyped-def]
    n, zero = len(x), x.dtype.type(0)
    for i in range(n * p // cut, n * (p + 1) // cut):
        z = key + u(i + 1) * STEP
        z = (z ^ (z >> u(30))) * MIX1
        z = (z ^ (z >> u(27))) * MIX2
        z = z ^ (z >> u(31))
        y[i] = x[i] * (scale if z >= limit else zero)


@jit
def spans(cut, x, key, limit, scale, y):  # type: ignore[no-untyped-def]
    share_out(span, cut, x, key, limit, scale, y)


def dropped(x: Any, key: int, rate: float) -> Any:
    flat = contiguous(x).reshape(-1)
    y = np.empty_like(flat)
    scale = x.dtype.type(1) / x.dtype.type(1.0 - rate)
    spans(parts(len(flat), 8 * len(flat)), flat, u(key), u(threshold(rate)), scale, y)
    return y.reshape(x.shape)


def supports(x: Any, key: Any, rate: Any) -> str | None:
    if type(x) is not np.ndarray:
        return "x is not a NumPy array"
    if x.dtype not in (np.float32, np.float64):
        return f"x is {x.dtype}; the kernel takes float32 and float64"
    if not isinstance(key, int) or not 0 <= key < 1 << 64:
        return "the key is not an integer of 64 bits"
    if not isinstance(rate, int | float) or not 0.0 <= rate < 1.0:
        return f"the rate {rate} is outside [0, 1)"
    return None


KERNELS = {
    "keyed_dropout": Kernel(
        forward=lambda x, key, rate: (dropped(x, key, rate), (key, rate)),
        vjp=lambda residuals, g: (dropped(g, *residuals), None, None),
        supports=supports,
    )
}

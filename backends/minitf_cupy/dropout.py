"""Dropout by a key: launcher of dropout.cu, whose head explains the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel
from minitf.ops.random import threshold

from .module import blocks, launch, refusal


def supports(x: Any, key: Any, rate: Any) -> str | None:
    if why := refusal("x", x):
        return why
    if not isinstance(key, int) or not 0 <= key < 1 << 64:
        return "the key is not an integer of 64 bits"
    if not isinstance(rate, int | float) or not 0.0 <= rate < 1.0:
        return f"the rate {rate} is outside [0, 1)"
    return None


def dropped(x: Any, key: int, rate: float) -> Any:
    import cupy

    x = cupy.ascontiguousarray(x).reshape(x.shape)
    y = cupy.empty_like(x)
    args = (x, y, x.size, np.uint64(key), np.uint64(threshold(rate)), 1.0 - rate)
    launch("dropout", "dropout", x.dtype, min(blocks(x.size, 256), 65535), 256, *args)
    return y


KERNELS = {
    "keyed_dropout": Kernel(
        forward=lambda x, key, rate: (dropped(x, key, rate), (key, rate)),
        vjp=lambda residuals, g: (dropped(g, *residuals), None, None),
        supports=supports,
    )
}

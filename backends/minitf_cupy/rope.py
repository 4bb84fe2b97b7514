"""Rotary positions: launcher of rope.cu, whose head explains the kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from minitf.engine import to_device
from minitf.ops.kernels import Kernel
from minitf.ops.rotary import rotation

from .module import blocks, launch, refusal


def supports(x: Any, positions: Any, base: Any, interleaved: Any) -> str | None:
    if why := refusal("x", x):
        return why
    places = getattr(positions, "shape", None)
    if places is None:
        return "the positions are not an array"
    if x.ndim != 4 or not x.size or x.shape[3] % 2:
        return f"x {x.shape} must be (B, H, N, d) with an even d, no axis empty"
    if places not in ((x.shape[2],), (x.shape[0], x.shape[2])):
        return f"positions {places} must be {(x.shape[2],)} or {(x.shape[0], x.shape[2])}"
    return None


@lru_cache(maxsize=64)
def table(device: int, *key: Any) -> tuple[Any, Any]:
    """cos and sin of every angle, on the card."""
    import cupy

    cos, sin = rotation(*key)
    return cupy.asarray(cos), cupy.asarray(sin)


def forward(x: Any, positions: Any, base: float, interleaved: bool) -> tuple[Any, Any]:
    import cupy

    places = np.asarray(to_device(positions, "cpu"))
    key = (places.tobytes(), places.shape, places.dtype.str, x.shape[3], base, x.dtype.str)
    residuals = (*table(cupy.cuda.Device().id, *key), places.ndim == 2, bool(interleaved))
    return rotated(x, residuals, 1.0), residuals


def rotated(x: Any, residuals: Any, sign: float) -> Any:
    import cupy

    cos, sin, by_batch, interleaved = residuals
    x = cupy.ascontiguousarray(x)
    y, (heads, tokens, width) = cupy.empty_like(x), x.shape[1:]
    args = (x, cos, sin, y, np.int64(x.size // 2), heads, tokens, width // 2, by_batch, interleaved, sign)
    launch("rope", "rotate", x.dtype, min(blocks(x.size // 2, 256), 65535), 256, *args)
    return y


KERNELS = {
    "rope": Kernel(
        forward=forward,
        vjp=lambda residuals, g: (rotated(g, residuals, -1.0), None, None, None),
        supports=supports,
    )
}

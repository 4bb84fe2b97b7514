"""Depthwise convolution: launchers of convolution.cu, whose head explains the kernels."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel
from minitf.ops.windows import as_tuple

from .module import blocks, launch, refusal, summed_in


def supports(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> str | None:
    if why := refusal("x", x) or refusal("weight", weight, (str(x.dtype),)):
        return why
    axes = weight.ndim - 2
    if (
        axes not in (1, 2)
        or x.ndim != axes + 2
        or weight.shape[axes:] != (1, x.shape[-1])
        or groups != x.shape[-1]
    ):
        return f"x {x.shape} and weight {weight.shape} are no depthwise convolution over one or two axes"
    if bias is not None and (why := refusal("bias", bias, (str(x.dtype),))):
        return why
    if bias is not None and bias.shape != x.shape[-1:]:
        return f"bias {bias.shape} must be {x.shape[-1:]}"
    try:
        out = sizes_of(x.shape[1:-1], weight.shape[:-2], stride, padding, dilation)[1]
    except (TypeError, ValueError) as error:
        return f"stride, padding or dilation: {error}"
    if min(x.size, weight.size, *out) < 1 or x.shape[0] * math.prod(out) * groups >= 2**31:
        return "an axis is empty, the kernel does not fit the grid, or the result is too large"
    return None if blocks(math.prod(weight.shape[:-2]), 1) < 65536 else "the kernel has too many taps"


def sizes_of(grid: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> tuple[tuple[int, ...], ...]:
    """The numbers of Grid in convolution.cu, for two axes, and the grid of the outputs."""
    axes = len(grid)
    strides, dilations = as_tuple(stride, axes), as_tuple(dilation, axes)
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    if isinstance(padding, str):
        before = {"causal": reach, "same": [r // 2 for r in reach]}[padding]
        added = reach
    else:
        before = list(as_tuple(padding, axes))
        added = [2 * p for p in before]
    if min(*strides, *dilations) < 1 or min(before) < 0:
        raise ValueError("below the least that makes sense")
    out = tuple((n + a - r) // 1 for n, a, r in zip(grid, added, reach, strict=True))
    out = tuple((n - 1) // s + 1 if n > 0 else 0 for n, s in zip(out, strides, strict=True))
    rows = (grid, out, kernel, strides, dilations, before)
    # One axis is a grid of height 1.
    flat = tuple(
        int(n) for i, row in enumerate(rows) for n in ((0 if i == 5 else 1,) * (2 - axes) + tuple(row))
    )
    return flat, out


@lru_cache(maxsize=256)
def on_card(device: int, sizes: tuple[int, ...]) -> Any:
    import cupy

    return cupy.asarray(np.array(sizes, "int32"))


def forward(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[Any, Any]:
    import cupy

    flat, out = sizes_of(x.shape[1:-1], weight.shape[:-2], stride, padding, dilation)
    x, weight, bias = (None if a is None else cupy.ascontiguousarray(a) for a in (x, weight, bias))
    sizes = on_card(cupy.cuda.Device().id, flat)
    y = cupy.empty((x.shape[0], *out, groups), x.dtype)
    grid = min(blocks(y.size, 256), 65535)
    launch("convolution", "convolve", x.dtype, grid, 256, x, weight, bias, y, sizes, groups, np.int64(y.size))
    return y, (x, weight, bias is not None, sizes)


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    import cupy

    x, weight, biased, sizes = residuals
    g, dx, channels = cupy.ascontiguousarray(g), cupy.empty_like(x), x.shape[-1]
    args = (g, weight, dx, sizes, channels, np.int64(x.size))
    launch("convolution", "convolve_backward", x.dtype, min(blocks(x.size, 256), 65535), 256, *args)
    taps, places = weight.size // channels, g.size // channels
    # At most 128 shares, of at least 64 outputs.
    share = max(64, blocks(places, 128))
    dw = cupy.empty((blocks(places, share), taps, channels), summed_in(x.dtype))
    grid = (blocks(channels, 32), taps, dw.shape[0])
    launch("convolution", "convolve_weights", x.dtype, grid, 256, g, x, dw, sizes, channels, places, share)
    dweight = dw.sum(axis=0).astype(x.dtype).reshape(weight.shape)
    db = g.reshape(-1, channels).sum(axis=0, dtype=dw.dtype).astype(x.dtype) if biased else None
    return dx, dweight, db, None, None, None, None


KERNELS = {"conv": Kernel(forward, vjp, supports)}

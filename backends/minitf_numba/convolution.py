"""Depthwise convolution over one or two grid axes: each channel with its own kernel, nothing unfolded.

    for each tile of outputs and block of W channels, one vector:               convolution_tiles.py
        copy the inputs of the tile, zeros outside the grid, so that neighbours lie W apart
        for each row of the tile, four outputs at once:                                   forward
            y[q + p] = bias + sum over all taps k of w[k] * x[q + p + k]        p = 0..3, sums in registers
        for each row of the tile, four taps at once:                                      backward
            dw[k + p] += sum over q of g[q] * x[q + k + p]
    dx is the convolution of g with w turned round

With dilation d, outputs whose places agree modulo d form a grid without dilation: each such grid is cut into
tiles by itself. dw is summed up by tiles, then in double precision by parts, then over the parts in order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel
from minitf.ops.windows import as_tuple, margins

from .convolution_tiles import correlate, products
from .lanes import BYTES
from .runtime import contiguous, parts

# Outputs of a tile, down and across: over one axis, and over two.
LINE, TILE = (1, 256), (8, 64)


def plan(x: Any, weight: Any, stride: Any, padding: Any, dilation: Any) -> tuple[tuple[int, int], ...]:
    """Kernel, dilation, zeros before, grid of outputs: two numbers each. One axis is a grid of one row.

    Raises:
        ValueError, TypeError: options that the kernel does not take.
    """
    axes = x.ndim - 2
    steps = as_tuple(dilation, axes)
    reach = [(k - 1) * d for k, d in zip(weight.shape[:axes], steps, strict=True)]
    around = margins(padding, reach)
    if not all(isinstance(v, int) for v in (*steps, *(v for side in around for v in side))):
        raise ValueError("padding and dilation must be whole numbers")
    if as_tuple(stride, axes) != (1,) * axes or min(steps) < 1 or min(min(side) for side in around) < 0:
        raise ValueError(f"stride={stride} must be 1, dilation={dilation} at least 1, padding={padding} 0")
    before = [first for first, _ in around]
    out = [n + p + q - r for n, (p, q), r in zip(x.shape[1:-1], around, reach, strict=True)]
    found = ((1, *weight.shape[:axes]), (1, *steps), (0, *before), (1, *out))
    return tuple((row[-2], row[-1]) for row in found)


def supports(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> str | None:
    for name, part in (("x", x), ("the weight", weight), ("the bias", bias)):
        if type(part) is not np.ndarray and not (part is None and name == "the bias"):
            return f"{name} is not a NumPy array"
    if x.dtype not in (np.float32, np.float64) or weight.dtype != x.dtype:
        return f"x is {x.dtype} and the weight {weight.dtype}; the kernel takes two of float32 or of float64"
    if x.ndim not in (3, 4) or weight.ndim != x.ndim:
        return f"x {x.shape} has not one or two grid axes, or the weight {weight.shape} others"
    channels = x.shape[-1]
    if weight.shape[-2:] != (1, channels) or groups != channels:
        return f"not depthwise: x {x.shape}, weight {weight.shape}, groups={groups}"
    if bias is not None and (bias.dtype != x.dtype or bias.shape != (channels,)):
        return f"the bias must be {(channels,)} of {x.dtype}"
    if not x.size or not weight.size:
        return "an axis is empty"
    try:
        out = plan(x, weight, stride, padding, dilation)[3]
    except (TypeError, ValueError) as error:
        return str(error)
    return None if min(out) > 0 else "the kernel reaches farther than the grid"


def packed(w: Any) -> Any:
    """(taps, C) -> (blocks, taps * W), W channels a block."""
    (taps, channels), step = w.shape, BYTES // w.itemsize
    blocks = -(-channels // step)
    out = np.zeros((taps, blocks * step), w.dtype)
    out[:, :channels] = w
    return np.ascontiguousarray(out.reshape(taps, blocks, step).swapaxes(0, 1)).reshape(blocks, taps * step)


def cuts(shape: tuple[int, ...], kernel: tuple[int, int], dilation: tuple[int, int], kind: Any) -> Any:
    """Into how many parts, and items, outputs (B, H, W, C) are cut; the tile, with W; room for its inputs."""
    tile = (*(LINE if shape[1] == 1 else TILE), BYTES // kind.itemsize)
    tiles = [((n - 1) // d // s + 1) * d for n, d, s in zip(shape[1:3], dilation, tile[:2], strict=True)]
    items = shape[0] * -(-shape[3] // tile[2]) * math.prod(tiles)
    cut = parts(items, math.prod(shape) * (math.prod(kernel) + 4))
    near = np.empty((cut, (tile[0] + kernel[0] - 1) * (tile[1] + kernel[1] + 2) * tile[2]), kind)
    return cut, items, tile, near


def forward(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[Any, Any]:
    channels = x.shape[-1]
    kernel, steps, before, out = plan(x, weight, stride, padding, dilation)
    x, x_shape = contiguous(x), x.shape
    shape = (x_shape[0], *((1,) * (4 - x.ndim)), *x_shape[1:])
    grid = (x_shape[0], *out, channels)
    taps = weight.reshape(-1, channels)
    rows = packed(np.zeros((1, channels), x.dtype) if bias is None else bias[None])
    y = convolved(x, shape, packed(taps), rows, kernel, before, steps, grid)
    kept = (x, shape, grid, taps, kernel, before, steps, weight.shape, bias is not None)
    return y.reshape(x_shape[0], *out[4 - x.ndim :], channels), kept


def convolved(
    x: Any, shape: Any, w: Any, bias: Any, kernel: Any, before: Any, steps: Any, grid: tuple[int, ...]
) -> Any:
    cut, items, tile, near = cuts(grid, kernel, steps, x.dtype)
    y, four = np.empty(math.prod(grid), x.dtype), np.empty((cut, 4 * tile[2]), x.dtype)
    correlate(cut, items, x.reshape(-1), shape, w, bias, kernel, before, steps, tile, y, grid, near, four)
    return y


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    x, shape, grid, taps, kernel, before, steps, weight_shape, biased = residuals
    g = contiguous(g).reshape(-1)
    back = tuple((k - 1) * d - p for k, d, p in zip(kernel, steps, before, strict=True))
    none = packed(np.zeros((1, shape[3]), x.dtype))
    dx = convolved(g, grid, packed(taps[::-1]), none, kernel, back, steps, shape)
    cut, items, tile, near = cuts(grid, kernel, steps, x.dtype)
    here = np.empty((cut, math.prod(tile)), x.dtype)
    sums = np.empty((cut, kernel[0] * (kernel[1] + 3) * tile[2]), x.dtype)
    dw = np.zeros((cut, len(taps) + 1, shape[3]))
    products(cut, items, x.reshape(-1), shape, g, grid, kernel, before, steps, tile, near, here, sums, dw)
    total = dw.sum(axis=0).astype(x.dtype, copy=False)
    dbias = total[-1].copy() if biased else None
    return dx.reshape(x.shape), total[:-1].reshape(weight_shape).copy(), dbias, None, None, None, None


KERNELS = {"conv": Kernel(forward, vjp, supports)}

"""Depthwise convolution over one or two grid axes: each channel with its own kernel, nothing unfolded.

    for each block of W channels, batch element and tile of outputs:
        copy the inputs of the tile, zeros outside the grid, so that neighbours lie W apart
        for each row of the tile, four outputs at once, for each row of the kernel:       forward
            y[q + p] += w[k] * x[q + p + k]         p = 0..3, up to four taps k in one loop over channels
        likewise                                                                          backward
            dw[k] += sum_p g[q + p] * x[q + p + k]
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

from .runtime import contiguous, jit, parallel_jit, parts, prange

# Channels of a block; outputs of a tile, down and across.
W, DOWN, ACROSS = 64, 8, 64
# Their lengths are known to the compiler: taps in one loop.
ONE, TWO, THREE, FOUR = (0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)


@jit
def place(item, batch, grid, dilation):  # type: ignore[no-untyped-def]
    """Block, batch element, first output of the tile and its numbers of outputs: down and across."""
    high, wide = (grid[0] - 1) // dilation[0] + 1, (grid[1] - 1) // dilation[1] + 1
    tiles_down, tiles_across = (high - 1) // DOWN + 1, (wide - 1) // ACROSS + 1
    item, across = item // tiles_across, item % tiles_across * ACROSS
    item, down = item // tiles_down, item % tiles_down * DOWN
    item, first_across = item // dilation[1], item % dilation[1]
    item, first_down = item // dilation[0], item % dilation[0]
    down_left = (grid[0] - first_down + dilation[0] - 1) // dilation[0] - down
    across_left = (grid[1] - first_across + dilation[1] - 1) // dilation[1] - across
    i, j = first_down + down * dilation[0], first_across + across * dilation[1]
    return item // batch, item % batch, i, j, min(DOWN, down_left), min(ACROSS, across_left)


@jit
def copied(x, z, i, j, dilation, rows, span, lo, width, out):  # type: ignore[no-untyped-def]
    """rows x span places of x (B, H, W, C) from (i, j) on, `dilation` apart, zeros outside the grid."""
    for r in range(rows):
        for s in range(span):
            row, column = i + r * dilation[0], j + s * dilation[1]
            at = (r * span + s) * W
            to = out[at : at + W]
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                here = x[z, row, column, lo : lo + width]
                for c in range(width):
                    to[c] = here[c]
            else:
                to[:] = 0


@jit(fastmath={"contract"})
def add_taps(width, w, x, y, taps):  # type: ignore[no-untyped-def]
    """Row p of y += sum_k row k of w * row p + k of x, p = 0..3. Rows are W apart."""
    for c in range(width):
        y0, y1, y2, y3 = y[c], y[W + c], y[2 * W + c], y[3 * W + c]
        for k in range(len(taps)):
            wk = w[k * W + c]
            y0 += wk * x[k * W + c]
            y1 += wk * x[(k + 1) * W + c]
            y2 += wk * x[(k + 2) * W + c]
            y3 += wk * x[(k + 3) * W + c]
        y[c], y[W + c], y[2 * W + c], y[3 * W + c] = y0, y1, y2, y3


@jit(fastmath={"contract"})
def add_products(width, g, x, dw, taps):  # type: ignore[no-untyped-def]
    """Row k of dw += sum_p row p of g * row p + k of x, p = 0..3."""
    for c in range(width):
        g0, g1, g2, g3 = g[c], g[W + c], g[2 * W + c], g[3 * W + c]
        for k in range(len(taps)):
            near = g0 * x[k * W + c] + g1 * x[(k + 1) * W + c]
            dw[k * W + c] += near + (g2 * x[(k + 2) * W + c] + g3 * x[(k + 3) * W + c])


@jit
def row_of_taps(width, size, w, x, y):  # type: ignore[no-untyped-def]
    """`add_taps` for all taps of a row of the kernel."""
    k = 0
    while k + 4 <= size:
        add_taps(width, w[k * W :], x[k * W :], y, FOUR)
        k += 4
    if size - k == 3:
        add_taps(width, w[k * W :], x[k * W :], y, THREE)
    elif size - k == 2:
        add_taps(width, w[k * W :], x[k * W :], y, TWO)
    elif size - k == 1:
        add_taps(width, w[k * W :], x[k * W :], y, ONE)


@jit
def row_of_products(width, size, g, x, dw):  # type: ignore[no-untyped-def]
    k = 0
    while k + 4 <= size:
        add_products(width, g, x[k * W :], dw[k * W :], FOUR)
        k += 4
    if size - k == 3:
        add_products(width, g, x[k * W :], dw[k * W :], THREE)
    elif size - k == 2:
        add_products(width, g, x[k * W :], dw[k * W :], TWO)
    elif size - k == 1:
        add_products(width, g, x[k * W :], dw[k * W :], ONE)


@jit(fastmath={"contract"})
def single_products(width, size, g, x, dw):  # type: ignore[no-untyped-def]
    """Row k of dw += g * row k of x."""
    for k in range(size):
        xk, dwk = x[k * W : (k + 1) * W], dw[k * W : (k + 1) * W]
        for c in range(width):
            dwk[c] += g[c] * xk[c]


@jit
def tile(block, z, i, j, down, across, x, w, bias, kernel, pads, dilation, y, near, sums):  # type: ignore[no-untyped-def]
    lo = block * W
    width = min(W, y.shape[3] - lo)
    span = (across + 3) // 4 * 4 + kernel[1] - 1
    copied(x, z, i - pads[0], j - pads[1], dilation, down + kernel[0] - 1, span, lo, width, near)
    wb, bb = w[block], bias[block]
    for r in range(down):
        for q in range(0, across, 4):
            for p in range(4):
                row = sums[p * W : (p + 1) * W]
                for c in range(width):
                    row[c] = bb[c]
            for k in range(kernel[0]):
                at = ((r + k) * span + q) * W
                row_of_taps(width, kernel[1], wb[k * kernel[1] * W :], near[at:], sums)
            for p in range(min(4, across - q)):
                row = sums[p * W : (p + 1) * W]
                out = y[z, i + r * dilation[0], j + (q + p) * dilation[1], lo : lo + width]
                for c in range(width):
                    out[c] = row[c]


@jit
def some_tiles(first, last, x, w, bias, kernel, pads, dilation, y, near, sums):  # type: ignore[no-untyped-def]
    for item in range(first, last):
        block, z, i, j, down, across = place(item, len(y), y.shape[1:3], dilation)
        if down > 0 and across > 0:
            tile(block, z, i, j, down, across, x, w, bias, kernel, pads, dilation, y, near, sums)


@parallel_jit
def correlate(cut, items, x, w, bias, kernel, pads, dilation, y, near, sums):  # type: ignore[no-untyped-def]
    """x (B, H, W, C), w (blocks, taps * W), bias (blocks, W) -> y (B, H', W', C)."""
    for p in prange(cut):
        lo, hi = items * p // cut, items * (p + 1) // cut
        some_tiles(lo, hi, x, w, bias, kernel, pads, dilation, y, near[p], sums[p])


@jit(fastmath={"contract"})
def tile_products(block, z, i, j, down, across, x, g, kernel, pads, dilation, near, four, sums, dw):  # type: ignore[no-untyped-def]
    lo = block * W
    width = min(W, g.shape[3] - lo)
    span = across + kernel[1] - 1
    taps = len(dw) - 1
    copied(x, z, i - pads[0], j - pads[1], dilation, down + kernel[0] - 1, span, lo, width, near)
    dbias = sums[taps * W :]
    for r in range(down):
        for q in range(0, across, 4):
            count = min(4, across - q)
            for p in range(count):
                row = four[p * W : (p + 1) * W]
                here = g[z, i + r * dilation[0], j + (q + p) * dilation[1], lo : lo + width]
                for c in range(width):
                    row[c] = here[c]
                    dbias[c] += here[c]
            for k in range(kernel[0]):
                at = ((r + k) * span + q) * W
                to = sums[k * kernel[1] * W :]
                if count == 4:
                    row_of_products(width, kernel[1], four, near[at:], to)
                else:
                    for p in range(count):
                        single_products(width, kernel[1], four[p * W :], near[at + p * W :], to)
    for k in range(taps + 1):
        row, out = sums[k * W : (k + 1) * W], dw[k, lo : lo + width]
        for c in range(width):
            out[c] += row[c]
            row[c] = 0


@jit
def some_products(first, last, x, g, kernel, pads, dilation, near, four, sums, dw):  # type: ignore[no-untyped-def]
    for item in range(first, last):
        block, z, i, j, down, across = place(item, len(g), g.shape[1:3], dilation)
        if down > 0 and across > 0:
            tile_products(block, z, i, j, down, across, x, g, kernel, pads, dilation, near, four, sums, dw)


@parallel_jit
def products(cut, items, x, g, kernel, pads, dilation, near, four, sums, dw):  # type: ignore[no-untyped-def]
    """dw (cut, taps + 1, C) in double: the gradient of the weight, and in the last row that of the bias."""
    for p in prange(cut):
        lo, hi = items * p // cut, items * (p + 1) // cut
        some_products(lo, hi, x, g, kernel, pads, dilation, near[p], four[p], sums[p], dw[p])


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
    """(taps, C) -> (blocks, taps * W)."""
    taps, channels = w.shape
    blocks = -(-channels // W)
    out = np.zeros((taps, blocks * W), w.dtype)
    out[:, :channels] = w
    return np.ascontiguousarray(out.reshape(taps, blocks, W).swapaxes(0, 1)).reshape(blocks, taps * W)


def cuts(shape: tuple[int, ...], taps: int, dilation: tuple[int, int]) -> tuple[int, int]:
    """Into how many parts, and items, outputs of this shape (B, H, W, C) are cut."""
    tiles = [
        ((n - 1) // d // s + 1) * d for n, d, s in zip(shape[1:3], dilation, (DOWN, ACROSS), strict=True)
    ]
    items = shape[0] * -(-shape[3] // W) * math.prod(tiles)
    return parts(items, math.prod(shape) * (taps + 4)), items


def scratch(cut: int, kernel: tuple[int, int], dtype: Any) -> tuple[Any, Any]:
    """For each part, room for the inputs of a tile and for four outputs."""
    near = (DOWN + kernel[0] - 1) * (ACROSS + kernel[1] - 1) * W
    return np.empty((cut, near), dtype), np.empty((cut, 4 * W), dtype)


def forward(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[Any, Any]:
    channels = x.shape[-1]
    kernel, steps, before, out = plan(x, weight, stride, padding, dilation)
    full = contiguous(x).reshape(len(x), -1, *x.shape[-2:])
    y = np.empty((len(x), *out, channels), x.dtype)
    taps = weight.reshape(-1, channels)
    rows = packed(np.zeros((1, channels), x.dtype) if bias is None else bias[None])
    cut, items = cuts(y.shape, len(taps), steps)
    room = scratch(cut, kernel, x.dtype)
    correlate(cut, items, full, packed(taps), rows, kernel, before, steps, y, *room)
    kept = (full, taps, kernel, before, steps, weight.shape, x.shape, bias is not None)
    return y.reshape(*x.shape[:1], *out[4 - x.ndim :], channels), kept


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    x, taps, kernel, before, steps, weight_shape, x_shape, biased = residuals
    g = contiguous(g).reshape(len(x), -1, *g.shape[-2:])
    dx = np.empty_like(x)
    back = tuple((k - 1) * d - p for k, d, p in zip(kernel, steps, before, strict=True))
    none = packed(np.zeros((1, x.shape[3]), x.dtype))
    cut, items = cuts(x.shape, len(taps), steps)
    room = scratch(cut, kernel, x.dtype)
    correlate(cut, items, g, packed(taps[::-1]), none, kernel, back, steps, dx, *room)
    cut, items = cuts(g.shape, len(taps), steps)
    sums, dw = np.zeros((cut, (len(taps) + 1) * W), x.dtype), np.zeros((cut, len(taps) + 1, x.shape[3]))
    products(cut, items, x, g, kernel, before, steps, *scratch(cut, kernel, x.dtype), sums, dw)
    total = dw.sum(axis=0).astype(x.dtype, copy=False)
    dbias = total[-1].copy() if biased else None
    return dx.reshape(x_shape), total[:-1].reshape(weight_shape).copy(), dbias, None, None, None, None


KERNELS = {"conv": Kernel(forward, vjp, supports)}

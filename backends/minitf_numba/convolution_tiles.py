"""Tiles of a depthwise convolution: compiled code of convolution.py, whose notation this is.

Grids are (B, H, W, C) and arrays flat. A tile is (outputs down, across, W), W the channels of a vector. Every
part has room of its own: `near` for the inputs of a tile, `here` for its gradients, `sums` for those of w.
"""

from __future__ import annotations

from .lanes import add, fma, lanes, load, store, zeros
from .runtime import inner, jit, share_out


@inner
def place(item, shape, tile, dilation):  # type: ignore[no-untyped-def]
    """Batch element, first output of the tile, its numbers of outputs down and across, and first channel."""
    _, high, wide, channels = shape
    step = tile[2]
    blocks = (channels - 1) // step + 1
    # Blocks of channels in turn: they lie side by side in memory.
    item, lo = item // blocks, item % blocks * step
    tiles = (wide - 1) // dilation[1] // tile[1] + 1
    item, across = item // tiles, item % tiles * tile[1]
    tiles = (high - 1) // dilation[0] // tile[0] + 1
    item, down = item // tiles, item % tiles * tile[0]
    item, first_across = item // dilation[1], item % dilation[1]
    item, first_down = item // dilation[0], item % dilation[0]
    down_left = (high - first_down + dilation[0] - 1) // dilation[0] - down
    across_left = (wide - first_across + dilation[1] - 1) // dilation[1] - across
    i, j = first_down + down * dilation[0], first_across + across * dilation[1]
    return item, i, j, min(tile[0], down_left), min(tile[1], across_left), lo


@inner
def copied(x, shape, z, i, j, lo, dilation, rows, span, out):  # type: ignore[no-untyped-def]
    """rows x span places of x (B, H, W, C) from (i, j) on, `dilation` apart, zeros outside the grid."""
    (_, high, wide, channels), step = shape, lanes(out)
    width, far = min(step, channels - lo), dilation[1] * channels
    # Places of a row that are inside the grid.
    first = min(span, max(0, -(j // dilation[1])))
    last = max(first, min(span, (wide - 1 - j) // dilation[1] + 1))
    for r in range(rows):
        row, to = i + r * dilation[0], r * span * step
        inside = 0 <= row < high
        for s in range(first if inside else span):
            store(out, to + s * step, zeros(out))
        if inside:
            at = ((z * high + row) * wide + j) * channels + lo
            if width == step:
                for s in range(first, last):
                    store(out, to + s * step, load(x, at + s * far))
            else:
                for s in range(first, last):
                    for c in range(width):
                        out[to + s * step + c] = x[at + s * far + c]
            for s in range(last, span):
                store(out, to + s * step, zeros(out))


@inner
def outputs(p, cut, items, x, shape, w, bias, kernel, pads, dilation, tile, y, grid, near, four):  # type: ignore[no-untyped-def]
    """Some tiles of y; x, y and their shapes; w (blocks, taps * W), bias (blocks, W)."""
    near, four, step = near[p], four[p], lanes(x)
    for item in range(items * p // cut, items * (p + 1) // cut):
        z, i, j, down, across, lo = place(item, grid, tile, dilation)
        if down <= 0 or across <= 0:
            continue
        wb, bb, width = w[lo // step], bias[lo // step], min(step, grid[3] - lo)
        span = (across + 3) // 4 * 4 + kernel[1] - 1
        copied(x, shape, z, i - pads[0], j - pads[1], lo, dilation, down + kernel[0] - 1, span, near)
        for r in range(down):
            to = ((z * grid[1] + i + r * dilation[0]) * grid[2] + j) * grid[3] + lo
            far = dilation[1] * grid[3]
            for q in range(0, across, 4):
                y0 = y1 = y2 = y3 = load(bb, 0)
                for k in range(kernel[0]):
                    at, tap = ((r + k) * span + q) * step, k * kernel[1] * step
                    for _ in range(kernel[1]):
                        wk = load(wb, tap)
                        y0, y1 = fma(wk, load(near, at), y0), fma(wk, load(near, at + step), y1)
                        y2, y3 = (
                            fma(wk, load(near, at + 2 * step), y2),
                            fma(wk, load(near, at + 3 * step), y3),
                        )
                        at, tap = at + step, tap + step
                if width == step and q + 4 <= across:
                    store(y, to, y0)
                    store(y, to + far, y1)
                    store(y, to + 2 * far, y2)
                    store(y, to + 3 * far, y3)
                else:
                    store(four, 0, y0)
                    store(four, step, y1)
                    store(four, 2 * step, y2)
                    store(four, 3 * step, y3)
                    for n in range(min(4, across - q)):
                        for c in range(width):
                            y[to + n * far + c] = four[n * step + c]
                to += 4 * far


@jit
def correlate(cut, items, x, shape, w, bias, kernel, pads, dilation, tile, y, grid, near, four):  # type: ignore[no-untyped-def]
    share_out(outputs, cut, items, x, shape, w, bias, kernel, pads, dilation, tile, y, grid, near, four)


@inner
def some_products(p, cut, items, x, shape, g, grid, kernel, pads, dilation, tile, near, here, sums, dw):  # type: ignore[no-untyped-def]
    near, here, sums, dw, step = near[p], here[p], sums[p], dw[p], lanes(x)
    # Taps of a row in fours: what is summed for the last ones beyond the kernel is not looked at.
    row = (kernel[1] + 3) // 4 * 4
    for item in range(items * p // cut, items * (p + 1) // cut):
        z, i, j, down, across, lo = place(item, grid, tile, dilation)
        if down <= 0 or across <= 0:
            continue
        span = across + row - 1
        copied(x, shape, z, i - pads[0], j - pads[1], lo, dilation, down + kernel[0] - 1, span, near)
        copied(g, grid, z, i, j, lo, dilation, down, across, here)
        for n in range(kernel[0] * row):
            store(sums, n * step, zeros(sums))
        total = zeros(sums)
        for r in range(down):
            first, last = r * across * step, (r + 1) * across * step
            for at in range(first, last, step):
                total = add(total, load(here, at))
            for k in range(kernel[0]):
                for m in range(0, row, 4):
                    to = (k * row + m) * step
                    d0, d1 = load(sums, to), load(sums, to + step)
                    d2, d3 = load(sums, to + 2 * step), load(sums, to + 3 * step)
                    near_at = ((r + k) * span + m) * step - first
                    for at in range(first, last, step):
                        gq, xq = load(here, at), near_at + at
                        d0, d1 = fma(gq, load(near, xq), d0), fma(gq, load(near, xq + step), d1)
                        d2, d3 = (
                            fma(gq, load(near, xq + 2 * step), d2),
                            fma(gq, load(near, xq + 3 * step), d3),
                        )
                    store(sums, to, d0)
                    store(sums, to + step, d1)
                    store(sums, to + 2 * step, d2)
                    store(sums, to + 3 * step, d3)
        width = min(step, grid[3] - lo)
        for k in range(kernel[0]):
            for m in range(kernel[1]):
                out, at = dw[k * kernel[1] + m], (k * row + m) * step
                for c in range(width):
                    out[lo + c] += sums[at + c]
        store(sums, 0, total)
        for c in range(width):
            dw[kernel[0] * kernel[1], lo + c] += sums[c]


@jit
def products(cut, items, x, shape, g, grid, kernel, pads, dilation, tile, near, here, sums, dw):  # type: ignore[no-untyped-def]
    """dw (cut, taps + 1, C) in double: the gradient of the weight, and in the last row that of the bias."""
    share_out(
        some_products, cut, items, x, shape, g, grid, kernel, pads, dilation, tile, near, here, sums, dw
    )

"""Convolutions and pooling over grids, made of `unfold` and a sum of products. Channels come last."""

from __future__ import annotations

import string
from collections.abc import Sequence

from minitf.engine import ShapeError, Tensor

from .elementwise import Like
from .kernels import kernelized
from .linalg import einsum
from .reductions import max, mean
from .shape import pad, reshape, unfold

Sizes = int | Sequence[int]


def as_tuple(value: Sizes, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def windows(x: Like, sizes: Sequence[int], steps: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """(B, *grid, C) -> (B, *out, C, *sizes)."""
    for i, (size, step, dilation) in enumerate(zip(sizes, steps, dilations, strict=True)):
        x = unfold(x, size, i + 1, step, dilation)
    return x


def margins(padding: Sizes | str, reach: Sequence[int]) -> list[tuple[int, int]]:
    """How many zeros `conv` adds before and after each grid axis, where windows reach this far."""
    if padding == "causal":
        return [(r, 0) for r in reach]
    if padding == "same":
        return [(r // 2, r - r // 2) for r in reach]
    if isinstance(padding, str):
        raise ValueError(f"conv{len(reach)}d: padding must be a number, 'same' or 'causal', not {padding!r}")
    return [(p, p) for p in as_tuple(padding, len(reach))]


@kernelized("conv")
def conv(
    x: Like,
    weight: Like,
    bias: Like = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation over any number of grid axes.

    Args:
        x: (B, *grid, C_in), channels last like every grid in this library.
        weight: (*kernel, C_in / groups, C_out), stored (in, out).
        bias: (C_out,) or None.
        stride, dilation: one number, or one for each grid axis.
        padding: zeros on both sides, one number or one for each axis; "same" keeps the grid (at stride 1);
            "causal" puts all zeros before, so that an output sees no later input.
        groups: channels in and out are cut into this many independent groups; groups = C_in is depthwise.

    Returns:
        (B, *out, C_out).

    Raises:
        ShapeError: weight, groups or window do not fit x.
    """
    axes = weight.ndim - 2
    kernel, (c_group, c_out) = weight.shape[:axes], weight.shape[axes:]
    if x.ndim != axes + 2 or x.shape[-1] != c_group * groups or c_out % groups:
        raise ShapeError(
            f"conv{axes}d: x {x.shape} must be (B, *grid, C_in), weight {weight.shape} (*kernel, C_in / "
            f"groups, C_out), with groups={groups} dividing both numbers of channels"
        )
    strides, dilations = as_tuple(stride, axes), as_tuple(dilation, axes)
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    x = pad(x, [(0, 0), *margins(padding, reach), (0, 0)])
    # (B, *out, C_in, *kernel) -> (B, *out, groups, C_group, *kernel)
    x = windows(x, kernel, strides, dilations)
    out = x.shape[1 : axes + 1]
    x = reshape(x, (x.shape[0], *out, groups, c_group, *kernel))
    w = reshape(weight, (*kernel, c_group, groups, c_out // groups))
    spatial, taps = string.ascii_lowercase[:axes], string.ascii_uppercase[:axes]
    y = einsum(f"z{spatial}gi{taps},{taps}igo->z{spatial}go", x, w)
    y = reshape(y, (*y.shape[: axes + 1], c_out))
    return y if bias is None else y + bias


def conv1d(x: Like, weight: Like, bias: Like = None, **options: object) -> Tensor:
    """`conv` over one grid axis: x (B, N, C_in), weight (K, C_in / groups, C_out)."""
    return checked(1, x, weight, bias, options)


def conv2d(x: Like, weight: Like, bias: Like = None, **options: object) -> Tensor:
    """`conv` over two grid axes: x (B, H, W, C_in), weight (K_h, K_w, C_in / groups, C_out)."""
    return checked(2, x, weight, bias, options)


def conv3d(x: Like, weight: Like, bias: Like = None, **options: object) -> Tensor:
    """`conv` over three grid axes: x (B, T, H, W, C_in), weight (K_t, K_h, K_w, C_in / groups, C_out)."""
    return checked(3, x, weight, bias, options)


def checked(axes: int, x: Like, weight: Like, bias: Like, options: dict) -> Tensor:
    if weight.ndim != axes + 2:
        raise ShapeError(
            f"conv{axes}d: weight must have {axes + 2} axes (*kernel, in, out), not {weight.ndim}"
        )
    return conv(x, weight, bias, **options)


def pooled(x: Like, reduce: object, size: Sizes, stride: Sizes | None) -> Tensor:
    axes = x.ndim - 2
    sizes = as_tuple(size, axes)
    w = windows(x, sizes, sizes if stride is None else as_tuple(stride, axes), (1,) * axes)
    return reduce(w, axis=tuple(range(-axes, 0)))  # type: ignore[operator]


def avg_pool(x: Like, size: Sizes, stride: Sizes | None = None) -> Tensor:
    """Means over windows of (B, *grid, C); `stride` defaults to the window size."""
    return pooled(x, mean, size, stride)


def max_pool(x: Like, size: Sizes, stride: Sizes | None = None) -> Tensor:
    """Maxima over windows of (B, *grid, C); `stride` defaults to the window size."""
    return pooled(x, max, size, stride)

"""Operations that move, join, repeat or cut elements, and constants."""

# Bodies work on plain arrays; `primitive` makes of them operations on tensors, which is what the types say.
# mypy: disable-error-code="empty-body, return-value"

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitf.engine import ShapeError, Tensor, array_module, primitive
from minitf.engine import to_device as move

from .elementwise import Like, where

Shape = tuple[int, ...]
# The name `sum` belongs to the operation elsewhere in this package; here it is Python's.
total = builtins.sum


@primitive
def copy(x: Like) -> Tensor:
    """x in memory of its own."""
    return array_module(x).array(x)


@primitive
def reshape(x: Like, shape: Shape) -> Tensor:
    """The same elements in the shape `shape`; one entry may be -1."""
    return x.reshape(shape)


@primitive
def permute_dims(x: Like, axes: Sequence[int]) -> Tensor:
    """Reorder the axes: axis i of the result is axis axes[i] of x."""
    return x.transpose(axes)


@primitive
def matrix_transpose(x: Like) -> Tensor:
    """Swap the last two axes."""
    return x.swapaxes(-1, -2)


def moveaxis(x: Like, source: int, destination: int) -> Tensor:
    """Move one axis to another place; the others keep their order."""
    axes = list(range(x.ndim))
    axes.insert(destination % x.ndim, axes.pop(source))
    return permute_dims(x, tuple(axes))


def expand_dims(x: Like, axis: int) -> Tensor:
    """Insert an axis of size 1 at position `axis` of the result."""
    shape = list(x.shape)
    shape.insert(axis % (x.ndim + 1), 1)
    return reshape(x, tuple(shape))


def squeeze(x: Like, axis: int | Shape) -> Tensor:
    """Remove axes of size 1.

    Raises:
        ShapeError: a named axis has another size.
    """
    axes = {a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis)}
    for a in axes:
        if x.shape[a] != 1:
            raise ShapeError(f"squeeze: axis {a} of shape {x.shape} has size {x.shape[a]}, not 1")
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))


@primitive
def broadcast_to(x: Like, shape: Shape) -> Tensor:
    """Repeat x along new axes and axes of size 1 until it has the shape `shape`."""
    return np.broadcast_to(x, shape)


@primitive
def flip(x: Like, axis: int | Shape | None = None) -> Tensor:
    """Reverse the order along `axis` (None: along all axes)."""
    return np.flip(x, axis=axis)


@primitive
def roll(x: Like, shift: int | Shape, axis: int | Shape | None = None) -> Tensor:
    """Move elements by `shift` along `axis`; what leaves at the end enters at the start."""
    return np.roll(x, shift, axis=axis)


@primitive
def concat_parts(*parts: Like, axis: int = 0) -> Tensor:
    return np.concatenate(parts, axis=axis)


def concat(arrays: Sequence[Like], axis: int = 0) -> Tensor:
    """Join arrays along an existing axis. Their other axes must agree."""
    return concat_parts(*arrays, axis=axis)


@primitive
def stack_parts(*parts: Like, axis: int = 0) -> Tensor:
    return np.stack(parts, axis=axis)


def stack(arrays: Sequence[Like], axis: int = 0) -> Tensor:
    """Join arrays of one shape along a new axis."""
    return stack_parts(*arrays, axis=axis)


@primitive
def split_parts(x: Like, sizes: tuple[int, ...], axis: int = 0) -> Any:
    ends = np.cumsum(sizes)
    index: list[Any] = [slice(None)] * x.ndim
    parts = []
    for end, size in zip(ends, sizes, strict=True):
        index[axis] = slice(end - size, end)
        parts.append(x[tuple(index)])
    return tuple(parts)


def split(x: Like, sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Cut x along `axis` into `sections` equal parts, or into parts of the sizes listed.

    Raises:
        ShapeError: the sizes do not add up to the axis.
    """
    n = x.shape[axis]
    if isinstance(sections, int):
        if n % sections:
            raise ShapeError(f"split: axis {axis} of size {n} cannot be cut into {sections} equal parts")
        sections = [n // sections] * sections
    if total(sections) != n:
        raise ShapeError(f"split: sizes {list(sections)} add up to {total(sections)}, axis {axis} has {n}")
    return list(split_parts(x, tuple(sections), axis))


def unstack(x: Like, axis: int = 0) -> list[Tensor]:
    """The slices of x along `axis`, without that axis: undoes `stack`."""
    return [squeeze(part, axis) for part in split(x, x.shape[axis], axis)] if x.shape[axis] else []


@primitive
def pad_constant(x: Like, pad_width: tuple[tuple[int, int], ...], value: float = 0.0) -> Tensor:
    return np.pad(x, pad_width, constant_values=value)


def pad(x: Like, pad_width: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Add elements before and after each axis.

    Args:
        x: any shape.
        pad_width: (before, after) for every axis.
        mode: "constant" fills with `value`; "edge" repeats the border; "reflect" mirrors without repeating
            the border; "wrap" continues from the other end.

    Raises:
        ValueError: an unknown mode. ShapeError: not one pair for each axis.
    """
    width = tuple((int(before), int(after)) for before, after in pad_width)
    if len(width) != x.ndim:
        raise ShapeError(f"pad: {len(width)} pairs for {x.ndim} axes")
    if not width:
        return copy(x)
    if mode == "constant":
        return pad_constant(x, width, value)
    if mode not in ("edge", "reflect", "wrap"):
        raise ValueError(f"pad: mode must be 'constant', 'edge', 'reflect' or 'wrap', not {mode!r}")
    for axis, pair in enumerate(width):
        if pair != (0, 0):
            kind: Any = mode
            x = take(x, np.pad(np.arange(x.shape[axis]), pair, mode=kind), axis=axis)
    return x


def take(x: Like, indices: Like, axis: int) -> Tensor:
    """Pick whole slices along `axis`: the axis is replaced by the axes of the integer array `indices`."""
    return x[(slice(None),) * (axis % x.ndim) + (indices,)]


def repeat(x: Like, repeats: int, axis: int) -> Tensor:
    """Repeat each element `repeats` times in a row along `axis`: abc -> aabbcc."""
    axis %= x.ndim
    shape = (*x.shape[: axis + 1], repeats, *x.shape[axis + 1 :])
    wide = broadcast_to(expand_dims(x, axis + 1), shape)
    return reshape(wide, (*x.shape[:axis], x.shape[axis] * repeats, *x.shape[axis + 1 :]))


def tile(x: Like, repetitions: Sequence[int]) -> Tensor:
    """Repeat the whole array along each axis: abc -> abcabc.

    Raises:
        ShapeError: not one count for each axis.
    """
    if len(repetitions) != x.ndim:
        raise ShapeError(f"tile: {len(repetitions)} counts for {x.ndim} axes")
    for axis, n in enumerate(repetitions):
        x = concat([x] * n, axis=axis) if n != 1 else x
    return x


def tril(x: Like, k: int = 0) -> Tensor:
    """Keep the lower triangle of the last two axes, up to diagonal k; zeros elsewhere."""
    return where(np.tri(x.shape[-2], x.shape[-1], k, dtype=bool), x, 0)


def triu(x: Like, k: int = 0) -> Tensor:
    """Keep the upper triangle of the last two axes, from diagonal k; zeros elsewhere."""
    return where(~np.tri(x.shape[-2], x.shape[-1], k - 1, dtype=bool), x, 0)


def diagonal(x: Like) -> Tensor:
    """The main diagonal of the last two axes: (..., n, n) -> (..., n)."""
    i = np.arange(builtins.min(x.shape[-2:]))
    return x[..., i, i]


@primitive
def unfold(x: Like, size: int, axis: int = -1, step: int = 1, dilation: int = 1) -> Tensor:
    """Sliding windows along `axis`.

    Args:
        x: (..., n, ...).
        size: elements in a window; step: distance between windows; dilation: distance inside a window.

    Returns:
        (..., windows, ..., size): the axis now counts windows, the last axis runs inside one;
        windows = (n - (size - 1) * dilation - 1) // step + 1.

    Raises:
        ShapeError: the window is longer than the axis.
    """
    axis = axis % x.ndim
    reach = (size - 1) * dilation + 1
    if min(size, step, dilation) < 1 or reach > x.shape[axis]:
        raise ShapeError(
            f"unfold: a window of size {size}, step {step} and dilation {dilation} (reach {reach}) does not "
            f"fit axis {axis} of shape {x.shape}"
        )
    xp = array_module(x)
    windows = xp.lib.stride_tricks.sliding_window_view(x, reach, axis=axis)[..., ::dilation]
    return windows[(slice(None),) * axis + (slice(None, None, step),)]


@primitive
def fold(x: Like, shape: Shape, axis: int = -1, step: int = 1, dilation: int = 1) -> Tensor:
    """Add windows back where `unfold` took them from: the transpose of `unfold`, for an input of `shape`."""
    axis %= len(shape)
    out = array_module(x).zeros(shape, dtype=x.dtype)
    count = x.shape[axis]
    for j in range(x.shape[-1]):
        start = j * dilation
        where_to = (slice(None),) * axis + (slice(start, start + (count - 1) * step + 1, step),)
        out[where_to] += x[..., j]
    return out


@primitive
def astype_to(x: Like, dtype: Any) -> Tensor:
    return x.astype(dtype)


def astype(x: Like, dtype: Any) -> Tensor:
    """x with elements of another type. Gradients return in the type of x.

    Args:
        x: any shape.
        dtype: "float16", "float32", "float64", "int64", "bool" or a NumPy dtype.
    """
    dtype = np.dtype(dtype)
    return x if x.dtype == dtype else astype_to(x, dtype=dtype)


@primitive
def to_device(x: Like, device: str) -> Tensor:
    """x on "cpu" or "cuda". Gradients return to where x lives."""
    return move(x, device)


@primitive
def straight_through(hard: Like, soft: Like) -> Tensor:
    """The value of `hard`, with the gradient of `soft` (Bengio et al., 2013)."""
    return hard


@primitive
def zeros_like(x: Like) -> Tensor:
    """Zeros of the shape and type of x. A constant to differentiation."""
    return np.zeros_like(x)


@primitive
def ones_like(x: Like) -> Tensor:
    """Ones of the shape and type of x. A constant to differentiation."""
    return np.ones_like(x)


@primitive
def one_hot(x: Like, classes: int, dtype: Any = "float32") -> Tensor:
    """Integers (...) -> (..., classes), 1 at the index and 0 elsewhere. A constant to differentiation."""
    return (x[..., None] == array_module(x).arange(classes)).astype(dtype)

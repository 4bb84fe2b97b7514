"""Picking elements by position, putting them back, and sorting. Ties: the lower index wins."""

# Bodies work on plain arrays; `primitive` makes of them operations on tensors, which is what the types say.
# mypy: disable-error-code="empty-body, return-value"

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.engine import Array, Tensor, array_module, primitive

from .elementwise import Like
from .kernels import kernelized


@primitive
def getitem(x: Like, index: tuple[Any, ...]) -> Tensor:
    return x[index]


def get(x: Like, index: Any) -> Tensor:
    """x[index]: basic, integer-array and boolean indexing as in NumPy. Tensors may index too."""
    parts = index if type(index) is tuple else (index,)
    return getitem(x, tuple([i if type(i) in (int, slice) else plain_index(i) for i in parts]))


def plain_index(i: Any) -> Any:
    # A copy: the backward pass needs the index as it was, also where the caller uses its memory again.
    if isinstance(i, list):
        return np.asarray(i, dtype=None if i else np.intp)
    i = i.data if isinstance(i, Tensor) else i
    return i.copy() if hasattr(i, "shape") else i


@primitive
def scatter(x: Like, index: tuple[Any, ...], shape: tuple[int, ...]) -> Tensor:
    """Zeros of `shape`, with x added where `getitem(..., index)` would pick: the transpose of getitem."""
    xp = array_module(x)
    out = xp.zeros(shape, dtype=x.dtype)
    repeatable = [i for i in index if hasattr(i, "dtype") and i.ndim and i.dtype != bool]
    if not repeatable:
        out[index] = x
    elif len(index) == 1 and xp is np:
        add_rows(out, index[0], x)
    else:
        xp.add.at(out, index, x)
    return out


def add_rows(out: Array, ids: Array, rows: Array) -> None:
    """out[ids] += rows, also where an id occurs many times: sorted by id, then summed run by run."""
    if not ids.size:
        return
    ids = ids.reshape(-1) % len(out)
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    rows = rows.reshape((len(order), *out.shape[1:]))[order]
    out[ids[starts]] = np.add.reduceat(rows, starts, axis=0)


def along(index: Array, axis: int, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """The full index that picks `index` along `axis` and its own position along every other axis."""
    axis %= len(shape)
    xp = array_module(index)
    grid = []
    for i, n in enumerate(shape):
        if i == axis:
            grid.append(index)
        else:
            grid.append(xp.arange(n).reshape((1,) * i + (n,) + (1,) * (len(shape) - i - 1)))
    return tuple(grid)


@primitive
def take_along_axis(x: Like, indices: Like, axis: int = -1) -> Tensor:
    """Element indices[..., j, ...] of x along `axis`; `indices` is an integer array of as many axes as x."""
    return array_module(x).take_along_axis(x, indices, axis=axis)


@primitive
def put_along_axis(x: Like, indices: Like, values: Like, axis: int = -1) -> Tensor:
    """A copy of x with `values` at the positions `indices` along `axis`. No position may occur twice."""
    out = x.copy()
    out[along(indices, axis, x.shape)] = values
    return out


@primitive
def scatter_add(x: Like, indices: Like, values: Like, axis: int = -1) -> Tensor:
    """A copy of x with `values` added at the positions `indices` along `axis`. Positions may repeat."""
    out = x.copy()
    array_module(x).add.at(out, along(indices, axis, x.shape), values)
    return out


@primitive
def argsort(x: Like, axis: int = -1, descending: bool = False) -> Tensor:
    """The order that sorts x along `axis`; equal elements keep their order. A constant to differentiation."""
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    # Sorting the reversed array keeps the lower index first among equals once reversed again.
    order = np.argsort(np.flip(x, axis=axis), axis=axis, kind="stable")
    return x.shape[axis] - 1 - np.flip(order, axis=axis)


def sort(x: Like, axis: int = -1, descending: bool = False) -> Tensor:
    """x sorted along `axis`, ascending unless `descending`."""
    return take_along_axis(x, argsort(x, axis, descending), axis)


@kernelized("topk")
def topk(x: Like, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The k largest elements along `axis` and their integer positions, largest first; ties by index.

    NaN counts as larger than every number. The positions are constants to differentiation.

    Raises:
        ValueError: k is negative or larger than the axis.
    """
    n = x.shape[axis]
    if not 0 <= k <= n:
        raise ValueError(f"topk: k={k} is outside 0..{n}, the size of axis {axis}")
    order = argsort(x, axis, descending=True)
    first = [slice(None)] * x.ndim
    first[axis] = slice(0, k)
    index = order[tuple(first)]
    return take_along_axis(x, index, axis), index

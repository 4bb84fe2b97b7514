"""Reductions, scans and the softmax family. `axis` is an integer, a tuple, or None for all axes."""

# Bodies work on plain arrays; `primitive` makes of them operations on tensors, which is what the types say.
# mypy: disable-error-code="empty-body, return-value"

from __future__ import annotations

import numpy as np

from minitf.engine import Array, Tensor, primitive

from .elementwise import Like, sqrt, square, where

Axis = int | tuple[int, ...] | None


@primitive
def sum(x: Like, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis`. `keepdims` leaves reduced axes with size 1."""
    return x.sum(axis=axis, keepdims=keepdims)


@primitive
def mean(x: Like, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The arithmetic mean over `axis`."""
    return x.mean(axis=axis, keepdims=keepdims)


@primitive
def prod(x: Like, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The product over one axis, or all. The gradient is exact at zeros and takes quadratic memory."""
    return x.prod(axis=axis, keepdims=keepdims)


@primitive
def max(x: Like, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest element over `axis`. Tied elements share the gradient evenly."""
    return x.max(axis=axis, keepdims=keepdims)


@primitive
def min(x: Like, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest element over `axis`. Tied elements share the gradient evenly."""
    return x.min(axis=axis, keepdims=keepdims)


@primitive
def argmax(x: Like, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index of the largest element; the lower index wins a tie. A constant to differentiation."""
    return np.argmax(x, axis=axis, keepdims=keepdims)


@primitive
def argmin(x: Like, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index of the smallest element; the lower index wins a tie. A constant to differentiation."""
    return np.argmin(x, axis=axis, keepdims=keepdims)


@primitive
def any(x: Like, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """True where some element over `axis` is true."""
    return np.any(x, axis=axis, keepdims=keepdims)


@primitive
def all(x: Like, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """True where every element over `axis` is true."""
    return np.all(x, axis=axis, keepdims=keepdims)


def var(x: Like, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The variance over `axis`: the sum of squared deviations over (count - correction)."""
    deviation = square(x - mean(x, axis=axis, keepdims=True))
    average = mean(deviation, axis=axis, keepdims=keepdims)
    if not correction:
        return average
    count = deviation.size // average.size
    return average * (count / (count - correction))


def std(x: Like, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The standard deviation over `axis`: the square root of `var`."""
    return sqrt(var(x, axis=axis, correction=correction, keepdims=keepdims))


@primitive
def cumsum(x: Like, axis: int = -1) -> Tensor:
    """The running sum along `axis`."""
    return np.cumsum(x, axis=axis)


@primitive
def cumprod(x: Like, axis: int = -1) -> Tensor:
    """The running product along `axis`. The gradient is exact at zeros and takes quadratic memory."""
    return np.cumprod(x, axis=axis)


def finite_max(x: Array, axis: Axis) -> Array:
    """The maximum over `axis`, kept, with 0 where a row has no finite entry (or no entry at all)."""
    if not x.size:
        # The sum of no entries is 0. (CuPy's `max` takes no `initial`.)
        return np.sum(x, axis=axis, keepdims=True)
    top = np.max(x, axis=axis, keepdims=True)
    return np.where(np.isfinite(top), top, np.zeros_like(top))


@primitive
def logsumexp(x: Like, axis: Axis = -1, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over `axis`, without overflow. A row of -inf gives -inf and passes no gradient."""
    top = finite_max(x, axis)
    with np.errstate(divide="ignore"):
        out = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return out if keepdims else np.squeeze(out, axis=axis)


@primitive
def softmax_rows(x: Like, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`. A row of -inf gives zeros and passes no gradient."""
    e = x - finite_max(x, axis)
    np.exp(e, out=e)
    total = np.sum(e, axis=axis, keepdims=True)
    total[total == 0] = 1
    e /= total
    return e


def softmax(x: Like, axis: int = -1, mask: Like = None) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`.

    Args:
        x: floating point, any shape.
        axis: the axis whose entries sum to 1.
        mask: boolean, broadcastable to x; True = visible. Hidden entries get weight 0. A row that sees
            nothing yields zeros, and zero gradients.
    """
    return softmax_rows(x if mask is None else where(mask, x, -np.inf), axis=axis)


@primitive
def log_softmax(x: Like, axis: int = -1) -> Tensor:
    """log(softmax(x)) along `axis`, without overflow."""
    shifted = x - finite_max(x, axis)
    return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))

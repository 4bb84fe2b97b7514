"""Operations that layers are made of: normalisation, dropout, embedding, the loss of a classifier."""

from __future__ import annotations

import numpy as np

from minitf.engine import Array, ShapeError, Tensor, array_module

from .elementwise import Like, multiply, rsqrt, square
from .kernels import kernelized
from .linalg import matmul
from .random import random_bits, random_key, threshold
from .reductions import logsumexp, mean, sum
from .shape import take


@kernelized("linear")
def linear(x: Like, weight: Like, bias: Like = None) -> Tensor:
    """y = x W + b.

    Args:
        x: (..., D).
        weight: W, (D, F).
        bias: b, (F,) or None.
    """
    y = matmul(x, weight)
    return y if bias is None else y + bias


@kernelized("layer_norm")
def layer_norm(x: Like, weight: Like = None, bias: Like = None, eps: float = 1e-5) -> Tensor:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al., 2016).

    Args:
        x: (..., D).
        weight, bias: (D,) or None.
        eps: added to the variance.
    """
    centred = x - mean(x, axis=-1, keepdims=True)
    y = centred * rsqrt(mean(square(centred), axis=-1, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@kernelized("rms_norm")
def rms_norm(x: Like, weight: Like = None, eps: float = 1e-6) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich, 2019).

    Args:
        x: (..., D).
        weight: (D,) or None.
        eps: added to the mean square.
    """
    y = x * rsqrt(mean(square(x), axis=-1, keepdims=True) + eps)
    return y if weight is None else y * weight


@kernelized("add_layer_norm")
def add_layer_norm(
    x: Like, r: Like, weight: Like = None, bias: Like = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """A residual sum and its layer norm: s = x + r, y = layer_norm(s, weight, bias, eps).

    Args:
        x, r: (..., D).
        weight, bias: (D,) or None.
        eps: added to the variance.

    Returns:
        y and s, both (..., D).
    """
    s = x + r
    return layer_norm(s, weight, bias, eps), s


@kernelized("add_rms_norm")
def add_rms_norm(x: Like, r: Like, weight: Like = None, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """A residual sum and its RMS norm: s = x + r, y = rms_norm(s, weight, eps).

    Args:
        x, r: (..., D).
        weight: (D,) or None.
        eps: added to the mean square.

    Returns:
        y and s, both (..., D).
    """
    s = x + r
    return rms_norm(s, weight, eps), s


def dropout(x: Like, rate: float, rng: np.random.Generator) -> Tensor:
    """Zero each element with probability `rate` and divide the others by 1 - rate (Srivastava et al., 2014).

    Raises:
        ValueError: `rate` is outside [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout: the rate must be in [0, 1), not {rate}")
    return x if rate == 0.0 else keyed_dropout(x, random_key(rng), rate)


@kernelized("keyed_dropout")
def keyed_dropout(x: Like, key: int, rate: float) -> Tensor:
    """Dropout whose mask is a function of a key: y_i = x_i / (1 - rate) if hash(key, i) >= rate 2^64, else 0.

    The hash of `minitf.ops.random` is the same on every device, so the mask can be computed again, in the
    backward pass too, and need not be stored.

    Args:
        x: any shape; its elements are numbered in C order.
        key: of 64 bits.
        rate: in [0, 1).
    """
    keep = random_bits(key, x.size, x.data if isinstance(x, Tensor) else x) >= np.uint64(threshold(rate))
    return multiply(x, keep.reshape(x.shape).astype(x.dtype) / (1.0 - rate))


def integers(ids: Like, limit: int, what: str) -> Array:
    """Check that `ids` are integers in [0, limit) and return them as an array."""
    ids = ids.data if isinstance(ids, Tensor) else array_module(ids).asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{what} must be integers, not {ids.dtype}")
    if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < limit):
        raise ValueError(f"{what} must lie in 0..{limit - 1}, found {int(ids.min())}..{int(ids.max())}")
    return ids


def embedding(ids: Like, table: Like) -> Tensor:
    """Rows of a table: integers (...), table (V, D) -> (..., D).

    Raises:
        TypeError: ids are not integers. ValueError: an id is outside 0..V-1.
    """
    # A copy: the backward needs the ids as they were, also where the caller uses their memory again.
    raw = ids.data if isinstance(ids, Tensor) else ids
    return rows_of(array_module(raw).array(raw), table)


@kernelized("embedding")
def rows_of(ids: Like, table: Like) -> Tensor:
    return take(table, integers(ids, table.shape[0], "token ids"), axis=0)


@kernelized("cross_entropy")
def cross_entropy(logits: Like, targets: Like, ignore: int | None = None) -> Tensor:
    """Mean of -log softmax(logits)[target], in nats.

    Args:
        logits: (..., V).
        targets: integers (...), in 0..V-1.
        ignore: a target value whose positions do not count, or None.

    Returns:
        A scalar. With every position ignored it is 0, and passes zero gradients.

    Raises:
        ShapeError: targets do not have the shape of logits without the last axis.
        TypeError: targets are not integers. ValueError: a target outside 0..V-1.
    """
    classes = logits.shape[-1]
    goal = targets.data if isinstance(targets, Tensor) else array_module(targets).asarray(targets)
    if goal.shape != logits.shape[:-1]:
        raise ShapeError(
            f"cross_entropy: logits {logits.shape} need targets {logits.shape[:-1]}, not {goal.shape}"
        )
    counts = None if ignore is None else goal != ignore
    goal = integers(goal if counts is None else np.where(counts, goal, 0), classes, "targets")
    # -log softmax(z)_t = logsumexp(z) - z_t
    rows = logits.reshape((-1, classes))
    index = (array_module(goal).arange(goal.size), goal.reshape(-1))
    losses = logsumexp(rows, axis=-1) - rows[index]
    if counts is None:
        return mean(losses)
    weight = counts.reshape(-1).astype(losses.dtype)
    return sum(losses * weight) / max(float(weight.sum()), 1.0)

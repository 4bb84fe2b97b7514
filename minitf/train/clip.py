"""Clipping the gradient to a largest norm (Pascanu et al., arXiv:1211.5063, 2013)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from minitf.engine import Tensor, array_module


def clip_grad_norm(params: Iterable[Tensor], limit: float | None) -> float:
    """Scale all gradients by one factor so that their global L2 norm is at most `limit`.

    The norm is computed in float64. Gradients within the limit are not touched, nor are those with a NaN or
    an infinity: their norm tells the caller.

    Args:
        params: parameters; those without a gradient do not count.
        limit: the largest norm, at least 0, or None to measure only.

    Returns:
        The norm before clipping; NaN or infinity where a gradient holds one.

    Raises:
        ValueError: the limit is negative or NaN.
    """
    if limit is not None and not limit >= 0.0:
        raise ValueError(f"the largest gradient norm must be at least 0, not {limit}")
    grads = [p.grad.data for p in params if p.grad is not None]
    total = 0.0
    for g in grads:
        # Not a dot product: its threads round in another order than one thread does. The sum stays where the
        # gradient is: the only wait for a GPU is the float() below.
        total = total + array_module(g).multiply(g, g, dtype=np.float64).sum()
    norm = math.sqrt(float(total))
    if limit is not None and math.isfinite(norm) and norm > limit:
        for g in grads:
            array_module(g).multiply(g, limit / norm, out=g)
    return norm

"""Batch normalisation, for the convolutional variants."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.engine import Tensor

from . import init
from .module import Buffer, Module, Parameter


class BatchNorm(Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, for every channel of (B, *grid, D).

    In training mode mean and variance are those of the batch (over all axes but the last), and the running
    ones move towards them; in eval mode the running ones are used, so that it is a fixed affine map.

    Parameters: weight (D,) of ones, or `gain`; bias (D,), zero. Buffers: mean (D,), variance (D,).

    Source: Batch Normalization, Ioffe and Szegedy, arXiv:1502.03167, 2015. The running variance is the
    unbiased one, as in common libraries.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        gain: float = 1.0,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(np.full(dim, gain, dtype))
        self.bias = Parameter(np.zeros(dim, dtype))
        self.mean = Buffer(np.zeros(dim, dtype))
        self.variance = Buffer(np.ones(dim, dtype))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            axes = tuple(range(x.ndim - 1))
            mean, variance = x.mean(axis=axes), x.var(axis=axes)
            n = x.size / x.shape[-1]
            self._follow(self.mean, mean.data)
            self._follow(self.variance, variance.data * n / max(n - 1.0, 1.0))
        else:
            mean, variance = self.mean, self.variance
        return (x - mean) / (variance + self.eps) ** 0.5 * self.weight + self.bias

    def _follow(self, running: Buffer, now: Any) -> None:
        running.data = ((1.0 - self.momentum) * running.data + self.momentum * now).astype(running.data.dtype)

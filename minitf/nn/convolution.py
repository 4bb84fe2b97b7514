"""The short causal convolution in front of many recurrences: each channel alone, over the last few tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor

from . import init
from .module import Module, Parameter


class ShortConv(Module):
    """y_t = b + sum_j w_j * x_{t - W + 1 + j}, j = 0 .. W-1, elementwise; before the first token x is 0.

    Parameters: weight (W, 1, C), uniform in +-1/sqrt(W), whose last row acts on the token itself; bias (C,),
    zero, or None. No activation.

    Args:
        channels: C. width: W, at least 1. bias: whether there is one.

    Raises:
        ValueError: width below 1.
    """

    def __init__(
        self, channels: int, width: int = 4, bias: bool = False, seed: init.Seed = 0, dtype: Any = "float32"
    ):
        if width < 1:
            raise ValueError(f"the width of a short convolution must be at least 1, not {width}")
        self.weight = Parameter(init.fan_in_uniform(seed, (width, 1, channels), dtype))
        self.bias = Parameter(np.zeros(channels, dtype=dtype)) if bias else None

    def start(self, batch: int) -> Tensor:
        """The state before the first token: W - 1 zeros for each channel, (B, W - 1, C)."""
        return ops.zeros((batch, self.weight.shape[0] - 1, self.weight.shape[2]), dtype=self.weight.dtype)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, N, C) after those in `state` -> y (B, N, C), and the new state: the last W - 1 inputs."""
        x = ops.concat([self.start(x.shape[0]) if state is None else state, x], axis=1)
        y = ops.conv1d(x, self.weight, self.bias, groups=x.shape[2])
        return y, x[:, x.shape[1] - self.weight.shape[0] + 1 :]

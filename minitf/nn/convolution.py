"""Convolutions with their weights: over grids of tokens, and the short causal one in front of recurrences."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor

from . import init
from .module import Module, Parameter


class Conv(Module):
    """Cross-correlation of (B, *grid, in) with a kernel: (B, *grid', out).

    Parameters: weight (*kernel, in / groups, out), uniform in +-1/sqrt(fan in); bias (out,), zero, or None.

    Args:
        n_in, n_out: channels. kernel: its size along each grid axis, a tuple.
        bias: whether there is one. stride, padding, dilation, groups: as `ops.conv2d` takes them;
            groups = n_in = n_out is depthwise. padding: "same" keeps the grid, "causal" sees no later token.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: tuple[int, ...],
        bias: bool = True,
        seed: init.Seed = 0,
        *,
        stride: int = 1,
        padding: int | str = "same",
        dilation: int = 1,
        groups: int = 1,
        dtype: Any = "float32",
    ):
        self.options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        self.weight = Parameter(init.fan_in_uniform(seed, (*kernel, n_in // groups, n_out), dtype))
        self.bias = Parameter(np.zeros(n_out, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, in) -> (B, *grid', out)."""
        axes = self.weight.ndim - 2
        if x.ndim != axes + 2:
            raise ShapeError(f"Conv: x {x.shape} must have {axes} grid axes between batch and channels")
        convolve = (ops.conv1d, ops.conv2d, ops.conv3d)[axes - 1]
        return convolve(x, self.weight, self.bias, **self.options)


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
        return ops.zeros((batch, self.weight.shape[0] - 1, self.weight.shape[2]), like=self.weight)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, N, C) after those in `state` -> y (B, N, C), and the new state: the last W - 1 inputs."""
        x = ops.concat([self.start(x.shape[0]) if state is None else state, x], axis=1)
        y = ops.conv1d(x, self.weight, self.bias, groups=x.shape[2])
        return y, x[:, x.shape[1] - self.weight.shape[0] + 1 :]

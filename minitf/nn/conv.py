"""Convolution over grids of tokens, with its weights."""

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

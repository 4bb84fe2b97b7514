"""The layers that everything is built of: linear maps, embeddings, dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor

from . import init
from .module import Module, Parameter


class Linear(Module):
    """y = x W + b.

    Parameters: weight (in, out), bias (out,) or None. The weight is uniform in +-1/sqrt(in) unless
    `values` gives it; the bias starts at zero.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        bias: bool = True,
        seed: init.Seed = 0,
        values: Any = None,
        dtype: Any = "float32",
    ):
        self.weight = Parameter(init.fan_in_uniform(seed, (n_in, n_out), dtype) if values is None else values)
        self.bias = Parameter(np.zeros(n_out, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if x.shape[-1] != self.weight.shape[0]:
            raise ShapeError(
                f"Linear: x {x.shape} must end in {self.weight.shape[0]}, the rows of the weight"
            )
        return ops.linear(x, self.weight, self.bias)


class Embedding(Module):
    """A table of vectors, looked up by integer ids. Parameter: weight (V, D), normal with std 0.02."""

    def __init__(self, count: int, dim: int, seed: init.Seed = 0, std: float = 0.02, dtype: Any = "float32"):
        self.weight = Parameter(init.normal(seed, (count, dim), std, dtype))

    def forward(self, ids: Any) -> Tensor:
        """Integers (...) -> (..., D). Raises ValueError for ids outside 0..V-1."""
        return ops.embedding(ids, self.weight)


class Dropout(Module):
    """In training mode, zero elements with probability `rate` and scale up the others, by the `rng` given."""

    def __init__(self, rate: float = 0.0):
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"the dropout rate must be in [0, 1), not {rate}")
        self.rate = rate

    def forward(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """(...) -> (...). Raises ValueError in training mode without a generator."""
        if not self.training or self.rate == 0.0:
            return x
        if rng is None:
            raise ValueError(
                "dropout in training mode needs a generator: call with rng=np.random.default_rng(seed)"
            )
        return ops.dropout(x, self.rate, rng)

"""A right convolution around a torus and a right pooling, and versions that are each wrong in one way."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.attention.softmax import CARD, SoftmaxAttention
from minitf.engine import Tensor
from minitf.nn import Linear, Module, Parameter, init

HOW: dict[str, Any] = {"kind": "token_mixer", "claims": ("translation_equivariant",), "grid": "2d"}
HOW_POOL: dict[str, Any] = {"kind": "token_reducer", "claims": ("permutation_invariant",)}


class RightTorus(Module):
    """x (B, R, C, D) -> the same: each cell, its right and its lower neighbour, each with a weight."""

    def __init__(self, dim: int, *, seed: Any = 0, dtype: Any = "float32"):
        rng = init.generator(seed)
        self.here, self.right, self.down = (Linear(dim, dim, False, rng, dtype=dtype) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.here(x) + self.right(ops.roll(x, -1, 2)) + self.down(ops.roll(x, -1, 1))


class WrapsOneAxis(RightTorus):
    """Below the last row there is nothing."""

    def forward(self, x: Tensor) -> Tensor:
        below = ops.pad(x[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
        return self.here(x) + self.right(ops.roll(x, -1, 2)) + self.down(below)


class ReadsColumnsAsRows(RightTorus):
    """Takes the flat list of cells for a grid of the other orientation."""

    def forward(self, x: Tensor) -> Tensor:
        b, rows, columns, d = x.shape
        return super().forward(x.reshape((b, columns, rows, d))).reshape(x.shape)


class GivesColumnsForRows(RightTorus):
    """Gives the grid turned."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).permute_dims((0, 2, 1, 3))


class RightPool(Module):
    """x (B, N, D) -> (B, 1, D): the mean of all tokens."""

    def __init__(self, dim: int, *, seed: Any = 0, dtype: Any = "float32"):
        self.w = Linear(dim, dim, False, seed, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.w(x.mean(axis=1, keepdims=True))


class FirstTokenCountsMore(RightPool):
    """Weighs the first token twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.w((x.sum(axis=1, keepdims=True) + x[:, :1]) / (x.shape[1] + 1))


class KeepsTooMany(RightPool):
    """Gives more tokens than there were."""

    def forward(self, x: Tensor) -> Tensor:
        return self.w(ops.concat([x, x[:, :1]], axis=1))


class DependsOnThePlace(SoftmaxAttention):
    """Attention with hidden positions, said to have none."""

    def __init__(
        self, dim: int, *, heads: int = 1, causal: bool = True, seed: Any = 0, dtype: Any = "float32"
    ):
        super().__init__(dim, heads=heads, causal=causal, seed=seed, dtype=dtype)
        self.place = Parameter(np.zeros(dim, dtype=dtype))

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        here = np.linspace(0.0, 1e-3, x.shape[1], dtype=x.dtype)[:, None]
        return super().forward(x + here + self.place, **options)


class CostsMoreThanItSays(SoftmaxAttention):
    """Quadratic in N; its card says linear."""

    card = type(CARD)(**{**vars(CARD), "complexity": "8 N D^2 + 4 N w D"})

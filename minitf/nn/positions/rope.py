"""Rotary position embedding: queries and keys turn with their position, so that scores see distances only.

    w_j = base^(-2j/d)                               j = 0 .. d/2 - 1
    (x_2j, x_2j+1)  <-  (x_2j cos(n w_j) - x_2j+1 sin(n w_j),  x_2j sin(n w_j) + x_2j+1 cos(n w_j))

    x  (B, H, N, d)   queries or keys, not values;  n  (N,) or (B, N)   positions

Source: RoFormer, Su et al., arXiv:2104.09864, 2021, equation 34.
Differs from the paper: `interleaved=False` pairs (j, j + d/2) instead, as LLaMA-type code does. The two
differ by a fixed permutation of the columns of W_q and W_k.
Numerics: angles in float64; the rotation in the dtype of x. The rotation itself is the operation `ops.rope`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor

from ..card import Card, Case, Paper, identity
from .base import Position

CARD = Card(
    name="rope",
    title="Rotary position embedding",
    kind="position",
    family="rotary",
    papers=(Paper("RoFormer: Enhanced Transformer with Rotary Position Embedding", "2104.09864", 2021),),
    causal=True,
    streams=False,
    grid="1d",
    complexity="6 N H d",
    properties=("norm_preserving",),
    basis="published code: deepseek-ai/DeepSeek-V3 inference/model.py; lucidrains/x-transformers",
)


class RoPE(Position):
    """Rotates (B, H, N, d). No parameters."""

    card = CARD

    def __init__(
        self,
        dim: int = 0,
        *,
        heads: int = 1,
        context: int = 0,
        base: float = 10000.0,
        interleaved: bool = True,
        seed: Any = 0,
        dtype: Any = "float32",
    ):
        self.base = base
        self.interleaved = interleaved

    def forward(self, x: Tensor, positions: Any) -> Tensor:
        """(B, H, N, d) -> (B, H, N, d). Raises ShapeError for odd d."""
        return ops.rope(x, positions, self.base, self.interleaved)

    rotate = forward


def queries(case: Case) -> Tensor:
    return Tensor(case.rng().standard_normal((case.b, case.h, case.t, 2 * case.d)))


@identity("scores do not change when all positions shift by the same number")
def shift(case: Case) -> tuple[Tensor, Tensor]:
    q, n = queries(case), np.arange(case.t)
    k = q[:, :, ::-1]
    return ops.rope(q, n) @ ops.rope(k, n).mT, ops.rope(q, n + 9) @ ops.rope(k, n + 9).mT


@identity("the rotation keeps the length of every vector")
def isometry(case: Case) -> tuple[Tensor, Tensor]:
    q = queries(case)
    turned = ops.rope(q, np.arange(case.t))
    return (turned * turned).sum(axis=-1), (q * q).sum(axis=-1)


@identity("turning by m and then by n is turning by m + n")
def composition(case: Case) -> tuple[Tensor, Tensor]:
    q, n = queries(case), np.arange(case.t)
    return ops.rope(ops.rope(q, n), 3 * n), ops.rope(q, 4 * n)


@identity("both pairings give the same scores once the columns are permuted")
def pairings(case: Case) -> tuple[Tensor, Tensor]:
    q, n = queries(case), np.arange(case.t)
    # Column 2j goes to j, column 2j+1 to j + d/2.
    order = np.r_[0 : 2 * case.d : 2, 1 : 2 * case.d : 2]
    half = ops.rope(q[..., order], n, interleaved=False)
    whole = ops.rope(q, n)
    return half @ half.mT, whole @ whole.mT

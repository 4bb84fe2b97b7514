"""No positional encoding: the causal mask is the only order signal.

Source: The Impact of Positional Encoding on Length Generalization in Transformers, Kazemnejad et al.,
arXiv:2305.19466, 2023. Without a causal mask the model cannot tell any order of its tokens from another.
"""

from __future__ import annotations

from typing import Any

from minitf import ops
from minitf.engine import Tensor

from ..card import Card, Case, Paper, identity
from .base import Position

CARD = Card(
    name="nope",
    title="No positional encoding",
    kind="position",
    family="none",
    papers=(
        Paper(
            "The Impact of Positional Encoding on Length Generalization in Transformers", "2305.19466", 2023
        ),
    ),
    causal=True,
    streams=False,
    grid="any",
    complexity="0",
    properties=(),
    basis="memory (certain)",
    aliases={"none": {}},
)


class NoPosition(Position):
    """Leaves everything as it is."""

    card = CARD

    def __init__(
        self, dim: int = 0, *, heads: int = 1, context: int = 0, seed: Any = 0, dtype: Any = "float32"
    ):
        pass

    def forward(self, x: Tensor, positions: Any = None) -> Tensor:
        """x."""
        return x


@identity("causal attention without positions: the last output ignores the order of the earlier tokens")
def order_of_the_past(case: Case) -> tuple[Tensor, Tensor]:
    x = case.tokens()
    order = [*case.rng().permutation(case.t - 1), case.t - 1]
    q = ops.split_heads(x, case.h)
    shuffled = ops.split_heads(x[:, order], case.h)
    left = ops.softmax_attention(q, q, q, causal=True)
    return left[:, :, -1], ops.softmax_attention(shuffled, shuffled, shuffled, causal=True)[:, :, -1]


@identity("attention without positions and without a mask is permutation equivariant")
def equivariant(case: Case) -> tuple[Tensor, Tensor]:
    x = case.tokens()
    order = case.rng().permutation(case.t)
    q, p = ops.split_heads(x, case.h), ops.split_heads(x[:, order], case.h)
    return ops.softmax_attention(q, q, q)[:, :, order], ops.softmax_attention(p, p, p)

"""Learned absolute positions: one trained vector for every position, added to the embeddings.

    x_n  <-  x_n + E[n]

    x  (B, N, D)         token embeddings;  n  (N,) or (B, N)   positions
    E  (N_max, D)        the table, starts normal with std 0.02

Source: the practice of GPT and BERT (Improving Language Understanding by Generative Pre-Training, 2018).
Positions from N_max on are an error: the table has no row for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor

from .. import init
from ..card import Card, Case, Paper, identity
from ..checked import positive
from ..module import Parameter
from .base import Position, as_positions
from .sinusoidal_pos import sinusoids

CARD = Card(
    name="learned_pos",
    title="Learned absolute positions",
    kind="position",
    family="absolute",
    papers=(Paper("Improving Language Understanding by Generative Pre-Training", "", 2018),),
    causal=True,
    streams=False,
    grid="1d",
    complexity="N D",
    properties=(),
    basis="memory (certain); the GPT-2 weight layout",
    aliases={"learned": {}},
)


class LearnedPosition(Position):
    """Adds rows of the parameter weight (context, D) to (B, N, D).

    Raises:
        ValueError: dim or context below 1.
    """

    card = CARD

    def __init__(
        self, dim: int, *, heads: int = 1, context: int = 256, seed: init.Seed = 0, dtype: Any = "float32"
    ):
        positive(dim=dim, context=context)
        self.weight = Parameter(init.normal(seed, (context, dim), 0.02, dtype))

    def forward(self, x: Tensor, positions: Any) -> Tensor:
        """x + E[positions]. Raises ValueError for positions outside the table."""
        n, limit = as_positions(positions), len(self.weight)
        if n.size and not (n.min() >= 0 and n.max() < limit):
            raise ValueError(
                f"positions {n.min()}..{n.max()} are outside the {limit} that were learned: use a larger one"
            )
        return x + ops.embedding(n, self.weight)

    embed = forward


@identity("with the sinusoidal table it equals sinusoidal positions")
def sinusoidal(case: Case) -> tuple[Tensor, Tensor]:
    layer = LearnedPosition(case.dim, context=case.t, dtype="float64")
    layer.weight.data = sinusoids(np.arange(case.t), case.dim)
    x, n = case.tokens(), np.arange(case.t)
    return layer(x, n), x + sinusoids(n, case.dim)


@identity("the gradient of a row is the sum over the batch; a row that no token used gets zero")
def gradient(case: Case) -> tuple[Any, Any]:
    layer = LearnedPosition(case.dim, context=case.t + 1, dtype="float64")
    g = case.rng().standard_normal((case.b, case.t, case.dim))
    layer(case.tokens(), np.arange(case.t)).backward(g)
    assert layer.weight.grad is not None
    return layer.weight.grad, np.concatenate([g.sum(0), np.zeros((1, case.dim))])

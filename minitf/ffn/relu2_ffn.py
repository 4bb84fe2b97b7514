"""Squared-ReLU feed-forward network: as sparse as ReLU, nearly as good as gated networks.

    h = relu(x W1 + b1)^2
    y = h W2 + b2

    x  (..., D)   tokens, each on its own        W1 (D, F), b1 (F,)
    y  (..., D)                                  W2 (F, D), b2 (D,)

F = 4 D unless given; biases off unless asked for. Cost: 4 N D F operations; 2 D F parameters.
Source: Primer, So et al., arXiv:2109.08668, 2021, section 3.
Numerics: hidden values grow with the square of the input, so large inputs or a post-norm layout can blow
up the variance; pre-norm keeps the input at unit scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor
from minitf.nn import Card, Case, Linear, Module, Paper, identity, init, positive

CARD = Card(
    name="relu2_ffn",
    title="Squared-ReLU feed-forward network",
    kind="ffn",
    family="dense",
    papers=(Paper("Primer: Searching for Efficient Transformers for Language Modeling", "2109.08668", 2021),),
    causal=True,
    streams=False,
    grid="any",
    complexity="4 N D F",
    properties=("token_wise",),
    basis="published code: lucidrains/x-transformers (ReluSquared); KellerJordan/modded-nanogpt",
    aliases={"relu2": {}},
    parity=("transformers 5.23.0 NemotronMLP",),
)


class ReLU2FFN(Module):
    """(..., D) -> (..., D). Parameters: w1 (D, F), w2 (F, D), with biases if `bias`.

    Raises:
        ValueError: hidden below 1.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        hidden: int | None = None,
        bias: bool = False,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, hidden=hidden)
        rng = init.generator(seed)
        hidden = 4 * dim if hidden is None else hidden
        self.w1 = Linear(dim, hidden, bias, rng, dtype=dtype)
        self.w2 = Linear(hidden, dim, bias, rng, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        # h = relu(x W1 + b1)^2: (..., F)
        h = ops.square(ops.relu(self.w1(x)))
        return self.w2(h)


@identity("without biases F(c x) = c^2 F(x) for c >= 0")
def homogeneous(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = ReLU2FFN(case.dim, seed=case.seed, dtype="float64"), case.tokens()
    return layer(3.0 * x), 9.0 * layer(x)


@identity("W1 = [A, -A], W2 = [B; B] is (x A)^2 B, squared elementwise")
def square(case: Case) -> tuple[Tensor, Tensor]:
    x, rng = case.tokens(), case.rng()
    a, b = rng.standard_normal((case.dim, 2 * case.dim)), rng.standard_normal((2 * case.dim, case.dim))
    layer = ReLU2FFN(case.dim, dtype="float64")
    layer.w1.weight.data, layer.w2.weight.data = np.concatenate([a, -a], axis=1), np.concatenate([b, b])
    return layer(x), ops.square(x @ a) @ b


@identity("a hidden unit is zero exactly where it is zero in the ReLU network")
def support(case: Case) -> tuple[Any, Any]:
    layer, x = ReLU2FFN(case.dim, seed=case.seed, dtype="float64"), case.tokens()
    h = layer.w1(x)
    return (ops.square(ops.relu(h)).data > 0).astype(float), (ops.relu(h).data > 0).astype(float)

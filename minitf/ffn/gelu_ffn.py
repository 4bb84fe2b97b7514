"""GELU feed-forward network: the two-layer MLP with a smooth gate, as in BERT, GPT-2 and ViT.

    gelu(t) = t Phi(t) = 0.5 t (1 + erf(t / sqrt(2)))
    y = gelu(x W1 + b1) W2 + b2

    x  (..., D)   tokens, each on its own        W1 (D, F), b1 (F,)
    y  (..., D)                                  W2 (F, D), b2 (D,)

F = 4 D unless given. approximate="tanh": 0.5 t (1 + tanh(sqrt(2/pi) (t + 0.044715 t^3))), the form of GPT-2.
Cost: 4 N D F operations; 2 D F + F + D parameters.
Source: Gaussian Error Linear Units, Hendrycks and Gimpel, arXiv:1606.08415, 2016, section 2.
Numerics: the forms differ by at most 5e-4, so a comparison must fix one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor
from minitf.nn import Card, Case, Linear, Module, Paper, identity, init, positive

CARD = Card(
    name="gelu_ffn",
    title="GELU feed-forward network",
    kind="ffn",
    family="dense",
    papers=(Paper("Gaussian Error Linear Units (GELUs)", "1606.08415", 2016),),
    causal=True,
    streams=False,
    grid="any",
    complexity="4 N D F",
    properties=("token_wise",),
    basis="paper text; approximations checked numerically",
    aliases={"gelu": {}, "gelu_tanh": {"approximate": "tanh"}},
    parity=("transformers 5.23.0 CLIPMLP", "transformers 5.23.0 GPT2MLP"),
)


class GELUFFN(Module):
    """(..., D) -> (..., D). Parameters: w1 (D, F), w2 (F, D), with biases unless `bias` is False.

    Raises:
        ValueError: hidden below 1, or another form of GELU.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        hidden: int | None = None,
        approximate: str = "none",
        bias: bool = True,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, hidden=hidden)
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate must be 'none' or 'tanh', not {approximate!r}")
        rng = init.generator(seed)
        hidden = 4 * dim if hidden is None else hidden
        self.approximate = approximate
        self.w1 = Linear(dim, hidden, bias, rng, dtype=dtype)
        self.w2 = Linear(hidden, dim, bias, rng, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        # h = gelu(x W1 + b1): (..., F)
        h = ops.gelu(self.w1(x), self.approximate)
        return self.w2(h)


@identity("W1 = [A, -A], W2 = [B; -B] is the linear map x A B, in both forms")
def linear(case: Case) -> tuple[Tensor, Tensor]:
    x, rng, rows = case.tokens(), case.rng(), []
    a, b = rng.standard_normal((case.dim, 2 * case.dim)), rng.standard_normal((2 * case.dim, case.dim))
    for approximate in ("none", "tanh"):
        layer = GELUFFN(case.dim, approximate=approximate, bias=False, dtype="float64")
        layer.w1.weight.data, layer.w2.weight.data = np.concatenate([a, -a], axis=1), np.concatenate([b, -b])
        rows.append(layer(x))
    return ops.stack(rows), ops.stack([x @ a @ b] * 2)


@identity("the tanh form is within 5e-4 of the exact one", tolerance=5e-4)
def approximation(case: Case) -> tuple[Tensor, Tensor]:
    t = Tensor(np.linspace(-6.0, 6.0, 1001))
    return ops.gelu(t, "tanh") - ops.gelu(t), 0.0 * t


@identity("gelu(c t) / c tends to relu(t)", tolerance=2e-4)
def limit(case: Case) -> tuple[Tensor, Tensor]:
    t = Tensor(np.linspace(-1.0, 1.0, 1001))
    return ops.gelu(1000.0 * t) / 1000.0, ops.relu(t)

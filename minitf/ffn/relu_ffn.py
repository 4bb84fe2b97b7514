"""Position-wise ReLU feed-forward network: the two-layer MLP of the original transformer.

    h = relu(x W1 + b1)
    y = h W2 + b2

    x  (..., D)   tokens, each on its own        W1 (D, F), b1 (F,)
    y  (..., D)                                  W2 (F, D), b2 (D,)

F = 4 D unless given. Cost: 4 N D F operations; 2 D F + F + D parameters.
Source: Attention Is All You Need, Vaswani et al., arXiv:1706.03762, 2017, equation 2.
Numerics: the gradient at exactly 0 is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor
from minitf.nn import Card, Case, Linear, Module, Paper, identity, init, positive

CARD = Card(
    name="relu_ffn",
    title="Position-wise ReLU feed-forward network",
    kind="ffn",
    family="dense",
    papers=(Paper("Attention Is All You Need", "1706.03762", 2017),),
    causal=True,
    streams=False,
    grid="any",
    complexity="4 N D F",
    properties=("token_wise",),
    basis="paper text, checked against lucidrains/x-transformers x_transformers.py",
    aliases={"relu": {}},
    parity=("transformers 5.23.0 CLIPMLP",),
)


class ReLUFFN(Module):
    """(..., D) -> (..., D). Parameters: w1 (D, F), w2 (F, D), with biases unless `bias` is False.

    Raises:
        ValueError: hidden below 1.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        hidden: int | None = None,
        bias: bool = True,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, hidden=hidden)
        rng = init.generator(seed)
        hidden = 4 * dim if hidden is None else hidden
        self.w1 = Linear(dim, hidden, bias, rng, dtype=dtype)
        self.w2 = Linear(hidden, dim, bias, rng, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        # h = relu(x W1 + b1): (..., F)
        h = ops.relu(self.w1(x))
        return self.w2(h)


def build(case: Case, **options: Any) -> Any:
    layer = ReLUFFN(case.dim, seed=case.seed, dtype="float64", **options)
    rng = case.rng()
    for p in layer.parameters():
        p.data = rng.standard_normal(p.shape)
    return layer


@identity("permuting the neurons changes nothing")
def neuron_permutation(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    y = layer(x)
    order = case.rng().permutation(4 * case.dim)
    w1, b1, w2 = layer.w1.weight, layer.w1.bias, layer.w2.weight
    w1.data, b1.data, w2.data = w1.data[:, order], b1.data[order], w2.data[order]
    return layer(x), y


@identity("scaling a neuron's input by c > 0 and its output by 1/c changes nothing")
def rescaling(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    y = layer(x)
    c = np.exp(case.rng().standard_normal(4 * case.dim))
    w1, b1, w2 = layer.w1.weight, layer.w1.bias, layer.w2.weight
    w1.data, b1.data, w2.data = w1.data * c, b1.data * c, w2.data / c[:, None]
    return layer(x), y


@identity("without biases F(c x) = c F(x) for c >= 0")
def homogeneous(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, bias=False), case.tokens()
    return layer(3.0 * x), 3.0 * layer(x)


@identity("cutting the neurons into parts: the narrow networks add up to the wide one")
def hidden_split(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, bias=False), case.tokens()
    f = layer.w1.weight.shape[1]
    parts: Any = 0.0
    for cut in (slice(0, f // 3), slice(f // 3, f)):
        parts = parts + ops.relu(x @ layer.w1.weight[:, cut]) @ layer.w2.weight[cut]
    return parts, layer(x)


@identity("W1 = [A, -A], W2 = [B; -B] is the linear map x A B")
def linear(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, rng = build(case, bias=False), case.tokens(), case.rng()
    a, b = rng.standard_normal((case.dim, 2 * case.dim)), rng.standard_normal((2 * case.dim, case.dim))
    layer.w1.weight.data, layer.w2.weight.data = np.concatenate([a, -a], axis=1), np.concatenate([b, -b])
    return layer(x), x @ a @ b

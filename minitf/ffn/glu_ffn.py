"""Gated feed-forward networks: GLU, Bilinear, ReGLU, GEGLU, SwiGLU.

    h = act(x Wg + bg) * (x Wu + bu)          elementwise product
    y = h Wd + bd

    x  (..., D)   tokens, each on its own        Wg, Wu (D, F)   gate and up
    y  (..., D)                                  Wd (F, D)       down

act: sigmoid is GLU, identity Bilinear, relu ReGLU, gelu GEGLU, silu SwiGLU (the default).
F = round_up(floor(2/3 * 4 D), 8) unless given, so that three matrices cost what two of a plain FFN do.
Cost: 6 N D F operations; 3 D F parameters.
Source: GLU Variants Improve Transformer, Shazeer, arXiv:2002.05202, 2020, equations 5 and 6.
Differs from packed code: gate and up are two named matrices, so nobody has to know which half is the gate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor
from minitf.nn import Card, Case, Linear, Module, Paper, activation, identity, init, positive

CARD = Card(
    name="glu_ffn",
    title="Gated feed-forward network",
    kind="ffn",
    family="gated",
    papers=(Paper("GLU Variants Improve Transformer", "2002.05202", 2020),),
    causal=True,
    streams=False,
    grid="any",
    complexity="6 N D F",
    properties=("token_wise",),
    basis="published code: facebookresearch/Mixture-of-Transformers; lucidrains/x-transformers",
    aliases={
        "glu": {"act": "sigmoid"},
        "bilinear": {"act": "identity"},
        "reglu": {"act": "relu"},
        "geglu": {"act": "gelu"},
        "swiglu": {"act": "silu"},
    },
    parity=("transformers 5.23.0 LlamaMLP", "torch 2.13.0 functional.glu"),
)


def gated_width(dim: int, multiple: int = 8) -> int:
    """F = round_up(floor(2/3 * 4 D), multiple)."""
    return -(-(8 * dim // 3) // multiple) * multiple


class GLUFFN(Module):
    """(..., D) -> (..., D). Parameters: wg and wu (D, F), wd (F, D), with biases if `bias`.

    Raises:
        ValueError: hidden below 1, or an unknown activation.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        hidden: int | None = None,
        act: str = "silu",
        bias: bool = False,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, hidden=hidden)
        rng = init.generator(seed)
        hidden = gated_width(dim) if hidden is None else hidden
        # An unknown name raises here.
        activation(act)
        self.act = act
        self.wg = Linear(dim, hidden, bias, rng, dtype=dtype)
        self.wu = Linear(dim, hidden, bias, rng, dtype=dtype)
        self.wd = Linear(hidden, dim, bias, rng, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        # h = act(x Wg + bg) * (x Wu + bu): (..., F)
        h = ops.gated_activation(self.wg(x), self.wu(x), self.act)
        return self.wd(h)


def build(case: Case, act: str, bias: bool = True) -> Any:
    layer = GLUFFN(case.dim, act=act, bias=bias, seed=case.seed, dtype="float64")
    rng = case.rng()
    for p in layer.parameters():
        p.data = rng.standard_normal(p.shape)
    return layer


@identity("Wu = 0, bu = 1: SwiGLU, GEGLU and ReGLU are the plain networks of their activation")
def constant_up(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for act in ("silu", "gelu", "relu"):
        layer = build(case, act)
        layer.wu.weight.data = np.zeros_like(layer.wu.weight.data)
        layer.wu.bias.data = np.ones_like(layer.wu.bias.data)
        left.append(layer(x))
        right.append(layer.wd(activation(act)(layer.wg(x))))
    return ops.stack(left), ops.stack(right)


@identity("ReGLU with equal gate and up is the squared-ReLU network")
def tied_gate(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, "relu"), case.tokens()
    layer.wu.load_state_dict(layer.wg.state_dict())
    return layer(x), layer.wd(ops.square(ops.relu(layer.wg(x))))


@identity("Bilinear: swapping gate and up changes nothing")
def swap(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, "identity"), case.tokens()
    y = layer(x)
    layer.wg, layer.wu = layer.wu, layer.wg
    return layer(x), y


@identity("flipping the sign of an up column and of its down row changes nothing")
def sign_flip(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, "silu"), case.tokens()
    y = layer(x)
    flip = np.where(case.rng().random(gated_width(case.dim)) < 0.5, -1.0, 1.0)
    up, bias, down = layer.wu.weight, layer.wu.bias, layer.wd.weight
    up.data, bias.data, down.data = up.data * flip, bias.data * flip, down.data * flip[:, None]
    return layer(x), y

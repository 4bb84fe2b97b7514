"""Layer normalisation.

    y = gamma * (x - mean) / sqrt(var + eps) + beta        over the last axis

    x      (..., D)   tokens
    gamma  (D,)       gain, starts at 1
    beta   (D,)       shift, starts at 0
    var    the mean of (x - mean)^2, without Bessel's correction

Source: Layer Normalization, Ba et al., arXiv:1607.06450, 2016, equation 4.
Differs from the paper: eps stands inside the square root, as in all current code.
Numerics: eps = 1e-5; the two-pass form, which does not cancel for large means.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor

from ..card import Card, Case, Paper, identity
from ..checked import not_negative, positive
from ..module import Module, Parameter

CARD = Card(
    name="layernorm",
    title="Layer normalisation",
    kind="norm",
    family="feature",
    papers=(Paper("Layer Normalization", "1607.06450", 2016),),
    causal=True,
    streams=False,
    grid="any",
    complexity="8 N D",
    properties=("token_wise",),
    basis="paper text; compared with torch in the GPT-2 parity test",
    parity=("torch 2.13.0 functional.layer_norm",),
)


class LayerNorm(Module):
    """(..., D) -> (..., D). Parameters: weight (D,), bias (D,) unless `bias` is False.

    Raises:
        ValueError: dim below 1, or eps below 0.
    """

    card = CARD

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True, dtype: Any = "float32"):
        positive(dim=dim)
        not_negative(eps=eps)
        self.eps = eps
        self.weight = Parameter(np.ones(dim, dtype=dtype))
        self.bias = Parameter(np.zeros(dim, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


@identity("shifting all features and scaling them by a > 0 changes nothing (eps = 0)")
def shift_and_scale(case: Case) -> tuple[Tensor, Tensor]:
    x = case.tokens()
    return ops.layer_norm(x * 3.0 + 5.0, eps=0.0), ops.layer_norm(x, eps=0.0)


@identity("the output has mean 0 and mean square 1 (eps = 0, unit gain)")
def moments(case: Case) -> tuple[Tensor, Any]:
    y = ops.layer_norm(case.tokens(), eps=0.0)
    return ops.stack([y.mean(axis=-1), (y * y).mean(axis=-1)]), np.stack(
        [np.zeros(y.shape[:-1]), np.ones(y.shape[:-1])]
    )

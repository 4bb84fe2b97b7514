"""Root-mean-square normalisation: layer normalisation without centring and shift.

    y = gamma * x / sqrt(mean(x^2) + eps)        over the last axis

    x      (..., D)   tokens
    gamma  (D,)       gain, starts at 1

Source: Root Mean Square Layer Normalization, Zhang and Sennrich, arXiv:1910.07467, 2019, equation 4.
Differs from the paper: eps inside the square root, as in all current code.
Numerics: eps = 1e-6.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor

from ..card import Card, Case, Paper, identity
from ..checked import not_negative, positive
from ..module import Module, Parameter

CARD = Card(
    name="rmsnorm",
    title="Root-mean-square normalisation",
    kind="norm",
    family="feature",
    papers=(Paper("Root Mean Square Layer Normalization", "1910.07467", 2019),),
    causal=True,
    streams=False,
    grid="any",
    complexity="4 N D",
    properties=("token_wise",),
    basis="published code: microsoft/unilm Diff-Transformer/rms_norm.py",
    parity=("torch 2.13.0 functional.rms_norm",),
)


class RMSNorm(Module):
    """(..., D) -> (..., D). Parameter: weight (D,).

    Raises:
        ValueError: dim below 1, or eps below 0.
    """

    card = CARD

    def __init__(self, dim: int, eps: float = 1e-6, dtype: Any = "float32"):
        positive(dim=dim)
        not_negative(eps=eps)
        self.eps = eps
        self.weight = Parameter(np.ones(dim, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


@identity("scaling by a > 0 changes nothing (eps = 0)")
def scale(case: Case) -> tuple[Tensor, Tensor]:
    x = case.tokens()
    return ops.rms_norm(x * 3.0, eps=0.0), ops.rms_norm(x, eps=0.0)


@identity("the output is sqrt(D) x / ||x|| (eps = 0, unit gain)")
def unit_sphere(case: Case) -> tuple[Tensor, Tensor]:
    x = case.tokens()
    return ops.rms_norm(x, eps=0.0), math.sqrt(case.dim) * x / ops.sqrt((x * x).sum(axis=-1, keepdims=True))


@identity("on centred tokens it equals layer normalisation")
def centred(case: Case) -> tuple[Tensor, Tensor]:
    x = case.tokens()
    x = x - x.mean(axis=-1, keepdims=True)
    return ops.rms_norm(x, eps=1e-5), ops.layer_norm(x, eps=1e-5)

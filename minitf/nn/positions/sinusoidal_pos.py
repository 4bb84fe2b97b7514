"""Sinusoidal absolute positions: fixed waves of geometrically spaced wavelengths, added to the embeddings.

    P[n, 2j]   = sin(n / base^(2j/D))
    P[n, 2j+1] = cos(n / base^(2j/D))          j = 0 .. D/2 - 1
    x_n  <-  x_n + P[n]

    x  (B, N, D)   token embeddings;  n  (N,) or (B, N)   positions

Source: Attention Is All You Need, Vaswani et al., arXiv:1706.03762, 2017, section 3.5.
Differs from the paper: embeddings are not multiplied by sqrt(D) first, so those of a small initial scale
are drowned by the waves, whose amplitude is 1, until they have grown. For odd D the last cosine is left out.
Numerics: angles in float64, then the dtype of x.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.engine import Array, Tensor

from ..card import Card, Case, Paper, identity
from ..checked import positive
from .base import Position, as_positions

CARD = Card(
    name="sinusoidal_pos",
    title="Sinusoidal absolute positions",
    kind="position",
    family="absolute",
    papers=(Paper("Attention Is All You Need", "1706.03762", 2017),),
    causal=True,
    streams=False,
    grid="1d",
    complexity="N D",
    properties=(),
    basis="published code: tensorflow/tensor2tensor get_timing_signal_1d; paper text",
    aliases={"sinusoidal": {}},
    parity=("transformers 5.23.0 SpeechT5ScaledPositionalEncoding",),
)


def sinusoids(positions: Any, dim: int, base: float = 10000.0) -> Array:
    """P for positions (...): (..., D), float64."""
    # Pair j turns by n * w_j with w_j = base^(-2j/D): (..., ceil(D/2))
    angles = as_positions(positions)[..., None] * base ** (-np.arange(0, dim, 2) / dim)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(*angles.shape[:-1], -1)[..., :dim]


class SinusoidalPosition(Position):
    """Adds P to (B, N, D). No parameters.

    Raises:
        ValueError: dim below 1, or a base of 0 or less.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 1,
        context: int = 0,
        base: float = 10000.0,
        seed: Any = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, base=base)
        self.base = base

    def forward(self, x: Tensor, positions: Any) -> Tensor:
        """x + P[positions]."""
        return x + sinusoids(positions, x.shape[-1], self.base).astype(x.dtype)

    embed = forward


@identity("P[n] . P[m] depends on n - m only")
def relative(case: Case) -> tuple[Array, Array]:
    p, shifted = sinusoids(np.arange(case.t), case.dim), sinusoids(np.arange(case.t) + 17, case.dim)
    return p @ p.T, shifted @ shifted.T


@identity("for even D every P[n] has squared length D / 2")
def length(case: Case) -> tuple[Array, Array]:
    p = sinusoids(np.arange(case.t), 2 * case.dim)
    return (p * p).sum(-1), np.full(case.t, float(case.dim))

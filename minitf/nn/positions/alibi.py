"""Attention with linear biases: every head subtracts a fixed multiple of the distance from its scores.

    S_ij  <-  S_ij - m_h |i - j|           added after the 1/sqrt(d) scale
    m_h = 2^(-8h/H)                        h = 1 .. H, H a power of two

    S  (B, H, Nq, Nk)   scores;  m  (H,)   slopes

For other H, with P the largest power of two below: the slopes of P heads, then every second slope of 2P
heads, from the first, until there are H. Nothing else tells positions apart. Without a causal mask
the bias is the same on both sides.

Cost: H Nq Nk operations; no parameters.
Source: Train Short, Test Long, Press et al., arXiv:2108.12409, 2021, section 3.
Numerics: the bias is built in float64 and follows the dtype of the scores.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor

from ..card import Card, Case, Paper, identity
from ..checked import positive
from .base import Position, as_positions

CARD = Card(
    name="alibi",
    title="Attention with linear biases",
    kind="position",
    family="bias",
    papers=(Paper("Train Short, Test Long: Attention with Linear Biases", "2108.12409", 2021),),
    causal=True,
    streams=False,
    grid="1d",
    complexity="H N^2",
    properties=(),
    basis="published code: lucidrains/x-transformers; meta-pytorch/attention-gym attn_gym/mods/alibi.py",
    parity=("x-transformers 2.31.10 AlibiPositionalBias",),
)


def slopes(heads: int) -> Array:
    """m (H,), float64."""
    power = 2 ** int(math.log2(heads))
    m = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    if power < heads:
        m = np.concatenate([m, slopes(2 * power)[0::2][: heads - power]])
    return m


class ALiBi(Position):
    """Adds -m |i - j| to the scores of `heads` heads. No parameters.

    Raises:
        ValueError: heads below 1.
    """

    card = CARD

    def __init__(
        self, dim: int = 0, *, heads: int = 4, context: int = 0, seed: Any = 0, dtype: Any = "float32"
    ):
        positive(heads=heads)
        self.slopes = slopes(heads)

    def bias(self, queries: Any, keys: Any) -> Array:
        """Positions (Nq,), (Nk,) -> (H, Nq, Nk); with a batch axis (B, Nq), (B, Nk) -> (B, H, Nq, Nk)."""
        distance = np.abs(as_positions(queries)[..., :, None] - as_positions(keys)[..., None, :])
        return -self.slopes[:, None, None] * distance[..., None, :, :]

    def forward(self, scores: Tensor, queries: Any, keys: Any) -> Tensor:
        """Scores (B, H, Nq, Nk) with the bias added."""
        return scores + self.bias(queries, keys)


def with_slopes(case: Case, m: Any) -> ALiBi:
    layer = ALiBi(heads=case.h)
    layer.slopes = np.broadcast_to(np.asarray(m, dtype=np.float64), (case.h,))
    return layer


def attend(case: Case, layer: ALiBi, causal: bool = True) -> Tensor:
    """Attention of the case's heads to themselves, (B, H, N, d), with the scheme's bias."""
    q, n = ops.split_heads(case.tokens(), case.h), np.arange(case.t)
    return ops.softmax_attention(q, q, q, causal=causal, bias=layer.bias(n, n))


@identity("the bias is -m_h |i - j|, by loops; H = 2^k heads have the slopes 2^(-8h/H)")
def by_loops(case: Case) -> tuple[Array, Array]:
    expected = np.zeros((case.h, case.t, case.t + 2))
    for h, i, j in np.ndindex(expected.shape):
        expected[h, i, j] = -(2.0 ** (-8 * (h + 1) / case.h)) * abs(i - j)
    return ALiBi(heads=case.h).bias(np.arange(case.t), np.arange(case.t + 2)), expected


@identity("slopes of 0: no positions at all, causal and not")
def no_slope(case: Case) -> tuple[Tensor, Tensor]:
    q, flat = ops.split_heads(case.tokens(), case.h), with_slopes(case, 0.0)
    left = [attend(case, flat, causal) for causal in (True, False)]
    return ops.stack(left), ops.stack([ops.softmax_attention(q, q, q, causal=c) for c in (True, False)])


@identity("very steep slopes: every token attends to itself")
def steep(case: Case) -> tuple[Tensor, Tensor]:
    q = ops.split_heads(case.tokens(), case.h)
    return attend(case, with_slopes(case, 1e4), causal=False), q


@identity("it is attention that forgets: each later token multiplies a key's weight by the constant exp(-m)")
def constant_gate(case: Case) -> tuple[Tensor, Tensor]:
    q, layer = ops.split_heads(case.tokens(), case.h), ALiBi(heads=case.h)
    kept = np.zeros((case.h, case.t, case.t))
    for i in range(case.t):
        kept[:, i, i] = 1.0
        if i:
            # Token i makes everything before it fade once more.
            kept[:, i, :i] = kept[:, i - 1, :i] * np.exp(-layer.slopes)[:, None]
    weights = ops.exp(ops.attention_scores(q, q, causal=True)) * kept
    return attend(case, layer), weights / weights.sum(axis=-1, keepdims=True) @ q


@identity("a constant shift of all positions changes nothing")
def shift(case: Case) -> tuple[Array, Array]:
    layer, n = ALiBi(heads=case.h), np.arange(case.t)
    return layer.bias(n, n), layer.bias(n + 11, n + 11)


@identity("under a causal mask, -m (i - j) and +m j give the same attention")
def row_constant(case: Case) -> tuple[Tensor, Tensor]:
    q, n = ops.split_heads(case.tokens(), case.h), np.arange(case.t)
    layer = ALiBi(heads=case.h)
    by_key = layer.slopes[:, None, None] * n
    return (
        ops.softmax_attention(q, q, q, causal=True, bias=layer.bias(n, n)),
        ops.softmax_attention(q, q, q, causal=True, bias=by_key),
    )

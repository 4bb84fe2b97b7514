"""Clipped softmax: attention weights are stretched a little beyond [0, 1] and clipped, to reach exactly 0.

    p_ij = softmax over the visible j of  q_i . k_j / sqrt(d) + bias_ij
    A_ij = clip((zeta - gamma) p_ij + gamma, 0, 1)
    o_i  = sum_j A_ij v_j                       A is not normalised again
    y    = merge(o) W_o

    x, y  (B, N, D)        q, k, v, o  (B, H, N, d)        p, A  (B, H, N, N)
    zeta >= 1, gamma <= 0  the stretch upwards and downwards

A weight p_ij <= -gamma / (zeta - gamma) becomes exactly 0, one of at least (1 - gamma) / (zeta - gamma)
exactly 1. A head that wants to do nothing can do so with small scores; with a plain softmax the scores, and
the activations behind them, grow without end to come close to 0. No gradient passes where the clip holds.

Cost: 8 N D^2 for the maps and 4 N^2 D for the heads, and three operations more for each weight.
Source: Quantizable Transformers: Removing Outliers by Helping Attention Heads Do Nothing, Bondarenko et al.,
arXiv:2306.12929, 2023.
Differs from the published code: zeta is called eta there. One gamma does not serve all lengths: `alpha` sets
gamma = -alpha / T for the training length T = `context`, whatever the length of the input.
Numerics: p of a hidden key is 0, hence A is 0; a query that sees nothing gives zeros.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor, no_grad
from minitf.nn import (
    Card,
    Case,
    Dropout,
    KVCache,
    Linear,
    Module,
    Paper,
    Position,
    as_position,
    identity,
    init,
    positive,
)

CARD = Card(
    name="clipped_softmax",
    title="Attention with a clipped softmax",
    kind="attention",
    family="softmax",
    papers=(
        Paper(
            "Quantizable Transformers: Removing Outliers by Helping Attention Heads Do Nothing",
            "2306.12929",
            2023,
        ),
    ),
    causal=True,
    streams=True,
    grid="1d",
    complexity="8 N D^2 + 4 N^2 D",
    properties=("causal", "streams", "batch_independent", "permutation_equivariant_without_causal"),
    basis="published code: Qualcomm-AI-research/outlier-free-transformers "
    "transformers_language/models/softmax.py, bert_attention.py",
    parity=("Qualcomm-AI-research/outlier-free-transformers 1e59744 clipped_softmax",),
)


def clipped(p: Tensor, zeta: float, gamma: float) -> Tensor:
    """A from the weights p of a softmax."""
    return ops.clip((zeta - gamma) * p + gamma, 0.0, 1.0)


class ClippedSoftmax(Module):
    """x (B, N, D) -> (B, N, D). Parameters: wq, wk, wv, wo (D, D), with biases if `bias`.

    Args:
        dim: D. heads: H. gamma, zeta: the stretch; 0 and 1 are plain attention.
        alpha: sets gamma to -alpha / context instead. context: T, the length that training uses.
        dropout: rate on A in training mode. position: a scheme, or its name ("rope", "alibi").

    Raises:
        ValueError: heads that do not divide dim; gamma above 0, zeta below 1 or alpha below 0;
            a context below 1.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        gamma: float = -0.025,
        zeta: float = 1.0,
        alpha: float | None = None,
        context: int = 512,
        causal: bool = True,
        bias: bool = False,
        dropout: float = 0.0,
        position: Position | str = "nope",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads, context=context)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        if not gamma <= 0.0 or not zeta >= 1.0 or (alpha is not None and not alpha >= 0.0):
            raise ValueError(
                f"gamma={gamma} must be 0 or less, zeta={zeta} 1 or more, and alpha={alpha} None, 0 or more"
            )
        rng = init.generator(seed)
        self.heads, self.causal, self.zeta = heads, causal, zeta
        self.gamma = gamma if alpha is None else -alpha / context
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, dim, bias, rng, dtype=dtype) for _ in range(4))
        self.dropout = Dropout(dropout)
        self.position = as_position(position, heads=heads)

    def forward(
        self, x: Tensor, *, mask: Any = None, positions: Any = None, rng: np.random.Generator | None = None
    ) -> Tensor:
        """Attend from x (B, N, D) to itself.

        Args:
            mask: boolean, broadcastable to (B, H, N, N); True = visible.
            positions: of the tokens of x, (N,) or (B, N). rng: for dropout in training mode.
        """
        here = np.arange(x.shape[1]) if positions is None else positions
        q, k, v = self._heads(x, here)
        a = self.dropout(self._weights(q, k, mask, self.position.bias(here, here)), rng)
        return self.wo(ops.merge_heads(a @ v))

    def weights(self, x: Tensor, *, mask: Any = None, positions: Any = None) -> Tensor:
        """A (B, H, N, N). Its rows sum to at most 1 if zeta = 1."""
        here = np.arange(x.shape[1]) if positions is None else positions
        q, k, _ = self._heads(x, here)
        return self._weights(q, k, mask, self.position.bias(here, here))

    def start(self, batch: int) -> KVCache:
        """The empty cache for `batch` sequences."""
        dim = self.wq.weight.shape[0]
        return KVCache.empty((batch, self.heads, 0, dim // self.heads), self.wk.weight)

    def step(self, x: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Several tokens x (B, n, D) at once after those in `state`: (B, n, D) and the new state."""
        if not self.causal:
            raise ValueError("only causal attention streams: build it with causal=True")
        with no_grad():
            here = np.arange(state.length, state.length + x.shape[1])
            q, k, v = self._heads(x, here)
            state = state.append(k.data, v.data)
            a = self._weights(q, Tensor(state.k), None, self.position.bias(here, np.arange(state.length)))
            return self.wo(ops.merge_heads(a @ Tensor(state.v))), state

    def _heads(self, x: Tensor, here: Any) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim != 3:
            raise ShapeError(f"clipped_softmax: x must be (B, N, D), not {x.shape}")
        q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        return self.position.rotate(q, here), self.position.rotate(k, here), v

    def _weights(self, q: Tensor, k: Tensor, mask: Any, bias: Any) -> Tensor:
        return clipped(ops.attention_weights(q, k, mask, self.causal, bias=bias), self.zeta, self.gamma)


def build(case: Case, **options: Any) -> ClippedSoftmax:
    layer = ClippedSoftmax(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)
    # Scores far apart, so that some weights reach 0 and some 1.
    layer.wq.weight.data = layer.wq.weight.data * 10.0
    return layer


def probabilities(layer: ClippedSoftmax, x: Tensor) -> Tensor:
    """p (B, H, N, N) before the stretch."""
    q, k = (ops.split_heads(w(x), layer.heads) for w in (layer.wq, layer.wk))
    return ops.attention_weights(q, k, causal=layer.causal)


@identity("the layer equals the equations, by loops over every query")
def by_loops(case: Case) -> tuple[Any, Any]:
    layer, x = build(case, gamma=-0.2, zeta=1.1, bias=True), case.tokens()
    q, k, v = (ops.split_heads(w(x), case.h).data for w in (layer.wq, layer.wk, layer.wv))
    o = np.zeros_like(q)
    for b, h, i in np.ndindex(q.shape[:3]):
        s = np.array([q[b, h, i] @ k[b, h, j] / math.sqrt(case.d) for j in range(i + 1)])
        p = np.exp(s - s.max()) / np.exp(s - s.max()).sum()
        for j in range(i + 1):
            o[b, h, i] += min(max(1.3 * p[j] - 0.2, 0.0), 1.0) * v[b, h, j]
    return layer(x), layer.wo(ops.merge_heads(Tensor(o)))


@identity("gamma = 0, zeta = 1: softmax attention")
def no_stretch(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, gamma=0.0), case.tokens()
    q, k, v = (ops.split_heads(w(x), case.h) for w in (layer.wq, layer.wk, layer.wv))
    return layer(x), layer.wo(ops.merge_heads(ops.softmax_attention(q, k, v, causal=True)))


@identity("weights up to -gamma / (zeta - gamma) are exactly 0, and no others")
def zeros(case: Case) -> tuple[Any, Any]:
    layer, x = build(case, gamma=-0.1, zeta=1.05), case.tokens()
    a, p = layer.weights(x).data, probabilities(layer, x).data
    return np.where(a == 0.0, 1.0, 0.0), np.where(p <= 0.1 / 1.15, 1.0, 0.0)


@identity("zeta = 1: a row sums to the sum of (1 - gamma) p + gamma over the weights that survive")
def row_sums(case: Case) -> tuple[Any, Any]:
    layer, x = build(case, gamma=-0.1), case.tokens()
    p = probabilities(layer, x).data
    return layer.weights(x).sum(axis=-1), np.where(p > 0.1 / 1.1, 1.1 * p - 0.1, 0.0).sum(axis=-1)


@identity("zeta = 1: a row sums to at most 1")
def at_most_one(case: Case) -> tuple[Any, Any]:
    sums = build(case, gamma=-0.1).weights(case.tokens()).sum(axis=-1).data
    return np.maximum(sums, 1.0), np.ones_like(sums)


@identity("zeta = 1: a single visible key, a one-hot row, keeps its weight of 1")
def one_hot(case: Case) -> tuple[Any, Any]:
    a = build(case).weights(case.tokens(), mask=np.eye(case.t, dtype=bool))
    return a, np.broadcast_to(np.eye(case.t), a.shape)


@identity("gamma = -alpha / n: a uniform row of n keys vanishes from alpha = n / (n - 1) on, and not before")
def uniform(case: Case) -> tuple[Any, Any]:
    n = case.t + 1
    x = Tensor(np.ones((case.b, n, case.dim)))
    last = [
        build(case, alpha=factor * n / (n - 1), context=n).weights(x).data[:, :, -1]
        for factor in (1.0 + 1e-9, 0.9)
    ]
    # Below the limit each weight is (1 + alpha / n) / n - alpha / n.
    left_over = 1.0 / n - 0.9 / (n - 1) * (1.0 - 1.0 / n)
    return np.stack(last), np.stack([np.zeros_like(last[0]), np.full_like(last[1], left_over)])


@identity("hidden keys have a weight of exactly 0")
def hidden(case: Case) -> tuple[Any, Any]:
    mask = case.rng().random((case.b, case.h, case.t, case.t)) < 0.5
    a = build(case, zeta=1.2).weights(case.tokens(), mask=mask).data
    return np.where(mask & np.tri(case.t, dtype=bool), 0.0, a), np.zeros(a.shape)


@identity("where a weight is clipped, its score gets no gradient from it")
def clipped_gradient(case: Case) -> tuple[Any, Any]:
    rng = case.rng()
    p = Tensor(rng.random((case.b, case.t)), requires_grad=True)
    c = rng.standard_normal(p.shape)
    clipped(p, 1.3, -0.2).backward(c)
    assert p.grad is not None
    inside = (p.data > 0.2 / 1.5) & (p.data < 1.2 / 1.5)
    return p.grad, np.where(inside, 1.5 * c, 0.0)

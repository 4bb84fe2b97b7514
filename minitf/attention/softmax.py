"""Multi-head scaled dot-product attention: the reference that every other attention is compared with.

    q = x W_q,  k = c W_k,  v = c W_v               split into heads
    S_ij = q_i . k_j / sqrt(d) + bias_ij            -inf where j is hidden from i
    P_ij = exp(S_ij - m_i) / Z_i,   m_i = max_j S_ij,   Z_i = sum_j exp(S_ij - m_i)
    o_i  = sum_j P_ij v_j
    y    = merge(o) W_o

    x  (B, Nq, D)    tokens that ask            c  (B, Nk, Dc)   tokens that answer; x itself if left out
    q  (B, H, Nq, d)                            k, v  (B, Hkv, Nk, d)
    S, P  (B, H, Nq, Nk)                        y  (B, Nq, D)

Query head h uses key and value head h // (H / Hkv): Hkv = H is multi-head, Hkv = 1 multi-query, between them
grouped-query attention. Causal: j is visible to i where j <= i + (Nk - Nq). A query that sees nothing
gives zeros.

Cost: 4 B H Nq Nk d operations for the two products, and memory B H Nq Nk for P in the plain form; the
online form keeps m, Z and o only.
Source: Attention Is All You Need, Vaswani et al., arXiv:1706.03762, 2017, equation 1. Grouped heads: GQA,
Ainslie et al., arXiv:2305.13245, 2023. Online form: Milakov and Gimelshein, arXiv:1805.02867, 2018.
Differs from the paper: dropout on P is 0 unless asked for; grouped heads; queries may be masked completely.
Numerics: the row maximum is subtracted before exp; -inf hides, never a large negative number, which would
make a fully hidden row uniform over what it must not see.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, no_grad
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
    name="softmax_attention",
    title="Multi-head scaled dot-product attention",
    kind="attention",
    family="softmax",
    papers=(
        Paper("Attention Is All You Need", "1706.03762", 2017),
        Paper(
            "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
            "2305.13245",
            2023,
        ),
    ),
    causal=True,
    streams=True,
    grid="1d",
    complexity="4 N D^2 + 4 N D Hkv d + 4 N^2 H d",
    properties=(
        "causal",
        "streams",
        "row_stochastic",
        "batch_independent",
        "permutation_equivariant_without_causal",
    ),
    basis="published code: google-research/long-range-arena local_attention.py; the standard definition",
    aliases={"softmax": {}, "mha": {}, "mqa": {"kv_heads": 1}},
    parity=("torch 2.13.0 scaled_dot_product_attention",),
)


def plain(q: Tensor, k: Tensor, v: Tensor, visible: Any, bias: Any = 0.0) -> Tensor:
    """o (B, H, Nq, d) from q (B, H, Nq, d), k, v (B, H, Nk, d), as the equations say it."""
    # S = q k^T / sqrt(d) + bias, -inf where hidden: (B, H, Nq, Nk)
    s = ops.where(visible, q @ k.mT / math.sqrt(q.shape[-1]) + bias, -math.inf)
    # m = max_j S, 0 for a row that sees nothing: (B, H, Nq, 1)
    m = s.max(axis=-1, keepdims=True).detach()
    m = ops.where(m == -math.inf, 0.0, m)
    # P = exp(S - m) / Z, 0 for a row that sees nothing
    e = ops.exp(s - m)
    z = e.sum(axis=-1, keepdims=True)
    return (e / ops.where(z == 0.0, 1.0, z)) @ v


def online(q: Tensor, k: Tensor, v: Tensor, visible: Array, tile: int = 64) -> tuple[Tensor, Tensor]:
    """The same o, and log Z + m (B, H, Nq), from one pass over tiles of keys; P is never stored.

    visible: boolean, broadcastable to (B, H, Nq, Nk).
    """
    shape = (*q.shape[:3], 1)
    visible = np.broadcast_to(visible, (*q.shape[:3], k.shape[2]))
    m, z = ops.full(shape, -math.inf, like=q), ops.zeros(shape, like=q)
    o = ops.zeros((*q.shape[:3], v.shape[-1]), like=q)
    for j in range(0, k.shape[2], tile):
        # Scores of this tile of keys: (B, H, Nq, tile)
        s = q @ k[:, :, j : j + tile].mT / math.sqrt(q.shape[-1])
        s = ops.where(visible[..., j : j + tile], s, -math.inf)
        # m' = max(m, row maximum); a finite stand-in keeps exp(-inf - m') = 0 where nothing was visible yet.
        m_new = ops.maximum(m, s.max(axis=-1, keepdims=True)).detach()
        safe = ops.where(m_new == -math.inf, 0.0, m_new)
        # What was summed before shrinks by exp(m - m').
        shrink = ops.exp(m - safe)
        p = ops.exp(s - safe)
        z = shrink * z + p.sum(axis=-1, keepdims=True)
        o = shrink * o + p @ v[:, :, j : j + tile]
        m = m_new
    empty = z == 0.0
    lse = ops.where(empty, -math.inf, m + ops.log(ops.where(empty, 1.0, z)))
    return o / ops.where(empty, 1.0, z), lse[..., 0]


class SoftmaxAttention(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: wq (D, H d), wk and wv (Dc, Hkv d), wo (H d, D), Xavier uniform, with zero biases if `bias`.

    Args:
        dim: D.
        heads: H. kv_heads: Hkv, default H. head_dim: d, default D / H. context_dim: Dc, default D.
        causal: hide later tokens in self-attention. With `context`, everything is visible.
        dropout: rate on P in training mode. position: a scheme, or its name ("rope", "alibi").
        seed: for the parameters.

    Raises:
        ValueError: heads that do not divide D, kv_heads that do not divide heads, or sizes below 1.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        context_dim: int | None = None,
        causal: bool = True,
        bias: bool = False,
        dropout: float = 0.0,
        position: Position | str = "nope",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads, head_dim=head_dim, context_dim=context_dim)
        kv_heads = heads if kv_heads is None else kv_heads
        if head_dim is None and dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}, or give head_dim")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads={kv_heads} must divide heads={heads}")
        rng = init.generator(seed)
        d = dim // heads if head_dim is None else head_dim
        source = dim if context_dim is None else context_dim
        self.heads, self.kv_heads, self.head_dim, self.causal = heads, kv_heads, d, causal

        def linear(n_in: int, n_out: int) -> Linear:
            return Linear(
                n_in, n_out, bias, values=init.xavier_uniform(rng, (n_in, n_out), dtype=dtype), dtype=dtype
            )

        self.wq = linear(dim, heads * d)
        self.wk = linear(source, kv_heads * d)
        self.wv = linear(source, kv_heads * d)
        self.wo = linear(heads * d, dim)
        self.dropout = Dropout(dropout)
        self.position = as_position(position, heads=heads)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Any = None,
        context: Tensor | None = None,
        positions: Any = None,
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        """Attend from x (B, Nq, D) to itself, or to context (B, Nk, Dc).

        Args:
            mask: boolean, broadcastable to (B, H, Nq, Nk); True = visible.
            positions: of the tokens of x, (Nq,) or (B, Nq); default 0..Nq-1.
            rng: for dropout in training mode.
        """
        q, k, v, bias = self._heads(x, context, positions)
        causal = self.causal and context is None
        if self.training and self.dropout.rate:
            # Dropout acts on P after normalisation, so P has to be formed.
            p = self.dropout(ops.attention_weights(q, k, mask, causal, bias=bias), rng)
            o = ops.apply_weights(p, v)
        else:
            o = ops.softmax_attention(q, k, v, mask=mask, causal=causal, bias=bias)
        return self.wo(ops.merge_heads(o))

    def weights(
        self, x: Tensor, *, mask: Any = None, context: Tensor | None = None, positions: Any = None
    ) -> Tensor:
        """P (B, H, Nq, Nk): the attention map that `forward` uses, for pictures and analysis."""
        q, k, _, bias = self._heads(x, context, positions)
        return ops.attention_weights(q, k, mask, self.causal and context is None, bias=bias)

    def _heads(self, x: Tensor, context: Tensor | None, positions: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """q (B, H, Nq, d), k and v (B, Hkv, Nk, d), and the bias of the position scheme."""
        if x.ndim != 3:
            raise ShapeError(f"softmax_attention: x must be (B, N, D), not {x.shape}")
        source = x if context is None else context
        here = np.arange(x.shape[1]) if positions is None else positions
        there = here if context is None else np.arange(source.shape[1])
        q = self.position.rotate(ops.split_heads(self.wq(x), self.heads), here)
        k = self.position.rotate(ops.split_heads(self.wk(source), self.kv_heads), there)
        v = ops.split_heads(self.wv(source), self.kv_heads)
        return q, k, v, self.position.bias(here, there)

    def start(self, batch: int) -> KVCache:
        """The empty cache for `batch` sequences."""
        return KVCache.empty((batch, self.kv_heads, 0, self.head_dim), self.wk.weight)

    def step(self, x: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        y, state = self.prefill(x.reshape((x.shape[0], 1, x.shape[1])), state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Several tokens x (B, n, D) at once after those in `state`: (B, n, D) and the new state."""
        if not self.causal:
            raise ValueError("only causal attention streams: build it with causal=True")
        with no_grad():
            here = np.arange(state.length, state.length + x.shape[1])
            q, k, v, _ = self._heads(x, None, here)
            state = state.append(k.data, v.data)
            k, v = Tensor(state.k), Tensor(state.v)
            o = ops.softmax_attention(
                q, k, v, causal=True, bias=self.position.bias(here, np.arange(state.length))
            )
            return self.wo(ops.merge_heads(o)), state


def heads_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    rng = case.rng()
    q, k, v = (Tensor(rng.standard_normal((case.b, case.h, case.t, case.d))) for _ in range(3))
    return q, k, v


def build(case: Case, **options: Any) -> SoftmaxAttention:
    return SoftmaxAttention(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


@identity("the plain equations equal the operation, with empty rows in the mask")
def plain_is_the_operation(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    visible = case.rng().random((case.b, case.h, case.t, case.t)) < 0.5
    visible[:, :, 0] = False
    return plain(q, k, v, visible), ops.softmax_attention(q, k, v, mask=visible)


@identity("the online form equals the plain form for every tile")
def online_is_plain(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    visible = case.rng().random((case.t, case.t)) < 0.5
    tiles = range(1, case.t + 2)
    expected = plain(q, k, v, visible)
    return ops.stack([online(q, k, v, visible, tile)[0] for tile in tiles]), ops.stack(
        [expected for _ in tiles]
    )


@identity("the online form's log-sum-exp is that of the scores")
def online_logsumexp(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    return online(q, k, v, ops.causal_mask(case.t, case.t), 2)[1], ops.attention_logsumexp(q, k, causal=True)


@identity("rows of P sum to 1")
def rows_sum_to_one(case: Case) -> tuple[Tensor, Any]:
    p = build(case).weights(case.tokens())
    return p.sum(axis=-1), np.ones(p.shape[:-1])


@identity("W_q = 0 gives the mean of the visible values")
def uniform(case: Case) -> tuple[Tensor, Any]:
    layer, x = build(case), case.tokens()
    layer.wq.weight.data = np.zeros_like(layer.wq.weight.data)
    means = ops.cumsum(layer.wv(x), axis=1) / np.arange(1, case.t + 1)[:, None]
    return layer(x), layer.wo(means)


@identity("permuting the tokens permutes the output when nothing is hidden")
def equivariant(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, causal=False), case.tokens()
    order = case.rng().permutation(case.t)
    return layer(x[:, order]), layer(x)[:, order]


@identity("every key and value twice gives the same output")
def duplicated_keys(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, causal=False), case.tokens()
    return layer(x, context=ops.concat([x, x], axis=1)), layer(x)


@identity("multi-query attention equals multi-head attention with its key and value head repeated")
def repeated_heads(case: Case) -> tuple[Tensor, Tensor]:
    one, many, x = build(case, kv_heads=1), build(case), case.tokens()
    state = one.state_dict()
    for name in ("wk.weight", "wv.weight"):
        state[name] = np.tile(state[name], (1, case.h))
    many.load_state_dict(state)
    return one(x), many(x)


@identity(
    "token by token with the cache equals the parallel causal form, with rotary positions and grouped heads"
)
def streaming(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, kv_heads=1, head_dim=2 * case.d, position="rope"), case.tokens()
    state, rows = layer.start(case.b), []
    for t in range(case.t):
        y, state = layer.step(x[:, t], state)
        rows.append(y)
    return ops.stack(rows, axis=1), layer(x)

"""Differential attention: each head subtracts a part of a second attention map from its first.

    q1, q2 = x W_q,  k1, k2 = x W_k,  v = x W_v          split into heads, rotated
    A1 = softmax(q1 k1^T / sqrt(d)),  A2 = softmax(q2 k2^T / sqrt(d))
    lambda = exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + lambda_init
    o_h = (1 - lambda_init) RMSNorm((A1 - lambda A2) v)   the norm acts on each head
    y   = concat_h(o_h) W_o

    x, y  (B, N, D)     q1, q2  (B, H, N, d)     k1, k2  (B, G, N, d)     v  (B, G, N, 2d)
    o  (B, H, N, 2d)    l_q1, l_k1, l_q2, l_k2  (d,)   shared by all heads of the layer
    lambda_init = 0.8 - 0.6 exp(-0.3 layer)            a constant; layers count from 0

What both maps see alike, such as attention to tokens without meaning, cancels. Columns of W_q and W_k are
slots of width d: slot 2h holds the first map of head h, slot 2h + 1 its second. H is half of what plain
attention has, so that d = D / (2H). With G < H, the heads of a group share a pair (k1, k2) and a value.

Cost: 8 N D^2 for the maps and 12 N^2 H d for the heads, as multi-head attention with 2H heads of width d.
Source: Differential Transformer, Ye et al., arXiv:2410.05258, 2024, equations 1 to 3.
Differs from the published code: with grouped heads its plain and its flash path disagree; this is the flash
path, which keeps k1 and k2 together. d is D / (2H) rounded up to an even number, for the rotation.
Numerics: eps = 1e-5 in the norm. The two maps are two calls of softmax attention on one v; a row that sees
nothing gives zeros in both.
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
    KVCache,
    Linear,
    Module,
    Paper,
    Parameter,
    Position,
    RMSNorm,
    as_position,
    identity,
    init,
    positive,
)

from .softmax import plain

CARD = Card(
    name="diff_attn",
    title="Differential attention",
    kind="attention",
    family="softmax",
    papers=(Paper("Differential Transformer", "2410.05258", 2024),),
    causal=True,
    streams=True,
    grid="1d",
    complexity="8 N D^2 + 12 N^2 H d",
    properties=("causal", "streams", "batch_independent"),
    basis="published code: microsoft/unilm Diff-Transformer/multihead_diffattn.py",
    parity=("transformers 5.23.0 DiffLlamaAttention",),
)


def initial_lambda(layer: int) -> float:
    """lambda_init of the layer with this index: 0.2 in layer 0, towards 0.8 in deep ones."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


def difference(
    q: Tensor, k: Tensor, v: Tensor, strength: Any, mask: Any = None, causal: bool = True, bias: Any = None
) -> tuple[Tensor, Tensor]:
    """The map A1 - lambda A2 (B, H, Nq, Nk), and that map times v (B, H, Nq, 2d), as the equations say it.

    q: (B, 2H, Nq, d). k: (B, 2G, Nk, d), slots as in the title. v: (B, G, Nk, 2d). strength: lambda.
    """
    a1 = ops.attention_weights(q[:, 0::2], k[:, 0::2], mask, causal, bias=bias)
    a2 = ops.attention_weights(q[:, 1::2], k[:, 1::2], mask, causal, bias=bias)
    a = a1 - strength * a2
    return a, ops.apply_weights(a, v)


class DiffAttention(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: wq (D, 2 H d), wk and wv (D, 2 G d), wo (2 H d, D), without biases; lambda_q1, lambda_k1,
    lambda_q2, lambda_k2 (d,), normal with std 0.1; norm.weight (2d,), one gain for all heads.

    Args:
        dim: D. heads: H. kv_heads: G, default H. head_dim: d.
        layer: index of the layer in its stack, from 0; sets lambda_init.
        position: a scheme, or its name; both maps of a head get the same.

    Raises:
        ValueError: kv_heads that do not divide heads, a head_dim below 1, or a negative layer.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        layer: int = 0,
        causal: bool = True,
        position: Position | str = "rope",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads, head_dim=head_dim)
        kv_heads = heads if kv_heads is None else kv_heads
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads={kv_heads} must divide heads={heads}")
        if layer < 0:
            raise ValueError(f"layer must be 0 or more, not {layer}")
        rng = init.generator(seed)
        # D / (2H), rounded up to an even number.
        d = 2 * math.ceil(dim / (4 * heads)) if head_dim is None else head_dim
        self.heads, self.kv_heads, self.head_dim, self.causal = heads, kv_heads, d, causal
        self.lambda_init = initial_lambda(layer)
        self.wq = Linear(dim, 2 * heads * d, False, rng, dtype=dtype)
        self.wk = Linear(dim, 2 * kv_heads * d, False, rng, dtype=dtype)
        self.wv = Linear(dim, 2 * kv_heads * d, False, rng, dtype=dtype)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            Parameter(init.normal(rng, (d,), 0.1, dtype)) for _ in range(4)
        )
        self.norm: Any = RMSNorm(2 * d, eps=1e-5, dtype=dtype)
        self.wo = Linear(2 * heads * d, dim, False, rng, dtype=dtype)
        self.position = as_position(position, heads=heads)

    def strength(self) -> Tensor:
        """lambda, a scalar."""
        first = ops.exp((self.lambda_q1 * self.lambda_k1).sum())
        return first - ops.exp((self.lambda_q2 * self.lambda_k2).sum()) + self.lambda_init

    def forward(
        self, x: Tensor, *, mask: Any = None, positions: Any = None, rng: np.random.Generator | None = None
    ) -> Tensor:
        """Attend from x (B, N, D) to itself. mask: boolean, broadcastable to (B, H, N, N), True = visible."""
        here = np.arange(x.shape[1]) if positions is None else positions
        q, k, v = self._heads(x, here)
        return self._mix(q, k, v, mask, self.position.bias(here, here))

    def weights(self, x: Tensor, *, mask: Any = None, positions: Any = None) -> Tensor:
        """The map A1 - lambda A2 (B, H, N, N). Its rows sum to 1 - lambda; entries may be negative."""
        here = np.arange(x.shape[1]) if positions is None else positions
        q, k, v = self._heads(x, here)
        return difference(q, k, v, self.strength(), mask, self.causal, self.position.bias(here, here))[0]

    def start(self, batch: int) -> KVCache:
        """The empty cache; its keys hold k1 and k2 side by side (B, G, n, 2d)."""
        return KVCache.empty((batch, self.kv_heads, 0, 2 * self.head_dim), self.wk.weight)

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
            pairs = ops.concat([k[:, 0::2], k[:, 1::2]], axis=-1)
            state = state.append(pairs.data, v.data)
            # (B, G, n, 2d) -> (B, 2G, n, d)
            b, g, n, _ = state.k.shape
            slots = np.moveaxis(state.k.reshape((b, g, n, 2, self.head_dim)), 3, 2)
            k = Tensor(slots.reshape((b, 2 * g, n, self.head_dim)))
            bias = self.position.bias(here, np.arange(state.length))
            return self._mix(q, k, Tensor(state.v), None, bias), state

    def _heads(self, x: Tensor, here: Any) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, 2H, N, d), k (B, 2G, N, d) and v (B, G, N, 2d)."""
        if x.ndim != 3:
            raise ShapeError(f"diff_attn: x must be (B, N, D), not {x.shape}")
        q = self.position.rotate(ops.split_heads(self.wq(x), 2 * self.heads), here)
        k = self.position.rotate(ops.split_heads(self.wk(x), 2 * self.kv_heads), here)
        return q, k, ops.split_heads(self.wv(x), self.kv_heads)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Any, bias: Any) -> Tensor:
        o1 = ops.softmax_attention(q[:, 0::2], k[:, 0::2], v, mask=mask, causal=self.causal, bias=bias)
        o2 = ops.softmax_attention(q[:, 1::2], k[:, 1::2], v, mask=mask, causal=self.causal, bias=bias)
        # o = (1 - lambda_init) RMSNorm(o1 - lambda o2): (B, H, N, 2d)
        o = (1.0 - self.lambda_init) * self.norm(o1 - self.strength() * o2)
        return self.wo(ops.merge_heads(o))


def build(case: Case, **options: Any) -> DiffAttention:
    layer = DiffAttention(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)
    layer.norm.weight.data = case.rng().uniform(0.5, 1.5, 2 * layer.head_dim)
    return layer


def tie_maps(layer: DiffAttention) -> None:
    """Give both maps of each head the same queries and keys."""
    for linear in (layer.wq, layer.wk):
        slots = linear.weight.data.reshape((linear.weight.shape[0], -1, 2, layer.head_dim))
        linear.weight.data = np.repeat(slots[:, :, :1], 2, axis=2).reshape(linear.weight.shape)


def heads_of(layer: DiffAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q1, k1 (B, H, N, d) and v (B, H, N, 2d), turned; for G = H."""
    n, h = np.arange(x.shape[1]), layer.heads
    q, k = (ops.rope(ops.split_heads(w(x), 2 * h), n)[:, 0::2] for w in (layer.wq, layer.wk))
    return q, k, ops.split_heads(layer.wv(x), h)


@identity("two attention calls, the second subtracted, equal one call with the difference of the maps")
def two_calls(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, n = build(case, kv_heads=1, layer=2), case.tokens(), np.arange(case.t)
    visible = case.rng().random((case.b, 1, case.t, case.t)) < 0.7
    q, k, v = (ops.split_heads(w(x), s) for w, s in ((layer.wq, 2 * case.h), (layer.wk, 2), (layer.wv, 1)))
    o = difference(ops.rope(q, n), ops.rope(k, n), v, layer.strength(), visible)[1]
    o = ops.rms_norm(o, layer.norm.weight, 1e-5) * (0.6 * math.exp(-0.6) + 0.2)
    return layer(x, mask=visible), layer.wo(ops.merge_heads(o))


@identity("rows of A1 - lambda A2 sum to 1 - lambda")
def row_sums(case: Case) -> tuple[Tensor, Any]:
    layer = build(case)
    a = layer.weights(case.tokens())
    return a.sum(axis=-1), np.broadcast_to(1.0 - layer.strength().data, a.shape[:-1])


@identity("equal maps: 1 - lambda times the map of plain attention")
def equal_maps(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    tie_maps(layer)
    q, k, _ = heads_of(layer, x)
    return layer.weights(x), (1.0 - layer.strength()) * ops.attention_weights(q, k, causal=True)


@identity("equal maps, lambda < 1: plain attention with a norm on the heads, times 1 - lambda_init (eps = 0)")
def equal_maps_normed(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, layer=1), case.tokens()
    tie_maps(layer)
    layer.norm.eps = 0.0
    q, k, v = heads_of(layer, x)
    o = layer.norm(plain(q, k, v, ops.causal_mask(case.t, case.t)))
    return layer(x), layer.wo(ops.merge_heads((0.6 * math.exp(-0.3) + 0.2) * o))


@identity("lambda = 0 and no norm: multi-head attention with keys of width d and values of width 2d")
def multi_head(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    layer.norm = lambda o: o / (1.0 - layer.lambda_init)
    # exp(0) - exp(log(1 + lambda_init)) + lambda_init = 0
    first = np.eye(layer.head_dim)[0]
    layer.lambda_q1.data = np.zeros(layer.head_dim)
    layer.lambda_q2.data, layer.lambda_k2.data = first, first * math.log(1.0 + layer.lambda_init)
    o = plain(*heads_of(layer, x), ops.causal_mask(case.t, case.t))
    return layer(x), layer.wo(ops.merge_heads(o))


@identity("grouped heads share the pair of keys: the same as the pair and its value repeated for every head")
def grouped(case: Case) -> tuple[Tensor, Tensor]:
    few, many, x = build(case, kv_heads=1), build(case), case.tokens()
    state = few.state_dict()
    for name in ("wk.weight", "wv.weight"):
        state[name] = np.tile(state[name], (1, case.h))
    many.load_state_dict(state)
    return few(x), many(x)


@identity("token by token with the cache equals the parallel form, with grouped heads")
def streaming(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, kv_heads=1), case.tokens()
    state, rows = layer.start(case.b), []
    for t in range(case.t):
        y, state = layer.step(x[:, t], state)
        rows.append(y)
    return ops.stack(rows, axis=1), layer(x)

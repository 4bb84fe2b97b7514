"""Grouped-query attention: G key and value heads, each shared by H/G consecutive query heads.

    q_h = x W_q,h        k_g = x W_k,g        v_g = x W_v,g
    S_h = q_h k_g(h)^T / sqrt(d),             g(h) = floor(h / (H/G))
    o_h = softmax(S_h) v_g(h)                 over the visible keys
    y   = concat_h(o_h) W_o

    x, y  (B, N, D)        q, o  (B, H, N, d)        k, v  (B, G, N, d)        S_h  (B, N, N)

G = H is multi-head attention, G = 1 multi-query attention. The heads of a group are neighbours: h mod G
instead would shuffle the heads of a checkpoint without an error.

From a multi-head checkpoint: W_k,g is the mean of W_k,h over the heads of group g, and W_v,g likewise
(`GQA.from_multi_head`); training then goes on for about 5 % of its steps.

Cost: 4 N D H d + 4 N D G d for the maps and 4 N^2 H d for the heads, as multi-head attention; the cache holds
2 G d numbers for a token instead of 2 H d.
Source: GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints, Ainslie et al.,
arXiv:2305.13245, 2023, section 2.
Differs from the paper: nothing. The conversion rule is from memory of the paper.
Numerics: those of `ops.softmax_attention`. It folds the heads of a group into the rows of one product and
never repeats keys or values in memory; their gradients sum over the group.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from minitf import ops
from minitf.engine import Tensor
from minitf.nn import Card, Case, Linear, Paper, Position, identity, init

from .softmax import SoftmaxAttention, plain

CARD = Card(
    name="gqa",
    title="Grouped-query attention",
    kind="attention",
    family="softmax",
    papers=(
        Paper(
            "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
            "2305.13245",
            2023,
        ),
    ),
    causal=True,
    streams=True,
    grid="1d",
    complexity="4 N D H d + 4 N D G d + 4 N^2 H d",
    properties=(
        "causal",
        "streams",
        "row_stochastic",
        "batch_independent",
        "permutation_equivariant_without_causal",
    ),
    basis="published code: microsoft/unilm Diff-Transformer/multihead_diffattn.py (repeat_kv); "
    "fla-org/flash-linear-attention fla/ops/forgetting_attn/naive.py",
    parity=("torch 2.13.0 scaled_dot_product_attention(enable_gqa=True)",),
)


def grouped(q: Tensor, k: Tensor, v: Tensor, visible: Any) -> Tensor:
    """o (B, H, N, d) from q (B, H, N, d) and k, v (B, G, N, d), head by head as the equations say it."""
    size = q.shape[1] // k.shape[1]
    heads = []
    for h in range(q.shape[1]):
        # g = floor(h / (H/G)): (B, 1, N, d)
        g = slice(h // size, h // size + 1)
        heads.append(plain(q[:, h : h + 1], k[:, g], v[:, g], visible))
    return ops.concat(heads, axis=1)


def pool_heads(weight: Any, heads: int, groups: int) -> Any:
    """W (D, H d) -> (D, G d): the mean over the heads of each group. A bias (H d,) goes to (G d,)."""
    parts = weight.reshape((*weight.shape[:-1], groups, heads // groups, -1))
    return parts.mean(axis=-2).reshape((*weight.shape[:-1], -1))


def repeat_heads(weight: Any, heads: int, groups: int) -> Any:
    """W (D, G d) -> (D, H d): each head H/G times in a row. The multi-head form of grouped weights."""
    parts = weight.reshape((*weight.shape[:-1], groups, 1, -1))
    shape = (*weight.shape[:-1], groups, heads // groups, parts.shape[-1])
    return np.broadcast_to(parts, shape).reshape((*weight.shape[:-1], -1))


class GQA(SoftmaxAttention):
    """x (B, N, D) -> (B, N, D): softmax attention whose `kv_heads` is G.

    Parameters: wq (D, H d), wk and wv (D, G d), wo (H d, D), with biases if `bias`.

    Args:
        dim: D. heads: H. kv_heads: G, default the largest divisor of H up to H/2. head_dim: d, default D / H.
        context_dim: width of what `context` holds, default D. causal: hide later tokens.
        bias: whether the four maps have one. dropout: rate on the weights in training mode.
        position: a scheme, or its name ("rope", "alibi").

    Raises:
        ValueError: heads that do not divide dim, or kv_heads that do not divide heads.
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
        if kv_heads is None:
            kv_heads = next((g for g in range(heads // 2, 0, -1) if heads % g == 0), 1)
        super().__init__(
            dim,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            context_dim=context_dim,
            causal=causal,
            bias=bias,
            dropout=dropout,
            position=position,
            seed=seed,
            dtype=dtype,
        )

    @classmethod
    def from_multi_head(cls, layer: SoftmaxAttention, kv_heads: int) -> Self:
        """The layer with G = `kv_heads`: queries and output are kept, key and value heads are averaged.

        Args:
            layer: multi-head attention, or grouped attention with a multiple of `kv_heads` groups.

        Raises:
            ValueError: kv_heads that do not divide the key heads of `layer`.
        """
        had = layer.kv_heads
        if kv_heads < 1 or had % kv_heads:
            raise ValueError(f"kv_heads={kv_heads} must divide the {had} key heads of the layer")
        dim, dtype = layer.wq.weight.shape[0], layer.wq.weight.dtype
        new = cls(
            dim,
            heads=layer.heads,
            kv_heads=kv_heads,
            head_dim=layer.head_dim,
            context_dim=layer.wk.weight.shape[0],
            causal=layer.causal,
            bias=layer.wk.bias is not None,
            dropout=layer.dropout.rate,
            position=layer.position,
            dtype=dtype,
        )
        state = layer.state_dict()
        for name in state:
            if name.split(".")[0] in ("wk", "wv"):
                state[name] = pool_heads(state[name], had, kv_heads)
        new.load_state_dict(state)
        return new

    def cache_size(self) -> int:
        """Numbers in the cache for one token: 2 G d."""
        return 2 * self.kv_heads * self.head_dim


def build(case: Case, **options: Any) -> GQA:
    return GQA(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


def multi_head(layer: GQA) -> SoftmaxAttention:
    """Multi-head attention with every key and value head repeated for each head of its group."""
    state = layer.state_dict()
    for name in ("wk.weight", "wv.weight"):
        state[name] = repeat_heads(state[name], layer.heads, layer.kv_heads)
    other = SoftmaxAttention(layer.wq.weight.shape[0], heads=layer.heads, dtype="float64")
    other.load_state_dict(state)
    return other


def by_equations(layer: GQA, x: Tensor) -> Tensor:
    q, k, v = (
        ops.split_heads(w(x), n)
        for w, n in ((layer.wq, layer.heads), (layer.wk, layer.kv_heads), (layer.wv, layer.kv_heads))
    )
    return layer.wo(ops.merge_heads(grouped(q, k, v, ops.causal_mask(x.shape[1], x.shape[1]))))


@identity("for every number of groups the layer equals the equations, head by head")
def every_grouping(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for groups in (g for g in (1, 2, 4) if case.h % g == 0):
        layer = build(case, kv_heads=groups)
        left.append(layer(x))
        right.append(by_equations(layer, x))
    return ops.stack(left), ops.stack(right)


@identity("G = H is multi-head attention by the plain equations")
def all_heads(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, kv_heads=case.h), case.tokens()
    q, k, v = (ops.split_heads(w(x), case.h) for w in (layer.wq, layer.wk, layer.wv))
    return layer(x), layer.wo(ops.merge_heads(plain(q, k, v, ops.causal_mask(case.t, case.t))))


@identity("G = 1 is multi-query attention: every head attends to one and the same key and value head")
def one_head(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, kv_heads=1), case.tokens()
    # k, v (B, 1, N, d) broadcast over the heads.
    q, k, v = ops.split_heads(layer.wq(x), case.h), layer.wk(x)[:, None], layer.wv(x)[:, None]
    return layer(x), layer.wo(ops.merge_heads(plain(q, k, v, ops.causal_mask(case.t, case.t))))


@identity("it equals multi-head attention with the columns of W_k and W_v repeated H/G times")
def repeated(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    return layer(x), multi_head(layer)(x)


@identity("mean-pooling loses nothing where the heads of every group are equal already")
def lossless_conversion(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    many = multi_head(layer)
    return GQA.from_multi_head(many, layer.kv_heads)(x), many(x)


@identity("mean-pooled heads are the averages of the heads' keys and values")
def pooled(case: Case) -> tuple[Tensor, Tensor]:
    x, many = case.tokens(), SoftmaxAttention(case.dim, heads=case.h, seed=case.seed, dtype="float64")
    one = GQA.from_multi_head(many, 1)
    left = ops.stack([one.wk(x), one.wv(x)])
    heads = [ops.split_heads(w(x), case.h).mean(axis=1) for w in (many.wk, many.wv)]
    return left, ops.stack(heads)


@identity("permuting the heads inside a group, with the rows of W_o, changes nothing")
def permuted_group(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    y, size = layer(x), case.h // layer.kv_heads
    rng = case.rng()
    order = np.concatenate([g * size + rng.permutation(size) for g in range(layer.kv_heads)])
    wq = layer.wq.weight.data.reshape((case.dim, case.h, case.d))[:, order]
    wo = layer.wo.weight.data.reshape((case.h, case.d, case.dim))[order]
    layer.wq.weight.data = wq.reshape((case.dim, case.dim))
    layer.wo.weight.data = wo.reshape((case.dim, case.dim))
    return layer(x), y


@identity("the gradient of a shared key and value head is the sum over its group")
def shared_gradient(case: Case) -> tuple[Any, Any]:
    layer, x = build(case), case.tokens()
    many, cotangent = multi_head(layer), case.rng().standard_normal((case.b, case.t, case.dim))
    layer(x).backward(cotangent)
    many(x).backward(cotangent)

    def gradient(linear: Linear) -> Any:
        assert linear.weight.grad is not None
        return linear.weight.grad.data

    size = case.h // layer.kv_heads
    pairs = [(layer.wk, many.wk), (layer.wv, many.wv)]
    left = np.stack([gradient(few) for few, _ in pairs])
    return left, np.stack([size * pool_heads(gradient(all_), case.h, layer.kv_heads) for _, all_ in pairs])


@identity("token by token with a cache of G heads equals multi-head attention over the whole")
def streaming(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    state, rows = layer.start(case.b), []
    for t in range(case.t):
        y, state = layer.step(x[:, t], state)
        rows.append(y)
    return ops.stack(rows, axis=1), multi_head(layer)(x)

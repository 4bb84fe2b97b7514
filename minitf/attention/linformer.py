"""Linformer: keys and values of all positions become a few summaries, and queries attend to these.

    k' = E_k[:N]^T k,   v' = E_v[:N]^T v             N positions become r summaries, by learned matrices
    P  = softmax(q k'^T / sqrt(d))                   over the r summaries
    y  = merge(P v') W_o

    x, y  (B, N, D)      q, k, v  (B, H, N, d)      k', v'  (B, H, r, d)      P  (B, H, N, r)
    E_k, E_v  (heads that have their own, context, r)      context: the longest N; fewer tokens use fewer rows

Sharing: "kv" has one matrix for keys, values and all heads; "headwise" one for keys and one for values;
"none" one of each for every head. One matrix for the whole model: give later layers the first one in
`share_with`.

Cost: 8 N D^2 for the maps and 8 N r D for summaries and attention, linear in N. A matrix has context * r
parameters.
Source: Linformer: Self-Attention with Linear Complexity, Wang et al., arXiv:2006.04768, 2020, equation 7.
Differs from the paper: r is 16 unless given, as in the published code of the Long Range Arena; the paper
takes 128 to 256 for 512 to 4096 tokens. Hidden tokens are left out of the summaries, which that code forgets.
The sharing modes and the paper's r come from memory, not from code.
Numerics: those of softmax attention. It cannot be causal: every summary mixes all positions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor
from minitf.nn import Card, Case, Linear, Module, Paper, Parameter, identity, init, positive, visible_keys

from .softmax import SoftmaxAttention

CARD = Card(
    name="linformer",
    title="Linformer: attention to learned summaries of the positions",
    kind="attention",
    family="low rank",
    papers=(Paper("Linformer: Self-Attention with Linear Complexity", "2006.04768", 2020),),
    causal=False,
    streams=False,
    grid="1d",
    complexity="8 N D^2 + 8 N r D",
    properties=("batch_independent", "key_masks"),
    basis="published code: google-research/long-range-arena models/linformer/linformer_attention.py",
    parity=("linformer 0.2.3 LinformerSelfAttention",),
)

SHARING = ("kv", "headwise", "none")


def summaries(e: Tensor, x: Tensor) -> Tensor:
    """E[:N]^T x: (B, H, r, d) from e (H or 1, context, r) and x (B, H, N, d)."""
    return e[:, : x.shape[2]].mT @ x


def attend(q: Tensor, k: Tensor, v: Tensor, ek: Tensor, ev: Tensor) -> Tensor:
    """o (B, H, N, d), as the equations say it."""
    return ops.softmax_attention(q, summaries(ek, k), summaries(ev, v))


class Linformer(Module):
    """x (B, N, D) -> (B, N, D) for N up to `context`, bidirectional.

    Parameters: wq, wk, wv, wo (D, D), with biases if `bias`; ek (1 or H, context, r), and ev unless shared,
    Xavier uniform.

    Args:
        dim: D. heads: H. rank: r. context: the longest N. sharing: one of `SHARING`.
        share_with: a layer whose matrices are used; `rank`, `context` and `sharing` then say nothing.

    Raises:
        ValueError: heads that do not divide dim; rank or context below 1; an unknown way to share;
            matrices of another number of heads.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        rank: int = 16,
        context: int = 1024,
        sharing: str = "kv",
        share_with: Linformer | None = None,
        bias: bool = False,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        if rank < 1 or context < 1:
            raise ValueError(f"rank={rank} and context={context} must be 1 or more")
        if sharing not in SHARING:
            raise ValueError(f"sharing must be one of {', '.join(SHARING)}, not {sharing!r}")
        rng = init.generator(seed)
        self.heads = heads
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, dim, bias, rng, dtype=dtype) for _ in range(4))
        own = heads if sharing == "none" else 1

        def matrix() -> Parameter:
            each = [init.xavier_uniform(rng, (context, rank), dtype=dtype) for _ in range(own)]
            return Parameter(np.stack(each))

        self.ek: Parameter = matrix() if share_with is None else share_with.ek
        self.ev: Parameter | None = None
        if share_with is not None:
            self.ev = share_with.ev
        elif sharing != "kv":
            self.ev = matrix()
        if self.ek.shape[0] not in (1, heads):
            raise ValueError(f"share_with has matrices for {self.ek.shape[0]} heads, not for {heads}")

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D). mask: boolean (B, 1, 1, N), True = visible; hidden tokens enter no summary."""
        q, k, v = self._heads(x, mask)
        o = attend(q, k, v, self.ek, self.ek if self.ev is None else self.ev)
        return self.wo(ops.merge_heads(o))

    def weights(self, x: Tensor, *, mask: Any = None) -> Tensor:
        """P (B, H, N, r): what every token takes from every summary."""
        q, k, _ = self._heads(x, mask)
        return ops.attention_weights(q, summaries(self.ek, k))

    def _heads(self, x: Tensor, mask: Any) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim != 3:
            raise ShapeError(f"linformer: x must be (B, N, D), not {x.shape}")
        if x.shape[1] > self.ek.shape[1]:
            raise ShapeError(
                f"linformer: {x.shape[1]} tokens, but the summaries are made of at most {self.ek.shape[1]}; "
                "give a larger context"
            )
        q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        visible = visible_keys(mask, x.shape[0], x.shape[1])
        if visible is not None:
            k, v = ops.where(visible, k, 0.0), ops.where(visible, v, 0.0)
        return q, k, v


def build(case: Case, **options: Any) -> Linformer:
    return Linformer(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


def heads_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    rng = case.rng()
    q, k, v = (Tensor(rng.standard_normal((case.b, case.h, case.t, case.d))) for _ in range(3))
    return q, k, v


@identity("the equations, written out as sums over positions, summaries and channels")
def written_out(case: Case) -> tuple[Tensor, Any]:
    q, k, v = heads_of(case)
    e = case.rng().standard_normal((2, case.h, case.t + 1, 3))
    o = np.zeros(q.shape)
    for b, h, i in np.ndindex(*q.shape[:3]):
        k2, v2 = np.zeros((3, case.d)), np.zeros((3, case.d))
        for j, m in np.ndindex(case.t, 3):
            k2[m] += e[0, h, j, m] * k.data[b, h, j]
            v2[m] += e[1, h, j, m] * v.data[b, h, j]
        p = np.exp([q.data[b, h, i] @ k2[m] / math.sqrt(case.d) for m in range(3)])
        o[b, h, i] = sum(p[m] / p.sum() * v2[m] for m in range(3))
    return attend(q, k, v, Tensor(e[0]), Tensor(e[1])), o


@identity("r = N and the unit matrix: full attention")
def unit_matrix(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, rank=case.t, context=case.t), case.tokens()
    layer.ek.data = np.eye(case.t)[None]
    full = SoftmaxAttention(case.dim, heads=case.h, causal=False, dtype="float64")
    full.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "ek"})
    return layer(x), full(x)


@identity("columns that pick one position each: attention to these keys alone")
def picked_keys(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    picked = case.rng().permutation(case.t)[: case.t // 2 + 1]
    e = Tensor(np.eye(case.t)[None, :, picked])
    return attend(q, k, v, e, e), ops.softmax_attention(q, k, v, mask=np.isin(np.arange(case.t), picked))


@identity("averages over blocks: attention to pooled keys and values")
def block_averages(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    size = 3
    starts = range(0, case.t, size)
    e = np.zeros((1, case.t, len(starts)))
    for m, j in enumerate(starts):
        e[0, j : j + size, m] = 1.0 / len(range(j, min(j + size, case.t)))
    k2, v2 = (ops.stack([x[:, :, j : j + size].mean(axis=2) for j in starts], axis=2) for x in (k, v))
    return attend(q, k, v, Tensor(e), Tensor(e)), ops.softmax_attention(q, k2, v2)


@identity("the map P times the summaries of the values is the output")
def map_times_summaries(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, sharing="none", rank=3, context=case.t), case.tokens()
    assert layer.ev is not None
    v = layer.ev.mT @ ops.split_heads(layer.wv(x), case.h)
    return layer.wo(ops.merge_heads(layer.weights(x) @ v)), layer(x)


@identity("rows of P sum to 1 over the summaries")
def rows_sum_to_one(case: Case) -> tuple[Tensor, Any]:
    p = build(case, rank=5).weights(case.tokens())
    return p.sum(axis=-1), np.ones(p.shape[:-1])


@identity("all rows of E equal: only the sums of keys and values enter, and the order of tokens is gone")
def equal_rows(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, order = build(case, rank=3), case.tokens(), case.rng().permutation(case.t)
    row = case.rng().standard_normal(3)
    layer.ek.data = np.broadcast_to(row, layer.ek.shape).copy()
    q, k, v = (ops.split_heads(w(x), case.h) for w in (layer.wq, layer.wk, layer.wv))
    k2, v2 = (row[:, None] * y.sum(axis=2, keepdims=True) for y in (k, v))
    expected = layer.wo(ops.merge_heads(ops.softmax_attention(q, k2, v2)))
    return ops.stack([layer(x), layer(x[:, order])]), ops.stack([expected, expected[:, order]])


@identity("every way to share, with the same matrices, gives the same")
def sharing_modes(case: Case) -> tuple[Tensor, Tensor]:
    x, layers = case.tokens(), [build(case, rank=3, context=case.t, sharing=s) for s in SHARING]
    state = layers[0].state_dict()
    for layer in layers[1:]:
        e = np.broadcast_to(state["ek"], layer.ek.shape)
        layer.load_state_dict({**state, "ek": e, "ev": e})
    return ops.stack([layer(x) for layer in layers[1:]]), ops.stack([layers[0](x)] * 2)


@identity("hidden tokens could as well not be there, with their rows of E")
def hidden_tokens(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, sharing="headwise", context=case.t, rank=2), case.tokens()
    visible = case.rng().random(case.t) < 0.6
    q, k, v = (ops.split_heads(w(x), case.h) for w in (layer.wq, layer.wk, layer.wv))
    assert layer.ev is not None
    o = attend(q, k[:, :, visible], v[:, :, visible], layer.ek[:, visible], layer.ev[:, visible])
    return layer(x, mask=visible), layer.wo(ops.merge_heads(o))

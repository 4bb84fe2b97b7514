"""Contextual position encoding: how far a key is, is how many keys from there on a gate lets count.

    l_ij = q_i . k_j / sqrt(d)                          for j <= i, hidden otherwise
    g_ij = sigmoid(l_ij)                                0 where hidden
    p_ij = min(g_ij + g_i,j+1 + ... + g_ii, P - 1)      the position of key j as query i sees it
    z_i[n] = q_i . e[n]                                 n = 0 .. P - 1
    c_ij = w z_i[ceil p_ij] + (1 - w) z_i[floor p_ij]   w = p_ij - floor p_ij
    o_i  = sum_j A_ij v_j,    A_i = softmax over j of  l_ij + c_ij
    y    = merge(o) W_o

    x, y  (B, N, D)     q, k, v, o  (B, H, N, d)     l, g, p, c, A  (B, H, N, N)     z  (B, H, N, P)
    e  (P, d)           position vectors, shared by the heads, start at 0

A head can count words or sentences: gates that are open at their ends only make p the number of them. Both
key j and token i itself count.

Cost: 8 N D^2 for the maps, 4 N^2 D + 2 N D P for scores, values and z, and about 12 N^2 H for the positions.
Source: Contextual Position Encoding: Learning to Count What's Important, Golovneva et al., arXiv:2405.18719,
2024.
Differs from the paper: nothing that its listing says. UNSURE whether the gates see the scores before or after
the division by sqrt(d), which the listing leaves to its caller: after it, here.
Numerics: p passes a gradient through w only, z[ceil p] - z[floor p]; none where p is cut off at P - 1. A
query that sees nothing gives zeros.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor, no_grad
from minitf.nn import Card, Case, KVCache, Linear, Module, Paper, Parameter, identity, init, positive

CARD = Card(
    name="cope",
    title="Attention with contextual position encoding",
    kind="attention",
    family="position",
    papers=(Paper("Contextual Position Encoding: Learning to Count What's Important", "2405.18719", 2024),),
    causal=True,
    streams=True,
    grid="1d",
    complexity="8 N D^2 + 4 N^2 D + 2 N D P + 12 N^2 H",
    properties=("causal", "streams", "row_stochastic", "batch_independent"),
    basis="published code: lucidrains/x-transformers x_transformers/x_transformers.py (class CoPE)",
    parity=("x-transformers 2.31.10 CoPE",),
)


def counted(g: Tensor, limit: int) -> Tensor:
    """p (B, H, Nq, Nk) from the gates g: for each key, the sum of the gates from it to the last key."""
    return ops.clip(ops.flip(ops.cumsum(ops.flip(g, axis=-1), axis=-1), axis=-1), max=limit - 1.0)


def interpolated(z: Tensor, p: Tensor) -> Tensor:
    """c (B, H, Nq, Nk): z (B, H, Nq, P) at the real numbers p (B, H, Nq, Nk)."""
    low, high = np.floor(p.data).astype(int), np.ceil(p.data).astype(int)
    w = p - low
    return w * ops.take_along_axis(z, high, axis=-1) + (1.0 - w) * ops.take_along_axis(z, low, axis=-1)


def scores(q: Tensor, k: Tensor, e: Tensor, mask: Any = None) -> Tensor:
    """l + c (B, H, Nq, Nk), -inf where hidden; the last query is that of the last key."""
    scaled = ops.attention_scores(q, k, mask, causal=True)
    # sigmoid(-inf) = 0: hidden keys do not count.
    g = ops.where(scaled == -math.inf, 0.0, ops.sigmoid(scaled))
    # z = q e^T: (B, H, Nq, P)
    return scaled + interpolated(q @ e.mT, counted(g, e.shape[0]))


class CoPE(Module):
    """x (B, N, D) -> (B, N, D), causal.

    Parameters: wq, wk, wv, wo (D, D), without biases; e (P, D / H).

    Args:
        dim: D. heads: H. npos: P, the number of position vectors; keys further away share the last.

    Raises:
        ValueError: heads that do not divide dim, or npos below 1.
    """

    card = CARD

    def __init__(
        self, dim: int, *, heads: int = 4, npos: int = 64, seed: init.Seed = 0, dtype: Any = "float32"
    ):
        positive(dim=dim, heads=heads)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        if npos < 1:
            raise ValueError(f"npos must be 1 or more, not {npos}")
        rng = init.generator(seed)
        self.heads = heads
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, dim, False, rng, dtype=dtype) for _ in range(4))
        self.e = Parameter(np.zeros((npos, dim // heads), dtype=dtype))

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D). mask: boolean, broadcastable to (B, H, N, N), True = visible; others count 0."""
        q, k, v = self._heads(x)
        return self.wo(ops.merge_heads(ops.softmax(scores(q, k, self.e, mask), axis=-1) @ v))

    def weights(self, x: Tensor, *, mask: Any = None) -> Tensor:
        """A (B, H, N, N)."""
        q, k, _ = self._heads(x)
        return ops.softmax(scores(q, k, self.e, mask), axis=-1)

    def start(self, batch: int) -> KVCache:
        """The empty cache for `batch` sequences."""
        return KVCache.empty((batch, self.heads, 0, self.e.shape[1]), self.wk.weight)

    def step(self, x: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Several tokens x (B, n, D) at once after those in `state`: (B, n, D) and the new state."""
        with no_grad():
            q, k, v = self._heads(x)
            state = state.append(k.data, v.data)
            a = ops.softmax(scores(q, Tensor(state.k), self.e), axis=-1)
            return self.wo(ops.merge_heads(a @ Tensor(state.v))), state

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim != 3:
            raise ShapeError(f"cope: x must be (B, N, D), not {x.shape}")
        q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        return q, k, v


def build(case: Case, npos: int = 64) -> CoPE:
    layer = CoPE(case.dim, heads=case.h, npos=npos, seed=case.seed, dtype="float64")
    layer.e.data = case.rng().standard_normal(layer.e.shape)
    return layer


def queries(case: Case) -> Tensor:
    return Tensor(case.rng().standard_normal((case.b, case.h, case.t, case.d)))


@identity("the layer equals the equations, by loops over queries and keys, cut off or not")
def by_loops(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for npos in (2, 64):
        layer = build(case, npos)
        q, k, v = (ops.split_heads(w(x), case.h).data for w in (layer.wq, layer.wk, layer.wv))
        o = np.zeros_like(q)
        for b, h, i in np.ndindex(q.shape[:3]):
            logits = np.array([q[b, h, i] @ k[b, h, j] / math.sqrt(case.d) for j in range(i + 1)])
            z, s = layer.e.data @ q[b, h, i], logits.copy()
            for j in range(i + 1):
                p = min(sum(1.0 / (1.0 + np.exp(-logits[m])) for m in range(j, i + 1)), npos - 1.0)
                s[j] += np.interp(p, np.arange(npos), z)
            a = np.exp(s - s.max())
            o[b, h, i] = (a / a.sum()) @ v[b, h, : i + 1]
        left.append(layer(x))
        right.append(layer.wo(ops.merge_heads(Tensor(o))))
    return ops.stack(left), ops.stack(right)


@identity("the map A times the values is the output, also where a mask hides keys")
def map_times_values(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, 3), case.tokens()
    mask = case.rng().random((case.b, 1, case.t, case.t)) < 0.7
    v = ops.split_heads(layer.wv(x), case.h)
    return layer.wo(ops.merge_heads(layer.weights(x, mask=mask) @ v)), layer(x, mask=mask)


@identity("e = 0: causal attention without positions")
def no_positions(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    layer.e.data = np.zeros_like(layer.e.data)
    q, k, v = (ops.split_heads(w(x), case.h) for w in (layer.wq, layer.wk, layer.wv))
    return layer(x), layer.wo(ops.merge_heads(ops.softmax_attention(q, k, v, causal=True)))


@identity("open gates: the term of key j is q_i . e[min(i - j + 1, P - 1)], a relative position embedding")
def open_gates(case: Case) -> tuple[Any, Any]:
    q, npos = queries(case), 4
    e = case.rng().standard_normal((npos, case.d))
    p = counted(Tensor(np.broadcast_to(np.tri(case.t), (case.b, case.h, case.t, case.t))), npos)
    i, j = np.arange(case.t)[:, None], np.arange(case.t)
    relative = np.einsum("bhid,ijd->bhij", q.data, e[np.clip(i - j + 1, 0, npos - 1)])
    return interpolated(q @ Tensor(e.T), p), relative


@identity("closed gates: every key is at position 0, which shifts whole rows and changes nothing")
def closed_gates(case: Case) -> tuple[Tensor, Tensor]:
    q = queries(case)
    k, e = q[:, :, ::-1], Tensor(case.rng().standard_normal((5, case.d)))
    shift = interpolated(q @ e.mT, counted(Tensor(np.zeros((case.b, case.h, case.t, case.t))), 5))
    return ops.attention_weights(q, k, causal=True, bias=shift), ops.attention_weights(q, k, causal=True)


@identity("positions never grow towards later keys")
def monotone(case: Case) -> tuple[Any, Any]:
    p = counted(ops.sigmoid(queries(case) @ queries(case).mT), 64).data
    return np.maximum(np.diff(p, axis=-1), 0.0), np.zeros_like(p[..., 1:])


@identity("gates that open at word ends only: the position is the number of words begun since the key")
def words(case: Case) -> tuple[Any, Any]:
    ends = case.rng().random(case.t) < 0.4
    g = np.tri(case.t) * ends
    p = counted(Tensor(g), 64).data
    expected = [[ends[j : i + 1].sum() for j in range(case.t)] for i in range(case.t)]
    return p, np.array(expected, dtype=float)


@identity("token by token with the cache equals the parallel form")
def streaming(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, 3), case.tokens()
    state, rows = layer.start(case.b), []
    for t in range(case.t):
        y, state = layer.step(x[:, t], state)
        rows.append(y)
    return ops.stack(rows, axis=1), layer(x)

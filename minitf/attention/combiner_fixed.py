"""Combiner, fixed: full attention through the tokens of the own block and abstractions of the earlier ones.

    qbar_u = max over t in u of q_t / sqrt(d),     kbar_u = max over t in u of k_t        channel by channel
    w_uj   = softmax over j in u of qbar_u . k_j,  vbar_u = sum_j w_uj v_j                the abstraction of u
    P_i    = softmax over { q_i . k_j / sqrt(d) : j in u_i, j <= i } and { q_i . kbar_u / sqrt(d) : u < u_i }
    o_i    = sum_j P_ij v_j + sum_u P_iu vbar_u
    y      = merge(o) W_o

    x, y  (B, N, D)      q, k, v, o  (B, H, N, d)      kbar, vbar  (B, H, nb, d)      u: blocks of b tokens

Every token has weight on every earlier one: A_ij = P_ij in its own block, P_iu w_uj in block u. Not causal:
all tokens of the own block, and all other blocks. `pool` and `activation` choose other summaries than max and
what comes before them; "dense" is relu(x W), with one W for queries and one for keys.

Cost: 8 N D^2 for the maps and 4 N (b + N / b + 1) D: N^1.5 where b is about sqrt(N). Decoding keeps N / b
abstractions and the block that is not complete.
Source: Combiner: Full Attention Transformer with Sparse Computation Cost, Ren et al., arXiv:2107.05768, 2021,
section 4.1.
Differs from the paper: b does not follow N, so that earlier outputs stay as they are when tokens come; 16 is
sqrt(256). Published code without causality lets tokens see the abstraction of their own block too, which
counts it twice. The last block may be shorter. A block counts as one key, without log b: constant keys weigh
exp(q.k) instead of b exp(q.k).
Numerics: those of softmax attention. The maximum passes its gradient to one token for each channel.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, array_module, no_grad
from minitf.nn import Card, Case, KVCache, Linear, Module, Paper, identity, init, visible_keys

CARD = Card(
    name="combiner_fixed",
    title="Combiner with fixed blocks",
    kind="attention",
    family="factorised",
    papers=(Paper("Combiner: Full Attention Transformer with Sparse Computation Cost", "2107.05768", 2021),),
    causal=True,
    streams=True,
    grid="1d",
    complexity="8 N D^2 + 4 N b D + 4 N^2 D / b",
    properties=("causal", "streams", "batch_independent", "key_masks", "row_stochastic"),
    basis="published code: google-research combiner/jax/model/layer.py, combiner/tf/approx_attention.py",
)

ACTIVATIONS = ("identity", "relu", "dense")
POOLS = ("max", "mean", "sum")


class Summary(Module):
    """What stands for a block of queries or keys: (B, H, nb, b, d) -> (B, H, nb, d)."""

    def __init__(
        self,
        activation: str = "identity",
        pool: str = "max",
        width: int = 0,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        self.activation, self.pool = activation, pool
        self.dense = Linear(width, width, False, seed, dtype=dtype) if activation == "dense" else None

    def forward(self, x: Tensor, visible: Any) -> Tensor:
        """visible: boolean (B or 1, 1, nb, b), at least one token in every block."""
        x = x if self.dense is None else self.dense(x)
        x = x if self.activation == "identity" else ops.relu(x)
        visible = visible[..., None]
        if self.pool == "max":
            return ops.where(visible, x, -math.inf).max(axis=-2)
        total = ops.where(visible, x, 0.0).sum(axis=-2)
        return total if self.pool == "sum" else total / visible.sum(axis=-2)


def abstractions(
    q: Tensor, k: Tensor, v: Tensor, visible: Any, summaries: tuple[Summary, Summary]
) -> tuple[Tensor, Tensor]:
    """kbar, vbar (B, H, nb, d) from scaled q, k, v (B, H, nb, b, d). visible as in `Summary`."""
    qbar, kbar = summaries[0](q, visible), summaries[1](k, visible)
    # qbar . k_j inside each block: (B, H, nb, 1, b)
    w = ops.softmax(ops.where(visible[..., None, :], qbar[..., None, :] @ k.mT, -math.inf), axis=-1)
    return kbar, (w @ v)[..., 0, :]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: int,
    summaries: tuple[Summary, Summary],
    causal: bool = True,
    visible: Array | None = None,
) -> Tensor:
    """o (B, H, N, dv). visible: boolean (B, 1, N, 1), the keys that are seen; None for all."""
    batch, heads, n, d = q.shape
    b = min(block, n)
    blocks = -(-n // b)
    fill = ((0, 0), (0, 0), (0, blocks * b - n), (0, 0))
    q, k, v = (ops.pad(x, fill).reshape((batch, heads, blocks, b, -1)) for x in (q / math.sqrt(d), k, v))
    seen: Any = np.ones((1, 1, n, 1), dtype=bool) if visible is None else visible
    seen = np.pad(seen, fill).reshape(-1, 1, blocks, b)
    # A block in which nothing is seen gets some abstraction that nobody sees.
    some = seen.any(axis=-1)
    kbar, vbar = abstractions(q, k, v, seen | ~some[..., None], summaries)
    # Own block: (B, H, nb, b, b). Others: (B, H, nb, b, nb)
    xp = array_module(seen)
    own = seen[..., None, :] & (xp.tri(b, dtype=bool) if causal else True)
    u = xp.arange(blocks)
    other = some[..., None, None, :] & ((u < u[:, None]) if causal else (u != u[:, None]))[:, None]
    direct = ops.where(own, q @ k.mT, -math.inf)
    distant = ops.where(other, q @ ops.expand_dims(kbar, 2).mT, -math.inf)
    p = ops.softmax(ops.concat([direct, distant], axis=-1), axis=-1)
    o = p[..., :b] @ v + p[..., b:] @ ops.expand_dims(vbar, 2)
    return o.reshape((batch, heads, blocks * b, -1))[:, :, :n]


class Blocks(NamedTuple):
    """The abstractions so far, and q, k, v (B, H, i, d) of the block that is not complete."""

    complete: KVCache
    q: Array
    k: Array
    v: Array


class CombinerFixed(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: wq, wk, wv, wo (D, D); summary_q.dense and summary_k.dense (d, d) if activation is "dense".

    Args:
        dim: D. heads: H. block: b. causal: hide later tokens and blocks.
        activation: one of `ACTIVATIONS`, before the summary. pool: one of `POOLS`.

    Raises:
        ValueError: heads that do not divide dim; block below 1; an unknown activation or pool.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        block: int = 16,
        causal: bool = True,
        activation: str = "identity",
        pool: str = "max",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        if min(dim, heads, block) < 1 or dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}, and they and block={block} be 1 or more")
        if activation not in ACTIVATIONS or pool not in POOLS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}, and pool one of "
                f"{', '.join(POOLS)}, not {pool!r}"
            )
        rng = init.generator(seed)
        self.heads, self.block, self.causal = heads, block, causal
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, dim, False, rng, dtype=dtype) for _ in range(4))
        self.summary_q = Summary(activation, pool, dim // heads, rng, dtype)
        self.summary_k = Summary(activation, pool, dim // heads, rng, dtype)

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D). mask: boolean (B, 1, 1, N), True = visible; hidden tokens enter no summary."""
        return self.wo(ops.merge_heads(self._mix(*self._heads(x), mask)))

    def weights(self, x: Tensor, *, mask: Any = None) -> Tensor:
        """A (B, H, N, N): the output where value j is the unit vector j."""
        q, k, _ = self._heads(x)
        n = x.shape[1]
        return self._mix(q, k, ops.broadcast_to(ops.eye(n, like=x), (*q.shape[:2], n, n)), mask)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        visible = visible_keys(mask, q.shape[0], q.shape[2])
        return attend(q, k, v, self.block, (self.summary_q, self.summary_k), self.causal, visible)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim != 3:
            raise ShapeError(f"combiner_fixed: x must be (B, N, D), not {x.shape}")
        q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        return q, k, v

    def start(self, batch: int) -> Blocks:
        """No abstractions, and an empty block."""
        shape = (batch, self.heads, 0, self.wq.weight.shape[1] // self.heads)
        empty = ops.zeros(shape, like=self.wq.weight).data
        return Blocks(KVCache.empty(shape, self.wq.weight), empty, empty, empty)

    def step(self, x: Tensor, state: Blocks) -> tuple[Tensor, Blocks]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        if not self.causal:
            raise ValueError("only the causal form streams: build it with causal=True")
        with no_grad():
            new = self._heads(x.reshape((x.shape[0], 1, x.shape[1])))
            q, k, v = (np.concatenate([old, y.data], axis=2) for old, y in zip(state[1:], new))
            done = state.complete
            keys, values = (Tensor(np.concatenate(pair, axis=2)) for pair in ((k, done.k), (v, done.v)))
            o = ops.softmax_attention(new[0], keys, values)
            if k.shape[2] == self.block:
                everything = np.ones((1, 1, 1, self.block), dtype=bool)
                scaled, keys, values = (Tensor(y[:, :, None]) for y in (q / math.sqrt(q.shape[-1]), k, v))
                summaries = (self.summary_q, self.summary_k)
                kbar, vbar = abstractions(scaled, keys, values, everything, summaries)
                done, q, k, v = done.append(kbar.data, vbar.data), *(y[:, :, :0] for y in (q, k, v))
            return self.wo(ops.merge_heads(o))[:, 0], Blocks(done, q, k, v)


def build(case: Case, **options: Any) -> CombinerFixed:
    return CombinerFixed(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


def heads_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    rng = case.rng()
    q, k, v = (Tensor(rng.standard_normal((case.b, case.h, case.t, case.d))) for _ in range(3))
    return q, k, v


PLAIN = (Summary(), Summary())


def effective(q: Array, k: Array, block: int, causal: bool) -> Array:
    """A (N, N) of one head, from q, k (N, d), entry by entry as the equations say it."""
    n, d = q.shape
    a = np.zeros((n, n))
    blocks = [range(j, min(j + block, n)) for j in range(0, n, block)]
    for i in range(n):
        u_i = i // block
        own = [j for j in blocks[u_i] if j <= i or not causal]
        others = [u for u in range(len(blocks)) if (u < u_i if causal else u != u_i)]
        e = [math.exp(q[i] @ k[j] / math.sqrt(d)) for j in own]
        e += [math.exp(q[i] @ k[blocks[u]].max(axis=0) / math.sqrt(d)) for u in others]
        p = np.array(e) / sum(e)
        a[i, own] = p[: len(own)]
        for u, share in zip(others, p[len(own) :]):
            w = np.exp(k[blocks[u]] @ q[blocks[u]].max(axis=0) / math.sqrt(d))
            a[i, blocks[u]] = share * w / w.sum()
    return a


@identity("the blocks equal the effective attention, entry by entry, causal or not, for blocks of any size")
def written_out(case: Case) -> tuple[Tensor, Any]:
    q, k, v = heads_of(case)
    left, right = [], []
    for block in (1, 2, 3, case.t):
        for causal in (True, False):
            o = np.zeros(v.shape)
            for at in np.ndindex(case.b, case.h):
                o[at] = effective(q.data[at], k.data[at], block, causal) @ v.data[at]
            left.append(attend(q, k, v, block, PLAIN, causal))
            right.append(o)
    return ops.stack(left), np.stack(right)


@identity("one block for all, or one token in a block: full attention, causal or not")
def ends_are_full(case: Case) -> tuple[Tensor, Tensor]:
    heads = heads_of(case)
    left = [attend(*heads, block, PLAIN, causal) for block in (case.t, 1) for causal in (True, False)]
    right = [ops.softmax_attention(*heads, causal=causal) for _ in range(2) for causal in (True, False)]
    return ops.stack(left), ops.stack(right)


@identity("equal values come out as they are, for every summary")
def equal_values(case: Case) -> tuple[Tensor, Any]:
    q, k, _ = heads_of(case)
    found = []
    for activation in ACTIVATIONS:
        for pool in POOLS:
            summary = Summary(activation, pool, case.d, case.rng(), "float64")
            found.append(attend(q, k, ops.ones_like(k), 2, (summary, summary)))
    return ops.stack(found), np.ones((len(found), *k.shape))


@identity("the summaries are maxima, means and sums over each block, after what comes before them")
def summaries(case: Case) -> tuple[Tensor, Any]:
    x = case.rng().standard_normal((case.b, case.h, 3, case.t, case.d))
    visible = np.ones((1, 1, 3, case.t), dtype=bool)
    left, right = [], []
    for activation in ACTIVATIONS:
        for pool in POOLS:
            summary = Summary(activation, pool, case.d, case.rng(), "float64")
            w = np.eye(case.d) if summary.dense is None else summary.dense.weight.data
            y = x @ w if activation == "identity" else np.maximum(x @ w, 0.0)
            left.append(summary(Tensor(x), visible))
            right.append(getattr(y, pool)(axis=-2))
    return ops.stack(left), np.stack(right)


@identity("full support: A_ij > 0 for every j <= i, and 0 for later ones")
def full_support(case: Case) -> tuple[Any, Any]:
    a = build(case, block=3).weights(case.tokens()).data
    return (a > 0.0).astype(float), np.broadcast_to(np.tri(case.t), a.shape)


@identity("earlier blocks of equal keys and values enter as one key each, with exp(q.k), not b exp(q.k)")
def constant_blocks(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    first = np.arange(case.t) // 2 * 2
    k, v = k[:, :, first], v[:, :, first]
    i, j = np.arange(case.t)[:, None], np.arange(case.t)
    # Of earlier blocks of two tokens, the first token only.
    mask = (j <= i) & ((j // 2 == i // 2) | (j % 2 == 0))
    return attend(q, k, v, 2, PLAIN), ops.softmax_attention(q, k, v, mask=mask)


@identity("tokens one by one equal the parallel form, for every summary")
def streaming(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for activation in ACTIVATIONS:
        layer = build(case, block=2, activation=activation, pool="mean")
        state, rows = layer.start(case.b), []
        for t in range(case.t):
            y, state = layer.step(x[:, t], state)
            rows.append(y)
        left.append(ops.stack(rows, axis=1))
        right.append(layer(x))
    return ops.stack(left), ops.stack(right)

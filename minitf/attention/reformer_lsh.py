"""Reformer attention: queries and keys are one vector, and hashing finds the vectors that point the same way.

    q = x W_qk,  v = x W_v                                       split into heads
    bucket_r(i) = argmax [q_i R_r ; -q_i R_r]                    n_b values, for each round r
    C_r(i)  tokens of i's chunk and of the chunks before it, where (bucket_r, position) is the order and every
            m tokens are a chunk
    l_ij = q_i . khat_j,   khat_j = q_j / sqrt(|q_j|^2 + d 1e-6)
    o_i^r = sum_{j in C_r(i)} exp(l_ij - z_i^r) v_j,   z_i^r = log sum_{j in C_r(i)} exp(l_ij)
    o_i  = sum_r exp(z_i^r - z_i) o_i^r,   z_i = log sum_r exp(z_i^r)
    y    = merge(o) W_o

    x, y  (B, N, D)    q, khat, v, o  (B, H, N, d)    R  (H, rounds, d, n_b / 2)    z  (B, H, rounds, N)

khat has length 1 / sqrt(d), so there is no other scale. A token sees itself only where it sees nothing else
in any round. Causal hides j > i, by original position. The first chunk takes the last one of its round for
the one before it. n_b = 2 max(1, N // m), at most `buckets`. Options: `same_bucket` hides j with
bucket_r(j) != bucket_r(i); `dedupe` subtracts log of the number of rounds in which i finds j.

Cost: 6 N D^2 for the maps, 2 rounds N D n_b / 2 for the hashes, about N log N comparisons a round for the
order and 8 rounds N m D for the chunks: the sort is all that is not linear in N.
Source: Reformer: The Efficient Transformer, Kitaev et al., arXiv:2001.04451, 2020, equations 2 to 6.
Differs from the paper: the first chunk wraps around inside its round; released code wraps around over all
rounds. A token's own logit is left out instead of set to -1e5, which is the limit of that constant. The
rotations are drawn once, not at every call. Hidden tokens sort behind all others and are counted nowhere, so
padding changes nothing. Causal attention never sees later values, but where a chunk ends depends on the
buckets of later tokens; it is strictly causal only up to N = 2 m.
Numerics: the rounds are merged by their log-sum-exp; -inf hides.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, to_device
from minitf.nn import Buffer, Card, Case, Linear, Module, Paper, identity, init, positive, visible_keys

CARD = Card(
    name="reformer_lsh",
    title="Reformer attention by locality-sensitive hashing",
    kind="attention",
    family="hashing",
    papers=(Paper("Reformer: The Efficient Transformer", "2001.04451", 2020),),
    causal=False,
    streams=False,
    grid="1d",
    complexity="6 N D^2 + 8 rounds N m D + 2 rounds H N log N",
    properties=("batch_independent", "key_masks"),
    basis="published code: google/trax layers/research/efficient_attention.py; lucidrains/reformer-pytorch",
    parity=("transformers 5.23.0 LSHSelfAttention",),
)


def unit_keys(q: Tensor) -> Tensor:
    """khat: every vector of q (..., d) at length 1 / sqrt(d)."""
    return q / ops.sqrt((q * q).sum(axis=-1, keepdims=True) + q.shape[-1] * 1e-6)


def hashed(q: Tensor, rotations: Tensor, half: Array) -> Array:
    """bucket (B, H, rounds, N) of q (B, H, N, d), with the first `half` (B,) columns of the rotations."""
    # q R: (B, H, rounds, N, columns)
    p = q.detach()[:, :, None] @ rotations
    used = np.arange(p.shape[-1]) < half[:, None, None, None, None]
    # argmax [q R ; -q R]; the lower index wins a tie
    both = ops.concat([ops.where(used, p, -math.inf), ops.where(used, -p, -math.inf)], axis=-1)
    return ops.argmax(both, axis=-1).numpy()


def picked(x: Tensor, index: Array) -> Tensor:
    """x_index for every example and head: (B, H, N, d), integers (B, H, ...) -> (B, H, ..., d)."""
    b, h, n, d = x.shape
    first = n * np.arange(b * h).reshape((b, h) + (1,) * (index.ndim - 2))
    return x.reshape((b * h * n, d))[first + index]


def at(a: Array, index: Array) -> Array:
    """a (B, H, N) at positions `index` (B, H, ...)."""
    return np.take_along_axis(a, index.reshape((*a.shape[:2], -1)), axis=-1).reshape(index.shape)


def lsh_attention(
    q: Tensor,
    v: Tensor,
    bucket: Array,
    visible: Array,
    chunk: int,
    back: int = 1,
    causal: bool = False,
    same_bucket: bool = False,
    dedupe: bool = False,
) -> Tensor:
    """o (B, H, N, d) from q, v (B, H, N, d), bucket (B, H, rounds, N) and visible (B, N)."""
    b, h, n, _ = q.shape
    rounds, m = bucket.shape[2], min(chunk, n)
    chunks = -(-n // m)
    shown = np.broadcast_to(visible[:, None], (b, h, n))
    # How many chunks hold visible tokens: (B,)
    full = np.maximum(1, -(-visible.sum(axis=-1) // m))
    # Positions in the order (bucket, position), hidden tokens last, and the place of each: (B, H, rounds, N)
    order = ops.argsort(Tensor(np.where(shown[:, :, None], bucket, bucket.max() + 1)), axis=-1).numpy()
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(n), order.shape), axis=-1)
    # The slots of every chunk; the last may stay empty: (B, H, rounds, chunks, m)
    slots = np.full((b, h, rounds, chunks * m), n)
    slots[..., :n] = order
    slots = slots.reshape((b, h, rounds, chunks, m))
    # Chunks c, c - 1, ..., c - back around the circle, none twice: (B, chunks, back + 1)
    steps = np.arange(back + 1)
    near = (np.arange(chunks)[:, None] - steps) % full[:, None, None]
    keys = np.take_along_axis(slots, near.reshape((b, 1, 1, -1, 1)), axis=3)
    keys = keys.reshape((b, h, rounds, chunks, back + 1, m))
    keys = np.where((steps < full[:, None])[:, None, None, None, :, None], keys, n)
    keys = keys.reshape((b, h, rounds, chunks, (back + 1) * m))
    # i (..., m, 1) and j (..., 1, (back + 1) m): the tokens of each pair; an empty slot stands at token 0.
    queries, exists, keys = np.minimum(slots, n - 1), keys < n, np.minimum(keys, n - 1)
    i, j = queries[..., :, None], keys[..., None, :]
    seen = (exists & at(shown, keys))[..., None, :] & (i != j)
    if causal:
        seen &= j <= i
    # Whether round r lets i find j, for every r: rounds times (B, H, rounds, chunks, m, (back + 1) m)
    found = []
    for r in range(rounds) if same_bucket or dedupe else ():
        c_i, c_j = (at(place[:, :, r] // m, a) for a in (queries, keys))
        hit = (c_i[..., :, None] - c_j[..., None, :]) % full.reshape((b, 1, 1, 1, 1, 1)) <= back
        if same_bucket:
            b_i, b_j = (at(bucket[:, :, r], a) for a in (queries, keys))
            hit &= b_i[..., :, None] == b_j[..., None, :]
            seen[:, :, r] &= hit[:, :, r]
        found.append(hit)
    # l_ij = q_i . khat_j, -inf where hidden: (B, H, rounds, chunks, m, (back + 1) m)
    logits = picked(q, queries) @ picked(unit_keys(q), keys).mT
    if dedupe:
        logits = logits - np.log(np.maximum(1, np.sum(found, axis=0))).astype(q.dtype)
    logits = ops.where(seen, logits, -math.inf)
    # o^r (B, H, rounds, N, d) and z^r (B, H, rounds, N), back in the order of the tokens
    o = ops.softmax(logits) @ picked(v, keys)
    z = ops.logsumexp(logits, axis=-1).reshape((b, h, rounds * chunks * m, 1))
    index = place + chunks * m * np.arange(rounds)[:, None]
    o = picked(o.reshape((b, h, rounds * chunks * m, -1)), index)
    z = picked(z, index)
    # o = sum_r exp(z^r - z) o^r; a token that found nobody keeps its own value.
    alone = np.all(z.numpy() == -np.inf, axis=2) & shown[..., None]
    return ops.where(alone, v, (ops.softmax(z, axis=2) * o).sum(axis=2))


class ReformerLSH(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: wqk, wv, wo (D, D). Buffer: rotations (H, rounds, d, buckets / 2).

    Args:
        dim: D. heads: H. rounds: how often tokens are hashed. chunk: m.
        back: chunks before its own that a token looks at. buckets: the largest n_b.
        same_bucket, dedupe: see above.

    Raises:
        ValueError: heads that do not divide dim, an odd number of buckets, or an option below 1 (0 for back).
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        rounds: int = 4,
        chunk: int = 64,
        back: int = 1,
        buckets: int = 64,
        causal: bool = False,
        same_bucket: bool = False,
        dedupe: bool = False,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        if min(rounds, chunk, back + 1) < 1:
            raise ValueError(
                f"rounds={rounds} and chunk={chunk} must be at least 1, and back={back} at least 0"
            )
        if buckets < 2 or buckets % 2:
            raise ValueError(f"buckets={buckets} must be even and at least 2: each vector and its opposite")
        rng = init.generator(seed)
        self.heads, self.chunk, self.back, self.causal = heads, chunk, back, causal
        self.same_bucket, self.dedupe = same_bucket, dedupe
        self.wqk, self.wv, self.wo = (Linear(dim, dim, False, rng, dtype=dtype) for _ in range(3))
        self.rotations = Buffer(init.normal(rng, (heads, rounds, dim // heads, buckets // 2), 1.0, dtype))

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D). mask: boolean (B, 1, 1, N), True = visible."""
        if x.ndim != 3:
            raise ShapeError(f"reformer_lsh: x must be (B, N, D), not {x.shape}")
        q, v = (ops.split_heads(w(x), self.heads) for w in (self.wqk, self.wv))
        keys = visible_keys(mask, x.shape[0], x.shape[1])
        # Buckets are sorted on the CPU.
        visible = np.ones(x.shape[:2], dtype=bool) if keys is None else to_device(keys[:, 0, :, 0], "cpu")
        o = lsh_attention(
            q,
            v,
            self.buckets(q, visible),
            visible,
            self.chunk,
            self.back,
            self.causal,
            self.same_bucket,
            self.dedupe,
        )
        return self.wo(ops.merge_heads(o))

    def buckets(self, q: Tensor, visible: Array) -> Array:
        """bucket (B, H, rounds, N) of q (B, H, N, d), n_b as the visible (B, N) tokens ask."""
        half = np.clip(visible.sum(axis=-1) // self.chunk, 1, self.rotations.shape[-1])
        return hashed(q, self.rotations, half)


def build(case: Case, **options: Any) -> ReformerLSH:
    return ReformerLSH(case.dim, heads=case.h, seed=case.seed, dtype="float64", **{"rounds": 3, **options})


def by_loops(layer: ReformerLSH, x: Tensor, once: bool) -> Tensor:
    """Softmax over all candidates of all rounds, each as often as it was found or `once`, token by token."""
    b, n, _ = x.shape
    q, v = (ops.split_heads(w(x), layer.heads) for w in (layer.wqk, layer.wv))
    khat, outputs = unit_keys(q), np.zeros(q.shape)
    # n_b / 2 columns of the rotations count.
    half = min(max(1, n // layer.chunk), layer.rotations.shape[-1])
    for e, h in np.ndindex(b, layer.heads):
        found: list[list[int]] = [[] for _ in range(n)]
        for rotation in layer.rotations.data[h, :, :, :half]:
            turned = q.data[e, h] @ rotation
            mine = np.concatenate([turned, -turned], axis=-1).argmax(axis=-1)
            ranked = sorted(range(n), key=lambda t: (mine[t], t))
            parts = [ranked[s : s + layer.chunk] for s in range(0, n, layer.chunk)]
            for c, part in enumerate(parts):
                around = {(c - s) % len(parts) for s in range(layer.back + 1)}
                for i in part:
                    near = [j for a in around for j in parts[a] if j != i and (j < i or not layer.causal)]
                    found[i] += [j for j in near if mine[j] == mine[i] or not layer.same_bucket]
        for i in range(n):
            js = sorted(set(found[i]) if once else found[i]) or [i]
            weights = np.exp(khat.data[e, h, js] @ q.data[e, h, i])
            outputs[e, h, i] = weights / weights.sum() @ v.data[e, h, js]
    return layer.wo(ops.merge_heads(Tensor(outputs)))


def settings(case: Case) -> list[dict[str, Any]]:
    """Chunks of several sizes, one and more chunks back, causal and not, only one's own bucket and not."""
    rng = case.rng()
    return [
        {"chunk": int(rng.integers(1, 6)), "back": back, "causal": causal, "same_bucket": same, "buckets": 8}
        for back, causal, same in ((1, False, False), (1, True, False), (0, True, True), (2, False, True))
    ]


@identity("rounds merged by log-sum-exp equal one softmax over the candidates of all rounds, by loops")
def rounds_are_a_union(case: Case) -> tuple[Tensor, Tensor]:
    x, layers = case.tokens(), [build(case, **options) for options in settings(case)]
    return ops.stack([layer(x) for layer in layers]), ops.stack(
        [by_loops(layer, x, False) for layer in layers]
    )


@identity("with dedupe each candidate counts once, in however many rounds it was found")
def dedupe_is_a_set(case: Case) -> tuple[Tensor, Tensor]:
    x, layers = case.tokens(), [build(case, dedupe=True, **options) for options in settings(case)]
    return ops.stack([layer(x) for layer in layers]), ops.stack(
        [by_loops(layer, x, True) for layer in layers]
    )


@identity("a chunk, or two, over the whole sequence: full attention with shared queries and keys")
def whole(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for causal in (True, False):
        allow = np.tri(case.t, k=-1) > 0 if causal else ~np.eye(case.t, dtype=bool)
        # Nothing else to see: the token itself.
        allow = allow | (np.eye(case.t, dtype=bool) & ~allow.any(axis=-1, keepdims=True))
        for chunk in (case.t, case.t // 2 + 1):
            layer = build(case, chunk=chunk, causal=causal)
            q, v = (ops.split_heads(w(x), case.h) for w in (layer.wqk, layer.wv))
            o = ops.softmax_attention(q, unit_keys(q), v, mask=allow, scale=1.0)
            left.append(layer(x))
            right.append(layer.wo(ops.merge_heads(o)))
    return ops.stack(left), ops.stack(right)


@identity("the length of a key changes no bucket, and khat only by its 1e-6")
def directions(case: Case) -> tuple[Tensor, Tensor]:
    layer, q = build(case, chunk=2, buckets=6), ops.split_heads(case.tokens(), case.h)
    longer = q * case.rng().uniform(1.0, 9.0, (*q.shape[:-1], 1))
    everything = np.ones((case.b, case.t), dtype=bool)
    left, right = (Tensor(layer.buckets(a, everything).astype("float64")) for a in (longer, q))
    # Long enough that 1e-6 no longer counts.
    khats = [unit_keys(a * 1e6).reshape((-1,)) for a in (longer, q)]
    return ops.concat([left.reshape((-1,)), khats[0]]), ops.concat([right.reshape((-1,)), khats[1]])


@identity("hidden tokens, as many as you like, change nothing for the others")
def padding(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, rng = build(case, chunk=2, buckets=8), case.tokens(), case.rng()
    visible = np.arange(2 * case.t + 3) % 2 == 0
    visible[2 * case.t :] = False
    wide = rng.standard_normal((case.b, 2 * case.t + 3, case.dim))
    wide[:, visible] = x.data
    return layer(Tensor(wide), mask=visible[None, None, None])[:, visible], layer(x)


@identity("causal: the first token gives its own value, whatever the others hold")
def first_token(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, chunk=2, causal=True), case.tokens()
    return layer(x)[:, 0], layer.wo(layer.wv(x[:, 0]))


@identity(
    "two buckets: vectors at angle t share one with probability 1 - t / pi (20000 rounds, 6 standard errors)",
    tolerance=0.0213,
)
def collisions(case: Case) -> tuple[Array, Array]:
    angles = np.linspace(0.0, np.pi, 7)
    q = Tensor(np.stack([np.cos(angles), np.sin(angles)], axis=-1)[None, None])
    rotations = Tensor(case.rng().standard_normal((1, 20000, 2, 1)))
    bucket = hashed(q, rotations, np.array([1]))[0, 0]
    return (bucket == bucket[:, :1]).mean(axis=0), 1.0 - angles / np.pi

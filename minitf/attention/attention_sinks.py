"""Attention sinks (StreamingLLM): a sliding window that never lets go of the first few tokens.

    A_t  = {0 .. s-1} and {t-w+1 .. t}, without repetition and without tokens after t, in the order of time
    r_j  = place of token j in A_t: 0 .. |A_t| - 1                the query stands at |A_t| - 1
    S_tj = R(q_t, |A_t| - 1) . R(k_j, r_j) / sqrt(d)              R turns a vector by its place
    o_t  = sum over j in A_t of P_tj v_j,       P_tj = exp S_tj / sum over A_t of exp S_tj
    y    = merge(o) W_o
    zero sink:  P_tj = exp S_tj / (1 + sum over A_t of exp S_tj)

    x, y  (B, N, D)        q, k, v, o  (B, H, N, d)        s: sinks      w: window, the token itself included

Trained decoders put much weight on the first tokens whatever these say; a window that drops them breaks its
own softmax. Places are those in the cache: they never pass s + w, however long the stream is.

Parallel form: all that the position schemes use is a distance. Between t and a token of the window it is
t - j, between t and sink j it is min(t, s + w - 1) - j. So the window is a band, in chunks of w queries with
2 w - 1 keys, and the s sinks are a few columns beside it, under one softmax.

Cost: 8 N D^2 for the maps and 4 N (2 w + s) D for band and sinks, linear in N. Decoding: 4 (s + w) D for a
token, with s + w keys and values, for ever.
Source: Efficient Streaming Language Models with Attention Sinks, Xiao et al., arXiv:2309.17453, 2023,
section 3.2.
Differs from the paper: the window is 64 tokens unless given, the published code's is 512. The learned sink
token belongs to the layer, not to the vocabulary: it is put in front of x, counts as one of the s tokens, and
no mask hides it. Long prompts are evicted token by token, as if they had been streamed.
Numerics: the zero sink is a score of 0 inside the softmax, so that nothing overflows. Keys enter the cache as
they are, and turn when they are read.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, no_grad
from minitf.nn import Card, Case, Linear, Module, Paper, Parameter, Position, as_position, identity, init

from .sliding_window import SlidingWindow
from .softmax import SoftmaxAttention

CARD = Card(
    name="attention_sinks",
    title="Sliding window with the first tokens kept (StreamingLLM)",
    kind="attention",
    family="local",
    papers=(Paper("Efficient Streaming Language Models with Attention Sinks", "2309.17453", 2023),),
    causal=True,
    streams=True,
    grid="1d",
    complexity="8 N D^2 + 8 N w D + 4 N s D",
    properties=("causal", "streams", "batch_independent", "row_stochastic"),
    basis="published code: mit-han-lab/streaming-llm streaming_llm/kv_cache.py, pos_shift/modify_llama.py",
    aliases={"streaming_llm": {"position": "rope"}},
    parity=("streaming-llm 2e50426 StartRecentKVCache and llama_pos_shift_attention_forward",),
)


class Rule(NamedTuple):
    """What A_t is, and how its scores become weights."""

    sinks: int
    window: int
    position: Position
    zero_sink: bool = False

    def allowed(self, n: int) -> Array:
        """Which j are in A_i: (N, N)."""
        i, j = np.arange(n)[:, None], np.arange(n)
        return (j <= i) & ((j < self.sinks) | (i - j < self.window))

    def scores(self, q: Tensor, k: Tensor, here: Array, there: Array) -> Tensor:
        """R(q_i, here_i) . R(k_j, there_j) / sqrt(d), and the bias of the scheme: (B, H, Nq, Nk)."""
        s = self.position.rotate(q, here) @ self.position.rotate(k, there).mT / math.sqrt(q.shape[-1])
        bias = self.position.bias(here, there)
        return s if bias is None else s + bias

    def normalise(self, s: Tensor) -> Tensor:
        """P from S (..., keys); with a zero sink, a key of score 0 takes its share and gives nothing."""
        if not self.zero_sink:
            return ops.softmax(s, axis=-1)
        return ops.softmax(ops.pad(s, [(0, 0)] * (s.ndim - 1) + [(0, 1)]), axis=-1)[..., :-1]


def plain(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
    """o (B, H, N, d), gathering A_t and its places token by token, as the equations say it."""
    rows = []
    for t in range(q.shape[2]):
        a = np.flatnonzero(rule.allowed(q.shape[2])[t])
        place = np.arange(len(a))
        s = rule.scores(q[:, :, t : t + 1], k[:, :, a], place[-1:], place)
        rows.append(rule.normalise(s) @ v[:, :, a])
    return ops.concat(rows, axis=2)


def weights(q: Tensor, k: Tensor, rule: Rule, mask: Any = None) -> Tensor:
    """P (B, H, N, N), zero outside A_t and where `mask` hides."""
    i, allow = np.arange(q.shape[2]), rule.allowed(q.shape[2])
    near = rule.scores(q, k, i, i)
    far = rule.scores(q, k, np.minimum(i, rule.sinks + rule.window - 1), i)
    return rule.normalise(
        ops.where(ops.joint_mask(mask, allow), ops.where(i < rule.sinks, far, near), -math.inf)
    )


def banded(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
    """The same o, touching the sinks and the keys near the band only."""
    b, h, n, d = q.shape
    i, s, w = np.arange(n), min(rule.sinks, n), min(rule.window, n)
    chunks, width = -(-n // w), 2 * w - 1
    fill = chunks * w - n
    # Sinks, at most s + w - 1 away: (B, H, N, s)
    far = rule.scores(q, k[:, :, :s], np.minimum(i, rule.sinks + rule.window - 1), i[:s])
    far = ops.where(i[:s] <= i[:, None], far, -math.inf)
    # Chunks of w queries, each with the w - 1 keys before it: (B, H, chunks, w, d), (B, H, chunks, 2w - 1, d)
    q, k = rule.position.rotate(q, i), rule.position.rotate(k, i)
    q = ops.pad(q, ((0, 0), (0, 0), (0, fill), (0, 0))).reshape((b, h, chunks, w, d))
    keys, values = (
        ops.unfold(ops.pad(x, ((0, 0), (0, 0), (w - 1, fill), (0, 0))), width, axis=2, step=w).mT
        for x in (k, v)
    )
    # Query a of a chunk sees keys a .. a + w - 1 of it, if they exist and are no sinks: (chunks, w, 2w - 1)
    a, c = np.arange(w)[:, None], np.arange(width)
    place = np.arange(chunks)[:, None, None] * w + c - (w - 1)
    near = q @ keys.mT / math.sqrt(d)
    bias = rule.position.bias(a[:, 0] + w - 1, c)
    near = near if bias is None else near + bias[:, None]
    near = ops.where((c >= a) & (c < a + w) & (place >= s), near, -math.inf)
    # One softmax over both, chunk by chunk: (B, H, chunks, w, 2w - 1 + s)
    far = ops.pad(far, ((0, 0), (0, 0), (0, fill), (0, 0))).reshape((b, h, chunks, w, s))
    p = rule.normalise(ops.concat([near, far], axis=-1))
    o = p[..., :width] @ values + p[..., width:] @ ops.expand_dims(v[:, :, :s], 2)
    return o.reshape((b, h, n + fill, v.shape[-1]))[:, :, :n]


class SinkCache(NamedTuple):
    """Keys and values of A_t in the order of time, not rotated: (B, H, |A_t|, d)."""

    keys: Array
    values: Array

    def evict(self, coming: int, rule: Rule) -> SinkCache:
        """Room for `coming` tokens: the first s entries stay, and the last w - coming of the others."""
        n = self.keys.shape[2]
        s = min(rule.sinks, n)
        keep = np.r_[:s, max(s, n - max(rule.window - coming, 0)) : n]
        return SinkCache(self.keys[:, :, keep], self.values[:, :, keep])

    def append(self, *entries: Array) -> SinkCache:
        """With more keys and values (B, H, n, d) at the end."""
        return SinkCache(*(np.concatenate(pair, axis=2) for pair in zip(self, entries)))


class AttentionSinks(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: wq, wk, wv, wo (D, D), with biases if `bias`; sink (D,), normal 0.02, if `learned_sink`.

    Args:
        dim: D. heads: H. sinks: s, 0 or more. window: w, 1 or more.
        position: a scheme that sees distances only, or its name ("nope", "rope", "alibi").
        zero_sink: one more key of score 0 and value 0. learned_sink: a learned token before the first.

    Raises:
        ValueError: heads that do not divide dim; sinks below 0, window below 1; a learned sink without sinks.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        sinks: int = 4,
        window: int = 64,
        position: Position | str = "nope",
        zero_sink: bool = False,
        learned_sink: bool = False,
        bias: bool = False,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        if min(dim, heads) < 1 or dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}, both 1 or more")
        if sinks < 0 or window < 1:
            raise ValueError(f"sinks={sinks} must be 0 or more and window={window} 1 or more")
        if learned_sink and not sinks:
            raise ValueError("a learned sink is one of the sinks: sinks must be 1 or more")
        rng = init.generator(seed)
        self.heads = heads
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, dim, bias, rng, dtype=dtype) for _ in range(4))
        self.rule = Rule(sinks, window, as_position(position, heads=heads), zero_sink)
        self.sink = Parameter(init.normal(rng, (dim,), dtype=dtype)) if learned_sink else None

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D). mask: boolean, broadcastable to (B, H, N, N); with one, all N^2 scores form."""
        y, mask = self._with_sink(x, mask)
        q, k, v = self._heads(y)
        o = banded(q, k, v, self.rule) if mask is None else weights(q, k, self.rule, mask) @ v
        # What the learned sink itself would say is dropped.
        return self.wo(ops.merge_heads(o[:, :, o.shape[2] - x.shape[1] :]))

    def weights(self, x: Tensor, *, mask: Any = None) -> Tensor:
        """P (B, H, N, N); (B, H, N + 1, N + 1) with a learned sink, the first. A zero sink takes a share."""
        x, mask = self._with_sink(x, mask)
        return weights(*self._heads(x)[:2], self.rule, mask)

    def _with_sink(self, x: Tensor, mask: Any) -> tuple[Tensor, Any]:
        if x.ndim != 3:
            raise ShapeError(f"attention_sinks: x must be (B, N, D), not {x.shape}")
        if self.sink is None:
            return x, mask
        if mask is not None:
            mask = mask.data if isinstance(mask, Tensor) else mask
            mask = np.broadcast_to(mask, (*np.shape(mask)[:-2], x.shape[1], x.shape[1]))
            mask = np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(1, 0)] * 2, constant_values=True)
        return ops.concat([ops.broadcast_to(self.sink, (x.shape[0], 1, x.shape[2])), x], axis=1), mask

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        return q, k, v

    def start(self, batch: int) -> SinkCache:
        """The empty cache; with a learned sink, the cache that holds it."""
        with no_grad():
            nothing = ops.zeros((batch, 0, self.wq.weight.shape[0]), like=self.wq.weight)
            _, k, v = self._heads(self._with_sink(nothing, None)[0])
            return SinkCache(k.data, v.data)

    def step(self, x: Tensor, state: SinkCache) -> tuple[Tensor, SinkCache]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        with no_grad():
            q, k, v = self._heads(x.reshape((x.shape[0], 1, x.shape[1])))
            state = state.evict(1, self.rule).append(k.data, v.data)
            place = np.arange(state.keys.shape[2])
            s = self.rule.scores(q, Tensor(state.keys), place[-1:], place)
            o = self.rule.normalise(s) @ Tensor(state.values)
            return self.wo(ops.merge_heads(o))[:, 0], state

    def prefill(self, x: Tensor, state: SinkCache) -> tuple[Tensor, SinkCache]:
        """Several tokens x (B, n, D) at once after those in `state`: (B, n, D) and the new state."""
        with no_grad():
            q, k, v = self._heads(x)
            # The cache is a sequence like any other: its places are what the stream's would be.
            state = state.append(k.data, v.data)
            full = ops.pad(q, ((0, 0), (0, 0), (state.keys.shape[2] - q.shape[2], 0), (0, 0)))
            o = banded(full, Tensor(state.keys), Tensor(state.values), self.rule)
            y = self.wo(ops.merge_heads(o[:, :, o.shape[2] - q.shape[2] :]))
            return y, state.evict(0, self.rule)


def build(case: Case, **options: Any) -> AttentionSinks:
    return AttentionSinks(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


SCHEMES = ("nope", "rope", "alibi")


@identity("N <= s + w: full causal attention with ordinary positions")
def short_is_full(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for name in SCHEMES:
        layer = build(case, sinks=case.t // 2, window=case.t - case.t // 2, position=name)
        full = SoftmaxAttention(case.dim, heads=case.h, position=name, dtype="float64")
        full.load_state_dict(layer.state_dict())
        left.append(layer(x))
        right.append(full(x))
    return ops.stack(left), ops.stack(right)


def heads_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    rng = case.rng()
    q, k, v = (Tensor(rng.standard_normal((case.b, case.h, case.t, case.d))) for _ in range(3))
    return q, k, v


SIZES = ((0, 1), (0, 3), (1, 1), (1, 2), (2, 3), (4, 1), (3, 20))


@identity("the band beside the sinks equals gathering A_t and its places, in three position schemes")
def band_is_plain(case: Case) -> tuple[Tensor, Tensor]:
    heads, left, right = heads_of(case), [], []
    for name in SCHEMES:
        position = as_position(name, heads=case.h)
        for size in SIZES:
            for zero in (False, True):
                rule = Rule(*size, position, zero)
                left.append(banded(*heads, rule))
                right.append(plain(*heads, rule))
    return ops.stack(left), ops.stack(right)


@identity("all N^2 weights, which serve masks, equal the band; the weights times the values are the output")
def weights_are_band(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for name in SCHEMES:
        layer = build(case, sinks=2, window=3, position=name, zero_sink=True, learned_sink=name != "nope")
        left.append(layer(x, mask=np.ones((1, case.t), dtype=bool)))
        right.append(layer(x))
        # Without a learned sink, the values are those of x.
        layer.sink = None
        v = ops.split_heads(layer.wv(x), case.h)
        left.append(layer.wo(ops.merge_heads(layer.weights(x) @ v)))
        right.append(layer(x))
    return ops.stack(left), ops.stack(right)


@identity("a mask hides keys of A_i from their queries: softmax attention under both masks")
def masked(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, sinks=2, window=3), case.tokens()
    mask = case.rng().random((case.b, case.h, case.t, case.t)) < 0.6
    full = SoftmaxAttention(case.dim, heads=case.h, dtype="float64")
    full.load_state_dict(layer.state_dict())
    return layer(x, mask=mask), full(x, mask=mask & layer.rule.allowed(case.t))


def streamed(layer: AttentionSinks, x: Tensor) -> Tensor:
    rows, state = [], layer.start(x.shape[0])
    for t in range(x.shape[1]):
        y, state = layer.step(x[:, t], state)
        rows.append(y)
    return ops.stack(rows, axis=1)


@identity("without positions, the cache with eviction equals softmax attention under the mask j in A_i")
def cache_is_mask(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for sinks, window in SIZES:
        layer = build(case, sinks=sinks, window=window)
        full = SoftmaxAttention(case.dim, heads=case.h, dtype="float64")
        full.load_state_dict(layer.state_dict())
        left.append(streamed(layer, x))
        right.append(full(x, mask=layer.rule.allowed(case.t)))
    return ops.stack(left), ops.stack(right)


@identity("with positions, a zero sink and a learned sink, the cache with eviction equals the parallel form")
def cache_is_parallel(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for name in SCHEMES:
        layer = build(case, sinks=2, window=3, position=name, zero_sink=True, learned_sink=True)
        left.append(streamed(layer, x))
        right.append(layer(x))
    return ops.stack(left), ops.stack(right)


@identity("s = 0: the sliding window, with rotary positions and without")
def no_sinks(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for name in SCHEMES[:2]:
        layer = build(case, sinks=0, window=3, position=name)
        other = SlidingWindow(case.dim, heads=case.h, left=2, position=name, dtype="float64")
        other.load_state_dict(layer.state_dict())
        left.append(layer(x))
        right.append(other(x))
    return ops.stack(left), ops.stack(right)


@identity("a zero sink is one more key 0 with value 0 that everybody sees")
def zero_is_a_key(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    rule = Rule(1, 2, Position(), zero_sink=True)
    k2, v2 = (ops.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0))) for x in (k, v))
    mask = np.pad(rule.allowed(case.t), ((0, 0), (1, 0)), constant_values=True)
    return banded(q, k, v, rule), ops.softmax_attention(q, k2, v2, mask=mask)


@identity("a zero sink scales the ordinary output by Z / (1 + Z), Z = exp(log-sum-exp of the scores)")
def zero_scales(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    rule = Rule(2, 2, Position(), zero_sink=True)
    z = ops.exp(ops.attention_logsumexp(q, k, mask=rule.allowed(case.t)))[..., None]
    return banded(q, k, v, rule), z / (1.0 + z) * banded(q, k, v, rule._replace(zero_sink=False))


@identity("a learned sink is a token in front of the others")
def learned_is_a_token(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, sinks=2, window=2, position="rope", learned_sink=True), case.tokens()
    without = build(case, sinks=2, window=2, position="rope")
    token = ops.broadcast_to(layer.state_dict()["sink"], (case.b, 1, case.dim))
    return layer(x), without(ops.concat([token, x], axis=1))[:, 1:]

"""Native sparse attention: compressed blocks, a few selected blocks and a window, mixed by gates.

    1. kc_c  = phi_k(k_{c s} .. k_{c s + l - 1}), vc_c alike     block c of l tokens, one every s tokens
       p_tc  = softmax(q_t . kc_c / sqrt(d)) over blocks that end by t;     o_cmp = sum_c p_tc vc_c
    2. a_tj  = sum over m < l'/s and n < l/s of p_t[(l'/s) j + m - n], and over the heads of a group
       J_t   = n blocks of l' tokens, none after that of t: the first, that of t, the one before, the best a
       o_slc = softmax attention of q_t to the tokens up to t of the blocks J_t
    3. o_win = softmax attention of q_t to the last w tokens
    o_t = g_cmp o_cmp + g_slc o_slc + g_win o_win,    g = sigmoid(x_t W_g + b_g), three for each head
    y   = merge(o) W_o

    x, y  (B, N, D)   q, o  (B, H, N, d)   k, v  (B, Hkv, N, d)   kc, vc  (B, Hkv, C, d)   a  (B, Hkv, N, J)

C = (N - l) / s + 1 and J = N / l', rounded down and up. Every stride unit of s tokens of a block collects the
compressed blocks that cover it. The query heads of a key head share J_t, a constant to gradients.
phi: "mlp" is relu((block + place) W_1 + b_1) W_2 + b_2, with a learned vector for each place; or "mean".

Cost: 8 N D^2 for the maps, 4 N C D + 4 N (n l' + w) D for the branches: quadratic, but 1/s of full attention.
Source: Native Sparse Attention, Yuan et al., arXiv:2502.11089, 2025, equations 5 to 12.
Differs from the paper: all branches share k and v, and keys are rotated before they are compressed, as in
fla. l, s, l', n, w are 8, 4, 16, 4, 32 unless given, the paper's 32, 16, 64, 16, 512. The hidden width of phi
is 2 d, which no source fixes. Gates start at the window, with biases -2, -2, 2, as lucidrains has them.
Numerics: those of softmax attention; a token before the end of the first block has o_cmp = 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, no_grad
from minitf.nn import Card, Case, KVCache, Linear, Module, Paper, Parameter, as_position, identity, init

from .sliding_window import banded

CARD = Card(
    name="nsa",
    title="Native sparse attention",
    kind="attention",
    family="block sparse",
    papers=(Paper("Native Sparse Attention", "2502.11089", 2025),),
    causal=True,
    streams=True,
    grid="1d",
    complexity="8 N D^2 + 4 N (n l + w) D + 4 N^2 D / s",
    properties=("causal", "streams", "batch_independent"),
    basis="published code: fla-org/native-sparse-attention; lucidrains/native-sparse-attention-pytorch",
    parity=("fla-org/native-sparse-attention bd67af5 naive_nsa_with_compression",),
)


class Sizes(NamedTuple):
    """l, s, l', n, w; and how many blocks are always selected: the first, and the last up to that of t."""

    length: int = 8
    stride: int = 4
    block: int = 16
    picks: int = 4
    window: int = 32
    initial: int = 1
    local: int = 2


def per_query(q: Tensor, k: Tensor, v: Tensor, visible: Any) -> Tensor:
    """o (B, H, N, d) from q (B, H, N, d) and k, v (B, Hkv, N, m, d), a list of keys for every query."""
    b, h, n, d = q.shape
    hkv, m = k.shape[1], k.shape[3]
    q = q.reshape((b, hkv, h // hkv, n, d)).permute_dims((0, 1, 3, 2, 4)).reshape((b, hkv * n, -1, d))
    visible = np.broadcast_to(visible, (b, hkv, n, m)).reshape(b, hkv * n, 1, m)
    o = ops.softmax_attention(q, k.reshape((b, -1, m, d)), v.reshape((b, -1, m, d)), mask=visible)
    return o.reshape((b, hkv, n, h // hkv, d)).permute_dims((0, 1, 3, 2, 4)).reshape((b, h, n, d))


def compressed(q: Tensor, kc: Tensor, vc: Tensor, t: Array, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """o_cmp (B, H, Nq, d) and p (B, H, Nq, C). t: the positions of the queries."""
    if not kc.shape[2]:
        return ops.zeros_like(q), ops.zeros((*q.shape[:3], 0), like=q)
    ends = np.arange(kc.shape[2]) * sizes.stride + sizes.length - 1
    p = ops.attention_weights(q, kc, mask=ends <= t[:, None])
    return ops.apply_weights(p, vc), p


def importance(p: Tensor, blocks: int, kv_heads: int, sizes: Sizes) -> Tensor:
    """a (B, Hkv, Nq, J) from p (B, H, Nq, C)."""
    b, h, n, c = p.shape
    units = blocks * (sizes.block // sizes.stride)
    # Unit u is covered by compressed blocks u, u - 1, ..., u - l/s + 1.
    shifts = range(sizes.length // sizes.stride)
    covered = [ops.pad(p, ((0, 0), (0, 0), (0, 0), (i, units)))[..., :units] for i in shifts]
    a = ops.stack(covered).sum(axis=0).reshape((b, h, n, blocks, -1)).sum(axis=-1)
    return a.reshape((b, kv_heads, h // kv_heads, n, blocks)).sum(axis=2)


def select(a: Tensor, t: Array, sizes: Sizes) -> Array:
    """J_t (B, Hkv, Nq, n); blocks of the future fill up what is not there."""
    own, j = t[:, None] // sizes.block, np.arange(a.shape[-1])
    forced = (j < sizes.initial) | (j > own - sizes.local)
    scores = ops.where(j > own, -math.inf, ops.where(forced, math.inf, a.detach()))
    return ops.topk(scores, min(sizes.picks, a.shape[-1]))[1].data


def selected(q: Tensor, k: Tensor, v: Tensor, chosen: Array, block: int) -> Tensor:
    """o_slc (B, H, Nq, d), touching the blocks J_t only; the queries are those of the last keys."""
    b, h, n, picks = chosen.shape
    # Where the list of every query begins, and where the last one ends: (B, Hkv, Nq + 1), then for all heads
    begins = np.arange(b * h).reshape(b, h, 1) * (n * picks) + np.arange(n + 1) * picks
    begins = begins.repeat(q.shape[1] // h, axis=1)
    return ops.block_sparse_attention(q, k, v, begins, chosen.reshape(-1), 1, block, causal=True)


def windowed(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """o_win (B, H, Nq, d); the queries are those of the last keys."""
    n, w = q.shape[2], min(window, k.shape[2])
    first = k.shape[2] - n - w + 1
    k, v = (ops.pad(x[:, :, max(first, 0) :], ((0, 0), (0, 0), (max(-first, 0), 0), (0, 0))) for x in (k, v))
    # (B, Hkv, Nq, w, d); what stands before the first token is not there
    k, v = (ops.unfold(x, w, axis=2).mT for x in (k, v))
    return per_query(q, k, v, first + np.arange(n)[:, None] + np.arange(w) >= 0)


def branches(q: Tensor, k: Tensor, v: Tensor, kc: Tensor, vc: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """o_cmp, o_slc, o_win (B, H, Nq, d); the queries are those of the last keys."""
    t = np.arange(k.shape[2] - q.shape[2], k.shape[2])
    o_cmp, p = compressed(q, kc, vc, t, sizes)
    a = importance(p.detach(), -(-k.shape[2] // sizes.block), k.shape[1], sizes)
    o_slc = selected(q, k, v, select(a, t, sizes), sizes.block)
    return o_cmp, o_slc, windowed(q, k, v, sizes.window)


class Compression(Module):
    """phi: (B, Hkv, C, l, d) -> (B, Hkv, C, d). Parameters: place (l, d), w1 (l d, 2 d), w2 (2 d, d)."""

    def __init__(self, length: int, width: int, rng: np.random.Generator, dtype: Any):
        self.place = Parameter(init.normal(rng, (length, width), dtype=dtype))
        self.w1 = Linear(length * width, 2 * width, True, rng, dtype=dtype)
        self.w2 = Linear(2 * width, width, True, rng, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(ops.relu(self.w1((x + self.place).reshape((*x.shape[:3], -1)))))


def compress(k: Tensor, v: Tensor, phi_k: Any, phi_v: Any, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """kc, vc (B, Hkv, C, d) from k, v (B, Hkv, N, d); phi None is the mean."""
    if k.shape[2] < sizes.length:
        return k[:, :, :0], v[:, :, :0]
    k, v = (ops.unfold(x, sizes.length, axis=2, step=sizes.stride).mT for x in (k, v))
    return (k.mean(axis=-2), v.mean(axis=-2)) if phi_k is None else (phi_k(k), phi_v(v))


# Keys and values of tokens, and of compressed blocks.
Caches = tuple[KVCache, KVCache]


class NSA(Module):
    """x (B, N, D) -> (B, N, D), causal.

    Parameters: wq (D, H d), wk, wv (D, Hkv d), wo (H d, D), wg (D, 3 H) with bias, phi_k and phi_v.

    Args:
        dim: D. heads: H. kv_heads: Hkv, default H. compress: phi, "mlp" or "mean".
        length, stride, block, picks, window: l, s, l', n, w.
        position: a scheme that rotates q and k, or its name. Options out of range raise ValueError.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        kv_heads: int | None = None,
        compress: str = "mlp",
        length: int = 8,
        stride: int = 4,
        block: int = 16,
        picks: int = 4,
        window: int = 32,
        position: Any = "nope",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        hkv = heads if kv_heads is None else kv_heads
        if min(dim, heads, hkv) < 1 or dim % heads or heads % hkv:
            raise ValueError(
                f"heads={heads} must divide dim={dim}, and kv_heads={hkv} must divide heads: all 1 or more"
            )
        if min(length, stride, block, window) < 1 or picks < 3 or length % stride or block % stride:
            raise ValueError(
                f"stride={stride} must divide length={length} and block={block}; they and window={window} "
                f"must be 1 or more, and picks={picks} 3 or more"
            )
        if compress not in ("mlp", "mean"):
            raise ValueError(f"compress must be 'mlp' or 'mean', not {compress!r}")
        rng, d = init.generator(seed), dim // heads
        self.heads, self.kv_heads = heads, hkv
        self.sizes = Sizes(length, stride, block, picks, window)
        self.position = as_position(position, heads=heads)
        if self.position.bias([0], [0]) is not None:
            raise ValueError("nsa takes position schemes that rotate, not biases on the scores")
        widths = (dim, hkv * d, hkv * d, dim)
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, n, False, rng, dtype=dtype) for n in widths)
        self.wg = Linear(dim, 3 * heads, True, rng, dtype=dtype)
        self.wg.bias.data[...] = np.tile([-2.0, -2.0, 2.0], heads)  # type: ignore[union-attr]
        phis = [Compression(length, d, rng, dtype) if compress == "mlp" else None for _ in range(2)]
        self.phi_k, self.phi_v = phis

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D)."""
        q, k, v = self._heads(x, 0)
        return self._mix(x, q, k, v, *compress(k, v, self.phi_k, self.phi_v, self.sizes))

    def _heads(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim != 3:
            raise ShapeError(f"nsa: x must be (B, N, D), not {x.shape}")
        here = np.arange(start, start + x.shape[1])
        q = self.position.rotate(ops.split_heads(self.wq(x), self.heads), here)
        k = self.position.rotate(ops.split_heads(self.wk(x), self.kv_heads), here)
        return q, k, ops.split_heads(self.wv(x), self.kv_heads)

    def _mix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, kc: Tensor, vc: Tensor) -> Tensor:
        g = ops.sigmoid(ops.split_heads(self.wg(x), self.heads))  # (B, H, N, 3)
        o = [g[..., i : i + 1] * part for i, part in enumerate(branches(q, k, v, kc, vc, self.sizes))]
        return self.wo(ops.merge_heads(o[0] + o[1] + o[2]))

    def start(self, batch: int) -> Caches:
        """The empty caches."""
        shape = (batch, self.kv_heads, 0, self.wq.weight.shape[1] // self.heads)
        return KVCache.empty(shape, self.wq.weight), KVCache.empty(shape, self.wq.weight)

    def step(self, x: Tensor, state: Caches) -> tuple[Tensor, Caches]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        y, state = self.prefill(x.reshape((x.shape[0], 1, x.shape[1])), state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: Caches) -> tuple[Tensor, Caches]:
        """Several tokens x (B, n, D) at once after those in `state`: (B, n, D) and the new state."""
        with no_grad():
            tokens, blocks = state
            q, k, v = self._heads(x, tokens.length)
            tokens = tokens.append(k.data, v.data)
            k, v = Tensor(tokens.k), Tensor(tokens.v)
            # The next compressed block starts here; those that are complete by now join the cache.
            begin = blocks.length * self.sizes.stride
            kc, vc = compress(k[:, :, begin:], v[:, :, begin:], self.phi_k, self.phi_v, self.sizes)
            blocks = blocks.append(kc.data, vc.data)
            return self._mix(x, q, k, v, Tensor(blocks.k), Tensor(blocks.v)), (tokens, blocks)


def build(case: Case, **options: Any) -> NSA:
    return NSA(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


@identity("gates that are open for one branch only give that branch through W_o")
def gates(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, left, right = build(case, length=2, stride=1, block=2, window=2), case.tokens(), [], []
    q, k, v = layer._heads(x, 0)
    kc, vc = compress(k, v, layer.phi_k, layer.phi_v, layer.sizes)
    parts = [layer.wo(ops.merge_heads(o)) for o in branches(q, k, v, kc, vc, layer.sizes)]
    layer.wg.weight.data = np.zeros_like(layer.wg.weight.data)
    for i in range(3):
        layer.wg.load_state_dict(
            {"weight": layer.wg.weight, "bias": np.tile(800.0 * np.eye(3)[i] - 400.0, case.h)}
        )
        left.append(layer(x))
        right.append(parts[i])
    return ops.stack(left), ops.stack(right)


def heads_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """q (b, h, t, d), and k, v (b, 1, t, d): all query heads are one group."""
    rng = case.rng()
    q, k, v = (Tensor(rng.standard_normal((case.b, n, case.t, case.d))) for n in (case.h, 1, 1))
    return q, k, v


def of_means(case: Case, sizes: Sizes) -> tuple[Tensor, ...]:
    """The branches, and means as phi."""
    q, k, v = heads_of(case)
    return branches(q, k, v, *compress(k, v, None, None, sizes), sizes)


def attention(q: Any, k: Any, v: Any) -> Any:
    """One query (d,) and a list of keys and values (m, d); zeros for none."""
    p = np.exp(k @ q / math.sqrt(len(q)))
    return p / p.sum() @ v if len(p) else np.zeros(len(q))


@identity(
    "every branch, token by token with loops over blocks, stride units and heads, equals the gather forms"
)
def written_out(case: Case) -> tuple[Tensor, Any]:
    sizes = Sizes(length=4, stride=2, block=4, picks=3, window=3)
    q, k, v = (x.data for x in heads_of(case))
    o = np.zeros((3, *q.shape))
    for b, t in np.ndindex(case.b, case.t):
        ends = [c for c in range(0, case.t, 2) if c + 4 <= t + 1]
        kc, vc = (
            np.array([x[b, 0, c : c + 4].mean(axis=0) for c in ends]).reshape(-1, case.d) for x in (k, v)
        )
        a = np.zeros(t // 4 + 1)
        for h in range(case.h):
            e = np.exp(kc @ q[b, h, t] / math.sqrt(case.d))
            o[0, b, h, t] = attention(q[b, h, t], kc, vc)
            for j, m, n in np.ndindex(len(a), 2, 2):
                a[j] += e[2 * j + m - n] / e.sum() if 0 <= 2 * j + m - n < len(e) else 0.0
        forced = {0, t // 4, max(t // 4 - 1, 0)}
        best = sorted(range(len(a)), key=lambda j: (j not in forced, -a[j], j))[:3]
        seen = [i for i in range(t + 1) if i // 4 in best]
        for h in range(case.h):
            o[1, b, h, t] = attention(q[b, h, t], k[b, 0, seen], v[b, 0, seen])
            near = slice(max(0, t - 2), t + 1)
            o[2, b, h, t] = attention(q[b, h, t], k[b, 0, near], v[b, 0, near])
    return ops.stack(of_means(case, sizes)), o


@identity("as many selected blocks as there are: the second branch is full causal attention")
def all_selected(case: Case) -> tuple[Tensor, Tensor]:
    sizes = Sizes(length=4, stride=2, block=2, picks=case.t + 3)
    return of_means(case, sizes)[1], ops.softmax_attention(*heads_of(case), causal=True)


@identity("the third branch is the sliding window; over the whole sequence, full causal attention")
def window_is_window(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    full = ops.softmax_attention(q, k, v, causal=True)
    k2, v2 = (ops.repeat(x, case.h, axis=1) for x in (k, v))
    return ops.stack([windowed(q, k, v, 3), windowed(q, k, v, case.t)]), ops.stack(
        [banded(q, k2, v2, 2, 0), full]
    )


@identity("blocks of one token, not compressed: the first branch is full causal attention")
def nothing_compressed(case: Case) -> tuple[Tensor, Tensor]:
    sizes = Sizes(length=1, stride=1, block=1)
    return of_means(case, sizes)[0], ops.softmax_attention(*heads_of(case), causal=True)


def scores(case: Case, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """p (b, h, t, C) and a (b, 1, t, J)."""
    q, k, v = heads_of(case)
    kc, vc = compress(k, v, None, None, sizes)
    p = compressed(q, kc, vc, np.arange(case.t), sizes)[1]
    return p, importance(p, -(-case.t // sizes.block), 1, sizes)


@identity("the importance of all blocks sums to l/s times the sum of p, over all heads")
def importance_sums(case: Case) -> tuple[Tensor, Tensor]:
    p, a = scores(case, Sizes(length=4, stride=2, block=4))
    return a.sum(axis=-1), 2.0 * p.sum(axis=(1, 3))[:, None]


@identity("l = s = l': the importance is p itself, summed over the heads of a group")
def importance_is_p(case: Case) -> tuple[Tensor, Tensor]:
    p, a = scores(case, Sizes(length=2, stride=2, block=2))
    return a, ops.pad(p, ((0, 0), (0, 0), (0, 0), (0, case.t % 2))).sum(axis=1, keepdims=True)

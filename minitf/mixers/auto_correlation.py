"""Auto-correlation: finds the periods of a series, and adds up copies of it that are shifted by them.

    q = x W_q + b_q,  k = c W_k + b_k,  v = c W_v + b_v            split into heads
    corr[tau] = sum_t q[(t + tau) mod N] k[t]                      for each channel
              = irfft(rfft(q) conj(rfft(k)))[tau]
    r[tau]    = mean of corr[tau] over heads and channels
    tau_1..tau_K = the K largest delays of r,   w = softmax(r[tau_1], ..., r[tau_K])
    o[t] = sum_i w_i v[(t + tau_i) mod N]
    y    = merge(o) W_o + b_o

    x, y  (B, N, D)    c  (B, S, D), x itself if left out    q, k, v, o, corr  (B, H, N, d)
    r  (B, N)          w, tau  (B, K)

K = floor(factor ln N), from 1 to N. Where S < N zeros are put behind k and v; where S > N they are cut to the
first N tokens. Delays are chosen in one of three ways:
    "inference"   for each sample by its own r
    "training"    once for the batch, by the mean of r over it; the weights stay those of each sample
    "full"        for each head and channel by its own corr, which are then the weights too
The default is "training" in training mode and "inference" in eval mode, so a model changes its outputs a
little between them; in training mode examples of one batch influence each other.

Neither b_q nor, where S >= N, b_k changes the output: they shift all of r by one number. No positions are
needed: tokens shifted around the circle give outputs shifted as far. Nothing is causal, and no mask is taken.

Cost: 8 N D^2 for the maps, about 8 N log N D for the transforms and 2 K N D for the copies.
Source: Autoformer: Decomposition Transformers with Auto-Correlation for Long-Term Series Forecasting, Wu et
al., arXiv:2106.13008, 2021, section 3.2.
Differs from the paper: K is at least 1, where the published code fails for N < 3.
Numerics: delays are constants to differentiation; tied delays are taken lower index first. Values are read at
t + tau and the correlation peaks where q[t + tau] matches k[t], as in the published code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor
from minitf.nn import Card, Case, Linear, Module, Paper, identity, init, positive

CARD = Card(
    name="auto_correlation",
    title="Auto-correlation (Autoformer)",
    kind="mixer",
    family="fourier",
    papers=(
        Paper(
            "Autoformer: Decomposition Transformers with Auto-Correlation for Long-Term Series Forecasting",
            "2106.13008",
            2021,
        ),
    ),
    causal=False,
    streams=False,
    grid="1d",
    complexity="8 N D^2 + 8 N log N D + 2 K N D",
    properties=("batch_independent", "translation_equivariant"),
    basis="published code: thuml/Autoformer layers/AutoCorrelation.py",
    parity=(
        "transformers 5.23.0 AutoformerAttention",
        "thuml/Autoformer 51c7d41 AutoCorrelationLayer",
    ),
)
MODES = ("inference", "training", "full")


def correlation(q: Tensor, k: Tensor) -> Tensor:
    """corr (B, H, N, d) of q, k (B, H, N, d), by Fourier transforms along time."""
    product = ops.rfft(q, axis=2) * ops.conj(ops.rfft(k, axis=2))
    return ops.irfft(product, n=q.shape[2], axis=2)


def delays(corr: Tensor, top: int, mode: str) -> tuple[Array, Tensor]:
    """The chosen tau and their weights w, both broadcastable to (B, H, K, d)."""
    if mode == "full":
        r = corr
        tau = ops.topk(r.detach(), top, axis=2)[1].numpy()
    else:
        # r: (B, 1, N, 1)
        r = corr.mean(axis=(1, 3), keepdims=True)
        judged = r.detach().mean(axis=0, keepdims=True) if mode == "training" else r.detach()
        tau = np.broadcast_to(ops.topk(judged, top, axis=2)[1].numpy(), (r.shape[0], 1, top, 1))
    return tau, ops.softmax(ops.take_along_axis(r, tau, axis=2), axis=2)


def aggregated(v: Tensor, tau: Array, w: Tensor) -> Tensor:
    """o[t] = sum_i w_i v[(t + tau_i) mod N]: (B, H, N, d) from v (B, H, N, d)."""
    t = np.arange(v.shape[2])[:, None]
    o = ops.zeros_like(v)
    for i in range(tau.shape[2]):
        index = np.broadcast_to((t + tau[:, :, i : i + 1]) % len(t), v.shape)
        o = o + w[:, :, i : i + 1] * ops.take_along_axis(v, index, axis=2)
    return o


def fitted(x: Tensor, n: int) -> Tensor:
    """x (B, H, S, d) with N tokens: the first N, or zeros behind."""
    return ops.pad(x[:, :, :n], ((0, 0), (0, 0), (0, max(0, n - x.shape[2])), (0, 0)))


class AutoCorrelation(Module):
    """x (B, N, D) -> (B, N, D). Parameters: wq, wk, wv, wo (D, D), with biases if `bias`.

    Args:
        dim: D. heads: H. factor: the number of delays is floor(factor ln N).
        mode: "inference", "training" or "full"; by the module's own mode if left out.

    Raises:
        ValueError: heads that do not divide dim, a factor of 0 or less, another mode.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        factor: float = 1.0,
        mode: str | None = None,
        bias: bool = True,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads, factor=factor)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        if mode is not None and mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, or None, not {mode!r}")
        rng = init.generator(seed)
        self.heads, self.factor, self.mode = heads, factor, mode
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, dim, bias, rng, dtype=dtype) for _ in range(4))

    def forward(
        self, x: Tensor, *, context: Tensor | None = None, rng: np.random.Generator | None = None
    ) -> Tensor:
        """Mix x (B, N, D). context: (B, S, D), whose tokens give keys and values."""
        if x.ndim != 3:
            raise ShapeError(f"auto_correlation: x must be (B, N, D), not {x.shape}")
        n, source = x.shape[1], x if context is None else context
        q = ops.split_heads(self.wq(x), self.heads)
        k, v = (fitted(ops.split_heads(w(source), self.heads), n) for w in (self.wk, self.wv))
        mode = self.mode or ("training" if self.training else "inference")
        tau, w = delays(correlation(q, k), self.count(n), mode)
        return self.wo(ops.merge_heads(aggregated(v, tau, w)))

    def count(self, n: int) -> int:
        """K for N tokens."""
        return min(max(1, int(self.factor * math.log(n))), n)


def build(case: Case, **options: Any) -> AutoCorrelation:
    return AutoCorrelation(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options).eval()


def heads_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    rng = case.rng()
    q, k, v = (Tensor(rng.standard_normal((case.b, case.h, case.t, case.d))) for _ in range(3))
    return q, k, v


def mixed(heads: Sequence[Tensor], top: int, mode: str = "inference") -> Tensor:
    q, k, v = heads
    return aggregated(v, *delays(correlation(q, k), top, mode))


def some(case: Case) -> int:
    """A number of delays, from 1 to N."""
    return 1 + case.seed % case.t


@identity("the Fourier form equals the circular correlation by loops")
def by_loops(case: Case) -> tuple[Tensor, Array]:
    q, k, _ = heads_of(case)
    expected = np.zeros(q.shape)
    for tau, t in np.ndindex(case.t, case.t):
        expected[:, :, tau] += q.data[:, :, (t + tau) % case.t] * k.data[:, :, t]
    return correlation(q, k), expected


@identity("rolled copies, weighted by a softmax over the largest correlations, in all three modes")
def by_rolling(case: Case) -> tuple[Tensor, Array]:
    q, k, v = heads_of(case)
    top, corr, left, right = some(case), correlation(q, k).data, [], []
    r = corr.mean(axis=(1, 3))
    for mode in MODES:
        expected = np.zeros(q.shape)
        for b, h, c in np.ndindex(case.b, case.h, case.d):
            scores = corr[b, h, :, c] if mode == "full" else r[b]
            chosen = np.argsort(-(r.mean(axis=0) if mode == "training" else scores), kind="stable")[:top]
            weights = np.exp(scores[chosen]) / np.exp(scores[chosen]).sum()
            for w, tau in zip(weights, chosen):
                expected[b, h, :, c] += w * np.roll(v.data[b, h, :, c], -tau)
        left.append(mixed((q, k, v), top, mode))
        right.append(expected)
    return ops.stack(left), np.stack(right)


@identity("the layer is its maps around the copies, floor(2 ln N) of them; biases of q and k change nothing")
def layer_is_copies(case: Case) -> tuple[Tensor, Tensor]:
    x, rng, left, right = case.tokens(), case.rng(), [], []
    top = min(max(1, math.floor(2.0 * math.log(case.t))), case.t)
    for mode in MODES:
        layer = build(case, factor=2.0, mode=mode)
        q, k = (ops.split_heads(x @ w.weight, case.h) for w in (layer.wq, layer.wk))
        for w in (layer.wq, layer.wk, layer.wv, layer.wo):
            assert w.bias is not None
            w.bias.data = rng.standard_normal(case.dim)
        v = ops.split_heads(layer.wv(x), case.h)
        left.append(layer(x))
        right.append(layer.wo(ops.merge_heads(mixed((q, k, v), top, mode))))
    return ops.stack(left), ops.stack(right)


@identity("q, k and v shifted around the circle shift the output as far")
def shifted(case: Case) -> tuple[Tensor, Tensor]:
    heads, by = heads_of(case), 1 + case.seed % case.t
    moved = [ops.roll(a, by, 2) for a in heads]
    left = [mixed(moved, some(case), m) for m in MODES]
    return ops.stack(left), ops.stack([ops.roll(mixed(heads, some(case), m), by, 2) for m in MODES])


@identity("q = k correlates best with itself unshifted: one delay gives v back")
def unshifted(case: Case) -> tuple[Tensor, Tensor]:
    q, _, v = heads_of(case)
    return ops.stack([mixed((q, q, v), 1, m) for m in MODES]), ops.stack([v] * 3)


@identity("q = 0 and all delays: the mean of v over time")
def mean_over_time(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    mean = v.mean(axis=2, keepdims=True) + 0.0 * v
    return ops.stack([mixed((0.0 * q, k, v), case.t, m) for m in MODES]), ops.stack([mean] * 3)


@identity("v constant in time comes out as it is: the weights sum to 1")
def constant(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    v = v[:, :, :1] + 0.0 * v
    return ops.stack([mixed((q, k, v), some(case), m) for m in MODES]), ops.stack([v] * 3)


@identity("a batch of one: training chooses what inference chooses; one head of one channel: also full does")
def batch_of_one(case: Case) -> tuple[Tensor, Tensor]:
    heads = [a[:1] for a in heads_of(case)]
    single = [a[:1, :1, :, :1] for a in heads_of(case)]
    left = [mixed(heads, some(case), "training").reshape((-1,))]
    right = [mixed(heads, some(case)).reshape((-1,))]
    left.append(mixed(single, some(case), "full").reshape((-1,)))
    right.append(mixed(single, some(case)).reshape((-1,)))
    return ops.concat(left), ops.concat(right)


@identity("a context that is too short counts as followed by zero keys and values; a longer one is cut")
def lengths(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, bias=False), case.tokens()
    short, rng = x[:, : max(1, case.t // 2)], case.rng()
    zeros = Tensor(np.zeros((case.b, case.t - short.shape[1], case.dim)))
    longer = ops.concat([x, Tensor(rng.standard_normal((case.b, 3, case.dim)))], axis=1)
    left = [layer(x, context=short), layer(x, context=longer)]
    return ops.stack(left), ops.stack([layer(x, context=ops.concat([short, zeros], axis=1)), layer(x)])

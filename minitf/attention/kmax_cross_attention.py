"""k-means cross-attention: every pixel belongs to one query, and every query adds up its pixels.

    P   = gelu(norm(gelu(p) W_p))        Q = gelu(norm(q W_q))        bottlenecks
    S   = norm1(Q W_m . f / |f|)                                      f: features of P for the masks
    A_ln = 1 if l = argmax over queries of S_ln, else 0               the lower index wins; a constant
    q  <- q + norm0(norm(sum_n A_ln v_n) W_u)                         a sum over pixels, not a mean
    q  <- gelu(q + norm0(gelu(norm(B v_q)) W_a))                      queries attend to each other:
          B = softmax(norm(q_q . k_q)), from Q, without 1 / sqrt(d)
    q  <- gelu(q + norm0(gelu(norm(q W_1)) W_2))
    f   = norm(gelu(norm(gelu(norm(DW5(P))) W_f1)) W_f2)
    c   = Q W_c + b_c + (0, .., 0, log(9 K))                          class scores, the last one void

    p  (B, R, C, D)   pixels      q  (B, L, D)   queries, the centres      v = norm(P W_v)  (B, N, D)
    S, A  (B, L, N), N = R C      c  (B, L, K + 1)

norm1 has one channel and a gain of 0.1, norm0 a gain of 0: at the start the queries only pass the two gelus.

Cost: 4 N D^2 for bottleneck and values, 3 N D^2 + 50 N D for the features, N L D for S, 2 N L D for the sums,
which are a product with A here; a sum over the pixels of each query would take N D.
Source: k-means Mask Transformer, Yu et al., arXiv:2207.04044, 2022, equations 5 to 7.
Differs from the paper: widths are D and D / 2 instead of 256 and 128; `norm` chooses batch norms (as
published), layer norms, or none, where only the gains stay.
Numerics: batch norms add 1e-3 to the variance, as published. |f| below 1e-6 counts as 1e-6. No gradient
reaches S through A: S learns from losses on the masks.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, array_module
from minitf.nn import (
    BatchNorm,
    Card,
    Case,
    Conv,
    LayerNorm,
    Linear,
    Module,
    Paper,
    Parameter,
    identity,
    init,
    positive,
)

CARD = Card(
    name="kmax_cross_attention",
    title="k-means cross-attention (kMaX-DeepLab)",
    kind="attention",
    family="clustering",
    papers=(Paper("kMaX-DeepLab: k-means Mask Transformer", "2207.04044", 2022),),
    causal=False,
    streams=False,
    grid="2d",
    complexity="7 N D^2 + 3 N L D + 50 N D",
    properties=("batch_independent",),
    basis="published code: bytedance/kmax-deeplab f8e1d04 kMaXTransformerLayer, which gives the same values "
    "at its fixed widths",
)


class Gain(Module):
    """y = x * weight, what is left of a norm that is switched off. Parameter: weight (D,)."""

    def __init__(self, dim: int, gain: float, dtype: Any):
        self.weight = Parameter(np.full(dim, gain, dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def norm_of(kind: str, dim: int, gain: float, dtype: Any) -> Any:
    if kind == "bn":
        return BatchNorm(dim, eps=1e-3, momentum=0.01, gain=gain, dtype=dtype)
    if kind == "ln":
        norm = LayerNorm(dim, dtype=dtype)
        norm.weight.data = norm.weight.data * gain
        return norm
    return Gain(dim, gain, dtype)


class Normed(Module):
    """norm(x W), without bias: (..., n_in) -> (..., n_out)."""

    def __init__(self, n_in: int, n_out: int, norm: str, rng: Any, dtype: Any, gain: float = 1.0):
        self.w = Linear(n_in, n_out, False, rng, dtype=dtype)
        self.norm = norm_of(norm, n_out, gain, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.w(x))


def assign(scores: Any) -> Array:
    """A (B, L, N): for each pixel a 1 at the query with the largest score."""
    s = scores.data
    queries = array_module(s).arange(s.shape[1])[:, None]
    return (s.argmax(axis=1)[:, None] == queries).astype(s.dtype)


class Update(NamedTuple):
    """New queries (B, L, D), and what they predict: masks S (B, L, N), classes (B, L, K + 1), features."""

    queries: Tensor
    masks: Tensor
    classes: Tensor
    features: Tensor


class KMaXCrossAttention(Module):
    """pixels (B, R, C, D), queries (B, L, D) -> Update.

    Args:
        dim: D. heads: of the attention among queries. classes: K. hidden: of the last network.
        norm: "bn", "ln" or "none". reduce: "sum", or "mean" over the pixels of a query.

    Raises:
        ValueError: an unknown norm or reduce; heads that do not divide dim; classes or hidden below 1.
        ShapeError: pixels or queries of another shape.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        classes: int = 10,
        hidden: int | None = None,
        norm: str = "bn",
        reduce: str = "sum",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads, classes=classes, hidden=hidden)
        if norm not in ("bn", "ln", "none") or reduce not in ("sum", "mean"):
            raise ValueError(f"norm={norm!r} must be bn, ln or none, and reduce={reduce!r} sum or mean")
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        rng = init.generator(seed)
        half, hidden = heads * max(1, dim // (2 * heads)), 8 * dim if hidden is None else hidden

        def normed(n_in: int, n_out: int, gain: float = 1.0) -> Normed:
            return Normed(n_in, n_out, norm, rng, dtype, gain)

        self.heads, self.reduce = heads, reduce
        self.wp, self.wq, self.wv = normed(dim, dim), normed(dim, dim), normed(dim, dim)
        # Features of pixels, and what queries look for in them.
        self.conv = Conv(dim, dim, (5, 5), False, rng, groups=dim, dtype=dtype)
        self.conv_norm = norm_of(norm, dim, 1.0, dtype)
        self.wf1, self.wf2, self.wm = normed(dim, dim), normed(dim, half), normed(dim, half)
        self.mask_norm = norm_of(norm, 1, 0.1, dtype)
        self.wc = Linear(dim, classes + 1, True, rng, dtype=dtype)
        self.sum_norm, self.wu = norm_of(norm, dim, 1.0, dtype), normed(dim, dim, 0.0)
        self.wqk, self.wqv = normed(dim, 2 * half), normed(dim, dim)
        self.score_norm, self.out_norm = norm_of(norm, heads, 1.0, dtype), norm_of(norm, dim, 1.0, dtype)
        self.wa = normed(dim, dim, 0.0)
        self.w1, self.w2 = normed(dim, hidden), normed(hidden, dim, 0.0)

    def forward(self, pixels: Tensor, queries: Tensor, *, rng: np.random.Generator | None = None) -> Update:
        """One step: assign pixels, move queries, let them talk."""
        if pixels.ndim != 4 or queries.ndim != 3 or pixels.shape[::3] != queries.shape[::2]:
            raise ShapeError(
                f"kmax_cross_attention: pixels {pixels.shape} must be (B, R, C, D) and queries "
                f"{queries.shape} (B, L, D)"
            )
        b, _, _, d = pixels.shape
        p, narrow = ops.gelu(self.wp(ops.gelu(pixels))), ops.gelu(self.wq(queries))
        # f: (B, N, D / 2), of length 1
        f = ops.gelu(self.wf1(ops.gelu(self.conv_norm(self.conv(p)))))
        f = self.wf2(f).reshape((b, p.shape[1] * p.shape[2], -1))
        f = f / ops.sqrt(ops.maximum((f * f).sum(axis=-1, keepdims=True), 1e-12))
        # S: (B, L, N)
        masks = self.mask_norm((self.wm(narrow) @ f.mT)[..., None])[..., 0]
        classes = self.wc(narrow)
        count = classes.shape[-1] - 1
        classes = classes + np.append(np.zeros(count), math.log(count * 9.0)).astype(classes.dtype)
        # sum over n of A_ln v_n: (B, L, D)
        a = assign(masks)
        if self.reduce == "mean":
            a = a / np.maximum(a.sum(axis=-1, keepdims=True), 1.0)
        q = queries + self.wu(self.sum_norm(a @ self.wv(p).reshape((b, -1, d))))
        q = ops.gelu(q + self.wa(ops.gelu(self.out_norm(self._talk(narrow)))))
        return Update(ops.gelu(q + self.w2(ops.gelu(self.w1(q)))), masks, classes, f)

    def _talk(self, narrow: Tensor) -> Tensor:
        """Attention among queries (B, L, D), with a norm on the scores of every head."""
        q, k = (ops.split_heads(a, self.heads) for a in ops.split(self.wqk(narrow), 2, axis=-1))
        # (B, H, L, L), the norm's channels are the heads
        scores = ops.moveaxis(self.score_norm(ops.moveaxis(q @ k.mT, 1, -1)), -1, 1)
        return ops.merge_heads(ops.softmax(scores) @ ops.split_heads(self.wqv(narrow), self.heads))

    @staticmethod
    def example_inputs(case: Case) -> tuple[Tensor, Tensor]:
        """Pixels on a grid (t, w), and 3 queries."""
        return case.image(), Tensor(case.rng().standard_normal((case.b, 3, case.dim)))


def build(case: Case, **options: Any) -> KMaXCrossAttention:
    options = {"norm": "none", **options}
    layer = KMaXCrossAttention(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)
    return layer.eval()


@identity("at the start, with every kind of norm, queries only pass two gelus")
def starts_silent(case: Case) -> tuple[Tensor, Tensor]:
    pixels, queries = KMaXCrossAttention.example_inputs(case)
    left = [build(case, norm=norm)(pixels, queries).queries for norm in ("none", "ln", "bn")]
    return ops.stack(left), ops.stack([ops.gelu(ops.gelu(queries))] * 3)


@identity("every pixel has one query, the best one, and the sums of all queries hold all pixels once")
def partition_of_pixels(case: Case) -> tuple[Any, Any]:
    rng = case.rng()
    scores = rng.integers(0, 3, (case.b, 4, case.t)).astype(float)
    v = rng.standard_normal((case.b, case.t, case.dim))
    a = assign(Tensor(scores))
    best = np.array([[int(np.flatnonzero(c == c.max())[0]) for c in s.T] for s in scores])
    left = [
        a.sum(axis=1).ravel(),
        (a * np.arange(4)[:, None]).sum(axis=1).ravel(),
        (a @ v).sum(axis=1).ravel(),
    ]
    right = [np.ones(a[:, 0].size), best.ravel(), v.sum(axis=1).ravel()]
    return np.concatenate(left), np.concatenate(right)


@identity("the step of the queries is the sum, or the mean, of the values of their pixels, in a loop")
def kmeans_step(case: Case) -> tuple[Tensor, Tensor]:
    left, right = [], []
    for reduce in ("sum", "mean"):
        layer, (pixels, queries) = build(case, reduce=reduce), KMaXCrossAttention.example_inputs(case)
        layer.wu.norm.weight.data = np.ones(case.dim)
        update = layer(pixels, queries)
        v = layer.wv(ops.gelu(layer.wp(ops.gelu(pixels)))).data.reshape((case.b, -1, case.dim))
        moved = np.zeros(queries.shape)
        for b, i in np.ndindex(moved.shape[:2]):
            own = v[b, np.argmax(update.masks.data[b], axis=0) == i]
            moved[b, i] = own.sum(axis=0) / (max(1, len(own)) if reduce == "mean" else 1)
        left.append(update.queries)
        right.append(ops.gelu(ops.gelu(queries + layer.wu.w(Tensor(moved)))))
    return ops.stack(left), ops.stack(right)


@identity("all the equations in eval mode, written out: masks, features, classes, steps and talk of queries")
def equations(case: Case) -> tuple[Tensor, Any]:
    layer, (pixels, queries) = build(case, norm="bn", classes=4), KMaXCrossAttention.example_inputs(case)
    rng = case.rng()
    for norm in layer.modules():
        if isinstance(norm, BatchNorm):
            norm.weight.data, norm.bias.data = rng.standard_normal((2, *norm.weight.shape))
            norm.mean.data, norm.variance.data = rng.uniform(0.5, 2.0, (2, *norm.mean.shape))
    update, n = layer(pixels, queries), case.t * case.w

    def normed(x: Any, norm: Any) -> Any:
        spread = np.sqrt(norm.variance.data + 1e-3)
        return (x - norm.mean.data) / spread * norm.weight.data + norm.bias.data

    def mapped(x: Any, part: Normed) -> Any:
        return normed(x @ part.w.weight.data, part.norm)

    def gelu(x: Any) -> Any:
        return ops.gelu(Tensor(x)).data

    p, narrow = gelu(mapped(gelu(pixels.data), layer.wp)), gelu(mapped(queries.data, layer.wq))
    wide, f = np.pad(p, ((0, 0), (2, 2), (2, 2), (0, 0))), np.zeros(p.shape)
    for i, j in np.ndindex(5, 5):
        f += wide[:, i : i + case.t, j : j + case.w] * layer.conv.weight.data[i, j, 0]
    f = mapped(gelu(mapped(gelu(normed(f, layer.conv_norm)), layer.wf1)), layer.wf2)
    f = (f / np.linalg.norm(f, axis=-1, keepdims=True)).reshape(case.b, n, -1)
    s = normed((mapped(narrow, layer.wm) @ f.swapaxes(1, 2))[..., None], layer.mask_norm)[..., 0]
    # The biases of the classes are 0 at the start; void, the fifth, has log(9 * 4).
    c = narrow @ layer.wc.weight.data + np.array([0.0, 0.0, 0.0, 0.0, np.log(36.0)])
    best = np.argmax(s, axis=1)
    v = mapped(p, layer.wv).reshape(case.b, n, -1)
    sums = np.array([[v[b, best[b] == i].sum(axis=0) for i in range(3)] for b in range(case.b)])
    q = queries.data + mapped(normed(sums, layer.sum_norm), layer.wu)
    # The talk of the queries, head by head: channels h of keys, and of values.
    qk, values, talk = mapped(narrow, layer.wqk), mapped(narrow, layer.wqv), np.zeros(q.shape)
    width, norm = qk.shape[-1] // (2 * case.h), layer.score_norm
    for b, h in np.ndindex(case.b, case.h):
        own, theirs = (qk[b, :, i * width : (i + 1) * width] for i in (h, case.h + h))
        score = (own @ theirs.T - norm.mean.data[h]) / np.sqrt(norm.variance.data[h] + 1e-3)
        e = np.exp(score * norm.weight.data[h] + norm.bias.data[h])
        part = slice(h * case.d, (h + 1) * case.d)
        talk[b, :, part] = e / e.sum(axis=-1, keepdims=True) @ values[b, :, part]
    q = gelu(q + mapped(gelu(normed(talk, layer.out_norm)), layer.wa))
    q = gelu(q + mapped(gelu(mapped(q, layer.w1)), layer.w2))
    found = [t.reshape((-1,)) for t in (update.queries, update.masks, update.classes, update.features)]
    return ops.concat(found), np.concatenate([a.reshape(-1) for a in (q, s, c, f)])


@identity("the softmax over queries of S / T tends to A as T falls to 0")
def hard_limit(case: Case) -> tuple[Tensor, Any]:
    s = Tensor(case.rng().standard_normal((case.b, 3, case.t)))
    return ops.softmax(s / 1e-9, axis=1), assign(s)


@identity("means instead of sums, of pixels assigned by cosine: one step of Lloyd's k-means")
def lloyd(case: Case) -> tuple[Any, Any]:
    rng = case.rng()
    points, centres = rng.standard_normal((case.t, case.dim)), rng.standard_normal((3, case.dim))
    points, centres = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (points, centres))
    a = assign(Tensor((centres @ points.T)[None]))[0]
    means = a @ points / np.maximum(a.sum(axis=1, keepdims=True), 1.0)
    # For unit vectors the largest cosine is the smallest distance.
    nearest = np.argmin([[np.linalg.norm(c - x) for x in points] for c in centres], axis=0)
    groups = [points[nearest == i] for i in range(3)]
    return means, np.stack([g.mean(axis=0) if len(g) else np.zeros(case.dim) for g in groups])


@identity("permuting pixels (1 x 1 features) permutes the masks and leaves the queries as they are")
def pixels_are_a_set(case: Case) -> tuple[Tensor, Tensor]:
    layer, (pixels, queries) = build(case), KMaXCrossAttention.example_inputs(case)
    kernel = np.zeros(layer.conv.weight.shape)
    kernel[2, 2] = 1.0
    layer.conv.weight.data = kernel
    layer.wu.norm.weight.data = np.ones(case.dim)
    order = case.rng().permutation(case.t * case.w)
    moved = pixels.reshape((case.b, -1, case.dim))[:, order].reshape(pixels.shape)
    one, two = layer(pixels, queries), layer(moved, queries)
    both = [ops.concat([u.queries, m], axis=-1) for u, m in ((two, two.masks), (one, one.masks[..., order]))]
    return both[0], both[1]

"""Token merging: the r most alike pairs of tokens become one each, so that later layers have less to do.

    A, B_  = tokens at even places, tokens at odd places
    S_ab   = cos(m_a, m_b)                               m: what tokens are compared by, such as their keys
    b(a)   = argmax_b S_ab                               the lower index wins a tie
    src    = the r tokens a with the largest S_a,b(a);   unm = the other tokens of A
    s'_b   = s_b + sum over a in src with b(a) = b of s_a
    x'_b   = (s_b x_b + sum over those a of s_a x_a) / s'_b
    result = unm, then all of B_

    x  (B, N, D)        m  (B, N, d)        s  (B, N, 1)   how many tokens each stands for, at first 1
    x'  (B, N - r, D)   s'  (B, N - r, 1)   r <= (N - protected) / 2

A class token (place 0) is never merged away, and no token is merged into a distillation token (place 1). In a
model that was trained without merging, later attentions add log s_j to the scores of key j: `size_bias`.

Cost: N^2 d / 2 operations for S; layers after it see r tokens fewer.
Source: Token Merging: Your ViT But Faster, Bolya et al., arXiv:2210.09461, 2022, section 3.
Differs from the paper: a `Matching` is a value that merges and unmerges anything of N rows, not two closures.
Without a class token, unm comes in the order of its similarity, as in the published code.
Numerics: the matching is made without gradient; merging is linear in x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor
from minitf.nn import Card, Case, Module, Paper, identity, init

CARD = Card(
    name="tome",
    title="Token merging by bipartite soft matching",
    kind="tokens",
    family="merging",
    papers=(Paper("Token Merging: Your ViT But Faster", "2210.09461", 2022),),
    causal=False,
    streams=False,
    grid="1d",
    complexity="N^2 d / 2 + 2 N D",
    properties=("batch_independent",),
    basis="published code: facebookresearch/ToMe tome/merge.py, tome/patch/timm.py, tome/utils.py",
    parity=("facebookresearch/ToMe af95e4b bipartite_soft_matching, merge_wavg",),
)


@dataclass(frozen=True)
class Matching:
    """Who is merged into whom: places in the sequence of N tokens, for each example of the batch.

    unm (B, Na - r), src (B, r), into (B, r): `into` counts tokens of B_, at the odd places. With `distill`
    the first token of B_ comes second, behind the class token, instead of behind all of unm.
    """

    unm: Array
    src: Array
    into: Array
    n: int
    distill: bool = False

    def merge(self, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, N, D), s (B, N, 1) -> x' (B, N - r, D), s' (B, N - r, 1): means weighted by size."""
        sums = self._gather(x * size)
        sizes = self._gather(size)
        return sums / sizes, sizes

    def unmerge(self, y: Tensor) -> Tensor:
        """y (B, N - r, D) -> (B, N, D): every token gets what the token it is part of has."""
        kept = self.unm.shape[1]
        # Where unm and B_ lie in y.
        unm, b = np.arange(kept), kept + np.arange(self.n // 2)
        if self.distill:
            unm, b = np.where(unm > 0, unm + 1, 0), np.where(b > kept, b, 1)
        # For each of the N places, its place in y: (B, N)
        place = np.empty((y.shape[0], self.n), dtype=int)
        place[:, 1::2] = b
        np.put_along_axis(place, self.unm, unm[None], axis=1)
        np.put_along_axis(place, self.src, b[self.into], axis=1)
        return ops.take_along_axis(y, place[..., None], axis=1)

    def _gather(self, x: Tensor) -> Tensor:
        """unm as they are, then B_ with every src added where it belongs."""
        unm = ops.take_along_axis(x, self.unm[..., None], axis=1)
        src = ops.take_along_axis(x, self.src[..., None], axis=1)
        index = np.broadcast_to(self.into[..., None], src.shape)
        b = ops.scatter_add(x[:, 1::2], index, src, axis=1)
        parts = [unm[:, :1], b[:, :1], unm[:, 1:], b[:, 1:]] if self.distill else [unm, b]
        return ops.concat(parts, axis=1)


def match(metric: Tensor, r: int, class_token: bool = False, distill_token: bool = False) -> Matching:
    """The matching of r pairs, at most (N - protected) // 2, by what tokens are compared by, (B, N, d)."""
    m = metric.data
    b, n, _ = m.shape
    r = max(0, min(r, (n - class_token - distill_token) // 2))
    places = np.arange(0, n, 2)[None].repeat(b, axis=0)
    if r == 0:
        # Nothing is merged: every token stays, A before B_.
        return Matching(places, places[:, :0], places[:, :0], n, distill_token and n > 1)
    # S_ab = cos(m_a, m_b); a zero vector is like nothing: (B, Na, Nb)
    length = np.linalg.norm(m, axis=-1, keepdims=True)
    m = m / np.where(length == 0.0, 1.0, length)
    s = m[:, ::2] @ m[:, 1::2].swapaxes(1, 2)
    if class_token:
        s[:, 0] = -np.inf
    if distill_token:
        s[:, :, 0] = -np.inf
    best = s.argmax(axis=-1)
    order = np.argsort(-s.max(axis=-1), axis=-1, kind="stable")
    unm, src = order[:, r:], order[:, :r]
    if class_token:
        unm = np.sort(unm, axis=-1)
    return Matching(2 * unm, 2 * src, np.take_along_axis(best, src, axis=1), n, distill_token)


def schedule(r: int | tuple[int, float] | Sequence[int], layers: int) -> list[int]:
    """r for each layer: from one number; from (r, inflection in [-1, 1]); from a list, filled with 0.

    (r, f): r_l = int(lo + (hi - lo) l / (L - 1)), lo = int(r (1 - f)), hi = 2 r - lo.
    """
    if isinstance(r, int):
        return [r] * layers
    if isinstance(r, tuple):
        lo = int(r[0] * (1.0 - r[1]))
        step = (2 * r[0] - 2 * lo) / max(1, layers - 1)
        return [int(lo + step * i) for i in range(layers)]
    return [*r, *[0] * (layers - len(r))][:layers]


def size_bias(size: Tensor) -> Tensor:
    """log s as a bias on attention scores: (B, N, 1) -> (B, 1, 1, N)."""
    return ops.log(size)[:, None, None, :, 0]


class Merged(NamedTuple):
    """Tokens x (B, M, D), their sizes (B, M, 1), and the matching, None if nothing was merged."""

    x: Tensor
    size: Tensor
    matching: Matching | None


class ToMe(Module):
    """x (B, N, D) -> (B, N - r, D), with sizes. No parameters.

    Args:
        dim: D, for the common call; nothing depends on it. r: pairs to merge.
        class_token, distill_token: whether places 0 and 1 hold them.

    Raises:
        ValueError: r below 0.
    """

    card = CARD

    def __init__(
        self,
        dim: int = 0,
        *,
        r: int = 8,
        class_token: bool = False,
        distill_token: bool = False,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        if r < 0:
            raise ValueError(f"r={r} must be 0 or more")
        self.r, self.class_token, self.distill_token = r, class_token, distill_token

    def forward(self, x: Tensor, metric: Tensor | None = None, size: Tensor | None = None) -> Merged:
        """Merge x (B, N, D), compared by metric (B, N, d) or itself, of sizes (B, N, 1) or ones."""
        if x.ndim != 3:
            raise ShapeError(f"tome: x must be (B, N, D), not {x.shape}")
        size = Tensor(np.ones((*x.shape[:2], 1), x.dtype)) if size is None else size
        matching = match(x if metric is None else metric, self.r, self.class_token, self.distill_token)
        if matching.src.shape[1] == 0:
            return Merged(x, size, None)
        return Merged(*matching.merge(x, size), matching)


def sized(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """x (b, t, dim), metric (b, t, d), sizes (b, t, 1) from 1 to 4."""
    rng = case.rng()
    x, metric = (Tensor(rng.standard_normal((case.b, case.t, d))) for d in (case.dim, case.d))
    return x, metric, Tensor(rng.integers(1, 5, (case.b, case.t, 1)).astype(float))


@identity("merging keeps the mass: sum s' x' = sum s x, and sum s' = sum s")
def mass(case: Case) -> tuple[Tensor, Tensor]:
    x, metric, size = sized(case)
    y, merged, _ = ToMe(r=2)(x, metric, size)
    left = ops.concat([(y * merged).sum(axis=1), merged.sum(axis=1)], axis=-1)
    return left, ops.concat([(x * size).sum(axis=1), size.sum(axis=1)], axis=-1)


@identity("the vectors and sizes are those of a loop over tokens")
def loops(case: Case) -> tuple[Any, Any]:
    x, metric, size = sized(case)
    r = min(2, case.t // 2)
    y, merged, _ = ToMe(r=r)(x, metric, size)
    return ops.concat([y, merged], axis=-1), np.array([one_by_one(*a, r) for a in zip(x, metric, size)])


def one_by_one(x: Tensor, metric: Tensor, size: Tensor, r: int) -> list[Any]:
    """One example in words: rows (x', s') of (N, D), compared by (N, d), of sizes (N, 1)."""
    m = metric.data / np.linalg.norm(metric.data, axis=-1, keepdims=True)
    even, odd = list(range(0, len(m), 2)), list(range(1, len(m), 2))
    groups = [[j] for j in odd]
    alike = {a: m[a] @ m[odd].T for a in even}
    ranked = sorted(even, key=lambda a: -alike[a].max()) if odd else even
    for a in ranked[:r]:
        groups[int(alike[a].argmax())].append(a)
    groups = [[a] for a in (ranked[r:] if r else even)] + groups
    weight = [size.data[g] for g in groups]
    return [np.append((w * x.data[g]).sum(axis=0) / w.sum(), w.sum()) for g, w in zip(groups, weight)]


@identity("merging what was unmerged gives it back")
def there_and_back(case: Case) -> tuple[Tensor, Tensor]:
    x, metric, _ = sized(case)
    matching = match(metric, 2, True, bool(case.seed % 2))
    y = Tensor(case.rng().standard_normal((case.b, case.t - matching.src.shape[1], case.dim)))
    return matching.merge(matching.unmerge(y), Tensor(np.ones((case.b, case.t, 1))))[0], y


@identity("unmerging what was merged: tokens that were alone as they were, others the mean of their group")
def means(case: Case) -> tuple[Tensor, Any]:
    x, metric, size = sized(case)
    matching = match(metric, 2)
    back = matching.unmerge(matching.merge(x, size)[0])
    # The group of every token, from its own place: the token of B_ it went to, or itself.
    home = np.tile(np.arange(case.t), (case.b, 1))
    np.put_along_axis(home, matching.src, 2 * matching.into + 1, axis=1)
    same = (home[:, :, None] == home[:, None, :]) * size.data[:, None, :, 0]
    return back, same / same.sum(axis=-1, keepdims=True) @ x.data


@identity("copies of a token can be merged with it: attention with log s gives the same outputs")
def duplicates(case: Case) -> tuple[Tensor, Tensor]:
    rng = case.rng()
    once = Tensor(rng.standard_normal((case.b, case.t, case.dim)))
    twice = ops.repeat(once, 2, axis=1)
    merged, size, _ = ToMe(r=case.t)(twice)
    q = Tensor(rng.standard_normal((case.b, 1, 3, case.dim)))
    k = merged[:, None]
    left = ops.softmax_attention(q, k, k, bias=size_bias(size))
    return left, ops.softmax_attention(q, twice[:, None], twice[:, None])


@identity("class and distillation tokens stay at places 0 and 1, unchanged")
def special_tokens_stay(case: Case) -> tuple[Tensor, Tensor]:
    x, metric, size = sized(case)
    y, merged, _ = ToMe(r=case.t, class_token=True, distill_token=True)(x, metric, size)
    return ops.concat([y, merged], axis=-1)[:, :2], ops.concat([x, size], axis=-1)[:, :2]

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

Other ways to choose A and B_, in which all of A is merged and no token is protected (`split`):
    "kth"       every k-th token (places k - 1, 2k - 1, ...) is B_, the others are A
    "random"    r tokens drawn at random are A, the others are B_

Cost: N^2 d / 2 operations for S; layers after it see r tokens fewer.
Source: Token Merging: Your ViT But Faster, Bolya et al., arXiv:2210.09461, 2022, section 3.
Differs from the paper: a `Matching` is a value that merges and unmerges anything of N rows, not two closures.
Without a class token, unm comes in the order of its similarity, as in the published code. With split="kth"
that code drops the last N mod k tokens; here they are merged. With split="random" its B_ come in random
order, here in their own.
Numerics: the matching is made without gradient; merging is linear in x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, array_module, to_device
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
    parity=(
        "facebookresearch/ToMe af95e4b bipartite_soft_matching, kth_bipartite_soft_matching, merge_wavg",
    ),
)


@dataclass(frozen=True)
class Matching:
    """Who is merged into whom: places in the sequence of N tokens, for each example of the batch.

    unm (B, Na - r), src (B, r), dst (B, Nb): the tokens of A that stay, those that go, and B_.
    into (B, r): where they go, as numbers of tokens in dst. With `distill` the first token of B_ comes
    second, behind the class token, instead of behind all of unm.
    """

    unm: Array
    src: Array
    dst: Array
    into: Array
    distill: bool = False

    def merge(self, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, N, D), s (B, N, 1) -> x' (B, N - r, D), s' (B, N - r, 1): means weighted by size."""
        sums = self._gather(x * size)
        sizes = self._gather(size)
        return sums / sizes, sizes

    def unmerge(self, y: Tensor) -> Tensor:
        """y (B, N - r, D) -> (B, N, D): every token gets what the token it is part of has."""
        kept, count = self.unm.shape[1], self.dst.shape[1]
        # Where unm and B_ lie in y.
        xp = array_module(self.dst)
        unm, b = xp.arange(kept), kept + xp.arange(count)
        if self.distill:
            unm, b = np.where(unm > 0, unm + 1, 0), np.where(b > kept, b, 1)
        # For each of the N places, its place in y: (B, N)
        place = xp.empty((y.shape[0], kept + self.src.shape[1] + count), dtype=int)
        for at, there in ((self.dst, b[None]), (self.unm, unm[None]), (self.src, b[self.into])):
            place = ops.put_along_axis(place, at, there, axis=1)
        return ops.take_along_axis(y, place[..., None], axis=1)

    def _gather(self, x: Tensor) -> Tensor:
        """unm as they are, then B_ with every src added where it belongs."""
        unm, src, dst = (ops.take_along_axis(x, p[..., None], axis=1) for p in (self.unm, self.src, self.dst))
        b = ops.scatter_add(dst, np.broadcast_to(self.into[..., None], src.shape), src, axis=1)
        parts = [unm[:, :1], b[:, :1], unm[:, 1:], b[:, 1:]] if self.distill else [unm, b]
        return ops.concat(parts, axis=1)


def match(metric: Tensor, r: int, class_token: bool = False, distill_token: bool = False) -> Matching:
    """The matching of r pairs, at most (N - protected) // 2, by what tokens are compared by, (B, N, d)."""
    m = metric.data
    b, n, _ = m.shape
    r = max(0, min(r, (n - class_token - distill_token) // 2))
    xp = array_module(m)
    even, odd = (xp.tile(xp.arange(start, n, 2), (b, 1)) for start in (0, 1))
    if r == 0:
        # Nothing is merged: every token stays, A before B_.
        return Matching(even, even[:, :0], odd, odd[:, :0], distill_token and n > 1)
    s = alike(m, even, odd)
    if class_token:
        s[:, 0] = -np.inf
    if distill_token:
        s[:, :, 0] = -np.inf
    best = s.argmax(axis=-1)
    order = np.argsort(-s.max(axis=-1), axis=-1, kind="stable")
    unm, src = order[:, r:], order[:, :r]
    if class_token:
        unm = np.sort(unm, axis=-1)
    return Matching(2 * unm, 2 * src, odd, np.take_along_axis(best, src, axis=1), distill_token)


def match_kth(metric: Tensor, k: int) -> Matching:
    """Every k-th token takes the others: N // k are left, all N if there are fewer than k or k = 1."""
    b, n, _ = metric.shape
    taker = array_module(metric.data).arange(n) % k == k - 1
    dst, src = (np.tile(np.flatnonzero(a), (b, 1)) for a in (taker, ~taker))
    if not taker.any():
        return Matching(src, src[:, :0], dst, dst[:, :0])
    return Matching(src[:, :0], src, dst, alike(metric.data, src, dst).argmax(axis=-1))


def match_random(metric: Tensor, r: int, rng: np.random.Generator) -> Matching:
    """r tokens of every example, at most N - 1 and drawn at random, go into the others."""
    b, n, _ = metric.shape
    r = max(0, min(r, n - 1))
    drawn = to_device(rng.random((b, n)).argsort(axis=-1), metric.device)
    src, dst = np.sort(drawn[:, :r], axis=-1), np.sort(drawn[:, r:], axis=-1)
    return Matching(src[:, :0], src, dst, alike(metric.data, src, dst).argmax(axis=-1))


def alike(m: Array, a: Array, b: Array) -> Array:
    """S_ab = cos(m_a, m_b) (B, Na, Nb) for places a (B, Na), b (B, Nb); a zero vector is like nothing."""
    length = np.linalg.norm(m, axis=-1, keepdims=True)
    m = m / np.where(length == 0.0, 1.0, length)
    left, right = (np.take_along_axis(m, place[..., None], axis=1) for place in (a, b))
    # An operation, so that `profile` counts it.
    return ops.matmul(Tensor(left), Tensor(right).mT).data


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
        class_token, distill_token: whether places 0 and 1 hold them; with split="half" only.
        split: "half" (even and odd places), "kth" (k instead of r counts) or "random".
        k: for split="kth". seed: of the draw for split="random", the same in every call without an rng.

    Raises:
        ValueError: r below 0, k below 1, an unknown split, or special tokens that it does not protect.
    """

    card = CARD

    def __init__(
        self,
        dim: int = 0,
        *,
        r: int = 8,
        class_token: bool = False,
        distill_token: bool = False,
        split: str = "half",
        k: int = 2,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        if r < 0:
            raise ValueError(f"r={r} must be 0 or more")
        if k < 1 or split not in ("half", "kth", "random"):
            raise ValueError(f"split={split!r} must be half, kth or random, and k={k} at least 1")
        if split != "half" and (class_token or distill_token):
            raise ValueError(f"split={split!r} protects no class or distillation token")
        self.r, self.class_token, self.distill_token = r, class_token, distill_token
        self.split, self.k, self.seed = split, k, seed

    def forward(
        self,
        x: Tensor,
        metric: Tensor | None = None,
        size: Tensor | None = None,
        *,
        rng: np.random.Generator | None = None,
    ) -> Merged:
        """Merge x (B, N, D), compared by metric (B, N, d) or itself, of sizes (B, N, 1) or ones.

        rng: draws A for split="random".
        """
        if x.ndim != 3:
            raise ShapeError(f"tome: x must be (B, N, D), not {x.shape}")
        size = ops.ones((*x.shape[:2], 1), like=x) if size is None else size
        metric = x if metric is None else metric
        if self.split == "half":
            matching = match(metric, self.r, self.class_token, self.distill_token)
        elif self.split == "kth":
            matching = match_kth(metric, self.k)
        else:
            matching = match_random(metric, self.r, init.generator(self.seed) if rng is None else rng)
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
    rng, left, right = case.rng(), [], []
    for found in (
        match(metric, 2, True, bool(case.seed % 2)),
        match_kth(metric, 3),
        match_random(metric, 2, rng),
    ):
        y = Tensor(rng.standard_normal((case.b, case.t - found.src.shape[1], case.dim)))
        left.append(found.merge(found.unmerge(y), Tensor(np.ones((case.b, case.t, 1))))[0])
        right.append(y)
    return ops.concat(left, axis=1), ops.concat(right, axis=1)


@identity("unmerging what was merged: tokens that were alone as they were, others the mean of their group")
def means(case: Case) -> tuple[Tensor, Any]:
    x, metric, size = sized(case)
    left, right = [], []
    for found in (match(metric, 2), match_kth(metric, 3), match_random(metric, 2, case.rng())):
        left.append(found.unmerge(found.merge(x, size)[0]))
        # The group of every token, from its own place: the token of B_ it went to, or itself.
        home = np.tile(np.arange(case.t), (case.b, 1))
        np.put_along_axis(home, found.src, np.take_along_axis(found.dst, found.into, axis=1), axis=1)
        same = (home[:, :, None] == home[:, None, :]) * size.data[:, None, :, 0]
        right.append(same / same.sum(axis=-1, keepdims=True) @ x.data)
    return ops.stack(left), np.stack(right)


@identity("every k-th token takes the tokens most like it, in a loop; k = 2 is the halves with as many as go")
def every_kth(case: Case) -> tuple[Any, Any]:
    x, metric, size = sized(case)
    y, merged, _ = ToMe(split="kth", k=3)(x, metric, size)
    expected = []
    for row, m, s in zip(x.data, metric.data, size.data):
        m = m / np.linalg.norm(m, axis=-1, keepdims=True)
        takers = list(range(2, case.t, 3))
        groups = {j: [j] for j in takers or range(case.t)}
        for i in range(case.t):
            if i not in groups:
                groups[max(takers, key=lambda j: (m[i] @ m[j], -j))].append(i)
        sums = [(s[g].sum(), (s[g] * row[g]).sum(axis=0)) for g in groups.values()]
        expected.append([np.append(total / weight, weight) for weight, total in sums])
    # With k = 2 and an even number of tokens, all of the even places go, as r = N / 2 says.
    even = ops.concat([x, x[:, ::-1]], axis=1)
    two, halves = ToMe(split="kth", k=2)(even).x, ToMe(r=case.t)(even).x
    left = [ops.concat([y, merged], axis=-1).reshape((-1,)), two.reshape((-1,))]
    return ops.concat(left), np.concatenate([np.ravel(expected), halves.data.ravel()])


@identity("r random tokens go into those most like them, which stay in their order")
def random_tokens(case: Case) -> tuple[Any, Any]:
    x, metric, size = sized(case)
    y, merged, found = ToMe(r=2, split="random", seed=case.seed)(x, metric, size)
    expected = []
    for b, (row, m, s) in enumerate(zip(x.data, metric.data, size.data)):
        m = m / np.linalg.norm(m, axis=-1, keepdims=True)
        gone = set() if found is None else set(found.src[b].tolist())
        groups = {j: [j] for j in range(case.t) if j not in gone}
        for i in sorted(gone):
            groups[max(groups, key=lambda j: (m[i] @ m[j], -j))].append(i)
        sums = [(s[g].sum(), (s[g] * row[g]).sum(axis=0)) for g in groups.values()]
        expected.append([np.append(total / weight, weight) for weight, total in sums])
    return ops.concat([y, merged], axis=-1), np.array(expected)


@identity("copies of a token can be merged with it: attention with log s gives the same outputs")
def duplicates(case: Case) -> tuple[Tensor, Tensor]:
    rng = case.rng()
    once = Tensor(rng.standard_normal((case.b, case.t, case.dim)))
    # The last token has no copy, so that sizes are 2, ..., 2 and 1.
    alone = Tensor(rng.standard_normal((case.b, 1, case.dim)))
    twice = ops.concat([ops.repeat(once, 2, axis=1), alone], axis=1)
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

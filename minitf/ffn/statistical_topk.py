"""Statistical top-k: about k of d scores survive a threshold that is computed from their mean and spread.

    mu = mean(s),  sd = sqrt(mean((s - mu)^2)),  theta = mu + sd Q(1 - k/d)
    out = max(s - theta, 0)                              fill="zero"
    out = s - theta where s >= theta, -inf elsewhere     fill="-inf", for scores of attention

    s, out  (..., d)        Q  the inverse of the standard normal distribution function

If the scores are normal, k of them lie above theta on average. Entries that are not valid do not enter mu, sd
and the count d. With k at least the number of valid entries s is returned as it is. In the form for attention
the largest entry always stays, so that no row is lost, and all entries of a constant row do.

Gradients flow through theta. With `smooth` = delta the corner of max(t, 0) becomes t^2 / (2 delta) up to
delta and t - delta/2 from there, once continuously differentiable.

Cost: 8 N d operations, no sorting. No parameters.
Source: Spark Transformer: Reactivating Sparsity in FFN and Attention, arXiv:2506.06644, 2025.
Differs from the paper: written from two summaries, and from the gate of Gemma 3n. UNSURE: whether the paper
divides by d or d - 1 in sd; we divide by d as the released gate does. UNSURE: the paper's delta; 0 is none.
Numerics: the largest score is subtracted first, which changes nothing by the equations and makes constant
rows exact. Heavy tails keep fewer than k.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor, array_module, to_device
from minitf.engine import grad as gradient
from minitf.nn import Card, Case, Module, Paper, identity, positive

CARD = Card(
    name="statistical_topk",
    title="Statistical top-k",
    kind="operation",
    family="sparse",
    papers=(Paper("Spark Transformer: Reactivating Sparsity in FFN and Attention", "2506.06644", 2025),),
    causal=True,
    streams=False,
    grid="any",
    complexity="8 N d",
    properties=("batch_independent",),
    basis="two secondary summaries that agree, and the Gemma 3n gate in published ports",
    parity=("transformers 5.23.0 Gemma3nTextMLP._gaussian_topk",),
)


def quantile(share: Any) -> Array:
    """Q(share), the inverse of the normal distribution function, for shares in (0, 1) of any shape."""
    return np.vectorize(NormalDist().inv_cdf, otypes=["float64"])(share)


def statistical_topk(
    s: Tensor, k: int | float, fill: str = "zero", valid: Any = None, smooth: float = 0.0
) -> Tensor:
    """About k of the scores s (..., d), shifted by theta, others 0 or -inf.

    Args:
        k: how many, from 1 on; a float in (0, 1] is the share k/d.
        fill: "zero" or "-inf". valid: boolean, broadcastable to s.
        smooth: delta, with fill="zero" only.

    Raises:
        ValueError: k, fill or smooth out of range.
    """
    share = isinstance(k, float)
    if not (0.0 < k <= 1.0 if share else k >= 1):
        raise ValueError(f"k={k} must be an integer from 1 on, or a share in (0, 1]")
    if fill not in ("zero", "-inf") or not smooth >= 0.0 or (smooth and fill != "zero"):
        raise ValueError(
            f"fill={fill!r} must be 'zero' or '-inf', smooth={smooth} 0 or more, and 0 for '-inf'"
        )
    xp = array_module(s.data)
    seen = xp.asarray(True if valid is None else valid.data if isinstance(valid, Tensor) else valid)
    seen = xp.broadcast_to(seen, s.shape)
    hidden = 0.0 if fill == "zero" else -math.inf
    # d of each row, on the CPU: (..., 1); 1 for a row without valid entries
    d = np.maximum(to_device(seen.sum(axis=-1, keepdims=True), "cpu"), 1)
    kept = k * d if share else np.minimum(k, d)
    whole = kept >= d
    q = quantile(np.where(whole, 0.5, 1.0 - kept / d)).astype(s.dtype)
    # Seen from the largest score, a constant: (..., d)
    largest = np.max(np.where(seen, s.data, -np.inf), axis=-1, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0.0).astype(s.dtype)
    t = ops.where(seen, s - largest, 0.0)
    mu = t.sum(axis=-1, keepdims=True) / d.astype(s.dtype)
    variance = ops.where(seen, ops.square(t - mu), 0.0).sum(axis=-1, keepdims=True) / d.astype(s.dtype)
    # The slope of the square root at 0 is infinite; a constant row has sd = 0 and slope 0.
    constant = variance.data == 0.0
    sd = ops.where(constant, 0.0, ops.sqrt(ops.where(constant, 1.0, variance)))
    over = t - (mu + sd * q)
    if fill == "zero":
        out = huber(over, smooth) if smooth else ops.relu(over)
    else:
        out = ops.where((over.data >= 0.0) | (t.data == 0.0), over, -math.inf)
    return ops.where(seen, ops.where(whole, s, out), hidden)


def huber(t: Tensor, delta: float) -> Tensor:
    """0 below 0, t^2 / (2 delta) up to delta, then t - delta / 2."""
    return ops.where(t < delta, ops.square(ops.relu(t)) / (2.0 * delta), t - 0.5 * delta)


class StatisticalTopK(Module):
    """Scores (..., d) -> (..., d), with the options of `statistical_topk`. No parameters.

    Args:
        dim: d. k: default 8 % of d, at least 1. fill, smooth: as there.
        dtype: nothing is stored, so it changes nothing; results have that of the scores.

    Raises:
        ValueError: k out of range, or as `statistical_topk`.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        k: int | None = None,
        fill: str = "zero",
        smooth: float = 0.0,
        dtype: Any = "float32",
    ):
        positive(dim=dim)
        self.k = max(1, round(0.08 * dim)) if k is None else k
        self.fill, self.smooth = fill, smooth
        # Refuses options out of range here, and not only when called.
        statistical_topk(ops.zeros((1,)), self.k, fill, None, smooth)

    @staticmethod
    def example_inputs(case: Case) -> tuple[Tensor, ...]:
        return (case.tokens(),)

    def forward(self, s: Tensor, valid: Any = None) -> Tensor:
        return statistical_topk(s, self.k, self.fill, valid, self.smooth)


def by_loops(s: Any, k: int, fill: str) -> Any:
    """The equations row by row; Q by bisection of the error function."""
    out = np.empty_like(s)
    for index in np.ndindex(s.shape[:-1]):
        row, d = s[index], s.shape[-1]
        low, high = -10.0, 10.0
        for _ in range(200):
            middle = (low + high) / 2.0
            low, high = (middle, high) if 0.5 * math.erfc(middle / math.sqrt(2.0)) > k / d else (low, middle)
        mu = sum(row) / d
        theta = mu + math.sqrt(sum((v - mu) ** 2 for v in row) / d) * low
        for j, v in enumerate(row):
            over = v - theta
            if fill == "zero":
                out[(*index, j)] = max(over, 0.0)
            else:
                out[(*index, j)] = over if over >= 0.0 or v == max(row) else -50.0
    return out


@identity("the equations, row by row, in both forms")
def loops(case: Case) -> tuple[Any, Any]:
    s = case.tokens()
    left, right = [], []
    for k in {1, case.dim // 2, case.dim - 1}:
        left.append(statistical_topk(s, k).data)
        right.append(by_loops(s.data, k, "zero"))
        out = statistical_topk(s, k, "-inf").data
        left.append(np.where(np.isinf(out), -50.0, out))
        right.append(by_loops(s.data, k, "-inf"))
    return np.stack(left), np.stack(right)


@identity("f(s + c) = f(s) and f(c s) = c f(s) for c > 0")
def shift_and_scale(case: Case) -> tuple[Tensor, Tensor]:
    s, k = case.tokens(), max(1, case.dim // 3)
    y = statistical_topk(s, k)
    return ops.stack([statistical_topk(s + 9.0, k), statistical_topk(3.0 * s, k)]), ops.stack([y, 3.0 * y])


@identity("k = d/2, or a share of 0.5: the threshold is the mean")
def half(case: Case) -> tuple[Tensor, Tensor]:
    s = case.tokens()
    y = ops.maximum(s - s.mean(axis=-1, keepdims=True), 0.0)
    return ops.stack([statistical_topk(s, case.dim // 2), statistical_topk(s, 0.5)]), ops.stack([y, y])


@identity("k at least the number of valid entries: s itself")
def everything(case: Case) -> tuple[Tensor, Tensor]:
    s = case.tokens()
    seen = np.arange(case.dim) < 1 + case.dim // 2
    left = [statistical_topk(s, case.dim), statistical_topk(s, 1.0), statistical_topk(s, 99, "-inf")]
    left.append(statistical_topk(s, 1 + case.dim // 2, valid=seen))
    return ops.stack(left), ops.stack([s, s, s, ops.where(seen, s, 0.0)])


@identity("the zero form minimises theta sum(z) + |s - z|^2 / 2 over z >= 0: no nearby z does better")
def is_a_minimum(case: Case) -> tuple[Any, Any]:
    s, k, rng = case.tokens().data, max(1, case.dim // 3), case.rng()
    z = statistical_topk(Tensor(s), k).data
    mu = s.mean(axis=-1, keepdims=True)
    theta = mu + s.std(axis=-1, keepdims=True) * quantile(1.0 - k / case.dim)

    def loss(z: Any) -> Any:
        return (theta * z + 0.5 * (s - z) ** 2).sum(axis=-1)

    better = [
        loss(np.maximum(z + size * rng.standard_normal(z.shape), 0.0)) < loss(z) - 1e-12
        for size in (1e-4, 1e-2, 1.0)
    ]
    return np.stack(better).astype(float), np.zeros((3, *z.shape[:-1]))


@identity("the softmax of the form for attention is that of s over the entries that stay")
def softmax_of_the_rest(case: Case) -> tuple[Tensor, Any]:
    s, k = case.tokens(), max(1, case.dim // 3)
    out = statistical_topk(s, k, "-inf")
    e = np.where(np.isfinite(out.data), np.exp(s.data), 0.0)
    return ops.softmax(out), e / e.sum(axis=-1, keepdims=True)


@identity("entries that are not valid change nothing, and give the fill")
def padding(case: Case) -> tuple[Any, Any]:
    s, k = case.tokens(), max(1, case.dim // 3)
    more = ops.concat([s, 50.0 + 0.0 * s], axis=-1)
    seen = np.arange(2 * case.dim) < case.dim
    y = statistical_topk(s, k).data
    return statistical_topk(more, k, valid=seen), np.concatenate([y, np.zeros_like(y)], axis=-1)


@identity("constant rows: 0 in the form with zeros, all stay in the other, and gradients are finite")
def constant_rows(case: Case) -> tuple[Any, Any]:
    s = Tensor(np.full((3, case.dim), 0.1))
    slope = gradient(lambda v: statistical_topk(v, 1).sum())(s).data
    left = [statistical_topk(s, 1).data, statistical_topk(s, 1, "-inf").data, 0.0 * slope]
    return np.stack(left), np.zeros((3, 3, case.dim))


@identity("where theta lies above all scores, the form for attention keeps the largest, and only those")
def never_empty(case: Case) -> tuple[Any, Any]:
    # One score far below: theta = mu + 1.15 sd for k = 1 of 8, and the others stand at mu + 0.38 sd.
    s = np.where(np.arange(8) == case.seed % 8, -9.0, 0.0) + case.rng().standard_normal((3, 1))
    return np.isfinite(statistical_topk(Tensor(s), 1, "-inf").data) * 1.0, (
        s > s.min(axis=-1, keepdims=True)
    ) * 1.0


@identity("gradients flow through theta: d theta / d s_i = 1/d + Q (s_i - mu) / (d sd)")
def slopes(case: Case) -> tuple[Tensor, Any]:
    s, k = case.tokens(), max(1, case.dim // 3)
    c = case.rng().standard_normal(s.shape)
    mu, sd = (f(s.data, axis=-1, keepdims=True) for f in (np.mean, np.std))
    q = NormalDist().inv_cdf(1.0 - k / case.dim)
    weight = c * (s.data > mu + sd * q)
    theta = (1.0 + q * (s.data - mu) / sd) / case.dim
    found = gradient(lambda v: (statistical_topk(v, k) * c).sum())(s)
    return found, weight - weight.sum(axis=-1, keepdims=True) * theta


@identity("smooth: half of delta below the plain form from theta + delta on, its slope continuous")
def smoothed(case: Case) -> tuple[Tensor, Any]:
    t, delta = Tensor(np.linspace(-1.0, 2.0, 31)), 0.5
    slope = gradient(lambda v: huber(v, delta).sum())(t)
    s, k = case.tokens(), max(1, case.dim // 3)

    def corner(v: Any) -> Any:
        return np.where(v < delta, np.maximum(v, 0.0) ** 2 / (2 * delta), v - delta / 2)

    left = [huber(t, delta), slope, statistical_topk(s, k, smooth=delta).reshape((-1,))]
    right = [corner(t.data), np.clip(t.data / delta, 0.0, 1.0), corner(statistical_topk(s, k).data).ravel()]
    return ops.concat(left), np.concatenate(right)


@identity(
    "d = 4096 normal scores, k = 328: the count is 328 on average, with a deviation of about 12, so the mean "
    "over 200 rows is within 6 * 12 / sqrt(200) = 5.1, 1.6 % of it",
    tolerance=0.016,
)
def count_of_normal_scores(case: Case) -> tuple[Any, Any]:
    s = Tensor(2.0 + 3.0 * case.rng().standard_normal((200, 4096)))
    return np.array((statistical_topk(s, 328).data > 0).sum(axis=-1).mean()), np.array(328.0)

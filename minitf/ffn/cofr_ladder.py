"""Continued fraction by continuants: f(a_1..a_d) = 1/(a_1 + 1/(a_2 + ... + 1/a_d)) with one division.

    K_0 = 1,  K_1 = a_d,  K_k = a_{d-k+1} K_{k-1} + K_{k-2}        k = 2..d; K_k uses the last k of the a
    K'  = sgn(K_d) max(|K_d|, eps)                                 sgn(0) = 1
    f   = K_{d-1} / K'

    a  (..., d)        f  (...)        d is 1, 3, 5 or 7 in the paper, here any

Backward: df/da_k = (-1)^k (K_{d-k} / K')^2. Where |K_d| < eps the same formula is used with K': it is not
the derivative of the clipped value then, which would ignore K_d, but lets training leave the clip.

Cost: 2 d operations and one division for each ladder, forward; d squares backward.
Source: CoFrGeNet, arXiv:2601.21766, 2026; the base is CoFrNet, NeurIPS 2021.
Differs from the paper: written from notes on it and an independent reproduction. CoFrNet's own code clips
every denominator on the way at 0.1 instead of K_d once, which is another function. Second derivatives inside
the clip are 0.
Numerics: eps = 0.01. K grows like the product of the a: take float32 at least.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor
from minitf.engine import grad as gradient
from minitf.nn import Buffer, Card, Case, Module, Paper, identity, positive

CARD = Card(
    name="cofr_ladder",
    title="Continued fraction as a ratio of continuants",
    kind="operation",
    family="continued fractions",
    papers=(Paper("CoFrGeNet", "2601.21766", 2026),),
    causal=True,
    streams=False,
    grid="any",
    complexity="2 N d",
    properties=("batch_independent",),
    basis="secondary notes, and cahlen/cofrgenet-f src/cofrgenet/continuant.py; formulas derived again",
    parity=("cahlen/cofrgenet-f 032873d continued_fraction",),
)


def continuants(a: Tensor) -> list[Tensor]:
    """K_0, ..., K_d, each (...), of a (..., d)."""
    d = a.shape[-1]
    k = [ops.ones_like(a[..., 0]), a[..., d - 1]]
    for i in range(2, d + 1):
        k.append(a[..., d - i] * k[-1] + k[-2])
    return k


def cofr_ladder(a: Tensor, eps: float = 0.01) -> Tensor:
    """f (...) of a (..., d), with |K_d| kept from below eps."""
    k, d = continuants(a), a.shape[-1]
    last = k[d].data
    small = np.abs(last) < eps
    # Away from the clip, the derivative of the ratio is the formula.
    ratio = k[d - 1] / ops.where(small, 1.0, k[d])
    if not small.any():
        return ratio
    # Inside it, K' is a constant, and the formula gives the slopes of a sum that takes the place of f.
    clipped = np.where(last < 0.0, -eps, eps)
    slopes = np.stack([(-1.0) ** j * (k[d - j].data / clipped) ** 2 for j in range(1, d + 1)], axis=-1)
    stand_in = (a * slopes.astype(a.dtype)).sum(axis=-1)
    value = np.where(small, k[d - 1].data / clipped, ratio.data).astype(a.dtype)
    return ops.straight_through(value, ops.where(small, stand_in, ratio))


class CoFrLadder(Module):
    """(..., d) -> (...). No parameters. Buffers: low, high (), the extrema seen in training, if clip_eval.

    Args:
        dim: d. eps: how near 0 the last continuant may come.
        clip_eval: in eval mode, keep outputs within what was seen in training mode.

    Raises:
        ValueError: eps not above 0.
    """

    card = CARD

    def __init__(self, dim: int, *, eps: float = 0.01, clip_eval: bool = False, dtype: Any = "float32"):
        positive(dim=dim)
        if not eps > 0.0:
            raise ValueError(f"eps={eps} must be above 0")
        self.eps = eps
        # Nothing was seen yet.
        self.low = Buffer(np.full((), np.inf, dtype)) if clip_eval else None
        self.high = Buffer(np.full((), -np.inf, dtype)) if clip_eval else None

    @staticmethod
    def example_inputs(case: Case) -> tuple[Tensor, ...]:
        # Positive, away from poles and from the clip, where the derivative is not that of the value.
        return (Tensor(0.5 + np.abs(case.tokens().data)),)

    def forward(self, a: Tensor) -> Tensor:
        f = cofr_ladder(a, self.eps)
        if self.low is None or self.high is None:
            return f
        if self.training and f.size:
            self.low.data = np.minimum(self.low.data, f.data.min())
            self.high.data = np.maximum(self.high.data, f.data.max())
        elif not self.training and self.low.data <= self.high.data:
            f = ops.clip(f, float(self.low.data), float(self.high.data))
        return f


def partials(case: Case, d: int) -> Tensor:
    """Partial denominators (t, d) of both signs, in which no |K_k| is below 0.1."""
    rng = case.rng()
    rows: list[Array] = []
    while len(rows) < case.t:
        a = rng.standard_normal((64, d))
        far = np.min(np.abs(np.stack([k.data for k in continuants(Tensor(a))])), axis=0) > 0.1
        rows.extend(a[far])
    return Tensor(np.stack(rows[: case.t]))


@identity("the nested divisions, for d = 1 to 8")
def nested(case: Case) -> tuple[Any, Any]:
    left, right = [], []
    for d in range(1, 9):
        a = partials(case, d)
        f = 1.0 / a.data[:, d - 1]
        for k in range(d - 2, -1, -1):
            f = 1.0 / (a.data[:, k] + f)
        left.append(cofr_ladder(a).data)
        right.append(f)
    return np.stack(left), np.stack(right)


@identity("the slopes are (-1)^k (K_{d-k} / K')^2, outside the clip and inside")
def slopes(case: Case) -> tuple[Any, Any]:
    rng, left, right = case.rng(), [], []
    for d in (1, 3, 5, 7):
        # About half of these have |K_d| < eps.
        a, eps = rng.standard_normal((case.t + 4, d)), 0.5
        k = [v.data for v in continuants(Tensor(a))]
        last = np.where(k[d] < 0.0, -1.0, 1.0) * np.maximum(np.abs(k[d]), eps)
        left.append(gradient(lambda v: cofr_ladder(v, 0.5).sum())(Tensor(a)).data)
        right.append(np.stack([(-1) ** j * (k[d - j] / last) ** 2 for j in range(1, d + 1)], axis=-1))
    return np.concatenate(left, axis=-1), np.concatenate(right, axis=-1)


@identity("the slopes are the differences of values outside the clip: central, step 1e-6")
def differences(case: Case) -> tuple[Any, Any]:
    a, step, columns = partials(case, 5), 1e-6, []
    for k in range(5):
        shift = step * np.eye(5)[k]
        columns.append((cofr_ladder(a + shift).data - cofr_ladder(a - shift).data) / (2 * step))
    # Of size 1 at most, so that rounding of large slopes does not count.
    exact = gradient(lambda v: cofr_ladder(v).sum())(a).data
    scale = np.maximum(1.0, np.abs(exact))
    return exact / scale, np.stack(columns, axis=-1) / scale


@identity("d = 1 is 1 / a; f(-a) = -f(a)")
def odd(case: Case) -> tuple[Any, Any]:
    one, a = partials(case, 1), Tensor(case.rng().standard_normal((case.t, 5)))
    left = [cofr_ladder(one).data, cofr_ladder(-a).data]
    return np.stack(left), np.stack([1.0 / one.data[:, 0], -cofr_ladder(a).data])


@identity("|f| is at most |K_{d-1}| / eps everywhere: 1 where it is")
def bounded(case: Case) -> tuple[Any, Any]:
    within = []
    for d in (1, 2, 5):
        a = Tensor(0.3 * case.rng().standard_normal((case.t, d)))
        within.append(np.abs(cofr_ladder(a).data) <= np.abs(continuants(a)[d - 1].data) / 0.01 + 1e-9)
    return np.array(within) * 1.0, np.ones((3, case.t))


@identity("all a = 1: ratios of Fibonacci numbers, Fib(d) / Fib(d + 1)")
def fibonacci(case: Case) -> tuple[Any, Any]:
    ratios, low, high = [], 1, 1
    for _ in range(12):
        ratios.append(low / high)
        low, high = high, low + high
    return np.array([cofr_ladder(Tensor(np.ones(d))).item() for d in range(1, 13)]), np.array(ratios)


@identity("where |K_d| < eps, f = K_{d-1} / (sgn(K_d) eps), with sgn(0) = 1")
def clipped(case: Case) -> tuple[Any, Any]:
    c = case.rng().standard_normal(case.t)
    # K_3 = a_1 K_2 + a_3 is a_3 for a_1 = 0, and K_2 = a_2 a_3 + 1.
    tiny = np.array([0.0, 0.004, -0.004])[np.arange(case.t) % 3]
    a = np.stack([np.zeros(case.t), c, tiny], axis=-1)
    k2 = 1.0 + c * tiny
    return cofr_ladder(Tensor(a)), k2 / np.where(tiny < 0.0, -0.01, 0.01)

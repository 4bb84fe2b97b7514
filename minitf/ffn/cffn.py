"""Continued-fraction feed-forward: a linear map plus a few ladders that read a gated copy of the input.

    u   = sigmoid(x G) * x
    a_j = u W_j                    (..., d)       j = 1..L
    z_j = 1/(a_j1 + 1/(a_j2 + ... + 1/a_jd))      one number for each token, see `cofr_ladder`
    y   = x U + z V

    x, y, u  (..., D)        U, G  (D, D)        W  (L, D, d)        z  (..., L)        V  (L, D)

form="diag": every feature i has ladders of its own, a_jik = u_i W_jik, and y_i = (x U)_i + sum_j V_ji z_ji.

Training needs the dyadic schedule: over T steps U, G, V train from the start, but depth k of the ladders
(column k of every W_j) is frozen until step (1 - 2^-k) T. Call `thaw(step, total)` before each step.

Cost: 4 N D^2 + 2 N L D d operations; L D (d + 1) + 2 D^2 parameters instead of 8 D^2.
Source: CoFrGeNet, arXiv:2601.21766, 2026, y = U x + V z.
Differs from the paper: written from notes on it and an independent reproduction, which takes L = 3, d = 5 and
the form "diag". UNSURE: the activation of the gate; we take the sigmoid.
Numerics: with small weights K_d is small for odd d, the clip at eps = 0.01 acts, and z reaches 1 / eps = 100,
so V starts small. Inside the clip the gradient is not that of the value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor
from minitf.nn import Card, Case, Linear, Module, Paper, Parameter, identity, init, positive

from .cofr_ladder import cofr_ladder

CARD = Card(
    name="cffn",
    title="Continued-fraction feed-forward network",
    kind="ffn",
    family="continued fractions",
    papers=(Paper("CoFrGeNet", "2601.21766", 2026),),
    causal=True,
    streams=False,
    grid="any",
    complexity="4 N D^2 + 2 N L D d",
    properties=("token_wise",),
    basis=(
        "secondary notes and cahlen/cofrgenet-f src/cofrgenet/cffn.py; the arity of ladders settled by the "
        "number of parameters"
    ),
    expected_failures={
        "gradients": "where |K_d| < eps the ladder's gradient is not the derivative of its clipped value",
        "full_jacobian": "where |K_d| < eps the ladder's gradient is not the derivative of its clipped value",
    },
    parity=("cahlen/cofrgenet-f 032873d Cffn",),
)


class CFFN(Module):
    """(..., D) -> (..., D). Parameters: wu.weight, wg.weight (D, D), ladders (L, D, d), v (L, D).

    Args:
        dim: D. ladders: L. depth: d. form: "full" or "diag". eps: clip of the ladders.

    Attributes:
        thawed: how many depths of the ladders train; all at first.

    Raises:
        ValueError: ladders or depth below 1, eps not above 0, an unknown form.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        ladders: int = 3,
        depth: int = 5,
        form: str = "full",
        eps: float = 0.01,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim)
        if ladders < 1 or depth < 1 or not eps > 0.0:
            raise ValueError(f"ladders={ladders} and depth={depth} must be 1 or more, eps={eps} above 0")
        if form not in ("full", "diag"):
            raise ValueError(f"form must be 'full' or 'diag', not {form!r}")
        rng = init.generator(seed)
        self.form, self.eps, self.thawed = form, eps, depth

        def square() -> Linear:
            return Linear(dim, dim, False, values=init.normal(rng, (dim, dim), 0.02, dtype), dtype=dtype)

        self.wu, self.wg = square(), square()
        self.ladders = Parameter(init.normal(rng, (ladders, dim, depth), 0.02, dtype))
        self.v = Parameter(init.normal(rng, (ladders, dim), 0.02, dtype))

    def forward(self, x: Tensor) -> Tensor:
        count, dim, depth = self.ladders.shape
        # Frozen depths are constants: their gradient is 0.
        w = ops.where(np.arange(depth) < self.thawed, self.ladders, self.ladders.detach())
        # u = sigmoid(x G) * x: (..., D)
        u = ops.sigmoid(self.wg(x)) * x
        if self.form == "full":
            # a_j = u W_j: (..., L, d)
            a = (u @ w.permute_dims((1, 0, 2)).reshape((dim, count * depth))).reshape(
                (*x.shape[:-1], count, depth)
            )
            return self.wu(x) + cofr_ladder(a, self.eps) @ self.v
        # a_jik = u_i W_jik: (..., L, D, d)
        z = cofr_ladder(u[..., None, :, None] * w, self.eps)
        return self.wu(x) + (z * self.v).sum(axis=-2)

    def thaw(self, step: int, total: int) -> None:
        """Let depth k of the ladders train from step (1 - 2^-k) total on."""
        depths = np.arange(1, self.ladders.shape[2] + 1)
        self.thawed = int(np.sum(step >= (1.0 - 0.5**depths) * total))


def build(case: Case, **options: Any) -> CFFN:
    """A layer whose weights are large enough that few ladders are clipped."""
    layer = CFFN(case.dim, seed=case.seed, dtype="float64", **options)
    rng = case.rng()
    for p in layer.parameters():
        p.data = rng.standard_normal(p.shape)
    return layer


def by_loops(layer: CFFN, x: Any) -> Any:
    """The equations for tokens (n, D), ladder by ladder with continuants."""
    w, rows = layer.ladders.data, []
    for token in x:
        u = token / (1.0 + np.exp(-(token @ layer.wg.weight.data)))
        y = token @ layer.wu.weight.data
        for j in range(len(w)):
            if layer.form == "full":
                y = y + ladder(u @ w[j], layer.eps) * layer.v.data[j]
            else:
                z = np.array([ladder(u[i] * w[j, i], layer.eps) for i in range(len(u))])
                y = y + z * layer.v.data[j]
        rows.append(y)
    return np.array(rows)


def ladder(a: Any, eps: float) -> float:
    older, newer = 0.0, 1.0
    for value in a[::-1]:
        older, newer = newer, value * newer + older
    return older / (max(abs(newer), eps) * (-1.0 if newer < 0.0 else 1.0))


@identity("the equations in loops over tokens, ladders and features, in both forms")
def loops(case: Case) -> tuple[Any, Any]:
    x, left, right = case.tokens().reshape((-1, case.dim)), [], []
    for form in ("full", "diag"):
        for depth in (1, 2, 5):
            # A wide clip: a value near a pole would only show rounding.
            layer = build(case, form=form, depth=depth, eps=0.1)
            left.append(layer(x).data)
            right.append(by_loops(layer, x.data))
    return np.stack(left), np.stack(right)


@identity("V = 0: y = x U")
def no_ladders(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    layer.v.data = np.zeros_like(layer.v.data)
    return layer(x), x @ layer.wu.weight


@identity("L = 1, d = 1: y = x U + V / (u . w), with |u . w| at least eps")
def one_step(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, ladders=1, depth=1, eps=0.1), case.tokens()
    a = (ops.sigmoid(x @ layer.wg.weight) * x) @ layer.ladders[0]
    a = ops.where(a.data < 0.0, ops.minimum(a, -0.1), ops.maximum(a, 0.1))
    return layer(x), x @ layer.wu.weight + layer.v[0] / a


@identity("frozen depths get gradient exactly 0, the others and U, G, V the gradient that they get anyway")
def frozen(case: Case) -> tuple[Any, Any]:
    left, right = [], []
    for form in ("full", "diag"):
        layer, x = build(case, form=form, eps=0.3), case.tokens()
        gradients = []
        for layer.thawed in (5, 2, 0):
            layer.zero_grad()
            layer(x).sum().backward()
            gradients.append([p.grad.data for p in layer.parameters()])  # type: ignore[union-attr]
        for thawed, found in zip((2, 0), gradients[1:]):
            for a, b in zip(found, gradients[0]):
                scale = 1.0 + np.max(np.abs(b))
                kept = b * (np.arange(5) < thawed) if b.ndim == 3 else b
                left.append(np.ravel(a / scale))
                right.append(np.ravel(kept / scale))
    return np.concatenate(left), np.concatenate(right)


@identity("thaw: at a share u of the steps depth k trains where u >= 1 - 2^-k")
def schedule(case: Case) -> tuple[Any, Any]:
    layer, left, right = build(case), [], []
    for step in range(0, 65, 4):
        layer.thaw(step, 64)
        left.append(layer.thawed)
        # Of 64 steps depths 1 to 5 wait for 32, 48, 56, 60 and 62.
        right.append(sum(step >= start for start in (32, 48, 56, 60, 62)))
    return np.array(left), np.array(right)


@identity("D = 1: the forms 'full' and 'diag' coincide")
def one_feature(case: Case) -> tuple[Tensor, Tensor]:
    x = Tensor(case.rng().standard_normal((case.t, 1)))
    full, diag = (CFFN(1, form=form, eps=0.1, seed=case.seed, dtype="float64") for form in ("full", "diag"))
    return full(x), diag(x)


@identity("the slope of y by V is z, and by U is x: the linear parts, summed over tokens")
def linear_parts(case: Case) -> tuple[Any, Any]:
    layer, x = build(case, eps=0.1), case.tokens().reshape((-1, case.dim))
    layer(x).sum().backward()
    w = layer.ladders.data
    u = x.data / (1.0 + np.exp(-(x.data @ layer.wg.weight.data)))
    z = np.array([[ladder(row @ w[j], 0.1) for j in range(3)] for row in u]).sum(axis=0)
    ones = np.ones(case.dim)
    grads = [layer.v.grad.data, layer.wu.weight.grad.data]  # type: ignore[union-attr]
    return np.concatenate(grads), np.concatenate([np.outer(z, ones), np.outer(x.data.sum(axis=0), ones)])


@identity("where nothing is clipped, the slope along a direction of x and all weights is that of the values")
def slopes(case: Case) -> tuple[Any, Any]:
    left, right, step = [], [], 1e-6
    for form in ("full", "diag"):
        layer, rng = build(case, form=form), case.rng()
        # Gates near 1/2 and positive weights: no a is near 0, and positive a have no pole.
        layer.wg.weight.data = 0.1 * layer.wg.weight.data
        layer.ladders.data = 0.5 + rng.random(layer.ladders.shape)
        base = Tensor(0.5 + rng.random((case.t, case.dim)), requires_grad=True)
        places = [base, *layer.parameters()]
        directions = [rng.standard_normal(p.shape) for p in places]
        layer(base).sum().backward()
        left.append(sum(np.sum(p.grad.data * v) for p, v in zip(places, directions)))  # type: ignore[union-attr]
        values, starts = [], [p.data for p in places]
        for sign in (1, -1):
            for p, start, v in zip(places, starts, directions):
                p.data = start + sign * step * v
            values.append(layer(Tensor(base.data)).sum().item())
        right.append((values[0] - values[1]) / (2 * step))
    scale = np.maximum(1.0, np.abs(left))
    return np.array(left) / scale, np.array(right) / scale

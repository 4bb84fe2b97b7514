"""LoRA: a frozen linear map plus a trained one of low rank, which can be merged into it.

    y   = x W + b + s dropout(x) A B               W and b are frozen, A and B are trained
    W_m = W + s A B                                merged: the cost of one map again

    x  (..., D_in)    W  (D_in, D_out)    A  (D_in, r)    B  (r, D_out)    s = alpha / r, or alpha / sqrt(r)

Several adapters of one map add up: one on top of the other (`base=layer.merged()`), or as one adapter with
the columns of all A and the rows of all B. Or they take turns: load the a and b of another.

B = 0 at the start, so the adapted layer begins as the frozen one. Three ways to begin:
    "kaiming"    A uniform in +-1 / sqrt(D_in), B = 0
    "gaussian"   A normal with standard deviation 1 / r, B = 0
    "pissa"      A = U_r sqrt(S_r / s), B = sqrt(S_r / s) V_r of W's r largest singular values, W <- W - s A B

Cost: 2 N r (D_in + D_out) operations and r (D_in + D_out) parameters beside the frozen map.
Source: LoRA: Low-Rank Adaptation of Large Language Models, Hu et al., arXiv:2106.09685, 2021, equation 3.
Differs from the paper: more initial values: PiSSA, Meng et al., arXiv:2404.02948, 2024; the scale
alpha / sqrt(r), Kalajdzievski, arXiv:2312.03732, 2023.
Numerics: with dropout at work, merged and unmerged differ; it is off in eval mode.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf.engine import Array, Tensor
from minitf.nn import Buffer, Card, Case, Dropout, Linear, Module, Paper, Parameter, identity, init, positive

CARD = Card(
    name="lora",
    title="Low-rank adapters",
    kind="adapter",
    family="low rank",
    papers=(
        Paper("LoRA: Low-Rank Adaptation of Large Language Models", "2106.09685", 2021),
        Paper("PiSSA: Principal Singular Values and Singular Vectors Adaptation", "2404.02948", 2024),
    ),
    causal=True,
    streams=False,
    grid="any",
    complexity="2 N D^2 + 4 N r D",
    properties=("token_wise",),
    basis="published code: huggingface/peft src/peft/tuners/lora/layer.py",
    parity=("peft 0.21.2 LoRA Linear",),
    aliases={"pissa": {"start": "pissa"}, "rslora": {"stabilised": True}},
)


class LoRA(Module):
    """(..., D_in) -> (..., D_out), a stand-in for a linear layer.

    Parameters: a (D_in, r), b (r, D_out). Buffers: weight (D_in, D_out), bias (D_out,) or None, frozen.

    Args:
        dim: D_in and D_out, where no `base` is given. base: the layer to adapt; it is copied.
        r: rank, at most the shorter side of W. alpha: strength. stabilised: s = alpha / sqrt(r).
        start: "kaiming", "gaussian" or "pissa". dropout: rate on what A sees, in training mode.

    Raises:
        ValueError: r out of range, alpha of 0 or less, an unknown start, or neither dim nor base.
    """

    card = CARD

    def __init__(
        self,
        dim: int = 0,
        *,
        base: Linear | None = None,
        r: int = 4,
        alpha: float = 16.0,
        stabilised: bool = False,
        start: str = "kaiming",
        dropout: float = 0.0,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        if base is None:
            positive(dim=dim)
        positive(alpha=alpha)
        rng = init.generator(seed)
        base = Linear(dim, dim, True, rng, dtype=dtype) if base is None else base
        w = base.weight.data.copy()
        n_in, n_out = w.shape
        if dim:
            # Built by name, it fits any width.
            r = min(r, dim)
        if not 1 <= r <= min(n_in, n_out):
            raise ValueError(f"r={r} must be from 1 to {min(n_in, n_out)}, the shorter side of W {w.shape}")
        self.scale = alpha / (math.sqrt(r) if stabilised else r)
        if start == "kaiming":
            a, b = init.fan_in_uniform(rng, (n_in, r), w.dtype), np.zeros((r, n_out), w.dtype)
        elif start == "gaussian":
            a, b = init.normal(rng, (n_in, r), 1.0 / r, w.dtype), np.zeros((r, n_out), w.dtype)
        elif start == "pissa":
            a, b = halves(w / self.scale, r)
            w = w - self.scale * (a @ b)
        else:
            raise ValueError(f"start must be 'kaiming', 'gaussian' or 'pissa', not {start!r}")
        self.a, self.b = Parameter(a), Parameter(b)
        self.weight = Buffer(w)
        self.bias = None if base.bias is None else Buffer(base.bias.data.copy())
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        y = x @ self.weight + self.scale * (self.dropout(x, rng) @ self.a @ self.b)
        return y if self.bias is None else y + self.bias

    def delta(self) -> Array:
        """s A B (D_in, D_out): what the adapter adds to W."""
        return self.scale * (self.a.data @ self.b.data)

    def merged(self) -> Linear:
        """One linear layer that computes the same. `LoRA(base=...)` of the frozen weights undoes it."""
        values = self.weight.data + self.delta()
        n_in, n_out = values.shape
        layer = Linear(n_in, n_out, self.bias is not None, values=values, dtype=values.dtype)
        if self.bias is not None:
            layer.load_state_dict({"weight": values, "bias": self.bias.data})
        return layer


def halves(w: Array, r: int) -> tuple[Array, Array]:
    """A (D_in, r) and B (r, D_out) whose product is the best approximation of W of rank r."""
    u, s, v = np.linalg.svd(w, full_matrices=False)
    root = np.sqrt(s[:r])
    return (u[:, :r] * root).astype(w.dtype), (root[:, None] * v[:r]).astype(w.dtype)


def build(case: Case, trained: bool = True, **options: Any) -> LoRA:
    """A layer; `trained`: with B off its zero."""
    layer = LoRA(case.dim, r=2, seed=case.seed, dtype="float64", **options).eval()
    if trained:
        layer.b.data = case.rng().standard_normal(layer.b.shape)
    return layer


def frozen(case: Case) -> Linear:
    layer = Linear(case.dim, case.dim + 1, True, case.rng(), dtype="float64")
    layer.load_state_dict({"weight": layer.weight.data, "bias": case.rng().standard_normal(case.dim + 1)})
    return layer


@identity("at the start the adapted layer is the frozen one, for all three ways to begin")
def starts_as_frozen(case: Case) -> tuple[Any, Any]:
    base, x = frozen(case), case.tokens()
    layers = [LoRA(base=base, r=2, start=s, seed=case.seed) for s in ("kaiming", "gaussian", "pissa")]
    return np.stack([layer(x).data for layer in layers]), np.stack([base(x).data] * 3)


@identity(
    "the equation, with s = alpha / r and s = alpha / sqrt(r); PiSSA begins with the best A B of rank r"
)
def definition(case: Case) -> tuple[Any, Any]:
    base, x, left, right = frozen(case), case.tokens(), [], []
    assert base.bias is not None
    for stabilised, s in ((False, 6.0 / 2.0), (True, 6.0 / math.sqrt(2.0))):
        layer = LoRA(base=base, r=2, alpha=6.0, stabilised=stabilised, dtype="float64")
        layer.b.data = case.rng().standard_normal(layer.b.shape)
        changed = base.weight.data + s * layer.a.data @ layer.b.data
        left.append(layer(x).data.ravel())
        right.append((x.data @ changed + base.bias.data).ravel())
    u, values, v = np.linalg.svd(base.weight.data, full_matrices=False)
    left.append(LoRA(base=base, r=2, start="pissa").delta().ravel())
    right.append((u[:, :2] @ np.diag(values[:2]) @ v[:2]).ravel())
    return np.concatenate(left), np.concatenate(right)


@identity("the merged layer computes the same, and taking the adapter out again gives W")
def merge(case: Case) -> tuple[Any, Any]:
    layer, x = build(case), case.tokens()
    one = layer.merged()
    back = one.weight.data - layer.delta()
    left = np.concatenate([one(x).data.reshape(-1), back.reshape(-1)])
    return left, np.concatenate([layer(x).data.reshape(-1), layer.weight.data.reshape(-1)])


@identity("(c A, B / c) is the same function")
def rescaled(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    y = layer(x)
    layer.a.data, layer.b.data = layer.a.data * 3.0, layer.b.data / 3.0
    return layer(x), y


@identity("gradients are s A^T G and s G B^T, with G that of the merged weight; that of A is 0 at the start")
def gradients(case: Case) -> tuple[Any, Any]:
    left, right = [], []
    for trained in (True, False):
        layer, x = build(case, trained), case.tokens()
        cotangent = case.rng().standard_normal(x.shape)
        layer(x).backward(cotangent)
        g = np.einsum("bni,bno->io", x.data, cotangent)
        for p, found in (
            (layer.a, layer.scale * g @ layer.b.data.T),
            (layer.b, layer.scale * layer.a.data.T @ g),
        ):
            left.append(np.zeros(p.shape) if p.grad is None else p.grad.data)
            right.append(found)
    return np.concatenate([a.ravel() for a in left]), np.concatenate([a.ravel() for a in right])


@identity("the first step of gradient descent from B = 0 changes W by -lr s^2 A A^T G")
def first_step(case: Case) -> tuple[Any, Any]:
    layer, x, lr = build(case, trained=False), case.tokens(), 0.1
    cotangent = case.rng().standard_normal(x.shape)
    layer(x).backward(cotangent)
    assert layer.b.grad is not None
    g, a = np.einsum("bni,bno->io", x.data, cotangent), layer.a.data
    layer.b.data = layer.b.data - lr * layer.b.grad.data
    return layer.delta(), -lr * layer.scale**2 * (a @ a.T @ g)


@identity(
    "any change of W of rank r is reached by its singular vectors, any at all with r = D; s A B has no more"
)
def reaches(case: Case) -> tuple[Any, Any]:
    layer, rng = build(case), case.rng()
    wanted = rng.standard_normal((case.dim, 2)) @ rng.standard_normal((2, case.dim))
    layer.a.data, layer.b.data = halves(wanted / layer.scale, 2)
    # With r = D, any change at all.
    whole, every = LoRA(case.dim, r=case.dim, dtype="float64"), rng.standard_normal((case.dim, case.dim))
    whole.a.data, whole.b.data = halves(every / whole.scale, case.dim)
    rank = np.linalg.matrix_rank(build(case).delta())
    left = np.concatenate([layer.delta().ravel(), whole.delta().ravel(), [rank <= 2]])
    return left, np.concatenate([wanted.ravel(), every.ravel(), [True]])


@identity("two adapters: one on top of the other, or one with the columns of both A and the rows of both B")
def sums(case: Case) -> tuple[Any, Any]:
    first, x, rng = build(case), case.tokens(), case.rng()
    second = LoRA(base=first.merged(), r=1, alpha=4.0, seed=case.seed)
    second.b.data = rng.standard_normal(second.b.shape)
    # All columns of A, each with the scale of its adapter: (D, 3)
    both = np.concatenate([first.scale * first.a.data, second.scale * second.a.data], axis=1)
    joint = x @ both @ np.concatenate([first.b.data, second.b.data])
    assert first.bias is not None
    return second(x), x @ first.weight.data + joint + first.bias.data

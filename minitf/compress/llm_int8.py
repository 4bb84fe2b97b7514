"""LLM.int8(): products in 8-bit integers, with the few features that are too large for them in floats.

    O      = {j : max_i |x_ij| >= tau}                           features with outliers, in this batch
    x'     = x, with entries |x| >= tau set to 0
    s_x(i) = max_j |x'_ij|,     q_x = rint(127 x' / s_x), then the columns O set to 0
    s_w(k) = max_j |W_jk|,      q_w = rint(127 W / s_w)
    y      = (q_x q_w) s_x s_w / 127^2 + x[:, O] W[O] + b

    x  (n, D_in), all tokens     W  (D_in, D_out)     s_x  (n, 1)     s_w  (1, D_out)     q: -127..127

`outliers="int8"` reads W[O] back from its codes, as the published library does to save memory.

Cost: 2 N D_in D_out operations on integers and 2 N |O| D_out on floats.
Source: LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale, Dettmers et al., arXiv:2208.07339,
2022, equation 8.
Differs from the paper: integers are multiplied as float64, which is exact. As in the published library,
entries below tau of an outlier feature still count for s_x. Gradients are those of the float layer.
Numerics: rounding is half to even; a row of zeros has scale 1. O depends on the batch: with outliers, a token
alone and in company may differ by the error of 8 bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor
from minitf.nn import Buffer, Card, Case, Linear, Module, Paper, identity, init, positive

CARD = Card(
    name="llm_int8",
    title="Vector-wise int8 with outlier features in floating point",
    kind="compress",
    family="quantisation",
    papers=(Paper("LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", "2208.07339", 2022),),
    causal=True,
    streams=False,
    grid="any",
    complexity="4 N D^2",
    properties=("token_wise",),
    basis="published code: bitsandbytes backends/default/ops.py, autograd/_functions.py; paper form for W[O]",
    parity=("bitsandbytes 0.50.2 int8_mixed_scaled_mm, default backend",),
    expected_failures={
        "gradients": "rounding is a staircase; the gradient is that of the layer without it",
        "full_jacobian": "rounding is a staircase; the gradient is that of the layer without it",
    },
)


def codes(a: Array, axis: int) -> tuple[Array, Array]:
    """rint(127 a / s) and s = max |a| along `axis`, which stays as an axis of length 1."""
    s = np.max(np.abs(a), axis=axis, keepdims=True)
    s = np.where(s == 0.0, 1.0, s)
    return np.rint(127.0 * a / s), s


def product(x: Array, w: Array, tau: float = 6.0, outliers: str = "float") -> Array:
    """y (n, D_out) from x (n, D_in) and W (D_in, D_out), as the equations say it. tau = 0: no outliers."""
    large = np.abs(x) >= tau if tau else np.zeros(x.shape, bool)
    o = large.any(axis=0)
    qx, sx = codes(np.where(large, 0.0, x).astype(np.float64), 1)
    qw, sw = codes(w.astype(np.float64), 0)
    # float64 holds every sum of these integers exactly.
    y = (np.where(o, 0.0, qx) @ qw) * (sx * sw / 127.0**2)
    kept = w if outliers == "float" else qw * sw / 127.0
    return (y + x[:, o].astype(np.float64) @ kept[o]).astype(x.dtype)


class LLMInt8(Module):
    """(..., D_in) -> (..., D_out), a stand-in for a trained linear layer.

    Buffers: weight (D_in, D_out), bias (D_out,) or None.

    Args:
        dim: D_in and D_out, where no `base` is given. base: the layer to quantise; it is copied.
        tau: entries from here on are outliers; 0 for none. outliers: "float", or "int8".

    Raises:
        ValueError: tau below 0, unknown outliers, or neither dim nor base.
    """

    card = CARD

    def __init__(
        self,
        dim: int = 0,
        *,
        base: Linear | None = None,
        tau: float = 6.0,
        outliers: str = "float",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        if base is None:
            positive(dim=dim)
        if not tau >= 0.0 or outliers not in ("float", "int8"):
            raise ValueError(f"tau={tau} must be 0 or more, and outliers={outliers!r} 'float' or 'int8'")
        base = Linear(dim, dim, True, seed, dtype=dtype) if base is None else base
        self.tau, self.outliers = tau, outliers
        self.weight = Buffer(base.weight.data.copy())
        self.bias = None if base.bias is None else Buffer(base.bias.data.copy())

    def forward(self, x: Tensor) -> Tensor:
        exact = x @ self.weight
        rows = product(x.data.reshape(-1, x.shape[-1]), self.weight.data, self.tau, self.outliers)
        # The value of the integers, the gradient of the floats.
        y = ops.straight_through(Tensor(rows.reshape(exact.shape)), exact)
        return y if self.bias is None else y + self.bias


def arrays(case: Case, large: bool = True) -> tuple[Array, Array]:
    """x (b t, dim), with one feature 100 times as large if `large`, and W (dim, dim + 1)."""
    rng = case.rng()
    x, w = rng.standard_normal((case.b * case.t, case.dim)), rng.standard_normal((case.dim, case.dim + 1))
    if large:
        x[:, int(rng.integers(case.dim))] *= 100.0
    return x, w


@identity("when every feature is an outlier, the float product")
def all_outliers(case: Case) -> tuple[Any, Any]:
    x, w = arrays(case)
    return product(x, w, tau=1e-300), x @ w


@identity("without outliers, vector-wise int8: a loop over single products of integers")
def loops(case: Case) -> tuple[Any, Any]:
    x, w = arrays(case, large=False)
    y = np.zeros((len(x), w.shape[1]))
    for i, k in np.ndindex(y.shape):
        sx, sw = max(abs(x[i])), max(abs(w[:, k]))
        total = sum(round(127 * a / sx) * round(127 * b / sw) for a, b in zip(x[i], w[:, k], strict=True))
        y[i, k] = total * sx * sw / 16129
    return np.stack([product(x, w, tau=0.0), product(x, w, tau=math.inf)]), np.stack([y, y])


@identity("the decomposition: outlier features in floats plus the others in integers, features in any order")
def decomposed(case: Case) -> tuple[Any, Any]:
    x, w = arrays(case)
    o = (np.abs(x) >= 6.0).any(axis=0)
    small = np.where(np.abs(x) >= 6.0, 0.0, x)
    # The scale of a row comes from all its entries below tau.
    sx = np.max(np.abs(small), axis=1, keepdims=True)
    qx = np.rint(127.0 * small / np.where(sx == 0.0, 1.0, sx)) * ~o
    qw, sw = codes(w, 0)
    expected = qx @ qw * sx * sw / 127.0**2 + x[:, o] @ w[o]
    order = case.rng().permutation(case.dim)
    return np.stack([product(x, w), product(x[:, order], w[order])]), np.stack([expected, expected])


@identity("the layer, for tokens of any batch, is the product and the bias, with both kinds of outliers")
def layer_is_product(case: Case) -> tuple[Any, Any]:
    x, w = arrays(case)
    base = Linear(case.dim, case.dim + 1, True, values=w, dtype="float64")
    b = case.rng().standard_normal(case.dim + 1)
    base.load_state_dict({"weight": w, "bias": b})
    left, right = [], []
    for outliers in ("float", "int8"):
        layer = LLMInt8(base=base, tau=1.0, outliers=outliers)
        left.append(layer(Tensor(x.reshape(case.b, case.t, -1))).data.reshape(len(x), -1))
        right.append(product(x, w, 1.0, outliers) + b)
    return np.stack(left), np.stack(right)


@identity("scaling x and tau scales y; outputs in any order come in that order")
def scaled(case: Case) -> tuple[Any, Any]:
    x, w = arrays(case)
    order = case.rng().permutation(w.shape[1])
    left = [product(4.0 * x, w, tau=24.0), product(x, w[:, order])]
    return np.stack(left), np.stack([4.0 * product(x, w), product(x, w)[:, order]])


@identity("the error of the integers is at most sum_j (|x_j| s_w + |W_jk| s_x) / 254 + D s_x s_w / 254^2")
def bounded(case: Case) -> tuple[Any, Any]:
    x, w = arrays(case, large=False)
    sx, sw = np.max(np.abs(x), axis=1, keepdims=True), np.max(np.abs(w), axis=0)
    bound = (np.abs(x).sum(axis=1, keepdims=True) * sw + np.abs(w).sum(axis=0) * sx) / 254.0
    bound += case.dim * sx * sw / 254.0**2
    within = np.abs(product(x, w, tau=0.0) - x @ w) <= bound + 1e-12
    return within.astype(float), np.ones(within.shape)


@identity("outliers read back from their codes: the float product with the rounded weights")
def from_codes(case: Case) -> tuple[Any, Any]:
    x, w = arrays(case)
    qw, sw = codes(w, 0)
    return product(x, w, tau=1e-300, outliers="int8"), x @ (qw * sw / 127.0)

"""Spark feed-forward: a gate that reads half of the features decides which hidden units exist for a token.

    p = StatTopK(x[:r] K1, k)            the form with zeros of `statistical_topk`
    h = gelu(p) * (x[r:] K2)
    y = h V

    x, y  (..., D)        p, h  (..., F)        K1  (r, F)        K2  (D - r, F)        V  (F, D)

    full, the gate of Gemma 3n: all of x in place of x[:r] and of x[r:], and K1, K2  (D, F)

gelu(0) = 0: a unit whose p is 0 adds nothing, so only the columns of K2 and the rows of V with p > 0 are
needed (`gathered`). The threshold comes before the activation, its statistics are those of one token over F,
and the cut at r is one of features, after the block's norm.

Defaults: r = D/2 (the paper takes 1024 of 2304), F one and a half times that of a gated network, which has as
many parameters then, and k = 8 % of F.
Cost: 4 N D F operations as dense products, and 9 N F for the threshold; near 2 N r F + 2 N k (2 D - r) with
the existing units alone. 2 D F parameters.
Source: Spark Transformer: Reactivating Sparsity in FFN and Attention, arXiv:2506.06644, 2025.
Differs from the paper: written from summaries whose formula and sizes agree. Gemma 3n takes full=True and
act="gelu_tanh", with k = 5 % of F in its first ten layers and k = F, no threshold, in the others.
Numerics: those of `statistical_topk`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor
from minitf.nn import Card, Case, Linear, Module, Paper, activation, identity, init, positive

from .glu_ffn import GLUFFN, gated_width
from .statistical_topk import statistical_topk

CARD = Card(
    name="spark_ffn",
    title="Spark feed-forward network",
    kind="ffn",
    family="sparse",
    papers=(Paper("Spark Transformer: Reactivating Sparsity in FFN and Attention", "2506.06644", 2025),),
    causal=True,
    streams=False,
    grid="any",
    complexity="4 N D F + 9 N F",
    properties=("token_wise",),
    basis="secondary summaries of the paper whose formula and sizes agree",
    parity=("transformers 5.23.0 Gemma3nTextMLP",),
)


class SparkFFN(Module):
    """(..., D) -> (..., D). Parameters: k1 (r, F), k2 (D - r, F), v (F, D), no biases.

    Args:
        dim: D, at least 2. hidden: F. split: r. k: units kept on average.
        full: both matrices read all of x, and split must be left out.
        act: any activation with act(0) = 0, by name.

    Raises:
        ValueError: split outside 1..D-1, or given with full; k or hidden below 1; an unknown activation, or
            one with act(0) not 0.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        hidden: int | None = None,
        split: int | None = None,
        full: bool = False,
        k: int | None = None,
        act: str = "gelu",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, hidden=hidden)
        hidden = 3 * gated_width(dim) // 2 if hidden is None else hidden
        if full and split is not None:
            raise ValueError(f"full=True cuts nothing: leave split={split} out")
        split = dim // 2 if split is None else split
        self.k = max(1, round(0.08 * hidden)) if k is None else k
        if not 1 <= split < dim:
            raise ValueError(f"split={split} must be from 1 to dim - 1 = {dim - 1}")
        if self.k < 1:
            raise ValueError(f"k={k} must be 1 or more")
        self.act = activation(act)
        if float(self.act(ops.zeros(()))) != 0.0:
            raise ValueError(f"act={act!r} is not 0 at 0: units that were dropped would act")
        rng = init.generator(seed)
        # The features that K1 reads, and those that K2 reads.
        self.first, self.rest = slice(dim if full else split), slice(0 if full else split, dim)
        self.k1 = Linear(dim if full else split, hidden, False, rng, dtype=dtype)
        self.k2 = Linear(dim if full else dim - split, hidden, False, rng, dtype=dtype)
        self.v = Linear(hidden, dim, False, rng, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        # h = gelu(p) * (x[r:] K2): (..., F)
        return self.v(self.act(self.gate(x)) * self.k2(x[..., self.rest]))

    def gate(self, x: Tensor) -> Tensor:
        """p (..., F): 0 for the units that do not exist for a token."""
        if x.shape[-1] != self.v.weight.shape[1]:
            raise ShapeError(f"spark_ffn: x {x.shape} must end in {self.v.weight.shape[1]}")
        return statistical_topk(self.k1(x[..., self.first]), self.k)

    def gathered(self, x: Tensor) -> Tensor:
        """The same y (..., D), token by token, from the columns of K2 and rows of V that are needed."""
        rows, p = x.reshape((-1, x.shape[-1])), self.gate(x)
        p = p.reshape((-1, p.shape[-1]))
        found = []
        for n in range(rows.shape[0]):
            # S = {j : p_j > 0}
            s = np.flatnonzero(p.data[n] > 0.0)
            h = self.act(p[n, s]) * (rows[n, self.rest] @ self.k2.weight[:, s])
            found.append(h @ self.v.weight[s])
        return ops.stack(found).reshape(x.shape)


def build(case: Case, **options: Any) -> Any:
    layer = SparkFFN(case.dim, seed=case.seed, dtype="float64", **options)
    rng = case.rng()
    for p in layer.parameters():
        p.data = rng.standard_normal(p.shape)
    return layer


@identity("k = F, no threshold: GEGLU with W_g = [K1; 0] and W_u = [0; K2]")
def no_threshold(case: Case) -> tuple[Tensor, Tensor]:
    f, x = 5 * case.dim, case.tokens()
    layer, glu = build(case, hidden=f, k=f), GLUFFN(case.dim, hidden=f, act="gelu", dtype="float64")
    r = layer.k1.weight.shape[0]
    glu.wg.weight.data = np.pad(layer.k1.weight.data, [(0, case.dim - r), (0, 0)])
    glu.wu.weight.data = np.pad(layer.k2.weight.data, [(r, 0), (0, 0)])
    glu.wd.weight.data = layer.v.weight.data
    return layer(x), glu(x)


@identity("the dense form equals the form that touches existing units only")
def dense_is_gathered(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    return layer(x), layer.gathered(x)


@identity("k = F/2: the equations token by token, where the threshold is the mean; r = 1 and silu")
def loops(case: Case) -> tuple[Tensor, Any]:
    layer, x, rows = build(case, split=1, act="silu", hidden=10, k=5), case.tokens(), []
    for token in x.data.reshape(-1, case.dim):
        s = token[:1] @ layer.k1.weight.data
        p = np.maximum(s - s.mean(), 0.0)
        rows.append((p / (1.0 + np.exp(-p)) * (token[1:] @ layer.k2.weight.data)) @ layer.v.weight.data)
    return layer(x), np.reshape(rows, x.shape)


@identity("full: both matrices read all of x, which is the cut network for [x, x]")
def uncut(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, full=True, hidden=12, k=3), case.tokens()
    twice = build(Case(case.b, case.t, case.h, 2 * case.d, case.seed), hidden=12, k=3)
    for name in ("k1", "k2"):
        getattr(twice, name).weight.data = getattr(layer, name).weight.data
    twice.v.weight.data = np.concatenate([layer.v.weight.data, 0.0 * layer.v.weight.data], axis=1)
    y = twice(ops.concat([x, x], axis=-1))[..., : case.dim]
    return ops.stack([layer(x), layer.gathered(x)]), ops.stack([y, y])


@identity("a constant added to all of x[:r] K1 does not change y")
def shifted_scores(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    # x_0 = 1 for every token, so that its row of K1 adds a constant where all its entries are equal.
    one = ops.concat([ops.ones_like(x[..., :1]), x[..., 1:]], axis=-1)
    y = layer(one)
    layer.k1.weight.data[0] += 5.0
    return layer(one), y


@identity(
    "of F = 2048 units about k = 164 exist for Gaussian inputs: the mean count of 200 tokens is within 20 %, "
    "the spread that the dependence of scores of one token leaves",
    tolerance=0.2,
)
def share_of_units(case: Case) -> tuple[Any, Any]:
    layer = SparkFFN(64, hidden=2048, k=164, seed=case.seed, dtype="float64")
    p = layer.gate(Tensor(case.rng().standard_normal((200, 64))))
    return np.array((p.data > 0).sum(axis=-1).mean() / 164.0), np.array(1.0)

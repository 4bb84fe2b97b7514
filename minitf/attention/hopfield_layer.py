"""Hopfield lookup layer: each token retrieves from learned patterns, a soft nearest prototype.

    y = Hopfield(state = x, stored = K, values = K or T)

    x, y  (..., D)    tokens, each on its own
    K     (L, D)      learned patterns            T  (L, D)   their targets, if they have any

The rest is `hopfield`: q = LN(x) W_Q, k = LN(K) W_K, v = LN(T) W_V, A = softmax(beta q k^T) for each head,
y = merge(A v) W_O. Without norms and projections y = softmax(beta x K^T) T, a feed-forward network whose
activation is a softmax over its hidden units; as beta grows, the target of the pattern with the largest
product. K and T start normal with deviation 0.02.

With steps > 0 a head stops once the tokens of the call have together moved by no more than eps, so that they
depend a little on each other; with steps = 0 they never do.

Cost: 4 N D^2 for the maps of tokens, 4 L D^2 for those of patterns, and 4 N L D.
Source: Hopfield Networks is All You Need, Ramsauer et al., arXiv:2008.02217, 2020.
Differs from published code: L = 4 D unless given; there it is 1, with which the output is a constant.
Numerics: those of softmax attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor
from minitf.nn import Card, Case, Module, Paper, Parameter, identity, init, positive

from .hopfield import Hopfield

CARD = Card(
    name="hopfield_layer",
    title="Hopfield lookup layer",
    kind="ffn",
    family="memory",
    papers=(Paper("Hopfield Networks is All You Need", "2008.02217", 2020),),
    causal=True,
    streams=False,
    grid="any",
    complexity="4 N D^2 + 4 L D^2 + 4 N L D",
    properties=("token_wise",),
    basis="published code: ml-jku/hopfield-layers hflayers/__init__.py (HopfieldLayer)",
    parity=("ml-jku/hopfield-layers f56f929 HopfieldLayer",),
)


class HopfieldLayer(Module):
    """(..., D) -> (..., D). Parameters: patterns (L, D), targets (L, D) if `separate`, and those of hopfield.

    Args:
        dim: D. heads: H. quantity: L, 4 D if left out. separate: whether there are targets; K else.
        Others as in `Hopfield`.

    Raises:
        ValueError: a quantity below 1, and what `Hopfield` refuses.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        quantity: int | None = None,
        separate: bool = False,
        beta: float | Sequence[float] | None = None,
        steps: int | None = 0,
        eps: float = 1e-4,
        static: Sequence[str] = (),
        norm: bool = True,
        project: bool = True,
        bias: bool = True,
        dropout: float = 0.0,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim)
        quantity = 4 * dim if quantity is None else quantity
        if quantity < 1:
            raise ValueError(f"quantity={quantity} must be at least 1")
        rng = init.generator(seed)
        self.patterns = Parameter(init.normal(rng, (quantity, dim), 0.02, dtype))
        self.targets = Parameter(init.normal(rng, (quantity, dim), 0.02, dtype)) if separate else None
        self.hopfield = Hopfield(
            dim,
            heads=heads,
            beta=beta,
            steps=steps,
            eps=eps,
            static=static,
            norm=norm,
            project=project,
            bias=bias,
            dropout=dropout,
            seed=rng,
            dtype=dtype,
        )

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
        # All tokens are states of one example: (1, tokens, D)
        states = x.reshape((1, -1, x.shape[-1]))
        values = self.patterns if self.targets is None else self.targets
        y = self.hopfield(states, context=self.patterns[None], values=values[None], rng=rng)
        return y.reshape((*x.shape[:-1], -1))


def build(case: Case, **options: Any) -> HopfieldLayer:
    layer = HopfieldLayer(case.dim, heads=case.h, quantity=5, seed=case.seed, dtype="float64", **options)
    rng = case.rng()
    for p in layer.parameters():
        # Far from the small initial values, so that all weights matter.
        p.data = p.data + 0.5 * rng.standard_normal(p.shape)
    return layer


def bare(case: Case, **options: Any) -> HopfieldLayer:
    """One head, no norms and no projections: tokens look up the patterns themselves."""
    static = ("state", "stored", "values")
    options = {"norm": False, "project": False, "static": static, "separate": True, **options}
    return build(Case(case.b, case.t, 1, case.dim, case.seed), **options)


@identity("by loops over heads, for one token at a time")
def token_by_token(case: Case) -> tuple[Tensor, Any]:
    layer, x = build(case, separate=True), case.tokens()
    hopfield, d = layer.hopfield, case.d
    k = hopfield.wk(hopfield.norm_stored(layer.patterns)).data
    v = hopfield.wv(hopfield.norm_values(layer.targets)).data
    rows = np.zeros(x.shape)
    for b, t in np.ndindex(case.b, case.t):
        q = hopfield.wq(hopfield.norm_state(x[b, t])).data
        for s in (slice(h * d, h * d + d) for h in range(case.h)):
            weights = np.exp(k[:, s] @ q[s] / np.sqrt(d))
            rows[b, t, s] = weights @ v[:, s] / weights.sum()
    return layer(x), hopfield.wo(Tensor(rows))


@identity("separate targets, nothing projected: a two-layer network softmax(beta x K^T) T")
def two_layers(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = bare(case, beta=0.6), case.tokens()
    e = ops.exp(0.6 * (x @ layer.patterns.mT))
    return layer(x), (e @ layer.targets) / e.sum(axis=-1, keepdims=True)


@identity("a large beta: the target of the pattern with the largest product")
def nearest(case: Case) -> tuple[Tensor, Tensor]:
    x = case.tokens()
    scores = x.data @ bare(case).patterns.data.T
    best = np.sort(scores, axis=-1)
    # Large enough for the closest call.
    layer = bare(case, beta=40.0 / float((best[..., -1] - best[..., -2]).min()))
    return layer(x), ops.take(layer.targets, scores.argmax(axis=-1), axis=0)


@identity("without targets the patterns are their own values")
def own_values(case: Case) -> tuple[Tensor, Tensor]:
    one, two, x = build(case), build(case, separate=True), case.tokens()
    two.load_state_dict({**one.state_dict(), "targets": one.patterns.data})
    return one(x), two(x)


@identity("permuting tokens permutes outputs, over batch and sequence alike")
def equivariant(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens().reshape((case.b * case.t, case.dim))
    order = case.rng().permutation(case.b * case.t)
    return layer(x[order].reshape((case.t, case.b, case.dim))), layer(x)[order].reshape(
        (case.t, case.b, case.dim)
    )

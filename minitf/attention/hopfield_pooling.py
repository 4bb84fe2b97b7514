"""Hopfield pooling: learned states that retrieve from a set, and so turn it into a fixed number of vectors.

    y = Hopfield(state = R, stored = Y, values = U)

    Y  (B, N, D)   stored patterns, the tokens;  U (B, N, D) their values, Y if left out
    R  (M, D)      learned states, the same for every example        y  (B, M, D)

The rest is `hopfield`: q = LN(R) W_Q, k = LN(Y) W_K, v = LN(U) W_V, A = softmax(beta q k^T) for each head,
y = merge(A v) W_O, with more retrievals in between if asked for. R starts normal with deviation 0.02; it
passes a layer norm, so that it must not be constant over its features. M = 1 unless given. The order of the
tokens does not matter.

Cost: 4 N D^2 + 4 M D^2 for the maps and 4 M N D for the association.
Source: Hopfield Networks is All You Need, Ramsauer et al., arXiv:2008.02217, 2020.
Differs from published code: y keeps its M rows; `flat` puts them side by side, as the code does.
Numerics: those of softmax attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor
from minitf.nn import Card, Case, Module, Paper, Parameter, identity, init, positive

from .hopfield import Hopfield
from .softmax import SoftmaxAttention

CARD = Card(
    name="hopfield_pooling",
    title="Hopfield pooling",
    kind="tokens",
    family="pooling",
    papers=(Paper("Hopfield Networks is All You Need", "2008.02217", 2020),),
    causal=False,
    streams=False,
    grid="1d",
    complexity="4 N D^2 + 4 M D^2 + 4 M N D",
    properties=("batch_independent", "permutation_invariant", "key_masks"),
    basis="published code: ml-jku/hopfield-layers hflayers/__init__.py (HopfieldPooling)",
    parity=("ml-jku/hopfield-layers f56f929 HopfieldPooling",),
)


class HopfieldPooling(Module):
    """x (B, N, D) -> (B, M, D). Parameters: states (M, D), and those of hopfield.

    Args:
        dim: D. heads: H. quantity: M. Others as in `Hopfield`.

    Raises:
        ValueError: a quantity below 1, and what `Hopfield` refuses.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        quantity: int = 1,
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
        if quantity < 1:
            raise ValueError(f"quantity={quantity} must be at least 1")
        rng = init.generator(seed)
        self.states = Parameter(init.normal(rng, (quantity, dim), 0.02, dtype))
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

    def forward(
        self,
        x: Tensor,
        *,
        mask: Any = None,
        values: Tensor | None = None,
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        """Pool x (B, N, D), or values (B, N, D) by x. mask: boolean (B, 1, 1, N), True = visible."""
        if x.ndim != 3:
            raise ShapeError(f"hopfield_pooling: x must be (B, N, D), not {x.shape}")
        # R for every example: (B, M, D)
        states = ops.broadcast_to(self.states, (x.shape[0], *self.states.shape))
        return self.hopfield(states, context=x, values=values, mask=mask, rng=rng)

    def flat(self, x: Tensor, **options: Any) -> Tensor:
        """The M vectors side by side, for a head behind: (B, M D). options: those of a call."""
        return self(x, **options).reshape((x.shape[0], -1))


def build(case: Case, **options: Any) -> HopfieldPooling:
    layer = HopfieldPooling(
        case.dim, heads=case.h, seed=case.seed, dtype="float64", **{"quantity": 3, **options}
    )
    rng = case.rng()
    for p in layer.parameters():
        # Far from the small initial values, so that all weights matter.
        p.data = p.data + 0.5 * rng.standard_normal(p.shape)
    return layer


def bare(case: Case, **options: Any) -> HopfieldPooling:
    """No norms and no projections: every head retrieves from the tokens themselves."""
    static = ("state", "stored", "values")
    return build(case, static=static, norm=False, project=False, **options)


@identity("the order of the tokens, with their values, does not matter")
def invariant(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, rng = build(case, steps=2), case.tokens(), case.rng()
    order, values = rng.permutation(case.t), Tensor(rng.standard_normal(x.shape))
    return layer(x[:, order], values=values[:, order]), layer(x, values=values)


@identity(
    "one state and nothing projected: the mean of the tokens, weighted by a softmax of their products with R"
)
def weighted_mean(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = bare(case, quantity=1), case.tokens()
    weights = np.exp(x.data @ layer.states.data[0])
    mean = (weights[..., None] * x.data).sum(axis=1) / weights.sum(axis=1)[:, None]
    return layer(x)[:, 0], Tensor(np.tile(mean, case.h))


@identity(
    "beta = 0 gives the mean of the values that are visible; a bag of which nothing is visible gives zeros"
)
def masked_mean(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, rng = bare(case, beta=0.0), case.tokens(), case.rng()
    mask, values = rng.random((case.b, 1, 1, case.t)) < 0.6, Tensor(rng.standard_normal(x.shape))
    shown = mask[:, 0, 0, :, None]
    mean = (values.data * shown).sum(axis=1, keepdims=True) / np.maximum(1, shown.sum(axis=1, keepdims=True))
    return layer(x, values=values, mask=mask), Tensor(np.tile(mean, (1, 3, case.h)))


@identity("hidden tokens behind the others change nothing")
def appended(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, steps=2), case.tokens()
    longer = ops.concat([x, Tensor(case.rng().standard_normal((case.b, 3, case.dim)))], axis=1)
    return layer(longer, mask=np.arange(case.t + 3) < case.t), layer(x)


@identity("without norms it is cross-attention whose queries are learned")
def learned_queries(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, norm=False, bias=False), case.tokens()
    other = SoftmaxAttention(case.dim, heads=case.h, causal=False, dtype="float64")
    other.load_state_dict(layer.hopfield.state_dict())
    states = ops.stack([layer.states] * case.b)
    return layer(x), other(states, context=x)


@identity("flat: the vectors of one example side by side")
def flattened(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    y = layer(x)
    return layer.flat(x), ops.concat([y[:, m] for m in range(3)], axis=-1)

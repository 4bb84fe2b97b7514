"""Mixture of experts in which the experts choose: each takes the C tokens of a group that suit it best.

    S   = softmax(x W_r) over experts                   (n, E)
    I_e = TopK(S_:e, C)                                 C tokens for expert e; the lower index wins a tie
    y_n = sum over e with n in I_e of S_ne FFN_e(x_n)

    x, y  (G, n, D)        W_r  (D, E)        C = round(c n / E), from 1 to n

A group is all tokens of one sequence, or of one image. Every expert works on exactly C tokens, so no loss has
to balance them; a token may have many experts, or none, and then y_n = 0. Gates are not renormalised. I is a
constant in the backward pass.

NOT causal: whether an expert takes a token depends on the later tokens of its group, so it must not stand in
a language model that predicts the next token. Hidden tokens (`valid`) only get probability 0, and an expert
that finds nothing better still takes them.

Cost: c N tokens through one expert, 4 c N D F; 2 N D E for the router, and sorting n scores for each expert.
Source: Mixture-of-Experts with Expert Choice Routing, Zhou et al., arXiv:2202.09368, 2022.
Differs from the paper: its reference code takes at least 4 tokens for each expert, we take at least 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor, array_module
from minitf.nn import Card, Case, Linear, Module, Paper, identity, init, positive

from .gelu_ffn import GELUFFN

CARD = Card(
    name="expert_choice_moe",
    title="Mixture of experts that choose tokens",
    kind="ffn",
    family="experts",
    papers=(Paper("Mixture-of-Experts with Expert Choice Routing", "2202.09368", 2022),),
    causal=False,
    streams=False,
    grid="any",
    complexity="4 c N D F + 2 N D E + E N log N",
    properties=("batch_independent",),
    basis=(
        "published code: google/flaxformer routing.py ExpertsChooseMaskedRouter; google-research/vmoe "
        "NoisyTopItemsPerExpertRouter"
    ),
    expected_failures={
        "token_wise": "an expert compares all tokens of a group: a token alone is taken by every expert"
    },
)


class ExpertChoiceMoE(Module):
    """(G, ..., D) -> (G, ..., D), or (n, D) as one group. Parameters: router.weight (D, E), experts.{e}.

    Args:
        dim: D. experts: E. capacity: c, the mean number of experts of a token. hidden: F, default 4 D.

    Raises:
        ValueError: experts or hidden below 1, or a capacity that is not above 0.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        experts: int = 8,
        capacity: float = 2.0,
        hidden: int | None = None,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, hidden=hidden)
        if experts < 1 or not capacity > 0.0:
            raise ValueError(f"experts={experts} must be 1 or more, and capacity={capacity} above 0")
        rng = init.generator(seed)
        self.capacity = capacity
        self.router = Linear(dim, experts, False, rng, dtype=dtype)
        self.experts = [GELUFFN(dim, hidden=hidden, seed=rng, dtype=dtype) for _ in range(experts)]

    def forward(self, x: Tensor, valid: Any = None) -> Tensor:
        """y for x (G, ..., D). valid: boolean (G, n), True = a token that counts."""
        tokens = x.reshape((x.shape[0] if x.ndim > 2 else 1, -1, x.shape[-1]))
        gates, chosen = self.choose(tokens, valid)
        (b, n, d), c = tokens.shape, chosen.shape[-1]
        # Places in the flattened tokens, those of expert 0 first: (E, G C)
        places = (
            (chosen + n * array_module(chosen).arange(b)[:, None, None]).swapaxes(0, 1).reshape(-1, b * c)
        )
        groups = ops.unstack(ops.embedding(places, tokens.reshape((b * n, d))))
        # FFN_e(x_n) for the tokens of every expert in all groups: (E G C, D)
        y = ops.concat([expert(rows) for expert, rows in zip(self.experts, groups, strict=True)])
        # sum over e of S_ne FFN_e(x_n)
        gates = gates.moveaxis(1, 0).reshape(-1)
        return ops.combine_rows(y, places.reshape(-1), gates, b * n).reshape(x.shape)

    def choose(self, x: Tensor, valid: Any = None) -> tuple[Tensor, Array]:
        """For tokens (G, n, D): gates and tokens of every expert, both (G, E, C), the best first."""
        s = ops.softmax(self.router(x))
        if valid is not None:
            s = ops.where(array_module(valid).asarray(valid)[..., None], s, 0.0)
        n = x.shape[1]
        c = min(max(1, round(self.capacity * n / len(self.experts))), n)
        gates, chosen = ops.topk(s.mT, c)
        return gates, chosen.data


def build(case: Case, **options: Any) -> ExpertChoiceMoE:
    return ExpertChoiceMoE(case.dim, seed=case.seed, dtype="float64", **{"experts": 4, **options})


@identity("c = E: every expert takes every token, the dense mixture sum_e S_e FFN_e(x)")
def dense(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, capacity=4.0), case.tokens()
    s = ops.softmax(layer.router(x))
    return layer(x), sum(s[..., e : e + 1] * layer.experts[e](x) for e in range(4))


@identity("by loops over groups and experts; a token that nobody takes gives 0")
def loops(case: Case) -> tuple[Tensor, Any]:
    x, left, right = case.tokens(), [], []
    for capacity in (0.1, 1.0, 2.0):
        layer, y = build(case, capacity=capacity), np.zeros(x.shape)
        c = max(1, round(capacity * case.t / 4))
        for group, out in zip(x, y):
            s = ops.softmax(layer.router(group)).data
            for e in range(4):
                for n in np.argsort(-s[:, e], kind="stable")[:c]:
                    out[n] += s[n, e] * layer.experts[e](group[n : n + 1]).data[0]
        left.append(layer(x))
        right.append(y)
    return ops.stack(left), np.stack(right)


@identity("every expert takes exactly C different tokens of each group")
def balanced(case: Case) -> tuple[Any, Any]:
    layer = build(case, capacity=1.5)
    chosen = layer.choose(case.tokens())[1]
    c = max(1, min(round(1.5 * case.t / 4), case.t))
    different = [[len(set(row.tolist())) for row in group] for group in chosen]
    return np.array(different), np.full((case.b, 4), c)


@identity("tokens of a group in another order give the outputs in that order")
def equivariant(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    order = case.rng().permutation(case.t)
    return layer(x[:, order]), layer(x)[:, order]


@identity("NOT causal: another last token takes the place of the first, whose output becomes 0")
def not_causal(case: Case) -> tuple[Any, Any]:
    # Two experts, one token each: expert 0 likes large x_0, expert 1 small x_0.
    layer = ExpertChoiceMoE(2, experts=2, capacity=0.5, seed=case.seed, dtype="float64")
    layer.router.weight.data = np.array([[1.0, -1.0], [0.0, 0.0]])
    x = np.array([[[2.0, 1.0], [-1.0, 1.0], [-2.0, 1.0], [0.0, 1.0]]])
    later = x.copy()
    later[0, 3, 0] = 3.0
    before, after = layer(Tensor(x)).data[0, 0], layer(Tensor(later)).data[0, 0]
    return np.array([float(np.any(before != 0.0)), *after]), np.array([1.0, 0.0, 0.0])


@identity("tokens that are not valid give 0, and where enough are valid each expert takes C of those")
def hidden_tokens(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, count = build(case, capacity=2.0), case.tokens(), -(-case.t // 2)
    valid = np.broadcast_to(np.arange(case.t) < count, (case.b, case.t))
    # The same C for a group of the valid tokens alone: round(4 C / count * count / 4).
    layer_alone = build(case, capacity=4.0 * max(1, round(2.0 * case.t / 4.0)) / count)
    alone = layer_alone(x[:, :count])
    return layer(x, valid), ops.concat([alone, 0.0 * x[:, count:]], axis=1)

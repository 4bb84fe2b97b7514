"""Sparse mixture of experts: every token goes to the k experts that score highest, and none is dropped.

    l = x W_r                                    scores of the E experts
    S = the k largest of l                       the lower index wins a tie
    g = softmax(l_S)                             renorm; otherwise g_e = softmax(l)_e for e in S
    y = sum over e in S of g_e FFN_e(x)

    x, y  (..., D)        W_r  (D, E)        l  (..., E)        S, g  (..., k)

FFN_e is a gated network (SwiGLU) unless `expert` says otherwise. S is a constant in the backward pass:
gradients reach W_r through the gates g.

Cost: k times that of one expert, 2 N D E for the router. Parameters: E times those of one expert.
Source: the dropless top-k layer of open models; Revisiting SMoE Language Models by Evaluating Inefficiencies
with Task Specific Expert Pruning, arXiv:2409.01483, 2024.
Differs from the paper: none known. UNSURE: whether the paper's own models use k = 1 or 2; k is an option.
Numerics: with renorm the gates differ from those without by a factor that the experts learn; never switch
after training.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor, array_module
from minitf.nn import Card, Case, Linear, Module, Paper, dispatch, identity, init, not_negative, positive

from .gelu_ffn import GELUFFN
from .glu_ffn import GLUFFN
from .moe_aux_losses import balance_loss

CARD = Card(
    name="smoe_topk",
    title="Dropless sparse mixture of experts, top-k",
    kind="ffn",
    family="experts",
    papers=(
        Paper(
            "Revisiting SMoE Language Models by Evaluating Inefficiencies with Task Specific Expert Pruning",
            "2409.01483",
            2024,
        ),
    ),
    causal=True,
    streams=False,
    grid="any",
    complexity="6 N k D F + 2 N D E",
    properties=("token_wise",),
    basis="paper text and the layout of UNITES-Lab/MC-SMoE",
    aliases={"mixtral_moe": {}},
    parity=("transformers 5.23.0 MixtralSparseMoeBlock",),
)

EXPERTS: dict[str, Any] = {"swiglu": GLUFFN, "gelu": GELUFFN}


class SMoETopK(Module):
    """(..., D) -> (..., D). Parameters: router.weight (D, E), experts.{e}.

    Args:
        dim: D. experts: E. k: experts per token. renorm: gates sum to 1.
        expert: "swiglu" or "gelu". hidden: F of each expert, default its own.
        balance: weight of the balance loss that `auxiliary_loss` gives to training.

    Raises:
        ValueError: k outside 1..E, an unknown kind of expert, hidden below 1, or balance below 0.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        experts: int = 8,
        k: int = 2,
        renorm: bool = True,
        expert: str = "swiglu",
        hidden: int | None = None,
        balance: float = 0.01,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, hidden=hidden)
        not_negative(balance=balance)
        if not 1 <= k <= experts:
            raise ValueError(f"k={k} must be from 1 to experts={experts}")
        if expert not in EXPERTS:
            raise ValueError(f"expert must be one of: {', '.join(EXPERTS)}, not {expert!r}")
        rng = init.generator(seed)
        self.k, self.renorm, self.balance = k, renorm, balance
        self.router = Linear(dim, experts, False, rng, dtype=dtype)
        self.experts: list[Any] = [
            EXPERTS[expert](dim, hidden=hidden, seed=rng, dtype=dtype) for _ in range(experts)
        ]

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape((-1, x.shape[-1]))
        chosen, gates = self.route(tokens)
        return dispatch(tokens, chosen, gates, self.experts).reshape(x.shape)

    def route(self, x: Tensor) -> tuple[Array, Tensor]:
        """For tokens (n, D): the experts S (n, k), best first, and their gates g (n, k)."""
        # l = x W_r: (n, E)
        scores = self.router(x)
        top, chosen = ops.topk(scores, self.k)
        if self.renorm:
            return chosen.data, ops.softmax(top)
        return chosen.data, ops.take_along_axis(ops.softmax(scores), chosen)

    def auxiliary_loss(self, x: Tensor) -> Tensor:
        """What training should add for an input x (..., D): balance * the balance loss, a scalar."""
        tokens = x.reshape((-1, x.shape[-1]))
        places = self.route(tokens)[0]
        chosen = (places[..., None] == array_module(places).arange(len(self.experts))).any(axis=1)
        return self.balance * balance_loss(ops.softmax(self.router(tokens)), chosen)


def build(case: Case, **options: Any) -> SMoETopK:
    return SMoETopK(case.dim, seed=case.seed, dtype="float64", **{"experts": 4, **options})


def token_by_token(layer: SMoETopK, x: Tensor) -> Tensor:
    """The equations in a loop over tokens and slots."""
    rows = []
    for token in x.reshape((-1, x.shape[-1])):
        scores = layer.router(token)
        order = np.argsort(-scores.data, kind="stable")[: layer.k]
        gates = ops.softmax(scores[order]) if layer.renorm else ops.softmax(scores)[order]
        rows.append(sum(gates[s] * layer.experts[e](token) for s, e in enumerate(order)))
    return ops.stack(rows).reshape(x.shape)


@identity("the sorted dispatch equals a loop over tokens, for every k, renormalised or not")
def loops(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for k in (1, 2, 4):
        for renorm in (True, False):
            layer = build(case, k=k, renorm=renorm, expert="gelu" if k == 1 else "swiglu")
            left.append(layer(x))
            right.append(token_by_token(layer, x))
    return ops.stack(left), ops.stack(right)


@identity("with equal experts and renormalised gates, one expert")
def equal_experts(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    for expert in layer.experts:
        expert.load_state_dict(layer.experts[0].state_dict())
    return layer(x), layer.experts[0](x)


@identity("with k = E, the dense mixture by the softmax of all scores; with W_r = 0, the mean of the experts")
def dense(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for renorm in (True, False):
        layer = build(case, k=4, renorm=renorm)
        p = ops.softmax(layer.router(x))
        left.append(layer(x))
        right.append(sum(p[..., e : e + 1] * layer.experts[e](x) for e in range(4)))
        layer.router.weight.data = np.zeros_like(layer.router.weight.data)
        left.append(layer(x))
        right.append(sum(f(x) for f in layer.experts) / 4.0)
    return ops.stack(left), ops.stack(right)


@identity("softmax over the k best scores equals softmax over all, renormalised over those k")
def renormalised(case: Case) -> tuple[Tensor, Tensor]:
    x = case.tokens().reshape((-1, case.dim))
    gates = build(case, renorm=False).route(x)[1]
    return build(case).route(x)[1], gates / gates.sum(axis=-1, keepdims=True)


@identity(
    "the auxiliary loss: balance * E sum_e f_e P_e, f the share of tokens that chose e, P its mean softmax"
)
def balance(case: Case) -> tuple[Tensor, Any]:
    layer, x, k = build(case, balance=0.3), case.tokens(), 2
    scores = x.data.reshape(-1, case.dim) @ layer.router.weight.data
    chosen, p = np.zeros(4), np.zeros(4)
    for row in scores:
        chosen[np.argsort(-row, kind="stable")[:k]] += 1.0 / len(scores)
        p += np.exp(row) / np.exp(row).sum() / len(scores)
    return layer.auxiliary_loss(x), np.array(0.3 * 4.0 * chosen @ p)


@identity("experts in another order, with the columns of W_r, give the same output")
def relabelled(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    y, order = layer(x), case.rng().permutation(4)
    layer.experts = [layer.experts[e] for e in order]
    layer.router.weight.data = layer.router.weight.data[:, order]
    return layer(x), y

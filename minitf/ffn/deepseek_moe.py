"""DeepSeek mixture of experts: many small experts, shared ones that always run, balance by a bias.

    s   = sigmoid(x W_r) or softmax(x W_r)                    (n, E)
    S   = TopK(s + b, k)                                      within the best groups, see below
    w_e = s_e for e in S, without b;  sigmoid: w / sum(w);  then times route_scale
    y   = sum over e in S of w_e FFN_e(x) + FFN_shared(x)

    x, y  (..., D)        W_r  (D, E)        b  (E,), a buffer        FFN  SwiGLU, D -> F -> D

The shared network stands for `shared` experts that every token uses: one SwiGLU of width shared * F.

Groups: experts in `groups` groups of equal size; the score of a group is the sum of its two largest s + b, or
its largest s if b is not used. Only the experts of the best `group_limit` groups can be chosen.

Balance: after each step of the optimiser b_e += gamma sign(mean(c) - c_e), c_e the number of tokens sent to e
in the whole batch: `update_bias(counts)`. b has no gradient, it moves the choice and never the gates. A small
loss may be added (`auxiliary_loss`), for each sequence of N tokens

    L = E / (k N) sum_e c'_e mean_n(s_ne / sum_j s_nj),       c'_e counting TopK(s, k), without b and groups

Cost: 6 N (k + shared) D F operations, 2 N D E for the router; 3 (E + shared) D F + D E parameters.
Source: DeepSeekMoE, Dai et al., arXiv:2401.06066, 2024; Auxiliary-Loss-Free Load Balancing Strategy for
Mixture-of-Experts, Wang et al., arXiv:2408.15664, 2024; DeepSeek-V3, arXiv:2412.19437, 2024, equations 12 to
20. V3 has E = 256, k = 8, shared = 1, F = 2048 at D = 7168, groups = 8, group_limit = 4, route_scale = 2.5;
its first three layers are plain SwiGLU networks. The smaller V2 has E = 64, k = 6, shared = 2 and softmax.
Differs from the paper: F is a quarter of a gated network's width unless given.
Numerics: 1e-20 is added to sum(w), so that k scores that round to 0 give 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor, array_module
from minitf.nn import (
    Buffer,
    Card,
    Case,
    Linear,
    Module,
    Paper,
    dispatch,
    identity,
    init,
    not_negative,
    positive,
)

from .glu_ffn import GLUFFN, gated_width
from .moe_aux_losses import balance_loss, selection

CARD = Card(
    name="deepseek_moe",
    title="Fine-grained and shared experts, balanced by a bias",
    kind="ffn",
    family="experts",
    papers=(
        Paper(
            "DeepSeekMoE: Towards Ultimate Expert Specialization in Mixture-of-Experts Language Models",
            "2401.06066",
            2024,
        ),
        Paper("Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", "2408.15664", 2024),
        Paper("DeepSeek-V3 Technical Report", "2412.19437", 2024),
    ),
    causal=True,
    streams=False,
    grid="any",
    complexity="6 N k D F + 6 N D F + 2 N D E",
    properties=("token_wise",),
    basis="published code: deepseek-ai/DeepSeek-V3 inference/model.py; the update of the bias from the paper",
    parity=("transformers 5.23.0 DeepseekV3MoE",),
)


class DeepSeekMoE(Module):
    """(..., D) -> (..., D).

    Parameters: router.weight (D, E), experts.{e}, shared_expert if shared > 0. Buffer: bias (E,) if biased.

    Args:
        dim: D. experts: E. k: routed experts per token, 0 for none. shared: how many shared experts.
        hidden: F. score: "sigmoid" or "softmax". route_scale: factor of the gates.
        groups, group_limit: groups of experts, and how many of them a token may use.
        biased: whether b acts. gamma: how far one update moves it.
        balance: weight of the loss that `auxiliary_loss` gives to training.

    Raises:
        ValueError: an unknown score; groups that do not divide the experts; a group_limit outside 1..groups;
            k above the number of experts in group_limit groups; sizes or route_scale of 0 or less; shared,
            gamma or balance below 0.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        experts: int = 8,
        k: int = 2,
        shared: int = 1,
        hidden: int | None = None,
        score: str = "sigmoid",
        route_scale: float = 1.0,
        groups: int = 1,
        group_limit: int = 1,
        biased: bool = True,
        gamma: float = 0.001,
        balance: float = 1e-4,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, experts=experts, hidden=hidden, route_scale=route_scale)
        not_negative(shared=shared, gamma=gamma, balance=balance)
        if score not in ("sigmoid", "softmax"):
            raise ValueError(f"score must be 'sigmoid' or 'softmax', not {score!r}")
        if groups < 1 or experts % groups or not 1 <= group_limit <= groups:
            raise ValueError(
                f"groups={groups} must divide experts={experts}, group_limit={group_limit} be in 1..groups"
            )
        if not 0 <= k <= experts // groups * group_limit:
            raise ValueError(
                f"k={k} must be from 0 to the {experts // groups * group_limit} experts in reach"
            )
        rng = init.generator(seed)
        hidden = max(1, gated_width(dim) // 4) if hidden is None else hidden
        self.k, self.score, self.route_scale, self.gamma, self.balance = k, score, route_scale, gamma, balance
        self.groups, self.group_limit = groups, group_limit
        self.router = Linear(dim, experts, False, rng, dtype=dtype)
        self.experts = [GLUFFN(dim, hidden=hidden, seed=rng, dtype=dtype) for _ in range(experts)]
        self.shared_expert = GLUFFN(dim, hidden=shared * hidden, seed=rng, dtype=dtype) if shared else None
        self.bias = Buffer(np.zeros(experts, dtype=dtype)) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape((-1, x.shape[-1]))
        y = ops.zeros_like(tokens)
        if self.k:
            y = dispatch(tokens, *self.route(tokens), self.experts)
        if self.shared_expert is not None:
            y = y + self.shared_expert(tokens)
        return y.reshape(x.shape)

    def scores(self, x: Tensor) -> Tensor:
        """s (n, E) for tokens (n, D)."""
        logits = self.router(x)
        return ops.sigmoid(logits) if self.score == "sigmoid" else ops.softmax(logits)

    def route(self, x: Tensor) -> tuple[Array, Tensor]:
        """For tokens (n, D): the experts S (n, k), best first, and their gates w (n, k)."""
        s = self.scores(x)
        biased = s.data if self.bias is None else s.data + self.bias.data
        sel = limited(biased, self.groups, self.group_limit, 1 if self.bias is None else 2)
        chosen = ops.topk(Tensor(sel), self.k)[1].data
        w = ops.take_along_axis(s, chosen)
        if self.score == "sigmoid":
            w = w / (w.sum(axis=-1, keepdims=True) + 1e-20)
        return chosen, self.route_scale * w

    def counts(self, x: Tensor) -> Array:
        """c (E,): how many tokens of x (..., D) go to each expert."""
        chosen = self.route(x.reshape((-1, x.shape[-1])))[0]
        return np.bincount(chosen.reshape(-1), minlength=len(self.experts))

    def update_bias(self, counts: Array) -> None:
        """b_e += gamma sign(mean(c) - c_e): once for each step of the optimiser, with counts of the batch.

        Raises:
            ValueError: there is no bias.
        """
        if self.bias is None:
            raise ValueError("this layer was built with biased=False")
        step = self.gamma * np.sign(np.mean(counts) - counts)
        self.bias.data = self.bias.data + step.astype(self.bias.dtype)

    def auxiliary_loss(self, x: Tensor) -> Tensor:
        """What training should add for x (B, N, D): balance * the mean over sequences of L, a scalar."""
        if not self.k:
            return ops.zeros((), like=x)
        s = self.scores(x)
        # f sums to k: divided by k, an even use gives 1.
        loss = balance_loss(s / (s.sum(axis=-1, keepdims=True) + 1e-20), selection(s, self.k)) / self.k
        return self.balance * loss.mean()


def limited(sel: Array, groups: int, limit: int, best: int) -> Array:
    """sel (n, E), -inf outside the `limit` groups whose `best` largest add up to most."""
    if groups == limit:
        return sel
    grouped = sel.reshape(len(sel), groups, -1)
    score = np.sort(grouped, axis=-1)[..., -best:].sum(axis=-1)
    order = np.argsort(-score, axis=-1, kind="stable")[:, :limit]
    keep = (order[:, :, None] == array_module(order).arange(groups)).any(axis=1)
    return np.where(keep[..., None], grouped, -np.inf).reshape(sel.shape)


def build(case: Case, **options: Any) -> Any:
    layer: Any = DeepSeekMoE(case.dim, seed=case.seed, dtype="float64", **{"hidden": 6, **options})
    if layer.bias is not None:
        layer.bias.data = 0.2 * case.rng().standard_normal(layer.bias.shape)
    return layer


@identity("the equations in loops over tokens, groups and experts, with every kind of score")
def loops(case: Case) -> tuple[Tensor, Any]:
    x, left, right = case.tokens(), [], []
    for score, biased, groups in (("sigmoid", True, 4), ("softmax", True, 2), ("softmax", False, 4)):
        layer = build(case, score=score, biased=biased, groups=groups, group_limit=2, k=3, route_scale=2.5)
        rows, size = [], 8 // groups
        for token in x.data.reshape(-1, case.dim):
            logits = token @ layer.router.weight.data
            s = 1.0 / (1.0 + np.exp(-logits)) if score == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
            sel = s + (layer.bias.data if layer.bias is not None else 0.0)
            of_group = [sorted(sel[g * size : (g + 1) * size])[-2 if biased else -1 :] for g in range(groups)]
            best = np.argsort([-sum(group) for group in of_group], kind="stable")[:2]
            reach = [e for e in np.argsort(-sel, kind="stable") if e // size in best]
            chosen = reach[:3]
            total = sum(s[e] for e in chosen) if score == "sigmoid" else 1.0
            one = Tensor(token[None])
            parts = [2.5 * s[e] / total * layer.experts[e](one).data for e in chosen]
            rows.append(sum(parts) + layer.shared_expert(one).data)
        left.append(layer(x))
        right.append(np.reshape(rows, x.shape))
    return ops.stack(left), np.stack(right)


@identity("k = 0: only the shared expert, a gated network of width shared * F")
def only_shared(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, k=0, shared=2), case.tokens()
    glu = GLUFFN(case.dim, hidden=12, dtype="float64")
    glu.load_state_dict({k[14:]: v for k, v in layer.state_dict().items() if k.startswith("shared_expert")})
    return layer(x), glu(x)


@identity("one SwiGLU cut into m experts, all chosen with weight 1, is that SwiGLU")
def fine_grained(case: Case) -> tuple[Tensor, Tensor]:
    x, m = case.tokens(), 4
    layer = build(case, experts=m, k=m, shared=0, route_scale=float(m))
    whole = GLUFFN(case.dim, hidden=6 * m, seed=case.seed, dtype="float64")
    # Equal scores: every gate is 1 / m, times route_scale = m.
    layer.router.weight.data = np.zeros_like(layer.router.weight.data)
    for e, expert in enumerate(layer.experts):
        cut = slice(6 * e, 6 * e + 6)
        expert.wg.weight.data = whole.wg.weight.data[:, cut]
        expert.wu.weight.data = whole.wu.weight.data[:, cut]
        expert.wd.weight.data = whole.wd.weight.data[cut]
    return layer(x), whole(x)


@identity("the same constant added to every b changes nothing")
def shifted_bias(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    y = layer(x)
    layer.bias.data = layer.bias.data + 3.0
    return layer(x), y


@identity("b = 0 is no b: plain top-k of the scores")
def no_bias(case: Case) -> tuple[Tensor, Tensor]:
    layer, plain, x = build(case), build(case, biased=False), case.tokens()
    layer.bias.data = np.zeros_like(layer.bias.data)
    return layer(x), plain(x)


@identity("equal routed experts, sigmoid: the routed part is route_scale FFN(x)")
def equal_experts(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, shared=0, route_scale=2.5), case.tokens()
    for expert in layer.experts:
        expert.load_state_dict(layer.experts[0].state_dict())
    return layer(x), 2.5 * layer.experts[0](x)


@identity("sum_e c_e = k n")
def every_slot_counts(case: Case) -> tuple[Any, Any]:
    layer = build(case, k=3)
    return np.array(layer.counts(case.tokens()).sum()), np.array(3 * case.b * case.t)


@identity("the sequence-wise loss by loops: E / (k N) sum_e count_e mean_n(s_ne / sum_j s_nj)")
def sequence_loss(case: Case) -> tuple[Tensor, Any]:
    layer, x, total = build(case, k=3, balance=1.0), case.tokens(), 0.0
    for sequence in x:
        s = layer.scores(sequence).data
        count = np.zeros(8)
        for row in s:
            count[np.argsort(-row, kind="stable")[:3]] += 1
        total += 8 / (3 * case.t) * float(count @ (s / s.sum(axis=1, keepdims=True)).mean(axis=0)) / case.b
    return layer.auxiliary_loss(x), np.array(total)


@identity(
    "120 updates with gamma = 0.02, a skewed router, 256 fixed tokens: the largest deviation of the counts "
    "from their mean falls below a third; 0 if it does, 1 if not"
)
def balancing(case: Case) -> tuple[Any, Any]:
    layer = DeepSeekMoE(8, seed=case.seed, gamma=0.02, hidden=1, dtype="float64")
    x = Tensor(case.rng().standard_normal((256, 8)) + 1.0)
    layer.router.weight.data = layer.router.weight.data + np.linspace(-0.3, 0.3, 8)
    deviations = []
    for _ in range(120):
        counts = layer.counts(x)
        deviations.append(np.max(np.abs(counts - counts.mean())))
        layer.update_bias(counts)
    return np.array(float(not np.mean(deviations[-10:]) < deviations[0] / 3.0)), np.array(0.0)

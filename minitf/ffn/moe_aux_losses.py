"""Losses that keep the router of a mixture of experts balanced, and its scores small.

    l (n, E) scores,  p = softmax(l),  M (n, E) in {0, 1} who was chosen, k in each row,  G (n, E) gates >= 0

    balance      L = E sum_e f_e P_e,              f_e = mean_n M_ne,  P_e = mean_n p_ne
    z            L = mean_n (log sum_e exp l_ne)^2
    importance   L = var(I) / mean(I)^2,           I_e = sum_n G_ne
    load         L = var(q) / mean(q)^2,           q_e = mean_n (1 - Phi((t_n - l_ne) / sigma))
                 t_n the k-th largest of the noisy scores l_n + sigma * noise_n

n counts the tokens of a routing group, E the experts. Leading axes are groups: (..., n, E) -> (...), one
value for each group. f and M are constants in the backward pass; for top-2 routing after GShard only the
first choice enters M; M is taken before tokens are dropped for want of capacity. f sums to k, so coefficients
for different k compare only after a division by k.

1 - Phi((t - l) / sigma) is the probability that fresh noise would lift expert e to the k-th score. In the
original form of the load, an expert that was chosen is compared with the (k+1)-th score instead.

Cost: O(n E) for each group; the load also sorts the E scores of every token. No parameters.
Source: balance: Switch Transformers, Fedus et al., arXiv:2101.03961, 2021, equations 4 to 6, after GShard,
Lepikhin et al., arXiv:2006.16668, 2020. z: ST-MoE, Zoph et al., arXiv:2202.08906, 2022, equation 5.
Importance and load: V-MoE, Riquelme et al., arXiv:2106.05974, 2021, appendix A, after Shazeer et al.,
arXiv:1701.06538, 2017, equations 6 to 11.
Differs from the papers: tokens can be left out by `valid`.
Numerics: the variance is that of the population unless `unbiased`, which is what GNT-MOVE's code takes,
with 1e-10 added to the squared mean.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, array_module
from minitf.engine import grad as gradient
from minitf.nn import Card, Case, Module, Paper, identity, not_negative, positive

CARD = Card(
    name="moe_aux_losses",
    title="Losses for routers: balance, z, importance, load",
    kind="operation",
    family="experts",
    papers=(
        Paper("Switch Transformers: Scaling to Trillion Parameter Models", "2101.03961", 2021),
        Paper("GShard: Scaling Giant Models with Conditional Computation", "2006.16668", 2020),
        Paper("Scaling Vision with Sparse Mixture of Experts", "2106.05974", 2021),
        Paper("ST-MoE: Designing Stable and Transferable Sparse Expert Models", "2202.08906", 2022),
    ),
    causal=False,
    streams=False,
    grid="1d",
    complexity="20 N E",
    properties=("batch_independent",),
    basis=(
        "published code: google/flaxformer routing.py, google-research/vmoe vmoe/nn/routing.py, "
        "tensorflow/mesh moe.py"
    ),
    parity=(
        "transformers 5.23.0 load_balancing_loss_func, router_z_loss_func",
        "microsoft/tutel 82af7aa load_importance_loss",
    ),
)


def balance_loss(probabilities: Tensor, chosen: Array, valid: Array | None = None) -> Tensor:
    """L = E sum_e f_e P_e: f_e the share of tokens that chose expert e, P_e its mean probability.

    probabilities: (..., n, E). chosen: boolean (..., n, E), a constant in the backward pass.
    valid: boolean (..., n), the tokens that count; all if left out.
    """
    chosen = array_module(probabilities.data).asarray(chosen, dtype=probabilities.dtype)
    share = token_mean(chosen, valid) * token_mean(probabilities, valid)
    return probabilities.shape[-1] * share.sum(axis=-1)


def z_loss(scores: Tensor, valid: Array | None = None) -> Tensor:
    """L = mean_n (logsumexp l_n)^2, for scores (..., n, E)."""
    return token_mean(ops.square(ops.logsumexp(scores, axis=-1, keepdims=True)), valid)[..., 0]


def importance_loss(gates: Tensor, valid: Array | None = None, unbiased: bool = False) -> Tensor:
    """L = var(I) / mean(I)^2, I_e = sum_n G_ne: gates G (..., n, E), 0 where not chosen, or all p."""
    counted = gates if valid is None else ops.where(array_module(valid).asarray(valid)[..., None], gates, 0.0)
    return spread(counted.sum(axis=-2), unbiased)


def load_loss(
    scores: Tensor,
    noise: Any,
    k: int,
    sigma: float,
    valid: Array | None = None,
    original: bool = False,
) -> Tensor:
    """L = var(q) / mean(q)^2, q_e the mean probability that fresh noise would choose expert e again.

    Args:
        scores: l (..., n, E). noise: (..., n, E), standard normal, that routing added sigma times.
        k: experts per token; original: compare chosen experts with the (k+1)-th score.

    Raises:
        ValueError: sigma not above 0; k outside 1..E, or original with k = E: no score is left to compare.
    """
    last = scores.shape[-1] - original
    if not 1 <= k <= last or sigma <= 0.0:
        raise ValueError(f"k={k} must be from 1 to {last}, and sigma={sigma} above 0")
    noisy = scores + sigma * noise
    best = ops.topk(noisy, k + original)[0]
    threshold = best[..., k - 1 : k]
    if original:
        place = np.argsort(ops.argsort(noisy, descending=True).data, axis=-1, kind="stable")
        threshold = ops.where(place < k, best[..., k : k + 1], threshold)
    # 1 - Phi(z) = (1 - erf(z / sqrt(2))) / 2: (..., n, E)
    q = 0.5 - 0.5 * ops.erf((threshold - scores) / (sigma * math.sqrt(2.0)))
    return spread(token_mean(q, valid))


def token_mean(values: Any, valid: Array | None) -> Any:
    """The mean over the tokens that count: (..., n, E) -> (..., E)."""
    if valid is None:
        return values.mean(axis=-2)
    xp = array_module(values.data if isinstance(values, Tensor) else values)
    weight = xp.asarray(valid, dtype=values.dtype)[..., None]
    return (values * weight).sum(axis=-2) / np.maximum(weight.sum(axis=-2), 1.0)


def spread(usage: Tensor, unbiased: bool = False) -> Tensor:
    """var / mean^2 over the last axis."""
    mean = usage.mean(axis=-1)
    if unbiased:
        return ops.var(usage, axis=-1, correction=1.0) / (ops.square(mean) + 1e-10)
    return ops.var(usage, axis=-1) / ops.square(mean)


class MoEAuxLosses(Module):
    """Scores (..., n, E) and noise of the same shape -> the weighted sum of the four losses, (...).

    Args:
        dim: E. k: experts per token, at most E. sigma: of the noise, 1 / E if left out, as in V-MoE.
        balance, z, importance, load: weights of the losses.
        dtype: nothing is stored, so it changes nothing; results have that of the scores.

    Raises:
        ValueError: k below 1, sigma of 0 or less, or a weight below 0.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        k: int = 2,
        balance: float = 0.01,
        z: float = 0.001,
        importance: float = 0.01,
        load: float = 0.01,
        sigma: float | None = None,
        dtype: Any = "float32",
    ):
        positive(dim=dim, sigma=sigma)
        not_negative(balance=balance, z=z, importance=importance, load=load)
        if k < 1:
            raise ValueError(f"k={k} must be 1 or more")
        self.k, self.sigma = min(k, dim), 1.0 / dim if sigma is None else sigma
        self.balance, self.z, self.importance, self.load = balance, z, importance, load

    @staticmethod
    def example_inputs(case: Case) -> tuple[Tensor, ...]:
        return case.tokens(), Tensor(
            np.random.default_rng([case.seed, 1]).standard_normal(case.tokens().shape)
        )

    def forward(self, scores: Tensor, noise: Tensor, valid: Array | None = None) -> Tensor:
        """The sum for scores l (..., n, E); the choice is that of l + sigma * noise.

        Raises:
            ShapeError: scores without an axis of tokens.
        """
        if scores.ndim < 2:
            raise ShapeError(f"moe_aux_losses: scores must be (..., n, E), not {scores.shape}")
        chosen = selection(scores + self.sigma * noise, self.k)
        p = ops.softmax(scores)
        return (
            self.balance * balance_loss(p, chosen, valid)
            + self.z * z_loss(scores, valid)
            + self.importance * importance_loss(p * chosen.astype(p.dtype), valid)
            + self.load * load_loss(scores, noise, self.k, self.sigma, valid)
        )


def selection(scores: Tensor, k: int) -> Array:
    """M, boolean (..., E): True for the k largest scores (..., E)."""
    nothing = array_module(scores.data).zeros(scores.shape, dtype=bool)
    return ops.put_along_axis(nothing, ops.topk(scores, k)[1], True).data


def routed(case: Case) -> tuple[Tensor, Tensor, Array, int]:
    """Scores, p and M (b, t, E) with E = dim, and k."""
    scores, k = case.tokens(), min(2, case.dim)
    return scores, ops.softmax(scores), selection(scores, k), k


@identity("uniform p and evenly used experts: L_balance = k")
def balanced(case: Case) -> tuple[Tensor, Any]:
    e, k = case.dim, 1 + case.seed % case.dim
    # Token n chooses experts n, n + 1, ..., n + k - 1 mod E; every expert is chosen k times.
    chosen = (np.arange(e) - np.arange(e)[:, None]) % e < k
    return balance_loss(Tensor(np.full((case.b, e, e), 1.0 / e)), chosen), np.full(case.b, float(k))


@identity("every token on one expert with p = 1: L_balance = E")
def collapsed(case: Case) -> tuple[Tensor, Any]:
    one = np.zeros((case.t, case.dim))
    one[:, case.seed % case.dim] = 1.0
    return balance_loss(Tensor(one), one), np.array(float(case.dim))


@identity("L_balance is linear in P: its gradient by p_ne is E f_e / n; and it is E^2 mean_e f_e P_e")
def linear_in_p(case: Case) -> tuple[Tensor, Any]:
    _, p, chosen, _ = routed(case)
    f, mean = chosen.mean(axis=1), p.data.mean(axis=1)
    slope = gradient(lambda v: balance_loss(v, chosen).sum())(p)
    expected = np.broadcast_to(case.dim * f[:, None] / case.t, p.shape)
    sums = balance_loss(p, chosen), case.dim**2 * (f * mean).mean(axis=-1)
    return ops.concat([slope.reshape((-1,)), sums[0]]), np.concatenate([expected.reshape(-1), sums[1]])


@identity("L_z is 0 where all scores are -log E, and c^2 where c is added to them")
def z_of_shifted(case: Case) -> tuple[Tensor, Any]:
    c = case.rng().standard_normal()
    flat = Tensor(np.full((case.t, case.dim), -math.log(case.dim)))
    return ops.stack([z_loss(flat), z_loss(flat + c)]), np.array([0.0, c * c])


@identity("L_z by its definition: the squared logarithm of a sum, token by token")
def z_by_loops(case: Case) -> tuple[Tensor, Any]:
    scores = case.tokens()
    return z_loss(scores), [
        sum(math.log(sum(math.exp(v) for v in row)) ** 2 for row in group) / case.t for group in scores.data
    ]


@identity("equal importance gives 0, and scaling the gates changes nothing")
def importance_of_scaled(case: Case) -> tuple[Tensor, Any]:
    _, p, chosen, _ = routed(case)
    gates = p * chosen
    loss = importance_loss(gates)
    equal = importance_loss(Tensor(np.full(p.shape, 0.3)))
    return ops.stack([importance_loss(7.0 * gates), equal]), np.stack([loss.data, np.zeros(case.b)])


@identity("L_importance = E sum I^2 / (sum I)^2 - 1; unbiased, with E - 1 and 1e-10 beside the squared mean")
def importance_by_sums(case: Case) -> tuple[Tensor, Any]:
    _, p, chosen, _ = routed(case)
    gates = p * chosen
    i, e = gates.data.sum(axis=1), case.dim
    expected = e * (i * i).sum(axis=-1) / i.sum(axis=-1) ** 2 - 1.0
    unbiased = i.var(axis=-1, ddof=1) / (i.mean(axis=-1) ** 2 + 1e-10)
    found = [importance_loss(gates), importance_loss(gates, unbiased=True)]
    return ops.stack(found), np.stack([expected, unbiased])


@identity("L_load, both forms, by loops over tokens and experts")
def load_by_loops(case: Case) -> tuple[Tensor, Any]:
    scores, noise = MoEAuxLosses.example_inputs(case)
    found, expected = [], []
    for original, k in ((False, case.dim), (False, 1), (True, case.dim - 1), (True, 1)):
        found.append(load_loss(scores, noise, k, 0.7, original=original))
        for group, extra in zip(scores.data, noise.data):
            load = np.zeros(case.dim)
            for row, drawn in zip(group, extra):
                noisy = row + 0.7 * drawn
                falling = np.sort(noisy)[::-1]
                for e in range(case.dim):
                    in_top = original and noisy[e] >= falling[k - 1]
                    z = (falling[k if in_top else k - 1] - row[e]) / 0.7
                    load[e] += 0.5 * math.erfc(z / math.sqrt(2.0)) / case.t
            expected.append((load.std() / load.mean()) ** 2)
    return ops.stack(found), np.reshape(expected, (4, case.b))


@identity(
    "q is how often fresh noise lifts an expert to the threshold: 20000 draws, tolerance six times the "
    "largest deviation sqrt(1/4 / 20000) of a share",
    tolerance=0.022,
)
def load_is_a_probability(case: Case) -> tuple[Any, Any]:
    rng, k, sigma = case.rng(), 2, 0.5
    scores, noise = rng.standard_normal(5), rng.standard_normal(5)
    threshold = np.sort(scores + sigma * noise)[-k]
    lifted = scores + sigma * rng.standard_normal((20000, 5)) >= threshold
    load = load_loss(Tensor(scores[None]), noise[None], k, sigma).data
    # The loss sees q through var / mean^2, which is compared too, where its error is no larger.
    q = 0.5 * np.array([math.erfc((threshold - s) / (sigma * math.sqrt(2.0))) for s in scores])
    return np.append(lifted.mean(axis=0), load), np.append(q, q.var() / q.mean() ** 2)


@identity("tokens that are not valid count as if they were not there")
def padding(case: Case) -> tuple[Tensor, Tensor]:
    scores, noise = (v[:1] for v in MoEAuxLosses.example_inputs(case))
    layer = MoEAuxLosses(case.dim)
    hidden = Tensor(np.full((1, 3, case.dim), 50.0))
    valid = np.arange(case.t + 3) < case.t
    padded = layer(ops.concat([scores, hidden], axis=1), ops.concat([noise, hidden], axis=1), valid)
    return padded, layer(scores, noise)


@identity("tokens in another order give the same losses")
def order_of_tokens(case: Case) -> tuple[Tensor, Tensor]:
    scores, noise = MoEAuxLosses.example_inputs(case)
    order, layer = case.rng().permutation(case.t), MoEAuxLosses(case.dim)
    return layer(scores[:, order], noise[:, order]), layer(scores, noise)

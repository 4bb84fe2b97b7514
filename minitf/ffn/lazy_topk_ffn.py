"""Top-k feed-forward network: of the hidden units of a token only the k largest act.

    h  = relu(x W1 + b1)
    h' = h on TopK(h, k), 0 elsewhere        for each token; the lower index wins a tie
    y  = h' W2 + b2

    x, y  (..., D)        h, h'  (..., F)        W1 (D, F), b1 (F,)        W2 (F, D), b2 (D,)

The choice comes after the ReLU: units of TopK that are 0 stay 0, so at most k act. It is a constant in the
backward pass, and the gradient of dropped units is 0. Ordinary ReLU networks become sparse by themselves: the
meter `nonzero_fraction` measures it on h, after the ReLU and before the choice.

Cost: 4 N D F operations as a dense product, and sorting F numbers for each token. With only the k chosen rows
of W2 (`gathered`) 2 N D F + 2 N k D. 2 D F + F + D parameters.
Source: The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers, Li et al.,
arXiv:2210.06313, 2022.
Differs from the paper: none known. UNSURE: the values of k that the paper takes; k is from F/64 to F/4,
F/16 unless given.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor, no_grad
from minitf.nn import Card, Case, Linear, Module, Paper, identity, init, positive

from .relu_ffn import ReLUFFN

CARD = Card(
    name="lazy_topk_ffn",
    title="Top-k ReLU feed-forward network",
    kind="ffn",
    family="sparse",
    papers=(
        Paper(
            "The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers",
            "2210.06313",
            2022,
        ),
    ),
    causal=True,
    streams=False,
    grid="any",
    complexity="4 N D F + N F log F",
    properties=("token_wise",),
    basis="paper text; the measurement follows the abstract",
)


def keep_largest(h: Tensor, k: int) -> Tensor:
    """h' (..., F): the k largest of each row of h, zeros elsewhere."""
    top, place = ops.topk(h, k)
    return ops.put_along_axis(ops.zeros_like(h), place, top)


def gathered(h: Tensor, w2: Tensor, k: int) -> Tensor:
    """h' W2 (..., D) from the k chosen rows of W2 alone."""
    top, place = ops.topk(h, k)
    # (..., 1, k) times the rows (..., k, D)
    return (top[..., None, :] @ w2[place])[..., 0, :]


def nonzero_fraction(h: Tensor) -> float:
    """The mean share of entries above 0 in hidden units h (..., F)."""
    return float((h.numpy() > 0).mean())


class LazyTopKFFN(Module):
    """(..., D) -> (..., D). Parameters: w1 (D, F), w2 (F, D), with biases unless `bias` is False.

    Args:
        dim: D. hidden: F, default 4 D. k: units that may act, default F / 16, at least 1.

    Raises:
        ValueError: hidden below 1, or k outside 1..F.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        hidden: int | None = None,
        k: int | None = None,
        bias: bool = True,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, hidden=hidden)
        rng = init.generator(seed)
        hidden = 4 * dim if hidden is None else hidden
        self.k = max(1, hidden // 16) if k is None else k
        if not 1 <= self.k <= hidden:
            raise ValueError(f"k={k} must be from 1 to hidden={hidden}")
        self.w1 = Linear(dim, hidden, bias, rng, dtype=dtype)
        self.w2 = Linear(hidden, dim, bias, rng, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        # h' = TopK(relu(x W1 + b1), k): (..., F)
        return self.w2(keep_largest(ops.relu(self.w1(x)), self.k))

    def activity(self, x: Tensor) -> tuple[float, float]:
        """The fractions of hidden units above 0 for x (..., D): by the ReLU alone, and after the choice."""
        with no_grad():
            h = ops.relu(self.w1(x))
            return nonzero_fraction(h), nonzero_fraction(keep_largest(h, self.k))


def build(case: Case, **options: Any) -> Any:
    layer = LazyTopKFFN(case.dim, seed=case.seed, dtype="float64", **options)
    rng = case.rng()
    for p in layer.parameters():
        p.data = rng.standard_normal(p.shape)
    return layer


def dense(layer: LazyTopKFFN, case: Case) -> ReLUFFN:
    other = ReLUFFN(case.dim, dtype="float64")
    other.load_state_dict(layer.state_dict())
    return other


@identity("k = F: the ReLU network")
def all_units(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, k=4 * case.dim), case.tokens()
    return layer(x), dense(layer, case)(x)


@identity("where k is at least the number of active units of a token, the ReLU network")
def enough_units(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    active = (layer.w1(x).data > 0).sum(axis=-1)
    layer.k = max(1, int(np.median(active)))
    enough = (active <= layer.k)[..., None]
    return ops.where(enough, layer(x), 0.0), ops.where(enough, dense(layer, case)(x), 0.0)


@identity(
    "by loops: each token adds the rows of W2 of its k largest units, the lower index first among equals"
)
def by_loops(case: Case) -> tuple[Tensor, Any]:
    layer, x, rows = build(case), case.tokens(), []
    for k in (1, 2 * case.dim):
        layer.k = k
        for token in x.data.reshape(-1, case.dim):
            h = np.maximum(token @ layer.w1.weight.data + layer.w1.bias.data, 0.0)
            best = sorted(range(len(h)), key=lambda j: (-h[j], j))[:k]
            rows.append(sum(h[j] * layer.w2.weight.data[j] for j in best) + layer.w2.bias.data)
    left = []
    for k in (1, 2 * case.dim):
        layer.k = k
        left.append(layer(x).reshape((-1, case.dim)))
    return ops.concat(left), np.array(rows)


@identity("the dense product with zeros equals the product with the k chosen rows of W2")
def gathers(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, k = build(case, bias=False), case.tokens(), 1 + case.seed % (4 * case.dim)
    layer.k = k
    return layer(x), gathered(ops.relu(layer.w1(x)), layer.w2.weight, k)


@identity("no token has more than k units that act, and the ReLU's own count is met if k is not")
def bounded(case: Case) -> tuple[Any, Any]:
    layer, x, k = build(case), case.tokens(), 1 + case.seed % (4 * case.dim)
    h = ops.relu(layer.w1(x))
    return (keep_largest(h, k).data > 0).sum(axis=-1), np.minimum((h.data > 0).sum(axis=-1), k)


@identity("W1 and b1 times c > 0 keep the units that act, and scale them")
def scaled(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    y = layer(x) - layer.w2.bias
    layer.w1.weight.data, layer.w1.bias.data = 3.0 * layer.w1.weight.data, 3.0 * layer.w1.bias.data
    return layer(x) - layer.w2.bias, 3.0 * y

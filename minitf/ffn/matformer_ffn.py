"""Nested feed-forward network (MatFormer): its first m neurons are a network of their own, for several m.

    F_m(x) = act(x W1[:, :m] + b1[:m]) W2[:m] + b2                              plain
    F_m(x) = (act(x Wg[:, :m]) * (x W1[:, :m])) W2[:m]                          gated, biases likewise

    x, y  (..., D)        W1, Wg  (D, F)        b1  (F,)        W2  (F, D)        b2  (D,)

Widths m are F/8, F/4, F/2 and F, with F = 4 D. b2 is shared and added once at every width. Attention, norms
and embeddings of a model are shared too.

Joint training: every step runs the whole model once for each width and sums the losses (`joint_loss`).
Sampled training: every step draws one width (`sampled_width`).
Mix'n'Match: after training each layer takes a width of its own (`growing_widths`); set `layer.width`.

Cost: 4 N D m operations at width m, 6 N D m gated; parameters as one network of width F.
Source: MatFormer: Nested Transformer for Elastic Inference, Devvrit et al., arXiv:2310.07707, 2023.
Differs from the paper: the published language code needs biases; here they are an option. UNSURE: the
probabilities with which the paper samples widths; we draw them uniformly. UNSURE: the exact rule for
Mix'n'Match; the paper advises widths that do not fall with depth and change little, we step through the
widths evenly.
Numerics: losses are summed, not averaged, as in the published code: a learning rate acts as if it were about
as many times larger as there are widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor
from minitf.nn import Card, Case, Linear, Module, Paper, activation, identity, init, positive

from .gelu_ffn import GELUFFN
from .glu_ffn import GLUFFN

CARD = Card(
    name="matformer_ffn",
    title="Nested feed-forward network",
    kind="ffn",
    family="nested",
    papers=(Paper("MatFormer: Nested Transformer for Elastic Inference", "2310.07707", 2023),),
    causal=True,
    streams=False,
    grid="any",
    complexity="4 N D F",
    properties=("token_wise",),
    basis="published code: RAIVNLab/MatFormer-OLMo olmo/model.py; google-research/scenic projects/matvit",
)


def nested_widths(hidden: int) -> tuple[int, ...]:
    """F/8, F/4, F/2, F, rounded down but at least 1, each once."""
    return tuple(sorted({max(1, hidden // part) for part in (8, 4, 2, 1)}))


class MatFormerFFN(Module):
    """(..., D) -> (..., D).

    Parameters: w1 (D, F), w2 (F, D), with biases if `bias`; wg (D, F) too if gated.

    Args:
        dim: D. hidden: F, default 4 D. act: any activation by name. gated: multiply by a gate.

    Attributes:
        width: the m that `forward` uses unless it is given one; F at first.
        widths: those that training nests.

    Raises:
        ValueError: hidden below 1, or an unknown activation.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        hidden: int | None = None,
        act: str = "gelu",
        gated: bool = False,
        bias: bool = True,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, hidden=hidden)
        rng = init.generator(seed)
        hidden = 4 * dim if hidden is None else hidden
        self.act, self.width, self.widths = activation(act), hidden, nested_widths(hidden)
        self.wg = Linear(dim, hidden, bias, rng, dtype=dtype) if gated else None
        self.w1 = Linear(dim, hidden, bias, rng, dtype=dtype)
        self.w2 = Linear(hidden, dim, bias, rng, dtype=dtype)

    def forward(self, x: Tensor, width: int | None = None) -> Tensor:
        """F_m(x) for m = width, by default `self.width`.

        Raises:
            ValueError: a width outside 1..F.
        """
        m = self.within(self.width if width is None else width)
        # act(x W1[:, :m] + b1[:m]): (..., m)
        if self.wg is None:
            h = self.act(first(x, self.w1, m))
        else:
            h = self.act(first(x, self.wg, m)) * first(x, self.w1, m)
        y = h @ self.w2.weight[:m]
        return y if self.w2.bias is None else y + self.w2.bias

    def within(self, m: int) -> int:
        if not 1 <= m <= self.w2.weight.shape[0]:
            raise ValueError(f"width={m} must be from 1 to {self.w2.weight.shape[0]}")
        return m

    def extract(self, width: int) -> MatFormerFFN:
        """A network of its own with copies of the first `width` neurons.

        Raises:
            ValueError: a width outside 1..F.
        """
        dim, dtype, width = self.w1.weight.shape[0], self.w1.weight.dtype, self.within(width)
        small = MatFormerFFN(
            dim, hidden=width, gated=self.wg is not None, bias=self.w1.bias is not None, dtype=dtype
        )
        small.act = self.act
        for name, value in small.named_parameters():
            layer, _, kind = name.partition(".")
            own = getattr(getattr(self, layer), kind).data
            along = 0 if name == "w2.weight" else -1
            cut = own if name == "w2.bias" else own.take(np.arange(width), axis=along)
            value.data = cut.copy()
        return small


def first(x: Tensor, layer: Linear, m: int) -> Tensor:
    """The first m outputs of a linear layer: (..., m)."""
    y = x @ layer.weight[:, :m]
    return y if layer.bias is None else y + layer.bias[:m]


def joint_loss(layers: Sequence[MatFormerFFN], loss: Callable[[], Tensor]) -> Tensor:
    """The sum of `loss()` with all layers at their smallest width, at their second, ... up to the largest."""
    before, total = [layer.width for layer in layers], []
    try:
        for i in range(max(len(layer.widths) for layer in layers)):
            for layer in layers:
                layer.width = layer.widths[min(i, len(layer.widths) - 1)]
            total.append(loss())
    finally:
        for layer, width in zip(layers, before):
            layer.width = width
    return ops.stack(total).sum()


def sampled_width(widths: Sequence[int], rng: np.random.Generator) -> int:
    """One of the widths, each as likely as the others."""
    return widths[int(rng.integers(len(widths)))]


def growing_widths(widths: Sequence[int], depth: int) -> list[int]:
    """One width for each of `depth` layers: from the smallest to the largest in even steps, never falling."""
    places = np.arange(depth) * len(widths) // depth
    return [sorted(widths)[i] for i in places]


def masked(layer: MatFormerFFN, x: Tensor, m: int) -> Tensor:
    """The mask form of published vision code: act((x W1 + b1) * mask), the mask 1 on the first m neurons."""
    mask = (np.arange(layer.w2.weight.shape[0]) < m).astype(x.dtype)
    gate = layer.w1(x) if layer.wg is None else layer.wg(x)
    h = layer.act(gate * mask)
    return layer.w2(h if layer.wg is None else h * layer.w1(x))


def build(case: Case, **options: Any) -> Any:
    layer = MatFormerFFN(case.dim, seed=case.seed, dtype="float64", **options)
    rng = case.rng()
    for p in layer.parameters():
        p.data = rng.standard_normal(p.shape)
    return layer


@identity("m = F: the plain network, and the gated one")
def whole(case: Case) -> tuple[Tensor, Tensor]:
    x, layer, gated = case.tokens(), build(case), build(case, gated=True, act="silu")
    plain, glu = GELUFFN(case.dim, dtype="float64"), GLUFFN(case.dim, hidden=4 * case.dim, bias=True)
    plain.load_state_dict(layer.state_dict())
    names = {"w1": "wu", "wg": "wg", "w2": "wd"}
    glu.to("float64").load_state_dict({f"{names[k[:2]]}{k[2:]}": v for k, v in gated.state_dict().items()})
    return ops.stack([layer(x), gated(x)]), ops.stack([plain(x), glu(x)])


@identity("slicing equals masking at every width, for activations with act(0) = 0, gated and not")
def slices_are_masks(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for act in ("relu", "gelu", "silu"):
        layer = build(case, act=act, gated=act == "silu")
        for m in (*layer.widths, 3):
            left.append(layer(x, m))
            right.append(masked(layer, x, m))
    return ops.stack(left), ops.stack(right)


@identity("a network cut out gives what the large one gives at that width")
def cut_out(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for options in ({}, {"gated": True, "bias": False, "act": "silu"}):
        layer = build(case, **options)
        for m in layer.widths:
            left.append(layer.extract(m)(x))
            right.append(layer(x, m))
    return ops.stack(left), ops.stack(right)


@identity(
    "joint training gives each neuron the summed gradients of the widths that have it, others give it 0"
)
def joint_gradients(case: Case) -> tuple[Any, Any]:
    layer, x = build(case), case.tokens()
    c = case.rng().standard_normal(x.shape)

    def gradients() -> list[Any]:
        found = [p.grad.data for p in layer.parameters()]
        layer.zero_grad()
        return found

    joint_loss([layer], lambda: (layer(x) * c).sum()).backward()
    joint, total = gradients(), [0.0] * 4
    for m in layer.widths:
        small = layer.extract(m)
        (small(x) * c).sum().backward()
        # The gradients of the small network, zeros for the neurons that it does not have.
        rest = (0, 4 * case.dim - m)
        w1, b1, w2 = small.w1.weight.grad.data, small.w1.bias.grad.data, small.w2.weight.grad.data
        one = [np.pad(w1, [(0, 0), rest]), np.pad(b1, [rest]), np.pad(w2, [rest, (0, 0)])]
        total = [a + b for a, b in zip(total, [*one, small.w2.bias.grad.data])]
    return np.concatenate([g.reshape(-1) for g in joint]), np.concatenate([np.ravel(g) for g in total])


@identity("Mix'n'Match with all layers at F is the universal model")
def all_largest(case: Case) -> tuple[Tensor, Tensor]:
    layers, x = [build(case), build(case, act="relu")], case.tokens()
    y = layers[1](layers[0](x))
    for layer, width in zip(layers, growing_widths([4 * case.dim], 2)):
        layer.width = width
    return layers[1](layers[0](x)), y

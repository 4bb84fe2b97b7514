"""Hourglass feed-forward: a stack of small gated networks that narrow the width, each with its own residual.

    z_0 = x
    u_i = RMSNorm_i(z_{i-1})
    z_i = z_{i-1} + (silu(u_i W_g,i) * (u_i W_u,i)) W_d,i        i = 1..K
    y   = z_K

    x, y, z, u  (..., D)        W_g,i, W_u,i  (D, F)        W_d,i  (F, D)        gain of RMSNorm_i  (D,)

F = round(r D) is smaller than D: r = 0.4 to 0.6, K = 2 to 4. The residuals and norms belong to the layer: it
replaces the whole of x + FFN(norm(x)), so put it into a block that adds nothing of its own.
Cost: 6 N K D F operations; 3 K D F + K D parameters, as many as a plain network of width 4 D if K r = 8/3.
Source: Revisiting the Shape Convention of Transformer Language Models, arXiv:2602.06471, 2026; the idea is
that of arXiv:2510.01796, 2025.
Differs from the paper: written from summaries and a public re-implementation. UNSURE: whether each small
network has a norm of its own. We give each one (norm="each"); norm="first" normalises only what enters the
first, norm="none" nothing. The re-implementation also takes LayerNorm.
Numerics: the norms add 1e-6 to the mean square.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor
from minitf.nn import Card, Case, Module, Paper, RMSNorm, identity, init, positive

from .glu_ffn import GLUFFN

CARD = Card(
    name="hourglass_ffn",
    title="Stack of residual wide-narrow-wide networks",
    kind="ffn",
    family="narrow",
    papers=(Paper("Revisiting the Shape Convention of Transformer Language Models", "2602.06471", 2026),),
    causal=True,
    streams=False,
    grid="any",
    complexity="6 N K D F",
    properties=("token_wise",),
    basis="public re-implementation and secondary summaries; where the norms stand is uncertain",
)


class HourglassFFN(Module):
    """(..., D) -> (..., D), residuals included.

    Parameters: norms.{i}.weight (D,), parts.{i}.wg and .wu (D, F), parts.{i}.wd (F, D), no biases.

    Args:
        dim: D. depth: K. ratio: r. hidden: F, in place of round(r D).
        norm: "each", "first" or "none".

    Raises:
        ValueError: depth or hidden below 1, a ratio that is not above 0, an unknown norm.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        depth: int = 4,
        ratio: float = 0.5,
        hidden: int | None = None,
        norm: str = "each",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, hidden=hidden)
        normed = {"each": depth, "first": 1, "none": 0}
        if norm not in normed:
            raise ValueError(f"norm must be one of: {', '.join(normed)}, not {norm!r}")
        if depth < 1 or not ratio > 0.0:
            raise ValueError(f"depth={depth} must be 1 or more, and ratio={ratio} above 0")
        rng = init.generator(seed)
        hidden = max(1, round(ratio * dim)) if hidden is None else hidden
        self.norms = [RMSNorm(dim, dtype=dtype) for _ in range(normed[norm])]
        self.parts = [GLUFFN(dim, hidden=hidden, seed=rng, dtype=dtype) for _ in range(depth)]

    def forward(self, x: Tensor) -> Tensor:
        z = x
        for i, part in enumerate(self.parts):
            # u_i = RMSNorm_i(z): (..., D)
            u = self.norms[i](z) if i < len(self.norms) else z
            # z_i = z + (silu(u W_g) * (u W_u)) W_d
            z = z + part(u)
        return z


def build(case: Case, **options: Any) -> Any:
    layer = HourglassFFN(case.dim, seed=case.seed, dtype="float64", **options)
    rng = case.rng()
    for p in layer.parameters():
        p.data = rng.standard_normal(p.shape)
    return layer


@identity("K = 1: one conventional layer x + SwiGLU(RMSNorm(x)), here written out")
def conventional(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, depth=1, hidden=3 * case.dim), case.tokens()
    part, gain = layer.parts[0], layer.norms[0].weight
    u = x / ops.sqrt(ops.square(x).mean(axis=-1, keepdims=True) + 1e-6) * gain
    gate = u @ part.wg.weight
    return layer(x), x + (gate / (1.0 + ops.exp(-gate)) * (u @ part.wu.weight)) @ part.wd.weight


@identity("K small networks are K layers of one network, one after the other")
def consecutive(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, depth=3), case.tokens()
    z = x
    for i in range(3):
        single = build(case, depth=1)
        state = {f"norms.0.{k}": v for k, v in layer.norms[i].state_dict().items()}
        state |= {f"parts.0.{k}": v for k, v in layer.parts[i].state_dict().items()}
        single.load_state_dict(state)
        z = single(z)
    return layer(x), z


@identity("all W_d = 0: the identity")
def closed(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    for part in layer.parts:
        part.wd.weight.data = np.zeros_like(part.wd.weight.data)
    return layer(x), x


@identity("without norms, K = 2 with W_d,1 = 0 is K = 1 with the second network")
def first_closed(case: Case) -> tuple[Tensor, Tensor]:
    two, one, x = build(case, depth=2, norm="none"), build(case, depth=1, norm="none"), case.tokens()
    two.parts[0].wd.weight.data = np.zeros_like(two.parts[0].wd.weight.data)
    one.parts[0].load_state_dict(two.parts[1].state_dict())
    return two(x), one(x)


@identity("norm='first' is x + part_1(RMSNorm(x)), then parts without norms")
def first_norm(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, depth=3, norm="first"), case.tokens()
    z = x + layer.parts[0](layer.norms[0](x))
    z = z + layer.parts[1](z)
    return layer(x), z + layer.parts[2](z)

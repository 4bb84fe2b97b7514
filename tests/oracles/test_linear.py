"""Linear attention and recurrent mixers against published code, values and gradients."""

from __future__ import annotations

import math
from typing import Any

from minitf import Tensor, ops
from minitf.attention import linear_attention
from minitf.mixers.gated_delta_net import GatedDeltaNet
from minitf.nn import Module
from tests.oracles.oracle import compare

# The naive references of flash-linear-attention compute in float32, over 19 tokens.
SINGLE = 1e-5


def swapped(*arrays: Tensor) -> list[Tensor]:
    """(B, N, H, d) -> (B, H, N, d), or back."""
    return [a.permute_dims((0, 2, 1, 3)) for a in arrays]


def with_weights(layer: Module, weights: dict[str, Tensor]) -> Module:
    """The layer with its parameters replaced: a name such as "wq" stands for `wq.weight`."""
    for name, value in weights.items():
        inner = getattr(layer, name)
        if isinstance(inner, Module):
            vars(inner)["weight"] = value
        else:
            vars(layer)[name] = value
    return layer


def test_linear_attention() -> None:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Any:
        # That code adds 1e-10 to the sum of the weights.
        return swapped(linear_attention.normalised(*swapped(q, k, v), eps=1e-10)[0])[0]

    compare("linear_attention", run, SINGLE)


def test_gla() -> None:
    def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Any:
        return swapped(ops.gated_scan(*swapped(q / math.sqrt(q.shape[-1]), k, v, g))[0])[0]

    compare("gla", run, SINGLE)


def test_delta_net() -> None:
    def run(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Any:
        return ops.delta_rule(q / math.sqrt(q.shape[-1]), k, v, beta[..., None])[0]

    compare("delta_net", run, SINGLE)


def test_gated_delta_rule() -> None:
    def run(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Any:
        q, k, v, beta, g = swapped(q / math.sqrt(q.shape[-1]), k, v, beta[..., None], g[..., None])
        return swapped(ops.delta_rule(q, k, v, beta, g)[0])[0]

    compare("gated_delta_rule", run, SINGLE)


def test_gated_delta_net() -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        return with_weights(GatedDeltaNet(8, heads=2, dtype="float64"), weights)(x)

    compare("gated_delta_net", run, SINGLE)

"""Plain networks, norms, blocks and windows against torch and published code, values and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minitf import Tensor, ops
from minitf.attention.sliding_window import SlidingWindow
from minitf.attention.softmax import SoftmaxAttention
from minitf.blocks.post_norm import PostNorm
from minitf.blocks.pre_norm import PreNorm
from minitf.ffn.gelu_ffn import GELUFFN
from minitf.ffn.glu_ffn import GLUFFN
from minitf.ffn.relu2_ffn import ReLU2FFN
from minitf.ffn.relu_ffn import ReLUFFN
from minitf.nn import LayerNorm, Module, RMSNorm
from minitf.nn.positions.sinusoidal_pos import SinusoidalPosition
from minitf.tokens.evit import EViT
from tests.oracles.oracle import compare

EXACT = 1e-10
# These compute angles, or the softmax, in float32.
SINGLE = 1e-5


def with_weights(layer: Any, weights: dict[str, Tensor]) -> Any:
    """The layer with all its parameters replaced by these."""
    assert set(weights) == {name for name, _ in layer.named_parameters()}, "some parameter has no counterpart"
    for path, value in weights.items():
        *owners, name = path.split(".")
        owner = layer
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, name, value)
    return layer


def compare_layer(name: str, layer: Module, tolerance: float = EXACT) -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        return with_weights(layer, weights)(x)

    compare(name, run, tolerance)


def test_relu_ffn() -> None:
    compare_layer("relu_ffn", ReLUFFN(5, hidden=7, dtype="float64"))


def test_gelu_ffn() -> None:
    compare_layer("gelu_ffn", GELUFFN(5, hidden=7, dtype="float64"))
    compare_layer("gelu_ffn_tanh", GELUFFN(5, hidden=7, approximate="tanh", dtype="float64"))


def test_relu2_ffn() -> None:
    compare_layer("relu2_ffn", ReLU2FFN(5, hidden=7, bias=True, dtype="float64"))


def test_glu_ffn() -> None:
    compare_layer("glu_ffn", GLUFFN(4, hidden=6, bias=True, dtype="float64"))
    compare_layer("glu_ffn_sigmoid", GLUFFN(4, hidden=6, act="sigmoid", bias=True, dtype="float64"))


def test_norms() -> None:
    compare_layer("layernorm", LayerNorm(5, dtype="float64"))
    compare_layer("rmsnorm", RMSNorm(5, dtype="float64"))


@pytest.mark.parametrize(("name", "block"), [("pre_norm", PreNorm), ("post_norm", PostNorm)])
def test_blocks(name: str, block: Any) -> None:
    mixer, ffn = SoftmaxAttention(6, heads=2, bias=True), GELUFFN(6, hidden=8)
    compare_layer(name, block(6, mixer=mixer, ffn=ffn, dtype="float64"))


def test_sliding_window() -> None:
    layer = SlidingWindow(6, heads=2, left=2, causal=False, bias=True, dtype="float64")
    compare_layer("sliding_window", layer, SINGLE)


def test_sinusoidal_pos() -> None:
    def run(x: Tensor) -> Any:
        return SinusoidalPosition(8)(x, np.arange(40))

    compare("sinusoidal_pos", run, SINGLE)


def test_evit() -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        layers = [EViT(4, heads=2, rho=0.5, fuse=fuse, dtype="float64") for fuse in (True, False)]
        return ops.concat([with_weights(layer, weights)(x) for layer in layers], axis=1)

    compare("evit", run, EXACT)

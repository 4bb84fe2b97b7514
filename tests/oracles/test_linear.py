"""Linear attention and recurrent mixers against published code, values and gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import Tensor, ops
from minitf.attention import ecoformer, linear_attention
from minitf.blocks.mamba_block import Mamba
from minitf.mixers.gated_delta_net import GatedDeltaNet
from minitf.mixers.lmu_memory import LMUMemory
from minitf.mixers.mamba2_ssd import Mamba2
from minitf.mixers.s4d import S4D
from minitf.mixers.selective_scan import selective_scan
from minitf.nn import Module
from tests.oracles.oracle import compare, load

# The naive references of flash-linear-attention compute in float32, over 19 tokens.
SINGLE = 1e-5


def swapped(*arrays: Tensor) -> list[Tensor]:
    """(B, N, H, d) -> (B, H, N, d), or back."""
    return [a.permute_dims((0, 2, 1, 3)) for a in arrays]


def with_weights(layer: Module, weights: dict[str, Tensor], **paths: str) -> Module:
    """The layer with its parameters replaced: "wq" stands for `wq.weight`; `paths` says where others lie."""
    for name, value in weights.items():
        *path, last = paths.get(name, name).split(".")
        owner: Any = layer
        for part in path:
            owner = getattr(owner, part)
        if isinstance(getattr(owner, last), Module):
            owner, last = getattr(owner, last), "weight"
        setattr(owner, last, value)
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


def test_selective_scan() -> None:
    compare("selective_scan", lambda **inputs: selective_scan(**inputs)[0], SINGLE)


def test_mamba_block() -> None:
    def run(h: Tensor, **weights: Tensor) -> Any:
        layer = Mamba(4, states=3, rank=2, dtype="float64")
        paths = {"conv_bias": "conv.bias", "a_log": "scan.a_log", "d": "scan.d", "bias": "scan.bias"}
        return with_weights(layer, weights, **paths)(h)[0]

    compare("mamba_block", run, SINGLE)


def test_mamba2() -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        layer = Mamba2(4, head_dim=2, states=3, dtype="float64")
        return with_weights(layer, weights, conv_bias="conv.bias")(x)

    compare("mamba2_ssd", run, SINGLE)


def test_s4d() -> None:
    def run(u: Tensor, **weights: Tensor) -> Any:
        return with_weights(S4D(3, states=6, dtype="float64"), weights, wo_bias="wo.bias")(u)

    compare("s4d", run, 1e-10)


def test_lmu_memory() -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        layer = LMUMemory(4, memory=5, theta=7.0, hidden=3, dtype="float64")
        return with_weights(layer, weights, wu_bias="wu.bias", wh_bias="wh.bias")(x)

    # That code keeps Ad and Bd in float32.
    compare("lmu_memory", run, SINGLE)


def test_ecoformer_codes() -> None:
    compare("ecoformer", ecoformer.codes, 1e-10)


def test_ecoformer_learning() -> None:
    found = load("ecoformer_learned")
    mu, a = ecoformer.learned(found["z"], found["anchors"], found["a"], steps=20, lr=0.5)
    assert np.any(found["learned"] != found["a"]), "nothing was learned in the frozen answer"
    for name, ours, theirs in (("mu", mu, found["mu"]), ("A", a, found["learned"])):
        error = np.max(np.abs(ours - theirs))
        assert error <= 1e-10, f"{name} differs from {found['source']} by {error:.2g}"

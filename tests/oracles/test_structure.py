"""The structure of attention against published code, values and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import Tensor, ops
from minitf.adapt.sigma_reparam import SigmaReparam
from minitf.attention import cope
from minitf.attention.clipped_softmax import ClippedSoftmax
from minitf.attention.diff_attn import DiffAttention
from minitf.attention.gqa import GQA
from minitf.attention.mla import MLA
from minitf.nn import ALiBi, Module, RoPE
from tests.oracles.oracle import compare

EXACT = 1e-10
# These compute angles, slopes or norms in float32.
SINGLE = 1e-5


def with_weights(layer: Module, weights: dict[str, Tensor]) -> Module:
    """The layer with the weights, or parameters, of these names replaced."""
    for name, value in weights.items():
        if isinstance(getattr(layer, name), Module):
            getattr(layer, name).weight = value
        else:
            assert hasattr(layer, name)
            setattr(layer, name, value)
    return layer


def test_softmax_attention() -> None:
    compare("softmax_attention", ops.softmax_attention, EXACT)


def test_gqa() -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        return with_weights(GQA(8, heads=4, kv_heads=2, dtype="float64"), weights)(x)

    compare("gqa", run, EXACT)


def test_mla() -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        layer = MLA(8, heads=2, nope_dim=4, rope_dim=2, value_dim=3, kv_rank=5, q_rank=6, dtype="float64")
        return with_weights(layer, weights)(x)

    compare("mla", run, SINGLE)


def test_diff_attn() -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        # That code has no gain in its norm, and pairs the coordinates of a head half by half.
        layer = DiffAttention(
            16, heads=4, kv_heads=2, layer=2, position=RoPE(interleaved=False), dtype="float64"
        )
        return with_weights(layer, weights)(x)

    compare("diff_attn", run, SINGLE)


def test_clipped_softmax() -> None:
    def run(x: Tensor, **weights: Tensor) -> Any:
        return with_weights(ClippedSoftmax(8, heads=2, gamma=-0.1, zeta=1.03, dtype="float64"), weights)(x)

    compare("clipped_softmax", run, EXACT)


def test_cope() -> None:
    def run(q: Tensor, k: Tensor, v: Tensor, e: Tensor) -> Any:
        return ops.softmax(cope.scores(q, k, e), axis=-1) @ v

    compare("cope", run, EXACT)


def test_alibi() -> None:
    def run(scores: Tensor) -> Any:
        # The last query stands at the last key.
        return ALiBi(heads=12)(scores, np.arange(2, 5), np.arange(5))

    compare("alibi", run, SINGLE)


def test_rope() -> None:
    def run(q: Tensor) -> Any:
        n = np.arange(5) * 7
        ways = [
            RoPE(),
            RoPE(extension="linear", factor=4.0),
            RoPE(extension="ntk", factor=4.0),
            RoPE(rotary_dim=4),
        ]
        return ops.stack([way(q, n) for way in ways])

    compare("rope", run, SINGLE)


def test_rope_llama() -> None:
    def run(q: Tensor) -> Any:
        n, options = np.arange(5) * 7, {"base": 100.0, "interleaved": False}
        ways = [
            RoPE(**options),
            RoPE(**options, extension="linear", factor=4.0),
            RoPE(**options, extension="yarn", factor=8.0, trained=64),
        ]
        return ops.stack([way(q, n) for way in ways])

    compare("rope_llama", run, SINGLE)


def test_rope_scores() -> None:
    def run(q: Tensor, k: Tensor) -> Any:
        n = np.arange(5)
        return RoPE()(q, n) @ RoPE()(k, n).mT

    compare("rope_scores", run, SINGLE)


def test_sigma_reparam() -> None:
    def run(x: Tensor, u: Tensor, **weights: Tensor) -> Any:
        layer = with_weights(SigmaReparam(5, n_out=4, dtype="float64"), weights)
        layer.u.data = u.data
        return ops.stack([layer.train(mode)(x) for mode in (True, True, False)])

    compare("sigma_reparam", run, EXACT)

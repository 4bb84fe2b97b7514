"""Sparse, low-rank and random-feature attention against published code, values and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minitf import Tensor, ops
from minitf.attention import attention_sinks, bigbird, linformer, nsa, performer_favor
from minitf.nn import RoPE
from tests.oracles.oracle import compare

# Where published code takes a softmax or a whole pass in float32.
SINGLE = 1e-5


def heads(x: Tensor, *maps: Tensor, count: int = 2) -> list[Tensor]:
    return [ops.split_heads(x @ w, count) for w in maps]


def test_bigbird() -> None:
    def f(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, blocks: Any) -> Tensor:
        # The first and the last row draw nothing.
        r = np.pad(blocks, ((0, 0), (1, 1), (0, 0)), constant_values=-1)
        return ops.merge_heads(bigbird.gathered(*heads(x, wq, wk, wv), r, 2))

    compare("bigbird", f, 1e-10)


def test_linformer() -> None:
    def f(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, ek: Tensor, ev: Tensor) -> Tensor:
        o = linformer.attend(*heads(x, wq, wk, wv), ops.expand_dims(ek, 0), ops.expand_dims(ev, 0))
        return ops.merge_heads(o) @ wo

    compare("linformer", f, 1e-10)


def test_performer() -> None:
    def f(q: Tensor, k: Tensor, v: Tensor, om: Tensor) -> Tensor:
        return performer_favor.bidirectional(q, k, v, performer_favor.FeatureMap(om))

    compare("performer_favor", f, 1e-10)


@pytest.mark.parametrize("chunk", [2, 16])
def test_performer_causal(chunk: int) -> None:
    def f(q: Tensor, k: Tensor, v: Tensor, om: Tensor) -> Tensor:
        return performer_favor.causal(q, k, v, performer_favor.FeatureMap(om), chunk=chunk)[0]

    compare("performer_favor_causal", f, 1e-10)


def test_performer_with_eps() -> None:
    def f(q: Tensor, k: Tensor, v: Tensor, om: Tensor) -> Tensor:
        return performer_favor.bidirectional(q, k, v, performer_favor.FeatureMap(om, eps=1e-4))

    compare("performer_favor_eps", f, 1e-10)


def test_performer_relu() -> None:
    def f(q: Tensor, k: Tensor, v: Tensor, om: Tensor) -> Tensor:
        return performer_favor.bidirectional(q, k, v, performer_favor.FeatureMap(om, "relu_om", 1e-3))

    compare("performer_favor_relu", f, 1e-10)


def test_attention_sinks() -> None:
    """Its rotation pairs channel j with j + d/2."""

    def f(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor) -> Tensor:
        rule = attention_sinks.Rule(2, 3, RoPE(interleaved=False))
        return ops.merge_heads(attention_sinks.banded(*heads(x, wq, wk, wv), rule)) @ wo

    compare("attention_sinks", f, SINGLE)


def test_nsa() -> None:
    """Means over blocks, which are those of the selection; only the block of the token is forced."""

    def f(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
        sizes = nsa.Sizes(length=4, stride=4, block=4, picks=3, window=5, initial=0, local=1)
        q, k, v = (x.permute_dims((0, 2, 1, 3)) for x in (q, k, v))
        parts = nsa.branches(q, k, v, *nsa.compress(k, v, None, None, sizes), sizes)
        shares = [gates.permute_dims((0, 2, 1, 3))[..., i : i + 1] for i in range(3)]
        o = shares[0] * parts[0] + shares[1] * parts[1] + shares[2] * parts[2]
        return o.permute_dims((0, 2, 1, 3))

    compare("nsa", f, SINGLE)

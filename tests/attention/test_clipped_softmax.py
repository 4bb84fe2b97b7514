"""Clipped softmax: a head that does nothing, gamma by length, dropout, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.clipped_softmax import ClippedSoftmax
from minitf.nn import Case


def test_a_head_can_do_nothing() -> None:
    # 64 tokens, all scores equal: every weight is 1/64, below 0.025 / 1.025.
    layer, x = ClippedSoftmax(8, heads=2, causal=False, dtype="float64"), Case(1, 64, 2, 4).tokens()
    layer.wq.weight.data = np.zeros((8, 8))
    assert np.all(layer(x).data == 0.0), "with uniform weights below the limit the output must be exactly 0"
    few = layer(x[:, :8]).data
    assert np.any(few != 0.0), "eight weights of 1/8 lie above the limit"


def test_gamma_follows_the_training_length_only() -> None:
    layer = ClippedSoftmax(8, heads=2, alpha=12.0, context=512)
    assert layer.gamma == -12.0 / 512
    assert ClippedSoftmax(8, heads=2).gamma == -0.025
    assert mt.build("clipped_softmax", 8, alpha=0.0).gamma == 0.0


def test_dropout_acts_on_weights_in_training_only() -> None:
    x = Case(1, 6, 2, 4).tokens()
    layer = ClippedSoftmax(8, heads=2, dropout=0.5, dtype="float64")
    with pytest.raises(ValueError, match="generator"):
        layer(x)
    a, b, c = (layer(x, rng=np.random.default_rng(seed)).data for seed in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c), "dropout must depend on the generator only"
    plain = ClippedSoftmax(8, heads=2, dtype="float64")
    assert np.array_equal(layer.eval()(x).data, plain(x).data), "in eval mode dropout must not act"


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_streams_with_positions(position: str) -> None:
    x = Case(2, 5, 2, 4).tokens()
    layer = ClippedSoftmax(8, heads=2, position=position, dtype="float64")
    y, state = layer.prefill(x[:, :3], layer.start(2))
    z, _ = layer.prefill(x[:, 3:], state)
    error = np.max(np.abs(np.concatenate([y.data, z.data], axis=1) - layer(x).data))
    assert error <= 1e-12, f"{position}: two pieces differ from the whole by {error:.2g}"


def test_errors_say_what_to_do() -> None:
    for options in ({"gamma": 0.1}, {"zeta": 0.9}, {"alpha": -1.0}):
        with pytest.raises(ValueError, match="must be 0 or less"):
            ClippedSoftmax(8, heads=2, **options)
    with pytest.raises(ValueError, match="must divide dim"):
        ClippedSoftmax(9, heads=2)
    with pytest.raises(mt.ShapeError, match=r"\(B, N, D\)"):
        ClippedSoftmax(8)(mt.zeros((3, 8)))
    with pytest.raises(ValueError, match="causal=True"):
        layer = ClippedSoftmax(8, causal=False)
        layer.step(mt.zeros((1, 8)), layer.start(1))

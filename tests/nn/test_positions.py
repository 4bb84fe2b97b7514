"""Positions: values from the papers' formulas, limits, and how they reach attention."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.softmax import SoftmaxAttention
from minitf.nn import ALiBi, LearnedPosition, as_position
from minitf.nn.positions.alibi import slopes
from minitf.nn.positions.sinusoidal_pos import sinusoids


def test_sinusoids_by_hand() -> None:
    p = sinusoids(np.array([0, 3]), 4)
    w = 10000.0 ** (-2 / 4)
    expected = [[0, 1, 0, 1], [np.sin(3), np.cos(3), np.sin(3 * w), np.cos(3 * w)]]
    assert np.max(np.abs(p - expected)) <= 1e-15
    assert sinusoids(np.arange(3), 5).shape == (3, 5), "odd widths drop the last cosine"


def test_rope_by_hand() -> None:
    x = np.array([1.0, 0.0, 0.0, 2.0])
    w = 10000.0 ** (-2 / 4)
    expected = [np.cos(5), np.sin(5), -2 * np.sin(5 * w), 2 * np.cos(5 * w)]
    got = mt.ops.rope(mt.tensor(x.reshape(1, 1, 1, 4)), np.array([5])).data.ravel()
    assert np.max(np.abs(got - expected)) <= 1e-15
    with pytest.raises(mt.ShapeError, match="even"):
        mt.ops.rope(mt.zeros((1, 1, 2, 3)), np.arange(2))


def test_rope_angles_stay_exact_at_long_range() -> None:
    x = mt.tensor(np.ones((1, 1, 1, 2), dtype="float32"))
    n = 1_000_003
    got = mt.ops.rope(x, np.array([n])).data.ravel()
    expected = [np.cos(n) - np.sin(n), np.sin(n) + np.cos(n)]
    assert np.max(np.abs(got - expected)) <= 1e-6, "angles must not be computed in float32"


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 16])
def test_alibi_slopes_of_powers_of_two(heads: int) -> None:
    assert np.max(np.abs(slopes(heads) - 2.0 ** (-8 * np.arange(1, heads + 1) / heads))) <= 1e-15


def test_alibi_slopes_of_twelve_heads() -> None:
    m = slopes(12)
    assert np.max(np.abs(m[:8] - 2.0 ** -np.arange(1, 9.0))) <= 1e-15
    assert np.max(np.abs(m[8:] - [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])) <= 1e-12


def test_alibi_reaches_the_scores() -> None:
    layer = SoftmaxAttention(4, heads=2, position="alibi", dtype="float64")
    layer.wq.weight.data = np.zeros((4, 4))
    p = layer.weights(mt.tensor(np.ones((1, 3, 4)))).data[0]
    for h, m in enumerate(slopes(2)):
        row = np.exp(-m * np.array([2, 1, 0]))
        assert np.max(np.abs(p[h, 2] - row / row.sum())) <= 1e-12


def test_positions_with_a_batch_axis() -> None:
    rng = np.random.default_rng(0)
    x = mt.tensor(rng.standard_normal((2, 4, 8)))
    n = np.array([[0, 1, 2, 3], [5, 6, 7, 8]])
    for name in ("rope", "alibi"):
        layer = SoftmaxAttention(8, heads=2, position=name, dtype="float64")
        error = np.max(np.abs(layer(x, positions=n).data - layer(x).data))
        assert error <= 1e-12, (
            f"{name}: only differences of positions may matter, but the output moved by {error:.2g}"
        )


def test_learned_positions_refuse_what_they_never_saw() -> None:
    layer = LearnedPosition(4, context=3)
    with pytest.raises(ValueError, match="outside the 3 that were learned"):
        layer(mt.zeros((1, 4, 4)), np.arange(4))


def test_names() -> None:
    assert isinstance(as_position("alibi", heads=3), ALiBi)
    ready = ALiBi(heads=2)
    assert as_position(ready) is ready
    with pytest.raises(ValueError, match="choose one of: none"):
        as_position("rotary")

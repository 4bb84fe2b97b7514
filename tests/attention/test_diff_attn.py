"""Differential attention: lambda, sizes, what cancels, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

import minitf as mt
from minitf.attention.diff_attn import DiffAttention, initial_lambda
from minitf.nn import Case


def test_lambda_by_hand() -> None:
    assert abs(initial_lambda(0) - 0.2) <= 1e-15
    assert abs(initial_lambda(1) - (0.8 - 0.6 * math.exp(-0.3))) <= 1e-15
    assert 0.799 <= initial_lambda(100) <= 0.8
    layer = DiffAttention(8, heads=2, layer=3, dtype="float64")
    for name, value in (("q1", [1, 0]), ("k1", [2, 5]), ("q2", [0, 1]), ("k2", [7, 3])):
        getattr(layer, f"lambda_{name}").data = np.array(value, dtype=float)
    expected = math.exp(2) - math.exp(3) + initial_lambda(3)
    assert abs(layer.strength().item() - expected) <= 1e-12


def test_lambda_starts_near_its_initial_value_and_learns() -> None:
    layer, x = DiffAttention(64, heads=2, layer=2, seed=3, dtype="float64"), Case(2, 5, 2, 32).tokens()
    assert abs(layer.strength().item() - initial_lambda(2)) <= 0.3
    mt.ops.square(layer(x)).sum().backward()
    for name in ("q1", "k1", "q2", "k2"):
        assert np.any(getattr(layer, f"lambda_{name}").grad.data != 0.0), f"lambda_{name} gets no gradient"
    assert "lambda_init" not in layer.state_dict(), "lambda_init is a constant"


@pytest.mark.parametrize(("dim", "heads", "d"), [(64, 4, 8), (12, 3, 2), (6, 1, 4), (2, 1, 2), (9, 1, 6)])
def test_width_of_a_head_is_even(dim: int, heads: int, d: int) -> None:
    layer = DiffAttention(dim, heads=heads)
    assert layer.head_dim == d and layer.norm.weight.shape == (2 * d,)
    assert layer(mt.zeros((1, 3, dim))).shape == (1, 3, dim)


def test_what_both_maps_share_cancels() -> None:
    # Both maps attend to one token of noise; only the first attends to the signal as well.
    layer = DiffAttention(4, heads=1, head_dim=2, causal=False, position="nope", dtype="float64")
    layer.lambda_q1.data[:] = layer.lambda_q2.data[:] = 0.0
    layer.lambda_init = 0.5
    layer.wq.weight.data = np.zeros((4, 4))
    layer.wq.weight.data[0] = 1.0
    layer.wk.weight.data = np.zeros((4, 4))
    # Features: 0 asks, 1 marks noise (a key of both maps), 2 marks the signal (a key of the first).
    layer.wk.weight.data[1], layer.wk.weight.data[2] = 20.0, [20.0, 20.0, 0.0, 0.0]
    x = np.zeros((1, 4, 4))
    x[0, :, 0], x[0, 1, 1], x[0, 2, 2] = 1.0, 1.0, 1.0
    row = layer.weights(mt.tensor(x)).data[0, 0, 0]
    assert np.max(np.abs(row - [0.0, 0.0, 0.5, 0.0])) <= 1e-6, (
        f"the noise should cancel, but the map is {row}"
    )


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="must divide heads"):
        DiffAttention(8, heads=2, kv_heads=3)
    with pytest.raises(ValueError, match="0 or more"):
        DiffAttention(8, layer=-1)
    with pytest.raises(mt.ShapeError, match=r"\(B, N, D\)"):
        DiffAttention(8)(mt.zeros((3, 8)))
    with pytest.raises(ValueError, match="causal=True"):
        layer = DiffAttention(8, causal=False)
        layer.step(mt.zeros((1, 8)), layer.start(1))

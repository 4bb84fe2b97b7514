"""Neighbourhood attention: sequences and volumes, a language model, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.neighborhood_attention import NeighborhoodAttention, along
from minitf.attention.sliding_window import SlidingWindow
from minitf.nn import Case


def test_windows_of_one_axis() -> None:
    assert along(5, 3, 1, 1, False).keys.tolist() == [[0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4]]
    assert along(4, 2, 1, 1, False).keys.tolist() == [[0, 1], [0, 1], [1, 2], [2, 3]], "even: further left"
    assert along(5, 2, 2, 1, False).keys.tolist() == [[0, 2], [1, 3], [0, 2], [1, 3], [2, 4]]
    assert along(2, 7, 3, 5, False).keys.tolist() == [[0, 1], [0, 1]], "a short axis is seen whole"


def test_a_causal_sequence_is_a_sliding_window() -> None:
    x = Case(2, 9, 2, 4).tokens()
    for dilation in (1, 2):
        layer = NeighborhoodAttention(8, heads=2, window=3, dilation=dilation, causal=True, dtype="float64")
        other = SlidingWindow(8, heads=2, left=2, dilation=dilation, bias=True, dtype="float64")
        other.load_state_dict(layer.state_dict())
        error = np.max(np.abs(layer(x).data - other(x).data))
        assert error <= 1e-12, f"dilation {dilation}: differs from sliding_window by {error:.2g}"


def test_volumes_with_a_table_and_axes_of_their_own() -> None:
    rng = np.random.default_rng(0)
    x = mt.tensor(rng.standard_normal((1, 3, 4, 5, 8)))
    layer = NeighborhoodAttention(
        8, heads=2, window=(2, 3, 3), causal=(True, False, False), bias_axes=3, dtype="float64"
    )
    assert layer.table is not None and layer.table.shape == (3 * 5 * 5, 2)
    p = layer.weights(x).data.reshape(1, 2, 3, 20, 3, 20)
    seen = (p > 0.0).any(axis=(0, 1, 3, 5))
    assert np.array_equal(seen, [[True, False, False], [True, True, False], [False, True, True]])
    assert np.all((p > 0.0).sum(axis=(4, 5))[:, :, 1:] == 2 * 3 * 3)
    assert layer(x).shape == x.shape


def test_in_an_image_model() -> None:
    config = mt.models.ImageConfig(
        size=(8, 8), patch=2, dim=8, depth=1, heads=2, classes=3, attention="neighborhood_attention"
    )
    assert mt.models.ImageModel(config)(mt.zeros((2, 8, 8))).shape == (2, 3)


def test_errors_say_what_to_do() -> None:
    for options in (
        {"window": 0},
        {"dilation": 0},
        {"window": 3, "stride": 4},
        {"window": (3, 3), "stride": (3, 0)},
    ):
        with pytest.raises(ValueError, match="from 1 to window"):
            NeighborhoodAttention(8, **options)
    for options in (
        {"window": (3, 3), "stride": (1, 1, 1)},
        {"window": (3, 3), "bias_axes": 1},
    ):
        with pytest.raises(ValueError, match="different numbers of axes"):
            NeighborhoodAttention(8, **options)
    with pytest.raises(ValueError, match="divide dim"):
        NeighborhoodAttention(9, heads=2)
    with pytest.raises(mt.ShapeError, match=r"1 axes, but options for \{2\}"):
        NeighborhoodAttention(8, window=(3, 3))(mt.zeros((1, 5, 8)))
    with pytest.raises(mt.ShapeError, match=r"\(B, \*grid, D\)"):
        NeighborhoodAttention(8)(mt.zeros((5, 8)))

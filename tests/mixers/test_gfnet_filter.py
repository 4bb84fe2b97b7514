"""GFNet filter: parameters, precision, resizing, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.mixers.gfnet_filter import GFNetFilter, between
from minitf.nn import Case


def test_parameters() -> None:
    layer = mt.build("gfnet_filter", 8)
    assert layer.count_parameters() == 2 * 14 * 8 * 8
    assert 0.015 <= float(np.std(layer.state_dict()["real"])) <= 0.025


def test_half_precision_in_half_precision_out() -> None:
    x = Case(1, 4, 2, 4, w=4).image()
    layer = GFNetFilter(8, grid=4, dtype="float64")
    exact = layer(x).data
    half = layer.to("float16")(x.astype("float16"))
    assert half.dtype == "float16", "the output has the type of the input"
    error = np.max(np.abs(half.data - exact))
    # Inputs, weights and outputs of at most 0.3 are rounded to 11 bits.
    assert error <= 1e-3, f"float16 in and out differs by {error:.2g}: it should be computed in more"


def test_resizing_keeps_the_corners_of_the_spectrum() -> None:
    layer = GFNetFilter(2, grid=(4, 6))
    larger = layer.resized(7, 9)
    assert larger.real.shape == (7, 5, 2)
    for r, c in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert np.allclose(larger.real.data[r, c], layer.real.data[r, c], atol=1e-7)
    assert np.array_equal(between(2, 3), [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])


def test_errors_say_what_to_do() -> None:
    layer = GFNetFilter(8, grid=(3, 4))
    for shape in ((1, 4, 3, 8), (1, 12, 8)):
        with pytest.raises(mt.ShapeError, match=r"\(B, 3, 4, D\).*`resized`"):
            layer(mt.zeros(shape))
    with pytest.raises(ValueError, match="at least 1"):
        GFNetFilter(8, grid=0)

"""ConvNeXt block: parameters, first values, the layout around it, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.blocks.convnext_block import ConvNeXtBlock, ConvNeXtDown, ConvNeXtHead, ConvNeXtStem
from minitf.nn import Case


def test_parameters_and_first_values() -> None:
    block = ConvNeXtBlock(96)
    assert block.count_parameters() == 8 * 96**2 + 58 * 96
    for weight in (block.conv.weight, block.w1.weight, block.w2.weight):
        assert abs(float(np.std(weight.data)) - 0.02) <= 0.001, "weights start with std 0.02"
    assert block.g is not None and np.all(block.g.data == np.float32(1e-6))
    assert ConvNeXtBlock(4, layer_scale=None).g is None


def test_without_layer_scale_is_with_ones() -> None:
    x = Case(1, 5, 2, 4, w=4).image()
    plain, ones = (ConvNeXtBlock(8, layer_scale=s, dtype="float64") for s in (None, 1.0))
    assert np.array_equal(plain(x).data, ones(x).data), "g = 1 and no g are the same block"


def test_a_stage_after_the_stem() -> None:
    rng = np.random.default_rng(0)
    stem, down, head = (
        ConvNeXtStem(3, 4, seed=rng),
        ConvNeXtDown(4, 8, seed=rng),
        ConvNeXtHead(8, 5, seed=rng),
    )
    image = rng.standard_normal((2, 16, 24, 3)).astype("float32")
    x = stem(mt.tensor(image))
    assert x.shape == (2, 4, 6, 4)
    error = np.max(np.abs(x.data.mean(axis=-1)))
    assert error <= 1e-5, f"the stem ends with a norm: channel means are 0, not {error:.2g}"
    first = image[:, :4, :4].reshape(2, -1) @ stem.conv.weight.data.reshape(48, 4)
    first = (first - first.mean(-1, keepdims=True)) / np.sqrt(first.var(-1, keepdims=True) + 1e-6)
    error = np.max(np.abs(x.data[:, 0, 0] - first))
    assert error <= 1e-4, f"the first patch mapped and normed differs by {error:.2g}"
    y = down(x)
    assert y.shape == (2, 2, 3, 8)
    error = np.max(np.abs(down(x * 100.0).data - y.data))
    assert error <= 1e-4, f"the norm comes before the map: scaling changes it by {error:.2g}"
    assert head(y).shape == (2, 5)
    order = y.reshape((2, 6, 8))[:, ::-1].reshape((2, 2, 3, 8))
    error = np.max(np.abs(head(order).data - head(y).data))
    assert error <= 1e-6, f"the head takes cells in any order, but differs by {error:.2g}"


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="must be odd"):
        ConvNeXtBlock(8, kernel=4)
    with pytest.raises(mt.ShapeError, match=r"\(B, rows, columns, D\)"):
        ConvNeXtBlock(8)(mt.zeros((1, 3, 8)))

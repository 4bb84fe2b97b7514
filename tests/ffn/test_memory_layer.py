"""Lookup tables: bits, options, the zero, which rows learn."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.ffn.memory_layer import MemoryLayer, codes


def test_bits() -> None:
    assert [MemoryLayer(d).bits for d in (512, 12, 10, 7, 31)] == [8, 6, 5, 7, 1], (
        "the largest divisor up to 8"
    )
    assert MemoryLayer(512, out=4).tables.shape == (64, 256, 4), "K = D / tau tables of 2^tau rows"
    for bits in (0, 3, 17):
        with pytest.raises(ValueError, match="divide dim=8"):
            MemoryLayer(8, bits=bits)
    with pytest.raises(ValueError, match="'code' or 'paper'"):
        MemoryLayer(8, mode="other")
    with pytest.raises(mt.ShapeError, match="must end in 8"):
        MemoryLayer(8)(mt.tensor(np.zeros((2, 4), dtype="float32")))


def test_the_first_number_is_the_most_significant_bit_and_zero_counts_as_one() -> None:
    z = mt.tensor([[1.0, -1.0, -1.0], [-1.0, 0.0, 2.0], [-0.0, -1.0, 1.0]])
    assert codes(z).tolist() == [4, 3, 5], "signs as binary digits"


def test_projection() -> None:
    layer = MemoryLayer(10, bits=4, project=True, dtype="float64")
    assert layer.project.weight.shape == (10, 12) and layer.tables.shape == (3, 16, 10), "K = ceil(10 / 4)"
    x = mt.tensor(np.random.default_rng(0).standard_normal((5, 10)))
    layer(x).sum().backward()
    assert np.any(layer.project.weight.grad.data), "the projection learns through the scores"
    plain = MemoryLayer(12, bits=4, out=10, dtype="float64")
    plain.tables.data, plain.bias.data = layer.tables.data, layer.bias.data
    error = np.max(np.abs(layer(x).data - plain(layer.project(x)).data))
    assert error <= 1e-12, f"projecting first and then looking up differs by {error:.2g}"


def test_only_rows_that_were_looked_up_learn() -> None:
    layer = MemoryLayer(8, bits=4, dtype="float64")
    x = np.ones((1, 8))
    layer(mt.tensor(x)).sum().backward()
    rows = np.argwhere(np.any(layer.tables.grad.data != 0.0, axis=-1)).tolist()
    assert rows == [[0, 15], [1, 15]], f"one row of each table, not {rows}"

"""The Spark network: sizes and options."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.ffn.glu_ffn import GLUFFN
from minitf.ffn.spark_ffn import SparkFFN


def test_sizes() -> None:
    layer = SparkFFN(48)
    assert layer.k1.weight.shape == (24, 192) and layer.k2.weight.shape == (24, 192), "r = D/2, F = 1.5 * 128"
    assert layer.count_parameters() == GLUFFN(48).count_parameters(), "as many as the gated network"
    assert layer.k == 15, "8 % of 192"


def test_out_of_range() -> None:
    for split in (0, 8):
        with pytest.raises(ValueError, match="from 1 to dim - 1 = 7"):
            SparkFFN(8, split=split)
    with pytest.raises(ValueError, match="leave split=3 out"):
        SparkFFN(8, split=3, full=True)
    with pytest.raises(ValueError, match="k=0"):
        SparkFFN(8, k=0)
    with pytest.raises(ValueError, match="is not 0 at 0"):
        SparkFFN(8, act="sigmoid")
    with pytest.raises(mt.ShapeError, match="must end in 8"):
        SparkFFN(8)(mt.tensor(np.zeros((2, 9), dtype="float32")))


def test_the_gate_reads_the_first_features_only() -> None:
    layer = SparkFFN(8, split=3, dtype="float64")
    x = np.random.default_rng(0).standard_normal((5, 8))
    other = x.copy()
    other[:, 3:] = 7.0
    assert np.array_equal(layer.gate(mt.tensor(x)).data, layer.gate(mt.tensor(other)).data), (
        "features from r on"
    )

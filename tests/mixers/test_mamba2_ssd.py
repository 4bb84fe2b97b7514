"""Mamba-2: sizes, initial values, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.engine import ShapeError
from minitf.mixers.mamba2_ssd import Mamba2


def test_sizes() -> None:
    layer = Mamba2(96, groups=3)
    assert (layer.heads, layer.head_dim, layer.states) == (3, 64, 64), "p = 64 where E = 2 D allows it"
    assert Mamba2(6).head_dim == 4, "otherwise the largest power of two that divides E"
    assert layer.win.weight.shape == (96, 2 * 192 + 2 * 3 * 64 + 3)
    state = layer.start(5)
    assert state.inputs.shape == (5, 3, 192 + 384) and state.s.shape == (5, 3, 64, 64)


def test_initial_values() -> None:
    layer = Mamba2(256, head_dim=1, states=2, dtype="float64")
    a, dt = np.exp(layer.a_log.data), np.logaddexp(0.0, layer.dt_bias.data)
    assert a.min() >= 1.0 and a.max() <= 16.0, "exp(A_log) must lie in (1, 16)"
    assert dt.min() >= 0.999e-3 and dt.max() <= 0.1001, "softplus(dt_bias) must lie in [0.001, 0.1]"
    assert np.all(layer.d.data == 1.0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="head_dim=3 must divide E=16"):
        Mamba2(8, head_dim=3)
    with pytest.raises(ValueError, match="groups=3 the 4 heads"):
        Mamba2(8, head_dim=4, groups=3)
    for options in ({"expand": 0}, {"head_dim": 0}, {"states": 0}, {"groups": 0}, {"width": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            Mamba2(8, **options)
    with pytest.raises(ShapeError, match=r"must be \(B, N, D\)"):
        Mamba2(8)(mt.tensor(np.zeros((5, 8), dtype="float32")))

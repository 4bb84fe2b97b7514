"""Gated DeltaNet: widths, initial gates, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.engine import ShapeError
from minitf.mixers.gated_delta_net import GatedDeltaNet


def test_widths_follow_the_paper() -> None:
    layer = GatedDeltaNet(2048, heads=8)
    assert layer.dk == 192 and layer.dv == 384, "H dk is 3/4 D, and dv is 2 dk"
    assert layer.wk.weight.shape == (2048, 1536) and layer.wo.weight.shape == (3072, 2048)


def test_initial_decays() -> None:
    layer = GatedDeltaNet(1024, heads=512, dtype="float64")
    a, dt = np.exp(layer.a_log.data), np.logaddexp(0.0, layer.dt_bias.data)
    assert a.min() >= 1e-3 and a.max() <= 16.0, "exp(A_log) must lie in (0, 16)"
    assert dt.min() >= 0.999e-3 and dt.max() <= 0.1001, "softplus(dt_bias) must lie in [0.001, 0.1]"
    share = np.mean(dt < 0.01)
    assert 0.4 <= share <= 0.6, f"half of the steps must be below 0.01, found {share:.2f}"


def test_errors() -> None:
    with pytest.raises(ValueError, match="heads=3 must divide dim=8"):
        GatedDeltaNet(8, heads=3)
    with pytest.raises(ShapeError, match=r"must be \(B, N, D\)"):
        GatedDeltaNet(8)(mt.tensor(np.zeros((5, 8), dtype="float32")))

"""The selective scan: initial values, optional inputs, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.engine import ShapeError
from minitf.mixers.selective_scan import SelectiveScan, selective_scan


def test_initial_values() -> None:
    layer = SelectiveScan(512, states=4, dtype="float64")
    assert np.allclose(np.exp(layer.a_log.data), [[1.0, 2.0, 3.0, 4.0]] * 512), (
        "A = -1 .. -n for every channel"
    )
    dt = np.logaddexp(0.0, layer.bias.data)
    assert dt.min() >= 0.999e-3 and dt.max() <= 0.1001, "softplus(bias) must lie in [0.001, 0.1]"
    assert np.all(layer.d.data == 1.0)


def test_without_gate_and_bias() -> None:
    rng = np.random.default_rng(0)
    u, delta, b, c = (mt.tensor(rng.standard_normal((1, 5, w))) for w in (3, 3, 2, 2))
    a, d = mt.tensor(-np.ones((3, 2))), mt.tensor(np.ones(3))
    plain = selective_scan(u, delta, a, b, c, d)[0].data
    gated = selective_scan(u, delta, a, b, c, d, z=u, bias=np.zeros(3))[0].data
    assert np.allclose(gated, plain * mt.ops.silu(u).data, rtol=1e-14, atol=0.0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="states=0 must be at least 1"):
        SelectiveScan(4, states=0)
    layer = SelectiveScan(4, states=2)
    u, b = (mt.tensor(np.zeros((1, 3, w), dtype="float32")) for w in (3, 2))
    with pytest.raises(ShapeError, match=r"must be \(B, N, 4\)"):
        layer(u, u, b, b)

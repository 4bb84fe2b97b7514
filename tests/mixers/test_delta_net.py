"""DeltaNet: its options, its state, its errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.engine import ShapeError
from minitf.mixers.delta_net import DeltaNet


def test_widths() -> None:
    layer = DeltaNet(16, heads=2, expand_k=0.5, expand_v=2.0, width=3, gate=True)
    assert layer.wk.weight.shape == (16, 8) and layer.wg.weight.shape == (16, 32)
    state = layer.start(5)
    assert state.k.shape == (5, 2, 8) and state.v.shape == (5, 2, 32) and state.s.shape == (5, 2, 4, 16)


def test_many_rewrites_of_few_keys_stay_bounded() -> None:
    # Far more tokens than key channels, beta up to 2: additive memories would grow with N.
    x = mt.tensor(np.random.default_rng(0).standard_normal((1, 2000, 8)))
    for negative in (False, True):
        layer = DeltaNet(8, heads=2, negative=negative, dtype="float64")
        layer.wbeta.weight.data = 30.0 * layer.wbeta.weight.data
        largest = np.max(np.abs(layer.prefill(x, layer.start(1))[1].s.data))
        assert largest <= 10.0, f"negative={negative}: the memory grew to {largest:.2g}"


def test_hidden_tokens_leave_the_state_as_it_is() -> None:
    layer = DeltaNet(8, heads=2, dtype="float64")
    x = mt.tensor(np.random.default_rng(0).standard_normal((2, 6, 8)))
    y = layer(x, mask=np.zeros((2, 1, 1, 6), dtype=bool)).data
    assert np.all(y == 0.0), "where all is hidden the memory is empty and the output zero"


def test_a_hidden_token_writes_nothing_though_convolutions_look_back() -> None:
    layer, x = DeltaNet(8, heads=2, dtype="float64"), np.random.default_rng(1).standard_normal((1, 4, 8))
    mask = np.array([True, True, False, True])
    seen = layer(mt.tensor(x), mask=mask[None, None, None]).data[:, 3]
    # Token 2 as zeros for the convolutions, and S as it was before.
    _, state = layer.prefill(mt.tensor(x[:, :2]), layer.start(1))
    _, after = layer.prefill(mt.tensor(0.0 * x[:, 2:3]), state)
    expected = layer.step(mt.tensor(x[:, 3]), after._replace(s=state.s))[0].data
    assert np.max(np.abs(seen - expected)) <= 1e-12, "S must be as it was before the hidden token"


def test_errors() -> None:
    with pytest.raises(ValueError, match="heads=3 must divide dim=8"):
        DeltaNet(8, heads=3)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        DeltaNet(8, width=0)
    with pytest.raises(ShapeError, match=r"must be \(B, N, D\)"):
        DeltaNet(8)(mt.tensor(np.zeros((5, 8), dtype="float32")))

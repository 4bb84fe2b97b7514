"""Linear attention: options, masks, errors, and that the long form is never made."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.linear_attention import LinearAttention, elu_plus_one
from minitf.engine import ShapeError, no_grad


def test_feature_map_and_its_slope() -> None:
    x = mt.tensor(np.array([-1e3, -1.0, 0.0, 2.0, 1e3]), requires_grad=True)
    y = elu_plus_one(x)
    y.sum().backward()
    assert np.allclose(y.data, [0.0, np.exp(-1.0), 1.0, 3.0, 1001.0], rtol=1e-15, atol=0.0)
    assert np.allclose(x.grad.data, [0.0, np.exp(-1.0), 1.0, 1.0, 1.0], rtol=1e-15, atol=0.0)


def test_widths_of_keys_and_values() -> None:
    layer = LinearAttention(12, heads=2, expand_k=0.5, expand_v=2.0)
    assert layer.wk.weight.shape == (12, 6) and layer.wv.weight.shape == (12, 24)
    assert layer.start(3).shape == (3, 2, 3, 13), "the state is [S, z]"
    assert LinearAttention(12, heads=2, normalize=False).start(3).shape == (3, 2, 6, 6), "the state is S"


def test_everything_hidden_gives_zeros() -> None:
    x = mt.tensor(np.random.default_rng(0).standard_normal((2, 5, 8)))
    for causal in (True, False):
        layer = LinearAttention(8, heads=2, causal=causal, dtype="float64")
        y = layer(x, mask=np.zeros((2, 1, 1, 5), dtype=bool)).data
        assert np.all(y == 0.0), "tokens that see nothing must give zeros"


def test_nothing_grows_with_the_square_of_the_tokens() -> None:
    x = mt.tensor(np.zeros((1, 2048, 8), dtype="float32"))
    for causal in (True, False):
        with no_grad(), mt.profile() as p:
            LinearAttention(8, heads=1, causal=causal)(x)
        assert p.peak_bytes <= 2048 * 2048, f"peak of {p.peak_bytes} bytes: a quarter of an N by N matrix"


def test_errors() -> None:
    with pytest.raises(ValueError, match="heads=3 must divide dim=8"):
        LinearAttention(8, heads=3)
    with pytest.raises(ValueError, match="must be one of: elu, identity"):
        LinearAttention(8, features="relu")
    with pytest.raises(ValueError, match="normalize=False"):
        LinearAttention(8, features="identity")
    with pytest.raises(ShapeError, match=r"must be \(B, N, D\)"):
        LinearAttention(8)(mt.tensor(np.zeros((5, 8), dtype="float32")))
    layer = LinearAttention(8, causal=False)
    with pytest.raises(ValueError, match="causal=True"):
        layer.step(mt.tensor(np.zeros((1, 8), dtype="float32")), layer.start(1))

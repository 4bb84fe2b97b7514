"""Product-key memory: sizes, usage, batch norm."""

from __future__ import annotations

import math

import numpy as np
import pytest

import minitf as mt
from minitf.ffn.pkm import PKM, usage


def tokens(n: int = 6, dim: int = 8) -> mt.Tensor:
    return mt.tensor(np.random.default_rng(0).standard_normal((2, n, dim)))


def test_sizes() -> None:
    layer = PKM(8)
    assert layer.keys.shape == (4, 2, 16, 4) and layer.values.shape == (256, 8) and layer.k == 16, "from D"
    assert PKM(8, keys=40).k == 32, "k is at most 32 unless given"
    assert PKM(7).keys.shape[-1] == 4, "an odd width still gives two halves"
    assert PKM(8, out=3, dtype="float64")(tokens()).shape == (2, 6, 3), "O may differ from D"


def test_out_of_range() -> None:
    for k in (0, 6):
        with pytest.raises(ValueError, match="from 1 to keys=5"):
            PKM(8, keys=5, k=k)
    for width in (0, 3):
        with pytest.raises(ValueError, match="two halves"):
            PKM(8, key_dim=width)


def test_usage() -> None:
    fraction, divergence = usage(np.array([[0, 1], [2, 3]]), np.full((2, 2), 0.25), 4)
    assert fraction == 1.0 and abs(divergence) <= 1e-12, "even use of all slots"
    fraction, divergence = usage(np.array([2, 2]), np.array([0.3, 0.7]), 4)
    assert fraction == 0.25 and abs(divergence - math.log(4.0)) <= 1e-12, "one slot of four: KL = log 4"
    weights, slots = PKM(8, dtype="float64").read(tokens(50))
    assert 0.0 < usage(slots, weights.data, 256)[0] <= 1.0, "what read gives is what usage takes"


def test_batch_norm_learns_in_training_and_rests_in_eval() -> None:
    layer, x = PKM(8, batchnorm=True, dtype="float64"), tokens(40)
    for _ in range(100):
        layer(x)
    q = layer.wq(x).data.reshape(-1, layer.norm.mean.size)
    error = np.max(np.abs(layer.norm.mean.data - q.mean(axis=0)))
    error = max(error, np.max(np.abs(layer.norm.variance.data - q.var(axis=0, ddof=1))))
    assert error <= 1e-3, f"after 100 equal batches the running statistics are off by {error:.2g}"
    layer.eval()
    before = layer.state_dict()
    alone, among = layer(x[:1, :1]).data, layer(x).data[:1, :1]
    assert np.max(np.abs(alone - among)) <= 1e-12, "in eval mode tokens do not see each other"
    assert all(np.array_equal(v, before[k]) for k, v in layer.state_dict().items()), "and nothing is learned"
    assert "norm.mean" in before and "norm.variance" in before, "running statistics are saved"


def test_a_batch_of_one_token() -> None:
    y = PKM(8, batchnorm=True, dtype="float64")(tokens()[:1, :1])
    assert np.all(np.isfinite(y.data)), "the variance of one token must not divide by zero"

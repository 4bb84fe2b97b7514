"""Pooling mixer: sequences and volumes, cost, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.mixers.pool_mixer import PoolMixer, box_mean


def test_sequences_and_volumes() -> None:
    x = mt.tensor(np.arange(5.0).reshape(1, 5, 1))
    assert np.allclose(PoolMixer(1)(x).data[0, :, 0], [0.5, 0.0, 0.0, 0.0, -0.5], atol=1e-15)
    volume = np.random.default_rng(0).standard_normal((1, 3, 4, 2, 1))
    near = volume[0, :2, 1:4, :2].mean()
    error = abs(PoolMixer(1)(mt.tensor(volume)).data[0, 0, 2, 0, 0] - (near - volume[0, 0, 2, 0, 0]))
    assert error <= 1e-12, f"a corner of a volume is off by {error:.2g}"


def test_a_window_beyond_the_grid_is_the_mean_of_all() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 4))
    error = np.max(np.abs(box_mean(mt.tensor(x), 7).data - x.mean(axis=(1, 2), keepdims=True)))
    assert error <= 1e-12, f"the mean over everything is off by {error:.2g}"


def test_nothing_is_learned() -> None:
    assert mt.build("pool_mixer", 8, heads=2, seed=1).parameters() == []


def test_errors_say_what_to_do() -> None:
    for window in (0, 2, -1):
        with pytest.raises(ValueError, match="must be odd"):
            PoolMixer(8, window=window)
    with pytest.raises(mt.ShapeError, match=r"\(B, \*grid, 8\)"):
        PoolMixer(8)(mt.zeros((2, 3, 4)))

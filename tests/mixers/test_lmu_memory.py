"""Legendre memory: sizes, the exponential, stability, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.engine import ShapeError
from minitf.mixers.lmu_memory import LMUMemory, continuous, discrete


@pytest.mark.parametrize(("n", "theta"), [(1, 128.0), (6, 4.0), (64, 128.0), (40, 0.5)])
def test_discretisation_against_eigenvalues(n: int, theta: float) -> None:
    ad, _ = discrete(n, theta)
    expected = np.exp(np.linalg.eigvals(continuous(n, theta)[0]))
    found = np.linalg.eigvals(ad)
    # Large matrices of this kind are far from normal: the largest eigenvalues are the safe ones to compare.
    error = abs(np.max(np.abs(found)) - np.max(np.abs(expected)))
    assert error <= 1e-9, f"the largest eigenvalue of Ad is off by {error:.2g}"


def test_stable_over_long_times() -> None:
    layer = LMUMemory(4, memory=100, theta=50.0, dtype="float64")
    ad, total = layer.ad.data, np.ones(100)
    for _ in range(2000):
        total = ad @ total
    assert np.max(np.abs(total)) <= 1e-6, "what was before the window must be forgotten"


def test_sizes() -> None:
    layer = LMUMemory(4, memory=7, hidden=3)
    assert layer.wh.weight.shape == (11, 3) and layer.ad.shape == (7, 7)
    assert layer(mt.tensor(np.zeros((2, 5, 4), dtype="float32"))).shape == (2, 5, 3)
    assert layer.start(2).shape == (2, 7)
    assert not any(name in ("ad", "bd") for name, _ in layer.named_parameters()), "the system is not trained"


def test_errors() -> None:
    for options in ({"memory": 0}, {"hidden": 0}, {"theta": 0.0}):
        with pytest.raises(ValueError, match="must be positive"):
            LMUMemory(4, **options)
    with pytest.raises(ShapeError, match=r"must be \(B, N, D\)"):
        LMUMemory(4)(mt.tensor(np.zeros((5, 4), dtype="float32")))

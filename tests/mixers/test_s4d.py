"""S4D: how it starts, streams of any length, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.engine import ShapeError
from minitf.mixers.s4d import S4D, frequencies


def test_frequencies() -> None:
    assert np.allclose(frequencies("lin", 6), np.pi * np.array([0.0, 1.0, 2.0]))
    assert np.allclose(frequencies("inv", 6) * np.pi / 6.0, [5.0, 1.0, 0.2])
    assert np.allclose(frequencies("quad", 6) * np.pi, [1.0, 9.0, 25.0])


def test_hippo_frequencies_are_those_of_the_normal_part() -> None:
    n = 8
    q = np.sqrt(2.0 * np.arange(n) + 1.0)
    hippo = -np.tril(np.outer(q, q), -1) - np.diag(np.arange(1.0, n + 1.0))
    p = q / np.sqrt(2.0)
    found = np.linalg.eigvals(hippo + np.outer(p, p))
    error = np.max(np.abs(found.real + 0.5))
    assert error <= 1e-10, f"real parts differ from -1/2 by {error:.2g}"
    error = np.max(np.abs(np.sort(found.imag)[n // 2 :] - frequencies("legs", n)))
    assert error <= 1e-10, f"imaginary parts differ by {error:.2g}"


def test_initial_values() -> None:
    layer = S4D(512, states=4, dtype="float64")
    dt = np.exp(layer.log_dt.data)
    assert dt.min() >= 0.999e-3 and dt.max() <= 0.1001, "dt must lie in [0.001, 0.1]"
    assert np.allclose(np.exp(layer.log_a_real.data), 0.5)
    size = np.mean(layer.c_real.data**2 + layer.c_imag.data**2)
    assert 0.85 <= size <= 1.15, f"C must have variance 1, found {size:.2f}"
    real = S4D(2, states=4, start="real", dtype="float64")
    assert np.allclose(np.exp(real.log_a_real.data), [[1.0, 2.0]] * 2)
    assert real.a_imag is None and real.c_imag is None


def test_state_is_complex_and_of_one_size() -> None:
    layer = S4D(3, states=6)
    x = mt.tensor(np.zeros((2, 7, 3), dtype="float32"))
    state = layer.prefill(x, layer.start(2))[1]
    assert state.shape == (2, 3, 3) and state.dtype == "complex64"


def test_errors() -> None:
    for options in ({"states": 3}, {"states": 0}, {"start": "random"}, {"rule": "euler"}):
        with pytest.raises(ValueError, match="must be"):
            S4D(4, **options)
    with pytest.raises(ShapeError, match=r"must be \(B, N, D\)"):
        S4D(4)(mt.tensor(np.zeros((5, 4), dtype="float32")))

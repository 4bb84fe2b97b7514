"""LLM.int8(): what outliers do to plain int8, zero rows, gradients, errors."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.compress.llm_int8 import LLMInt8, product
from minitf.engine import Tensor
from minitf.nn import Linear


def test_one_large_feature_ruins_plain_int8_but_not_the_decomposition() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((64, 32)), rng.standard_normal((32, 16))
    x[:, 3] = 100.0
    w[3] = 0.0
    exact = x @ w
    plain, mixed = (np.sqrt(np.mean((product(x, w, tau) - exact) ** 2)) for tau in (0.0, 6.0))
    assert mixed * 10.0 <= plain, f"errors: {plain:.3g} without, {mixed:.3g} with the decomposition"


def test_rows_and_columns_of_zeros() -> None:
    y = product(np.zeros((2, 3)), np.zeros((3, 4)))
    assert np.array_equal(y, np.zeros((2, 4)))


def test_gradients_are_those_of_the_float_layer() -> None:
    base = Linear(4, 3, True, 0, dtype="float64")
    x = Tensor(np.random.default_rng(1).standard_normal((2, 5, 4)), requires_grad=True)
    LLMInt8(base=base)(x).sum().backward()
    assert x.grad is not None
    error = np.max(np.abs(x.grad.data - base.weight.data.sum(axis=1)))
    assert error <= 1e-12, f"the gradient differs from that of the float layer by {error:.2g}"
    assert LLMInt8(base=base).parameters() == [], "a quantised layer is not trained"


def test_errors() -> None:
    with pytest.raises(ValueError, match="tau"):
        LLMInt8(4, tau=-1.0)
    with pytest.raises(ValueError, match="outliers"):
        LLMInt8(4, outliers="none")

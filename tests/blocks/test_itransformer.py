"""iTransformer: derivatives without the detached mean, shapes, errors."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.blocks.itransformer import ITransformer
from minitf.engine import ShapeError, Tensor, check_grad


def test_gradients_where_nothing_is_detached() -> None:
    model = ITransformer(4, heads=2, past=6, horizon=3, use_norm=False, dtype="float64")
    check_grad(model, np.random.default_rng(0).standard_normal((2, 6, 3)))


def test_the_mean_is_a_constant_and_the_deviation_is_not() -> None:
    model = ITransformer(4, heads=2, past=6, horizon=6, depth=0, dtype="float64")
    x = Tensor(np.random.default_rng(1).standard_normal((1, 6, 1)), requires_grad=True)
    model.project.weight.data = np.zeros((4, 6))
    # Only the mean is left of the forecast, and nothing flows through it.
    y = model(x)
    error = float(np.max(np.abs(y.data - x.data.mean())))
    assert error <= 1e-12, f"a forecast of nothing but the mean is off by {error:.2g}"
    y.sum().backward()
    assert x.grad is not None and np.all(x.grad.data == 0.0), "the mean must be a constant"
    model.project.bias.data = np.ones(6)
    model(x).sum().backward()
    assert np.any(x.grad.data != 0.0), "gradients must pass through the deviation"


def test_any_number_of_variables_but_one_length() -> None:
    model = ITransformer(8, past=10, horizon=4)
    for variables in (1, 7):
        assert model(Tensor(np.zeros((2, 10, variables), "float32"))).shape == (2, 4, variables)
    with pytest.raises(ValueError, match="gelu, relu"):
        ITransformer(8, act="silu")
    with pytest.raises(ShapeError, match=r"\(B, 10, V\)"):
        model(Tensor(np.zeros((2, 9, 3), "float32")))

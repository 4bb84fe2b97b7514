"""Convolution and batch norm as layers: against the definition, running statistics, errors."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.engine import ShapeError, Tensor, check_grad
from minitf.nn import BatchNorm, Conv


def test_batch_norm_follows_the_batch_and_then_stays() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, 5)) * 2.0 + 1.0
    norm = BatchNorm(5, dtype="float64")
    y = norm(Tensor(x)).data
    expected = (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5)
    error = np.max(np.abs(y - expected))
    assert error <= 1e-12, f"in training, the statistics of the batch: off by {error:.2g}"
    error = np.max(np.abs(norm.mean.data - 0.1 * x.mean((0, 1))))
    assert error <= 1e-12, f"the running mean moves by a tenth: off by {error:.2g}"
    error = np.max(np.abs(norm.variance.data - 0.9 - 0.1 * x.var((0, 1), ddof=1)))
    assert error <= 1e-12, f"the running variance is the unbiased one: off by {error:.2g}"
    norm.eval()
    fixed = norm(Tensor(x[:1])).data
    error = np.max(np.abs(fixed - norm(Tensor(x)).data[:1]))
    assert error <= 1e-12, f"in eval mode the batch must not matter: {error:.2g}"
    check_grad(BatchNorm(5, dtype="float64"), x)


def test_conv_is_a_sum_over_the_kernel() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 5, 4, 3))
    layer = Conv(3, 2, (3, 3), True, 0, dtype="float64")
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(
        padded[:, i : i + 5, j : j + 4] @ layer.weight.data[i, j] for i in range(3) for j in range(3)
    )
    error = np.max(np.abs(layer(Tensor(x)).data - expected))
    assert error <= 1e-12, f"the convolution differs from its definition by {error:.2g}"
    with pytest.raises(ShapeError, match="2 grid axes"):
        layer(Tensor(x[0]))

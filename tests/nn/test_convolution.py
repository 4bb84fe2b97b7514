"""The short convolution: against loops, in parts, and with the tap that passes the token on."""

from __future__ import annotations

import numpy as np
import pytest

from minitf import ops
from minitf.engine import Tensor, check_grad
from minitf.nn import ShortConv


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 3, 9])
def test_against_a_loop_and_in_parts(width: int, n: int) -> None:
    rng = np.random.default_rng(0)
    layer, x = ShortConv(3, width, True, dtype="float64"), rng.standard_normal((2, n, 3))
    assert layer.bias is not None
    layer.bias.data = rng.standard_normal(3)
    expected = np.zeros_like(x)
    for t in range(n):
        expected[:, t] = layer.bias.data
        for j in range(width):
            if t - width + 1 + j >= 0:
                expected[:, t] += layer.weight.data[j, 0] * x[:, t - width + 1 + j]
    error = np.max(np.abs(layer(Tensor(x))[0].data - expected))
    assert error <= 1e-14, f"the convolution differs from the loop by {error:.2g}"
    for cut in range(1, n):
        first, state = layer(Tensor(x[:, :cut]), layer.start(2))
        second, _ = layer(Tensor(x[:, cut:]), state)
        error = np.max(np.abs(ops.concat([first, second], axis=1).data - expected))
        assert error <= 1e-14, f"two parts, cut at {cut}, differ from the whole by {error:.2g}"


def test_last_tap_alone_is_the_identity() -> None:
    layer, x = ShortConv(3, dtype="float64"), Tensor(np.random.default_rng(0).standard_normal((2, 5, 3)))
    layer.weight.data = np.zeros((4, 1, 3))
    layer.weight.data[-1] = 1.0
    assert np.array_equal(layer(x)[0].data, x.data), "the last tap must pass the token on"


def test_derivatives() -> None:
    rng = np.random.default_rng(0)

    def f(x: Tensor, w: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        layer = ShortConv(2, 3)
        layer.weight = w  # type: ignore[assignment]
        return layer(x, state)

    check_grad(
        f, rng.standard_normal((2, 4, 2)), rng.standard_normal((3, 1, 2)), rng.standard_normal((2, 2, 2))
    )


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        ShortConv(3, 0)

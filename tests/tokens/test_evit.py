"""EViT: the annealed rate, how many tokens stay, gradients through the fused token, errors."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.engine import ShapeError, Tensor
from minitf.nn import Case
from minitf.tokens.evit import EViT, keep_rate, reduce


def test_keep_rate_falls_from_one() -> None:
    rates = [keep_rate(step, 0.7, start=10, steps=100) for step in (0, 10, 60, 110, 500)]
    error = np.max(np.abs(np.array(rates) - [1.0, 1.0, 0.85, 0.7, 0.7]))
    assert error <= 1e-12, f"the schedule gives {rates}"


@pytest.mark.parametrize(
    ("n", "rho", "left"), [(11, 0.7, 9), (11, 0.5, 7), (2, 0.5, 2), (1, 0.5, 1), (11, 1.0, 11)]
)
def test_how_many_stay(n: int, rho: float, left: int) -> None:
    assert EViT(8, heads=2, rho=rho, dtype="float64")(Case(t=n).tokens()).shape[1] == left


def test_gradients_pass_through_the_fused_attention() -> None:
    a = Tensor(np.array([[0.3, 0.2, 0.1]]), requires_grad=True)
    reduce(Tensor(np.arange(8.0).reshape(1, 4, 2)), a, keep=1).sum().backward()
    assert a.grad is not None
    # The kept patch is not weighted; the others give the sums of their rows.
    assert a.grad.data.tolist() == [[0.0, 9.0, 13.0]]


def test_errors() -> None:
    with pytest.raises(ValueError, match="rho"):
        EViT(8, rho=0.0)
    with pytest.raises(ShapeError, match=r"\(B, N, D\)"):
        EViT(8)(Tensor(np.ones((3, 8), "float32")))

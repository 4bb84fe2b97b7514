"""Top-k experts: which are called, ties, the balance loss, errors."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.engine import Tensor
from minitf.ffn.smoe_topk import SMoETopK
from minitf.nn import Case, dispatch


def test_each_expert_is_called_once_with_its_tokens_in_order() -> None:
    calls: list[list[float]] = []

    def expert(x: Tensor) -> Tensor:
        calls.append(x.data[:, 0].tolist())
        return x

    x = Tensor(np.arange(4.0)[:, None])
    chosen = np.array([[2, 0], [0, 2], [2, 0], [0, 2]])
    y = dispatch(x, chosen, Tensor(np.full((4, 2), 0.5)), [expert] * 3)
    assert calls == [[0.0, 1.0, 2.0, 3.0]] * 2, "expert 1 has no tokens and is not called"
    assert np.array_equal(y.data, x.data)


def test_ties_go_to_the_lower_expert() -> None:
    layer = SMoETopK(4, experts=5, k=2, dtype="float64")
    layer.router.weight.data = np.zeros((4, 5))
    chosen, gates = layer.route(Case(d=2).tokens().reshape((-1, 4)))
    assert np.all(chosen == [0, 1]) and np.all(gates.data == 0.5)


def test_the_balance_loss_is_k_when_even() -> None:
    layer = SMoETopK(4, experts=4, k=2, balance=0.5, dtype="float64")
    layer.router.weight.data = np.zeros((4, 4))
    # Uniform probabilities: E sum_e f_e / E = sum_e f_e = k, whoever is chosen.
    assert abs(layer.auxiliary_loss(Case(d=2).tokens()).item() - 0.5 * 2) <= 1e-12


def test_errors() -> None:
    with pytest.raises(ValueError, match="from 1 to experts=4"):
        SMoETopK(8, experts=4, k=5)
    with pytest.raises(ValueError, match="swiglu, gelu"):
        SMoETopK(8, expert="relu")

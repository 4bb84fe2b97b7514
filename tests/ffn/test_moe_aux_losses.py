"""Losses for routers: errors, what is left out, and that the balance loss spreads tokens."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.ffn.moe_aux_losses import (
    MoEAuxLosses,
    balance_loss,
    importance_loss,
    load_loss,
    selection,
    z_loss,
)


def test_wrong_arguments() -> None:
    scores = mt.tensor(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="k=5 must be from 1 to 4"):
        load_loss(scores, np.zeros((3, 4)), 5, 1.0)
    with pytest.raises(ValueError, match="from 1 to 3"):
        load_loss(scores, np.zeros((3, 4)), 4, 1.0, original=True)
    with pytest.raises(ValueError, match="above 0"):
        load_loss(scores, np.zeros((3, 4)), 1, 0.0)
    with pytest.raises(ValueError, match="k=0"):
        MoEAuxLosses(4, k=0)
    with pytest.raises(mt.ShapeError, match="must be"):
        MoEAuxLosses(4)(scores[0], scores[0])


def test_selection_lets_the_lower_index_win() -> None:
    found = selection(mt.tensor([[1.0, 2.0, 2.0, 2.0]]), 2)
    assert found.tolist() == [[False, True, True, False]], "ties must go to the lower index"


def test_the_module_is_the_weighted_sum() -> None:
    rng = np.random.default_rng(0)
    scores, noise = mt.tensor(rng.standard_normal((6, 4))), mt.tensor(rng.standard_normal((6, 4)))
    p, chosen = mt.ops.softmax(scores), selection(scores + 0.5 * noise, 1)
    parts = {
        "balance": balance_loss(p, chosen),
        "z": z_loss(scores),
        "importance": importance_loss(p * chosen.astype(float)),
        "load": load_loss(scores, noise, 1, 0.5),
    }
    for name, part in parts.items():
        weights = {other: 2.0 * (other == name) for other in parts}
        error = abs(float(MoEAuxLosses(4, k=1, sigma=0.5, **weights)(scores, noise)) - 2.0 * float(part))
        assert error <= 1e-12, f"{name} alone, with weight 2, is off by {error:.2g}"
    assert MoEAuxLosses(4).sigma == 0.25, "the noise is 1 / E unless given"


def test_no_valid_token_gives_zero() -> None:
    chosen = np.ones((2, 3), dtype=bool)
    loss = balance_loss(mt.tensor(np.full((2, 3), 1.0 / 3.0)), chosen, np.zeros(2, dtype=bool))
    assert float(loss) == 0.0, "a group of padding only must not divide by zero"


def test_descending_the_balance_loss_evens_out_usage() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((256, 6))
    router = mt.tensor(
        0.3 * rng.standard_normal((6, 4)) + np.array([0.4, 0.0, 0.0, -0.4]), requires_grad=True
    )

    def largest_share() -> float:
        return float(selection(mt.tensor(x) @ router, 1).mean(axis=0).max())

    before = largest_share()
    for _ in range(200):
        router.grad = None
        scores = mt.tensor(x) @ router
        balance_loss(mt.ops.softmax(scores), selection(scores, 1)).backward()
        router.data = router.data - 0.3 * router.grad.data
    assert largest_share() <= min(before, 0.30), f"the largest share went from {before} to {largest_share()}"

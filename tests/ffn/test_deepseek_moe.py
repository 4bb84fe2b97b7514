"""DeepSeek's mixture of experts: options, the bias and its update."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.ffn.deepseek_moe import DeepSeekMoE, limited


def tokens(n: int = 7) -> mt.Tensor:
    return mt.tensor(np.random.default_rng(0).standard_normal((2, n, 8)))


def test_out_of_range() -> None:
    with pytest.raises(ValueError, match="sigmoid"):
        DeepSeekMoE(8, score="relu")
    for options in ({"groups": 3}, {"groups": 0}, {"groups": 2, "group_limit": 3}, {"group_limit": 0}):
        with pytest.raises(ValueError, match="must divide"):
            DeepSeekMoE(8, **options)
    with pytest.raises(ValueError, match="the 2 experts in reach"):
        DeepSeekMoE(8, groups=4, k=3)
    with pytest.raises(ValueError, match="biased=False"):
        DeepSeekMoE(8, biased=False).update_bias(np.ones(8))


def test_the_update_moves_by_gamma_towards_the_mean() -> None:
    layer = DeepSeekMoE(8, experts=4, gamma=0.5, dtype="float64")
    layer.update_bias(np.array([6, 2, 4, 4]))
    assert layer.bias.data.tolist() == [-0.5, 0.5, 0.0, 0.0], "sign(0) = 0, and not the size counts"
    assert "bias" in layer.state_dict(), "the bias is saved"
    assert all(p is not layer.bias for p in layer.parameters()), "and not trained"


def test_the_bias_moves_the_choice_and_not_the_gates() -> None:
    layer, x = DeepSeekMoE(8, experts=4, k=1, dtype="float64"), tokens().reshape((-1, 8))
    layer.bias.data = np.array([0.0, 0.0, 9.0, 0.0])
    chosen, gates = layer.route(x)
    assert np.all(chosen == 2) and np.allclose(gates.data, 1.0, rtol=0, atol=1e-15), "gates are s / sum(s)"
    soft = DeepSeekMoE(8, experts=4, k=1, score="softmax", dtype="float64")
    soft.bias.data = layer.bias.data
    assert np.array_equal(soft.route(x)[1].data, soft.scores(x).data[:, 2:3]), "gates are s without b"


def test_group_limit() -> None:
    sel = np.array([[0.9, 0.0, 0.5, 0.6, 0.1, 0.1]])
    two, one = limited(sel, 3, 1, best=2), limited(sel, 3, 1, best=1)
    assert np.flatnonzero(np.isfinite(two[0])).tolist() == [2, 3], "0.5 + 0.6 is the largest sum of two"
    assert np.flatnonzero(np.isfinite(one[0])).tolist() == [0, 1], "0.9 is the largest score"


def test_scores_that_round_to_zero_give_finite_gates() -> None:
    layer = DeepSeekMoE(8, dtype="float64")
    layer.router.weight.data = np.full((8, 8), -1e4)
    x = mt.tensor(np.ones((3, 8)), requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert np.all(np.isfinite(y.data)) and np.all(np.isfinite(x.grad.data)), "0 / 0 must not appear"


def test_the_auxiliary_loss_trains_the_router_alone() -> None:
    layer = DeepSeekMoE(8, balance=1.0, dtype="float64")
    layer.auxiliary_loss(tokens()).backward()
    moved = {name for name, p in layer.named_parameters() if p.grad is not None}
    assert moved == {"router.weight"}, f"gradients reach {moved}"

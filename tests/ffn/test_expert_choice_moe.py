"""Experts that choose: capacity, groups, gradients of the router."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.ffn.expert_choice_moe import ExpertChoiceMoE


def tokens(*shape: int) -> mt.Tensor:
    return mt.tensor(np.random.default_rng(0).standard_normal((*shape, 8)))


def test_capacity() -> None:
    layer = ExpertChoiceMoE(8, experts=4, dtype="float64")
    for n, c in ((1, 1), (2, 1), (10, 5), (3, 2)):
        assert layer.choose(tokens(2, n))[1].shape == (2, 4, c), f"C = round(2 n / 4) for n = {n}"
    wide = ExpertChoiceMoE(8, experts=2, capacity=9.0, dtype="float64")
    assert wide.choose(tokens(1, 5))[1].shape == (1, 2, 5), "at most all tokens"


def test_groups() -> None:
    layer, x = ExpertChoiceMoE(8, experts=4, dtype="float64"), tokens(2, 3, 4)
    flat = layer(x.reshape((2, 12, 8))).reshape(x.shape)
    assert np.array_equal(layer(x).data, flat.data), "all tokens of an image are one group"
    assert np.array_equal(layer(x[0, 0]).data, layer(x[:1, 0]).data[0]), "(n, D) is one group"


def test_gates_carry_the_gradient_of_the_router() -> None:
    layer = ExpertChoiceMoE(8, experts=4, dtype="float64")
    layer(tokens(2, 6)).sum().backward()
    assert np.all(np.any(layer.router.weight.grad.data != 0.0, axis=0)), "every expert's column learns"


def test_out_of_range() -> None:
    for options in ({"experts": 0}, {"capacity": 0.0}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            ExpertChoiceMoE(8, **options)

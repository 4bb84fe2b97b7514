"""The top-k network: k, the meter, gradients of what was dropped."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.ffn.lazy_topk_ffn import LazyTopKFFN, keep_largest, nonzero_fraction


def test_k() -> None:
    assert LazyTopKFFN(64).k == 16, "F / 16"
    assert LazyTopKFFN(2).k == 1, "at least 1"
    for k in (0, 33):
        with pytest.raises(ValueError, match="from 1 to hidden=32"):
            LazyTopKFFN(8, k=k)


def test_ties_and_the_gradient_of_dropped_units() -> None:
    h = mt.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]], requires_grad=True)
    kept = keep_largest(h, 2)
    assert kept.data.tolist() == [[2.0, 1.0, 0.0, 0.0, 0.0]], "the lower index wins a tie"
    kept.sum().backward()
    assert h.grad.data.tolist() == [[1.0, 1.0, 0.0, 0.0, 0.0]], "dropped units get no gradient"


def test_the_meter() -> None:
    assert nonzero_fraction(mt.tensor([[0.0, 1.0], [-1.0, 2.0]])) == 0.5, "entries above 0"
    layer = LazyTopKFFN(16, k=4, dtype="float64")
    x = mt.tensor(np.random.default_rng(0).standard_normal((200, 16)))
    own, chosen = layer.activity(x)
    # Units without bias are active half of the time at random inputs: 12800 of them, dependent in a token.
    assert abs(own - 0.5) <= 0.05, f"the ReLU of a fresh layer leaves half of the units, not {own}"
    assert chosen == 4 / 64, "of more than k active units exactly k are left"

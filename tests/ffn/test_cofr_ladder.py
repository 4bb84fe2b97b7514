"""The ladder: eps, what training has seen, no infinities."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.ffn.cofr_ladder import CoFrLadder, cofr_ladder


def test_eps() -> None:
    with pytest.raises(ValueError, match="above 0"):
        CoFrLadder(3, eps=0.0)
    a = mt.tensor(np.random.default_rng(0).standard_normal((1000, 5)) * 0.01, requires_grad=True)
    f = cofr_ladder(a, 0.01)
    f.sum().backward()
    assert np.all(np.isfinite(f.data)) and np.all(np.isfinite(a.grad.data)), "the clip keeps all finite"
    assert np.max(np.abs(f.data)) <= 1.1 / 0.01, "|f| <= |K_{d-1}| / eps"
    zero = cofr_ladder(mt.tensor(np.zeros(5)))
    assert zero.item() == 100.0, "K_5 = 0 counts as positive: K_4 / eps"


def test_single_precision_stays() -> None:
    a = mt.tensor(np.zeros((2, 3)), dtype="float32", requires_grad=True)
    f = cofr_ladder(a)
    f.sum().backward()
    assert f.dtype == "float32" and a.grad.dtype == "float32", "inside the clip as well"


def test_outputs_stay_within_what_training_saw() -> None:
    ladder = CoFrLadder(1, clip_eval=True, dtype="float64")
    far = mt.tensor([[0.1], [-0.1], [1.0]])
    assert ladder.eval()(far).data.tolist() == [10.0, -10.0, 1.0], "nothing seen yet: nothing is clipped"
    ladder.train()(mt.tensor([[0.5], [1.0]]))
    ladder(mt.tensor([[-0.25]]))
    assert ladder.eval()(far).data.tolist() == [2.0, -4.0, 1.0], "clipped to [-4, 2]"
    assert set(ladder.state_dict()) == {"low", "high"}, "what was seen is saved"
    assert CoFrLadder(1).state_dict() == {}, "and only where it is asked for"

"""Statistical top-k: ranges, rows that see nothing, shares instead of counts."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.ffn.statistical_topk import StatisticalTopK, quantile, statistical_topk

S = mt.tensor(np.random.default_rng(0).standard_normal((5, 12)))


def test_out_of_range() -> None:
    for k in (0, -1, 0.0, 1.5):
        with pytest.raises(ValueError, match="share in"):
            statistical_topk(S, k)
    for options in ({"fill": "one"}, {"smooth": -1.0}, {"fill": "-inf", "smooth": 0.1}):
        with pytest.raises(ValueError, match="fill="):
            statistical_topk(S, 2, **options)
        with pytest.raises(ValueError, match="fill="):
            StatisticalTopK(12, **options)
    with pytest.raises(ValueError, match="k=0"):
        StatisticalTopK(12, k=0)


def test_shares_are_counts() -> None:
    assert np.array_equal(statistical_topk(S, 0.25).data, statistical_topk(S, 3).data), "3 of 12 is 0.25"
    assert StatisticalTopK(100).k == 8, "8 % unless given"


def test_rows_without_valid_entries() -> None:
    seen = np.ones((5, 12), dtype=bool)
    seen[2] = False
    zero, lost = statistical_topk(S, 3, valid=seen), statistical_topk(S, 3, "-inf", seen)
    assert np.all(zero.data[2] == 0.0) and np.all(np.isneginf(lost.data[2])), "a hidden row is all fill"
    assert np.all(np.isfinite(zero.data)), "and the others stay finite"


def test_the_form_for_attention_keeps_at_least_one() -> None:
    # Of two scores neither can be sd * Q(1 - 0.01) above the mean.
    out = statistical_topk(mt.tensor([[1.0, 2.0]]), 0.01, "-inf").data
    assert np.isfinite(out[0, 1]) and np.isneginf(out[0, 0]), "the largest always stays"


def test_quantile() -> None:
    # Phi(1.959964) = 0.975
    found = quantile(np.array([[0.5, 0.975]]))
    assert np.max(np.abs(found - [[0.0, 1.959963984540054]])) <= 1e-12, f"{found}"

"""Cascaded group attention: parameters, kernels for each head, training of the norms, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.cascaded_group_attention import CascadedGroupAttention
from minitf.nn import Case


def test_parameters() -> None:
    d, h, dk, k, w = 32, 4, 16, 5, 7
    count = d * (2 * dk + d // h) + h * dk * k**2 + d**2 + h * w**2
    norms = 2 * h * (2 * dk + d // h + dk) + 2 * d
    assert CascadedGroupAttention(d).count_parameters() == count + norms


def test_each_head_has_its_kernel() -> None:
    layer = CascadedGroupAttention(8, kernel=(7, 5, 3, 3))
    assert [head.conv.weight.shape[0] for head in layer.heads] == [7, 5, 3, 3]


def test_windows_do_not_see_each_other() -> None:
    x = Case(1, 4, 2, 4, w=4).image()
    layer = CascadedGroupAttention(8, heads=2, window=2, dtype="float64").eval()
    layer.norm.weight.data = np.ones(8)
    other = x.data.copy()
    other[:, 2:, 2:] = 9.0
    changed = np.any(layer(mt.tensor(other)).data != layer(x).data, axis=-1)[0]
    assert changed[2:, 2:].all() and changed.sum() == 4, "only the window that changed gives something else"


def test_training_moves_the_running_statistics() -> None:
    x = Case(2, 3, 2, 4, w=3).image()
    layer = CascadedGroupAttention(8, heads=2, dtype="float64")
    before = layer.state_dict()
    layer(x)
    after = layer.state_dict()
    for name in ("heads.0.norm.mean", "heads.1.conv_norm.variance", "norm.mean"):
        assert np.any(after[name] != before[name]), f"{name} follows the batch in training mode"
    layer.eval()(x * 2.0)
    assert np.array_equal(layer.state_dict()["norm.mean"], after["norm.mean"]), "in eval mode it stays"


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="divide dim"):
        CascadedGroupAttention(9, heads=2)
    for kernel in (4, (3, 3), (3, 3, 3, 2)):
        with pytest.raises(ValueError, match="must be odd"):
            CascadedGroupAttention(8, kernel=kernel)
    for options in ({"key_dim": 0}, {"window": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            CascadedGroupAttention(8, **options)
    with pytest.raises(mt.ShapeError, match=r"\(B, rows, columns, D\)"):
        CascadedGroupAttention(8)(mt.zeros((1, 4, 8)))

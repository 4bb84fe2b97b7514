"""Contextual positions: counting, gradients of the position vectors, masks, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.cope import CoPE, counted, interpolated
from minitf.nn import Case


def test_a_head_counts_marks() -> None:
    # Feature 0 asks, feature 1 marks. Gates are open at marks and closed elsewhere.
    layer = CoPE(2, heads=1, npos=8, dtype="float64")
    layer.wq.weight.data = np.array([[1.0, 1.0], [0.0, 0.0]])
    layer.wk.weight.data = np.array([[-60.0, 0.0], [120.0, 0.0]])
    # The query is (1, 1), so z[n] = e[n, 0] + e[n, 1] is high at position 2 only.
    layer.e.data[2, 1] = 500.0
    marks = np.array([0, 1, 0, 0, 1, 0, 1, 0, 0])
    x = np.stack([np.ones(9), marks], axis=-1)[None]
    row = layer.weights(mt.tensor(x)).data[0, 0, -1]
    # Keys after the third mark from the end, up to the second, are at position 2; of them the mark wins.
    assert np.argmax(row) == 4 and row[4] >= 0.99, f"the second last mark should be found: {row}"


def test_interpolation_by_hand() -> None:
    z = mt.tensor(np.array([[[[0.0, 10.0, 40.0]]]]))
    p = mt.tensor(np.array([[[[0.25, 1.0, 1.5, 2.0]]]]), requires_grad=True)
    c = interpolated(z, p)
    assert np.max(np.abs(c.data - [2.5, 10.0, 25.0, 40.0])) <= 1e-12
    c.sum().backward()
    assert np.max(np.abs(p.grad.data - [10.0, 0.0, 30.0, 0.0])) <= 1e-12, "the slope between two vectors"


def test_no_gradient_where_positions_are_cut_off() -> None:
    g = mt.tensor(np.full((1, 1, 1, 6), 0.9), requires_grad=True)
    p = counted(g, 3)
    assert np.max(np.abs(p.data - [2, 2, 2, 2, 1.8, 0.9])) <= 1e-12
    p[..., :4].sum().backward()
    assert np.all(g.grad.data == 0.0)


def test_position_vectors_start_at_zero_and_learn() -> None:
    layer, x = CoPE(8, heads=2, seed=1, dtype="float64"), Case(2, 5, 2, 4).tokens()
    assert np.all(layer.e.data == 0.0)
    mt.ops.square(layer(x)).sum().backward()
    assert np.any(layer.e.grad.data != 0.0)


def test_hidden_keys_do_not_count() -> None:
    layer, x = CoPE(8, heads=2, npos=4, dtype="float64"), Case(1, 6, 2, 4).tokens()
    layer.e.data = np.random.default_rng(0).standard_normal((4, 4))
    seen = np.array([1, 0, 1, 1, 0, 1], dtype=bool)
    with_hidden = layer(x, mask=seen[None, None, None]).data[:, seen]
    error = np.max(np.abs(with_hidden - layer(x[:, seen]).data))
    assert error <= 1e-12, f"hidden keys must neither be seen nor counted: {error:.2g}"


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        CoPE(8, heads=2, npos=0)
    with pytest.raises(ValueError, match="must divide dim"):
        CoPE(9, heads=2)
    with pytest.raises(mt.ShapeError, match=r"\(B, N, D\)"):
        CoPE(8)(mt.zeros((3, 8)))

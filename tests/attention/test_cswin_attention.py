"""CSWin attention: parameters, heads that split, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.cswin_attention import CSWinAttention
from minitf.nn import Case


def test_parameters() -> None:
    assert CSWinAttention(16).count_parameters() == 4 * 16**2 + 4 * 16 + 10 * 16


def test_one_head_counts_as_two() -> None:
    x = Case(1, 3, 1, 8, w=4).image()
    one, two = (CSWinAttention(8, heads=h, dtype="float64")(x).data for h in (1, 2))
    assert np.array_equal(one, two), "each direction has a head of its own"


def test_lepe_stops_at_the_edge_of_a_stripe() -> None:
    layer = CSWinAttention(4, heads=2, stripe=2, dtype="float64")
    a, b = np.zeros((2, 1, 4, 4, 4))
    b[0, 1, 2] = 1.0
    changed = np.any(layer(mt.tensor(a)).data != layer(mt.tensor(b)).data, axis=-1)[0]
    # Column 2 opens the second vertical stripe; rows 0 and 1 are the first horizontal one.
    assert changed[:2].all() and changed[:, 2:].all(), "the cell is seen along its stripes"
    assert not changed[2:, :2].any(), "and nowhere else, though cell (2, 1) touches it"


def test_errors_say_what_to_do() -> None:
    for heads, dim in ((3, 9), (4, 6)):
        with pytest.raises(ValueError, match="even"):
            CSWinAttention(dim, heads=heads)
    with pytest.raises(ValueError, match="stripe=0"):
        CSWinAttention(8, stripe=0)
    with pytest.raises(mt.ShapeError, match=r"\(B, rows, columns, D\)"):
        CSWinAttention(8)(mt.zeros((1, 4, 8)))

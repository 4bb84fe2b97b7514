"""The continued-fraction network: size, options, the schedule that thaws the ladders."""

from __future__ import annotations

import pytest

from minitf.ffn.cffn import CFFN


def test_parameters_are_counted_by_the_formula() -> None:
    for form in ("full", "diag"):
        layer = CFFN(10, ladders=2, depth=7, form=form)
        assert layer.count_parameters() == 2 * 10 * 8 + 2 * 100, "L D (d + 1) + 2 D^2"


def test_out_of_range() -> None:
    for options in ({"ladders": 0}, {"depth": 0}, {"eps": 0.0}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            CFFN(4, **options)
    with pytest.raises(ValueError, match="'full' or 'diag'"):
        CFFN(4, form="half")


def test_the_dyadic_schedule() -> None:
    layer = CFFN(4, depth=5)
    assert layer.thawed == 5, "without a schedule all depths train"
    found = []
    for step in (0, 49, 50, 74, 75, 88, 94, 97, 99):
        layer.thaw(step, 100)
        found.append(layer.thawed)
    # Depth k from step 100 (1 - 2^-k): 50, 75, 87.5, 93.75, 96.875.
    assert found == [0, 0, 1, 1, 2, 3, 4, 5, 5], f"{found}"

"""The hourglass network: its options and its size."""

from __future__ import annotations

import pytest

from minitf.ffn.hourglass_ffn import HourglassFFN


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="each, first, none"):
        HourglassFFN(8, norm="last")
    for options in ({"depth": 0}, {"ratio": 0.0}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            HourglassFFN(8, **options)


def test_parameters_are_counted_by_the_formula() -> None:
    layer = HourglassFFN(30, depth=3, ratio=0.4)
    assert layer.parts[0].wg.weight.shape == (30, 12), "F must be round(0.4 * 30)"
    assert layer.count_parameters() == 3 * 3 * 30 * 12 + 3 * 30, "3 K D F + K D"
    assert HourglassFFN(30, depth=3, norm="first").count_parameters() == 3 * 3 * 30 * 15 + 30, "one norm"
    # K r = 8/3: as many weights as a plain network of width 4 D.
    even = HourglassFFN(24, depth=4, ratio=2 / 3, norm="none")
    assert even.count_parameters() == 8 * 24 * 24, "K r = 8/3 must cost what 4 D costs"


def test_tiny_widths() -> None:
    assert HourglassFFN(1).parts[0].wg.weight.shape == (1, 1), "F must be at least 1"

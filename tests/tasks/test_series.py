"""Digits and series as tasks: fixed splits, windows inside their part, forecasts without learning."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.models import seasonal_naive
from minitf.tasks import linear_forecast, load_digits, load_series, split_digits, split_series
from minitf.tasks import standardised_error as error_of
from minitf.tasks.series import fill_gaps, windows


def test_digits_are_split_once_and_for_all() -> None:
    (learn, labels), (test, test_labels) = split_digits()
    assert learn.shape == (1437, 8, 8) and test.shape == (360, 8, 8) and learn.dtype == np.float32
    assert min(learn.min(), test.min()) >= 0.0 and max(learn.max(), test.max()) == 1.0
    images, all_labels = load_digits()
    rows = {(tuple(a.ravel()), int(b)) for a, b in zip(images / 16, all_labels)}
    ours = {(tuple(a.ravel()), int(b)) for a, b in zip([*learn, *test], [*labels, *test_labels])}
    assert rows == ours, "every image with its label is in one of the parts"
    again = split_digits()
    assert np.array_equal(again[0][0], learn) and np.array_equal(again[1][1], test_labels)
    assert np.bincount(test_labels).min() >= 20, "a digit is missing from the test"


def test_gaps_are_filled_on_a_line() -> None:
    filled = fill_gaps(np.array([1.0, np.nan, np.nan, 4.0, 2.0]))
    assert np.allclose(filled, [1.0, 2.0, 3.0, 4.0, 2.0])


def test_windows_stay_inside_their_part() -> None:
    parts = split_series("co2", 104, 26)
    values = fill_gaps(load_series("co2")[1]).astype(np.float32)
    ends = [0, 1599, 1827, 2284]
    for (past, future), a, b in zip(parts, ends, ends[1:]):
        assert past.shape == (b - a - 129, 104, 1) and future.shape == (b - a - 129, 26, 1)
        assert np.array_equal(past[0, :, 0], values[a : a + 104]), "the first window starts its part"
        assert np.array_equal(future[-1, :, 0], values[b - 26 : b]), "the last window ends it"
    with pytest.raises(ValueError, match="needs 400: choose a shorter context"):
        split_series("co2", 300, 100)
    assert windows(np.arange(5.0), 3, 2)[0].shape == (1, 3, 1)


def test_errors_do_not_depend_on_units() -> None:
    past, future = split_series("nile", 6, 2)[0]
    forecast = seasonal_naive(past, 2, 3)
    error = error_of(past, future, forecast)
    moved = error_of(3.0 * past - 9.0, 3.0 * future - 9.0, 3.0 * forecast - 9.0)
    assert abs(moved - error) <= 1e-5 * error
    assert error_of(past, future, future) == 0.0


def test_the_linear_map_finds_a_linear_law() -> None:
    # Waves of one period obey x_t = 2 cos(w) x_{t-1} - x_{t-2}.
    t = np.arange(300)
    learn = windows(np.sin(t * 0.7) + 5.0, 12, 4)
    past, future = windows(3.0 * np.sin(t * 0.7 + 1.0), 12, 4)
    error = error_of(past, future, linear_forecast(learn, past, ridge=1e-9))
    assert error <= 1e-6, f"the squared error is {error:.2g}"

"""Selective copy: the layouts, where the symbols stand, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minitf.tasks import SelectiveCopy
from minitf.tasks.selective_copy import SLOTS

BLANK, COPY = 5, 6


def one(task: SelectiveCopy) -> tuple[list[int], list[int], list[float]]:
    """x, y and w of one row."""
    x, y, w = (part[0].tolist() for part in task.sample(np.random.default_rng(0), 1))
    return x, y, w


@pytest.mark.parametrize("slots", SLOTS)
def test_layout(slots: str) -> None:
    task = SelectiveCopy(k=3, v=5, T=7, slots=slots)
    x, y, w = one(task)
    symbols = [i for i in x[:7] if i != BLANK]
    assert len(symbols) == 3 and max(symbols) < 5
    after = {
        "blank": [COPY, BLANK, BLANK, BLANK],
        "previous": [COPY, *symbols[:2]],
        "copy": [COPY, COPY, COPY],
    }
    assert x[7:] == after[slots]
    before = len(x) - 3
    assert y == [0] * before + symbols and w == [0] * before + [1, 1, 1]


def test_default() -> None:
    task = SelectiveCopy()
    assert (task.k, task.v, task.T, task.slots, task.even) == (8, 8, 32, "blank", False)
    assert (task.N, task.V_in, task.V_out, task.chance) == (41, 10, 10, 0.125)
    assert SelectiveCopy(slots="previous").N == SelectiveCopy(slots="copy").N == 40


def test_the_places_are_uniform() -> None:
    x, _, _ = SelectiveCopy(k=2, v=3, T=5).sample(np.random.default_rng(0), 20_000)
    filled = x[:, :5] < 3
    assert np.all(filled.sum(axis=1) == 2)
    pairs, counts = np.unique(filled, axis=0, return_counts=True)
    assert len(pairs) == math.comb(5, 2)
    # Each pair of places has probability 1/10: four standard errors of a count.
    assert np.abs(counts - 2000).max() <= 4 * math.sqrt(20_000 * 0.1 * 0.9)


def test_even() -> None:
    x, y, _ = SelectiveCopy(k=4, v=5, T=12, even=True).sample(np.random.default_rng(0), 50)
    assert np.array_equal(x[:, [0, 3, 6, 9]], y[:, -4:]), "always the same places, from left to right"
    assert np.all(np.delete(x[:, :12], [0, 3, 6, 9], axis=1) == BLANK)


def test_as_many_symbols_as_places() -> None:
    task = SelectiveCopy(k=4, v=5, T=4)
    x, y, _ = task.sample(np.random.default_rng(0), 8)
    assert np.array_equal(x[:, :4], y[:, -4:])


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("slots", SLOTS)
def test_contract(slots: str, even: bool) -> None:
    task = SelectiveCopy(k=3, v=4, T=9, slots=slots, even=even)
    x, y, w = task.sample(np.random.default_rng(3), 64)
    for a, b in zip((x, y, w), task.sample(np.random.default_rng(3), 64)):
        assert np.array_equal(a, b), "one seed must give one sample"
    assert x.shape == y.shape == w.shape == (64, task.N)
    assert x.min() >= 0 and x.max() < task.V_in and np.all(y[w > 0] < task.V_out)
    assert np.array_equal(task.oracle(x), np.where(w > 0, y, 0)), "the oracle finds other answers"
    for t in range(task.N):
        before = x.copy()
        before[:, t + 1 :] = x[::-1, t + 1 :]
        assert np.array_equal(task.oracle(before)[:, t], task.oracle(x)[:, t]), f"{t} looks ahead"
    if not even:
        _, y, w = task.sample(np.random.default_rng(0), 4000)
        share = np.bincount(y[w > 0]).max() / w.sum()
        assert abs(share - task.chance) <= 0.02, "no symbol is more frequent than the others"


def test_out_of_range() -> None:
    for numbers in ({"k": 0}, {"v": 0}, {"k": 9, "T": 8}):
        with pytest.raises(ValueError, match="T of at least k"):
            SelectiveCopy(**numbers)
    with pytest.raises(ValueError, match="one of: blank, previous, copy; not 'empty'"):
        SelectiveCopy(slots="empty")

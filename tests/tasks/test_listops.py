"""ListOps: operators by hand, the lengths, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.tasks import ListOps
from minitf.tasks.listops import CLS, END, FUNCTIONS, to_words

TASK = ListOps()


def value(words: str) -> int:
    names = {to_words([i]): i for i in range(1, CLS)}
    return int(TASK.oracle(np.array([[CLS, *(names[word] for word in words.split())]]))[0, 0])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("[MIN 4 7 ]", 4),
        ("[MAX 2 [MIN 4 7 ] 0 ]", 4),
        ("[MED 2 3 ]", 2),
        ("[MED 9 1 8 ]", 8),
        ("[SM 9 9 3 ]", 1),
        ("[SM [SM 5 5 ] [MAX [MED 1 4 ] 7 ] ]", 7),
        ("6", 6),
    ],
)
def test_by_hand(words: str, expected: int) -> None:
    assert value(words) == expected, words


def test_the_order_of_arguments_is_no_matter() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.integers(0, 10, int(rng.integers(2, 6))).tolist()
        for function in FUNCTIONS:
            assert function(values) == function(sorted(values)), f"{values}"


def test_samples_have_the_lengths_that_were_asked_for() -> None:
    x, y, w = TASK.sample(np.random.default_rng(0), 2000)
    length = (x > 0).sum(axis=1) - 1
    assert sorted(set(length)) == [4, 7, 10], "two arguments, one or two of them nested"
    assert np.all(x[:, 0] == CLS) and np.all(w[:, 0] == 1.0) and w.sum() == 2000
    assert np.all(x[np.arange(2000), length] == END), "the root is an operator, and its end comes last"
    nested = float(np.mean(length > 4))
    # Both arguments are digits in one of four; three standard errors of 2000 samples are 0.029.
    assert abs(nested - 0.75) <= 0.029, f"{nested:.3f} are nested"
    long = ListOps(max_depth=5, max_args=5, min_length=20, max_length=40, leaf=0.75)
    found = (long.sample(np.random.default_rng(0), 20)[0] > 0).sum(axis=1) - 1
    assert found.min() >= 20 and found.max() <= 40
    assert long.N == 41


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"max_depth": 1}, "max_depth >= 2"),
        ({"max_args": 1}, "max_args >= 2"),
        ({"leaf": 1.0}, r"leaf in \[0, 1\)"),
        ({"min_length": 11}, "no expression has 11..10 tokens"),
        ({"min_length": 11, "max_length": 20}, r"they have 4\.\.10"),
        ({"min_length": 1, "max_length": 3}, r"they have 4\.\.10"),
    ],
)
def test_out_of_range(numbers: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ListOps(**numbers)

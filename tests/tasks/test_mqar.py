"""Multi-query associative recall: the layout, the slots, its variants, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.tasks import MQAR


def test_layout() -> None:
    task = MQAR(vocab=20, length=24, k=4)
    x, y, w = task.sample(np.random.default_rng(0), 50)
    keys, values = x[:, 0:8:2], x[:, 1:8:2]
    for row in range(50):
        assert len(set(keys[row])) == 4 and len(set(values[row])) == 4, "drawn without replacement"
        where = np.flatnonzero(w[row])
        assert len(where) == 4 and np.all(where >= 8) and np.all(where % 2 == 0), "slots are of two tokens"
        assert sorted(x[row, where]) == sorted(keys[row]), "every key comes again once"
        assert np.all(np.delete(x[row], [*range(8), *where]) == 0), "all else is filler"
    assert keys.min() >= 1 and keys.max() < 10 <= values.min()


def test_early_slots_are_preferred_as_the_power_law_says() -> None:
    task = MQAR(vocab=20, length=22, k=1, a=0.5)
    _, _, w = task.sample(np.random.default_rng(0), 20_000)
    share = w[:, 2::2].mean(axis=0)
    p = np.arange(1, 11) ** -0.5
    # 20,000 draws: three standard errors are at most 0.011.
    assert np.abs(share - p / p.sum()).max() <= 0.011, f"slots are used in shares {share}"


def test_permuting_pairs_changes_no_answer() -> None:
    task = MQAR(vocab=20, length=24, k=4)
    x, y, _ = task.sample(np.random.default_rng(0), 8)
    order = [6, 7, 2, 3, 4, 5, 0, 1]
    moved = np.concatenate([x[:, order], x[:, 8:]], axis=1)
    assert np.array_equal(task.oracle(moved), y)


def test_the_later_value_of_a_rewritten_key_counts() -> None:
    task = MQAR(vocab=40, length=40, k=4, rewritten=2)
    x, y, w = task.sample(np.random.default_rng(0), 16)
    assert np.array_equal(x[:, 8:12:2], x[:, 0:4:2]), "the first two keys are written again"
    for row in range(16):
        for n, key in enumerate(x[row, 0:8:2]):
            at = int(np.flatnonzero((x[row] == key) & (w[row] > 0))[0])
            assert y[row, at] == x[row, (9 + 2 * n) if n < 2 else (1 + 2 * n)]


def test_one_half_of_a_compositional_key_does_not_tell() -> None:
    x, _, _ = MQAR(vocab=32, length=60, k=9, compositional=True).sample(np.random.default_rng(0), 16)
    first, second = x[:, 0:27:3], x[:, 1:27:3]
    for row in range(16):
        for half in (first[row], second[row]):
            assert sorted(np.unique(half, return_counts=True)[1]) == [3, 3, 3]
        assert len(set(zip(first[row], second[row]))) == 9


def test_random_fillers_ask_nothing() -> None:
    x, _, w = MQAR(vocab=20, length=48, k=4, random_fillers=True).sample(np.random.default_rng(0), 64)
    keys = x[:, 0:8:2]
    filler = np.where(w > 0, -1, x)[:, 8:]
    assert np.mean(filler > 0) > 0.5, "fillers are still 0"
    assert not (filler[:, :, None] == keys[:, None, :]).any(), "a filler equals a key of its row"


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"k": 0}, "k >= 1"),
        ({"a": 0.0}, "a > 0"),
        ({"rewritten": 9}, "rewritten in 0..k"),
        ({"length": 63}, "an even length"),
        ({"length": 30}, "has 7 slots after the pairs, and k=8 keys"),
        ({"vocab": 16}, "needs 8 keys and 8 values, and vocab=16 has 7 and 8"),
        ({"compositional": True}, "a square number k, not 8"),
    ],
)
def test_out_of_range(numbers: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MQAR(**numbers)

"""Windows of a long text."""

import numpy as np
import pytest

from minitf.models import IGNORE
from minitf.tasks import Copy, ListOps
from minitf.train import ArrayData, TaskData, TextData


def test_windows_come_from_their_part_and_targets_are_one_later() -> None:
    data = TextData(np.arange(1000), context=16, validation=0.1)
    tokens, targets = data.batch(np.random.default_rng(0), 500)
    assert tokens.shape == targets.shape == (500, 16) and tokens.dtype == np.int64
    assert np.array_equal(targets, tokens + 1), "a target is the token after"
    assert np.array_equal(tokens - tokens[:, :1], np.tile(np.arange(16), (500, 1))), "windows are contiguous"
    assert targets.max() < 900, "training never sees the validation part"
    for tokens, targets in data.validation_batches(4, 3):
        assert tokens.shape == (4, 16) and tokens.min() >= 900, "validation comes from the end only"
        assert np.array_equal(targets, tokens + 1)


def test_every_window_can_be_drawn() -> None:
    data = TextData(np.arange(12), context=3, validation=0.0)
    tokens, _ = data.batch(np.random.default_rng(0), 1000)
    assert set(tokens[:, 0]) == set(range(9)), "the first and the last start included"


def test_batches_depend_on_the_generator_only() -> None:
    data = TextData(np.arange(100), context=4)
    a, b = (data.batch(np.random.default_rng([7, 3]), 5)[0] for _ in range(2))
    assert np.array_equal(a, b), "one seed, one batch"
    big = data.batch(np.random.default_rng(5), 8)[0]
    assert not np.array_equal(big[:4], big[4:])


def test_validation_batches_are_fixed_and_spread() -> None:
    data = TextData(np.arange(10_000), context=10, validation=0.2)
    first, again = data.validation_batches(5, 4), data.validation_batches(5, 4)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first, again, strict=True)), (
        "the same at every call"
    )
    starts = np.concatenate([tokens[:, 0] for tokens, _ in first])
    assert starts[0] == 8000 and starts[-1] == 9989, "from the first window of the part to the last"


def test_a_short_validation_part_gives_each_window_once() -> None:
    data = TextData(np.arange(60), context=10, validation=0.25)
    batches = data.validation_batches(4, 8)
    starts = np.concatenate([tokens[:, 0] for tokens, _ in batches])
    assert starts.tolist() == [45, 46, 47, 48, 49], "15 tokens hold 5 windows of 10 and a target"
    assert [len(tokens) for tokens, _ in batches] == [4, 1]


def test_without_validation() -> None:
    assert TextData(np.arange(10), context=4, validation=0.0).validation_batches(2, 2) == []


def test_description_tells_texts_apart() -> None:
    ids = np.arange(100)
    data = TextData(ids, context=4)
    assert TextData(ids.astype(np.int32), context=4).describe() == data.describe(), (
        "the integer type is no matter"
    )
    for other in (TextData(ids[::-1], 4), TextData(ids, 5), TextData(ids, 4, validation=0.2)):
        assert other.describe() != data.describe()
    assert data.largest_id == 99


def test_errors_say_what_fits() -> None:
    with pytest.raises(ValueError, match=r"of its 20 tokens 18 .* and 2 for validation, .* at most 1\."):
        TextData(np.arange(20), context=8)
    TextData(np.arange(20), context=1)
    for tiny in ([], [3], [1, 2]):
        with pytest.raises(ValueError, match=r"the corpus is too short.*no context at all"):
            TextData(tiny, context=8)
    with pytest.raises(ValueError, match="a context of at most 19"):
        TextData(np.arange(20), context=20, validation=0.0)
    TextData(np.arange(20), context=19, validation=0.0)
    with pytest.raises(TypeError, match="token ids must be integers, not float64"):
        TextData(np.linspace(0, 1, 50), context=4)
    with pytest.raises(ValueError, match="one long sequence"):
        TextData(np.zeros((5, 5), dtype=int), context=4)
    with pytest.raises(ValueError, match="at least 0, found -1"):
        TextData(np.arange(50) - 1, context=4)
    with pytest.raises(ValueError, match="context must be at least 1"):
        TextData(np.arange(50), context=0)
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="validation fraction"):
            TextData(np.arange(50), context=4, validation=fraction)


def rows_data(count: int = 10, held: int = 5, **options: bool) -> ArrayData:
    learn = (np.arange(count)[:, None] * np.ones(3), np.arange(count))
    return ArrayData(learn, (np.zeros((held, 3)), 100 + np.arange(held)), **options)


def test_rows_of_arrays_stay_together() -> None:
    data = rows_data()
    x, labels = data.batch(np.random.default_rng(0), 200)
    assert x.shape == (200, 3) and set(labels) == set(range(10)), "every row can be drawn"
    assert np.array_equal(x[:, 0], labels), "images and labels are of different rows"
    found = data.validation_batches(2, 9)
    assert [len(labels) for _, labels in found] == [2, 2, 1], "all rows, each once"
    assert np.concatenate([labels for _, labels in found]).tolist() == [100, 101, 102, 103, 104]
    assert len(data.validation_batches(2, 1)[0][0]) == 2
    assert rows_data(held=0).validation_batches(2, 2) == []
    assert not data.accuracy and rows_data(accuracy=True).accuracy


def test_descriptions_of_rows() -> None:
    assert rows_data().describe() == rows_data().describe()
    for other in (rows_data(count=11), rows_data(held=6)):
        assert other.describe() != rows_data().describe()


def test_rows_that_do_not_fit() -> None:
    a, b = np.zeros((3, 2)), np.zeros(4)
    for learn, held in (((a, b), (a, a)), ((a,), (a, a)), ((), ())):
        with pytest.raises(ValueError, match="equally many rows"):
            ArrayData(learn, held)
    with pytest.raises(ValueError, match="no row to learn from"):
        ArrayData((a[:0],), (a,))


def test_samples_of_a_task_for_a_language_model() -> None:
    data = TaskData(Copy(n=3, v=4))
    tokens, targets = data.batch(np.random.default_rng(0), 5)
    assert np.all(targets[:, :3] == IGNORE) and np.array_equal(targets[:, 3:], tokens[:, :3])
    one, same = data.validation_batches(4, 2), data.validation_batches(4, 2)
    assert all(np.array_equal(a, b) for x, y in zip(one, same) for a, b in zip(x, y)), "the same every time"
    assert not np.array_equal(one[0][0], one[1][0]), "the batches are all alike"
    assert (data.context, data.largest_id, data.accuracy) == (6, 4, True)
    assert data.describe() == {"task": "Copy", "n": 3, "v": 4, "masked": True}


def test_samples_of_a_task_for_an_encoder() -> None:
    task = ListOps()
    tokens, labels, mask = TaskData(task).batch(np.random.default_rng(0), 6)
    assert np.array_equal(labels, task.oracle(tokens)[:, 0]) and np.array_equal(mask, tokens != 0)
    assert len(TaskData(task, masked=False).batch(np.random.default_rng(0), 6)) == 2

"""Toy facts: the contract of tasks, the layout, the table, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minitf.models import Config, LanguageModel
from minitf.tasks import ToyFacts
from minitf.train import AdamW, TaskData

TASKS = [ToyFacts(), ToyFacts(disjoint=True, seed=3), ToyFacts(2, 4, 1, 1, 0, 0), ToyFacts(3, 9, 2, 5, 1, 1)]
every_task = pytest.mark.parametrize("task", TASKS, ids=str)


@every_task
def test_contract(task: ToyFacts) -> None:
    x, y, w = task.sample(np.random.default_rng(3), 64)
    for a, b in zip((x, y, w), task.sample(np.random.default_rng(3), 64)):
        assert np.array_equal(a, b), "one seed must give one sample"
    assert x.shape == y.shape == w.shape == (64, task.N)
    assert x.min() == 0 and x.max() < task.V_in and np.all(y[w > 0] < task.V_out) and np.all(y >= 0)
    assert np.array_equal(w.sum(axis=1), np.ones(64)) and np.all(w[:, -1] == 1.0), "one question, at the end"
    assert np.array_equal(task.oracle(x), np.where(w > 0, y, 0)), "the oracle finds other answers"


def test_sizes_of_the_card() -> None:
    task = ToyFacts()
    assert (task.N, task.V_in) == (7, 1 + 5 + 12 + 12 + 4 + 20)
    assert task.people.shape == (60, 2) and task.table.shape == (60, 4)
    assert (task.first_name, task.first_relation, task.first_object) == (6, 30, 34)


def test_layout() -> None:
    task = ToyFacts()
    x, y, _ = task.sample(np.random.default_rng(0), 4000)
    assert np.all(x[:, 0] == 0), "BOS stands first"
    count = (x[:, 1:4] > 0).sum(axis=1)
    for row, fillers in zip(x, count):
        assert np.all(row[1 : 4 - fillers] == 0) and np.all(row[4 - fillers : 4] > 0), "BOS, then fillers"
    for m in range(4):
        # Four standard errors of a share of 1/4 in 4000.
        assert abs(np.mean(count == m) - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / 4000), f"{m} fillers"
    assert x[:, 1:4].max() == 5
    ids = [(6, 17), (18, 29), (30, 33)]
    for column, (low, high) in zip((4, 5, 6), ids):
        assert x[:, column].min() == low and x[:, column].max() == high
    assert y[:, -1].min() >= 34 and y[:, -1].max() <= 53


def test_fillers_do_not_change_the_answer() -> None:
    task = ToyFacts()
    x, y, _ = task.sample(np.random.default_rng(0), 200)
    x[:, 1:4] = 0
    assert np.array_equal(task.oracle(x), y)


@pytest.mark.parametrize("seed", range(20))
def test_neither_name_tells_the_subject(seed: int) -> None:
    people = ToyFacts(seed=seed).people
    assert len({tuple(person) for person in people.tolist()}) == 60, "subjects differ"
    for column in people.T:
        ids, counts = np.unique(column, return_counts=True)
        assert len(ids) == 12 and counts.min() >= 2, "every name belongs to two subjects or more"


def test_tables_differ_by_seed_and_not_by_sample() -> None:
    assert np.array_equal(ToyFacts().table, ToyFacts().table)
    assert not np.array_equal(ToyFacts().table, ToyFacts(seed=1).table)


def test_disjoint_objects() -> None:
    task = ToyFacts(disjoint=True)
    found = [set(task.table[:, r].tolist()) for r in range(4)]
    assert found == [set(task.objects_of(r).tolist()) for r in range(4)]
    assert sorted(o for group in found for o in group) == list(range(34, 54)), "together all, none twice"
    assert np.array_equal(ToyFacts().objects_of(2), np.arange(34, 54))


def test_every_fact_once() -> None:
    task = ToyFacts()
    x, y, w = task.facts()
    assert x.shape == (240, 7) and len(np.unique(x, axis=0)) == 240 and np.all(x[:, :4] == 0)
    assert np.array_equal(y[:, -1].reshape(60, 4), task.table) and w.sum() == 240


@every_task
def test_chance_is_the_best_constant(task: ToyFacts) -> None:
    _, y, _ = task.sample(np.random.default_rng(0), 8000)
    best = np.bincount(y[:, -1]).argmax()
    share = np.mean(y[:, -1] == best)
    assert abs(share - task.chance) <= 0.02, f"the best constant has {share}, the task says {task.chance}"


def test_a_small_model_learns() -> None:
    task = ToyFacts()
    data, rng = TaskData(task), np.random.default_rng(0)
    model = LanguageModel(Config(vocab=task.V_in, context=task.N, dim=32, depth=1, heads=2), seed=0)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(*data.batch(rng, 64)).backward()
        optimizer.step()
    accuracy = model.accuracy(*data.validation_batches(200, 1)[0])
    assert accuracy >= 0.5, f"after 150 steps {accuracy:.3f}; guessing gives {task.chance:.3f}"


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"names": 1}, "2 or more names"),
        ({"subjects": 23}, "from 2 names to names"),
        ({"subjects": 145}, "from 2 names to names"),
        ({"relations": 0}, "relations >= 1"),
        ({"objects": 0}, "objects >= 1"),
        ({"longest": -1}, "longest >= 0"),
        ({"fillers": 0}, "fillers to draw from"),
        ({"disjoint": True, "objects": 18}, "must divide objects=18"),
    ],
)
def test_out_of_range(numbers: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ToyFacts(**numbers)

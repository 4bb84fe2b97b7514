"""What every synthetic task promises: repeatable samples, ids in range, answers that an oracle finds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from minitf.models import Config, LanguageModel
from minitf.tasks import MQAR, Copy, ListOps, ToyFacts
from minitf.train import AdamW, TaskData

TASKS = [
    Copy(),
    Copy(n=1, v=1),
    Copy(n=5, v=3),
    MQAR(vocab=64, length=64, k=8, a=0.1),
    MQAR(),
    MQAR(vocab=64, length=32, k=4, rewritten=3, random_fillers=True),
    MQAR(vocab=32, length=40, k=4, compositional=True, random_fillers=True),
    ToyFacts(),
    ToyFacts(disjoint=True),
    ListOps(),
    ListOps(max_depth=4, max_args=4, max_length=30, leaf=0.6, operator_root=False, min_length=1),
]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_contract(task: Any) -> None:
    x, y, w = task.sample(np.random.default_rng(3), 64)
    for a, b in zip((x, y, w), task.sample(np.random.default_rng(3), 64)):
        assert np.array_equal(a, b), "one seed must give one sample"
    assert x.shape == y.shape == w.shape == (64, task.N)
    assert x.min() >= 0 and x.max() < task.V_in and np.all(y[w > 0] < task.V_out) and np.all(y >= 0)
    assert set(np.unique(w)) <= {0.0, 1.0} and np.all(w.sum(axis=1) > 0), "every row has a question"
    assert np.array_equal(task.oracle(x), np.where(w > 0, y, 0)), "the oracle finds other answers"
    if task.causal:
        # Nothing after the last scored position, and nothing after any answer, is needed.
        for t in range(task.N):
            before = x.copy()
            before[:, t + 1 :] = x[::-1, t + 1 :]
            assert np.array_equal(task.oracle(before)[:, t], task.oracle(x)[:, t]), f"{t} looks ahead"


@pytest.mark.parametrize("task", [Copy(), MQAR(vocab=64, length=64, k=8), ListOps()], ids=str)
def test_chance(task: Any) -> None:
    _, y, w = task.sample(np.random.default_rng(0), 4000)
    answers = y[w > 0]
    share = np.bincount(answers).max() / len(answers)
    # The most frequent of many equal classes is a little above; three standard errors, and that.
    bound = 3.0 * math.sqrt(task.chance / len(answers)) + 0.005
    assert abs(share - task.chance) <= bound, (
        f"the best constant guess has {share:.4f}, not {task.chance:.4f}"
    )


@pytest.mark.parametrize(
    ("task", "steps", "expected"),
    [(Copy(n=5, v=6), 70, 0.9), (MQAR(vocab=16, length=8, k=2), 40, 0.4)],
    ids=["copy", "mqar"],
)
def test_small_models_learn(task: Any, steps: int, expected: float) -> None:
    data, rng = TaskData(task), np.random.default_rng(0)
    model = LanguageModel(Config(vocab=task.V_in, context=task.N, dim=16, depth=2, heads=2), seed=0)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(*data.batch(rng, 32)).backward()
        optimizer.step()
    accuracy = model.accuracy(*data.validation_batches(200, 1)[0])
    assert accuracy >= expected, f"after {steps} steps {accuracy:.3f}; guessing gives {task.chance:.3f}"

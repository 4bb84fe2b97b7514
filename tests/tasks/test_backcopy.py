"""Bigram-Backcopy: the rule, the exact entropy and chance, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.models import Config, LanguageModel
from minitf.tasks import BigramBackcopy
from minitf.train import AdamW, TaskData

TASKS = [
    BigramBackcopy(),
    BigramBackcopy(n=2, v=2, triggers=1),
    BigramBackcopy(n=12, v=5, triggers=4, concentration=1.0, seed=3),
    BigramBackcopy(n=32, triggers=0, seed=1),
]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_contract(task: BigramBackcopy) -> None:
    x, y, w = task.sample(np.random.default_rng(3), 64)
    for a, b in zip((x, y, w), task.sample(np.random.default_rng(3), 64)):
        assert np.array_equal(a, b), "one seed must give one sample"
    assert x.shape == y.shape == w.shape == (64, task.N)
    assert np.all(x[:, 0] == task.v) and x[:, 1:].max() < task.v and x.min() >= 0 and task.V_in == task.v + 1
    assert np.array_equal(y[:, 1:-1], x[:, 2:]), "the answer is the next token"
    assert np.all(w[:, 0] == 0) and np.all(w[:, 1:] == 1), "scored everywhere but at BOS"


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_rule(task: BigramBackcopy) -> None:
    x, y, _ = task.sample(np.random.default_rng(0), 64)
    trigger = task.is_trigger[x]
    assert task.is_trigger.sum() == task.triggers and not trigger[:, :2].any(), "a trigger at the start"
    assert not (trigger[:, 1:] & trigger[:, :-1]).any(), "two triggers stand side by side"
    before = np.roll(x, 1, axis=1)
    assert np.array_equal(y[trigger], before[trigger]), "after a trigger comes the symbol before it"
    drawn = ~trigger
    drawn[:, 0] = False
    p = task.predict(x)
    assert np.all(np.take_along_axis(p, y[..., None], axis=2)[drawn] > 0.0)
    assert np.abs(p.sum(axis=2) - 1.0).max() <= 1e-12 and np.all(p[:, :, task.v] == 0.0)
    assert np.array_equal(p.argmax(axis=2)[:, 1:], task.oracle(x)[:, 1:]), "the oracle finds other answers"
    for t in range(task.N):
        cut = x.copy()
        cut[:, t + 1 :] = x[::-1, t + 1 :]
        assert np.array_equal(task.oracle(cut)[:, t], task.oracle(x)[:, t]), f"{t} looks ahead"


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_table(task: BigramBackcopy) -> None:
    assert np.abs(task.P.sum(axis=1) - 1.0).max() <= 1e-12 and task.P.min() >= 0.0
    assert np.abs(task.pi @ task.P - task.pi).max() <= 1e-12 and abs(task.pi.sum() - 1.0) <= 1e-12
    is_trigger = task.is_trigger[: task.v]
    assert task.pi[is_trigger].min(initial=1.0) >= task.pi[~is_trigger].max(), "a likelier symbol"


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_exact_figures(task: BigramBackcopy) -> None:
    x, y, _ = task.sample(np.random.default_rng(0), 20_000)
    p = np.take_along_axis(task.predict(x), y[..., None], axis=2)[:, 1:, 0]
    loss = -np.log(p).mean(axis=1)  # one figure for each row: rows are independent
    error = 4.0 * loss.std() / np.sqrt(len(x)) + 1e-12
    assert abs(loss.mean() - task.entropy) <= error, f"loss {loss.mean():.4f}, entropy {task.entropy:.4f}"
    share = (y[:, 1:, None] == np.arange(task.v)).mean(axis=1)  # of each symbol in each row
    best = share.mean(axis=0).argmax()
    error = 4.0 * share[:, best].std() / np.sqrt(len(x)) + 1e-12
    assert abs(share[:, best].mean() - task.chance) <= error, f"{share[:, best].mean()}, not {task.chance}"


def test_the_card() -> None:
    task = BigramBackcopy()
    assert (task.N, task.V_in, task.V_out) == (64, 17, 17)
    # Figures of 16 symbols with Dirichlet(0.3): about 1.34 nats on average over tables.
    mean = np.mean([BigramBackcopy(seed=seed).entropy for seed in range(50)])
    assert abs(mean - 1.34) <= 0.1, f"the mean entropy of 50 tables is {mean:.3f}"


def test_two_symbols_by_hand() -> None:
    # x_1 is no trigger: b. Then from b: b with probability p, a (the trigger) otherwise; after a comes b.
    task = BigramBackcopy(n=3, v=2, triggers=1)
    b = int(np.flatnonzero(~task.is_trigger[:2])[0])
    p = task.P[b, b]
    assert np.abs(task.laws[:, b] - [1.0, p, p * p + 1.0 - p]).max() <= 1e-15
    bits = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert abs(task.entropy - (bits + p * bits) / 2) <= 1e-15


def test_a_small_model_comes_near_the_entropy() -> None:
    task, rng = BigramBackcopy(n=16, v=6, triggers=2), np.random.default_rng(0)
    data = TaskData(task)
    model = LanguageModel(Config(vocab=task.V_in, context=task.N, dim=16, depth=1, heads=1), seed=0)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(*data.batch(rng, 32)).backward()
        optimizer.step()
    loss = model.loss(*data.validation_batches(500, 1)[0]).item()
    assert task.entropy - 0.03 <= loss <= task.entropy + 0.1, f"{loss:.3f} against {task.entropy:.3f}"


@pytest.mark.parametrize("numbers", [{"n": 1}, {"triggers": 16}, {"triggers": -1}, {"concentration": 0.0}])
def test_out_of_range(numbers: dict) -> None:
    with pytest.raises(ValueError, match=r"needs n >= 2, triggers in 0\.\.v-1 and concentration > 0"):
        BigramBackcopy(**numbers)

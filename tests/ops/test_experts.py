"""Operations of mixtures of experts against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minitf as mt
from minitf import ops
from minitf.engine import ShapeError, Tensor, check_grad, tensor

RNG = np.random.default_rng(0)


@given(st.lists(st.integers(0, 4)), st.integers(5, 300))
def test_sort_by_expert(chosen: list[int], experts: int) -> None:
    order, counts = ops.sort_by_expert(np.array(chosen, dtype=int), experts)
    assert order.tolist() == sorted(range(len(chosen)), key=lambda i: (chosen[i], i)), "equal ones keep order"
    assert counts.tolist() == [chosen.count(e) for e in range(experts)]


def test_sort_by_expert_with_many_experts() -> None:
    for experts in (255, 256, 257, 70000):
        chosen = np.array([experts - 1, 0, experts - 1, 1])
        order, counts = ops.sort_by_expert(Tensor(chosen.reshape(2, 2)), experts)
        assert order.tolist() == [1, 3, 0, 2] and counts[-1] == 2, f"{experts} experts"


def by_loop(x: Any, w: Any, counts: Any, rows: Any = None) -> Any:
    groups = [e for e, n in enumerate(counts) for _ in range(n)]
    taken = range(len(x)) if rows is None else rows
    return np.array([x[i] @ w[e] for i, e in zip(taken, groups, strict=True)]).reshape(-1, w.shape[2])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.booleans(), st.integers(0, 99))
def test_grouped_matmul(counts: list[int], picked: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 5, sum(counts)) if picked else None
    x, w = rng.standard_normal((5 if picked else sum(counts), 3)), rng.standard_normal((len(counts), 3, 2))
    y = ops.grouped_matmul(tensor(x), tensor(w), counts, rows)
    assert np.abs(y.data - by_loop(x, w, counts, rows)).max(initial=0.0) <= 1e-12


def test_grouped_matmul_gradients() -> None:
    x, w, rows = RNG.standard_normal((4, 3)), RNG.standard_normal((3, 3, 2)), [3, 1, 1, 0, 3, 3]
    check_grad(lambda x, w: ops.grouped_matmul(x, w, [2, 0, 4], rows), x, w)
    check_grad(lambda x, w: ops.grouped_matmul(x, w, [1, 0, 3]), x, w)


def test_grouped_matmul_costs_what_was_chosen() -> None:
    found = []
    for experts in (4, 64):
        counts = [8] * 4 + [0] * (experts - 4)
        x, w = (tensor(RNG.standard_normal(s), requires_grad=True) for s in ((32, 8), (experts, 8, 16)))
        with mt.profile() as p:
            ops.grouped_matmul(x, w, counts).sum().backward()
        found.append(sum(row.flops for row in p.rows if row.name == "matmul"))
    assert found == [3 * 2 * 32 * 8 * 16] * 2, "three products for each row, and nothing for empty groups"


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 99))
def test_combine_rows(rows: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, weights = rng.standard_normal((len(rows), 3)), rng.standard_normal(len(rows))
    expected = np.zeros((5, 3))
    for i, m in enumerate(rows):
        expected[m] += weights[i] * y[i]
    out = ops.combine_rows(tensor(y), np.array(rows, dtype=int), tensor(weights), 5)
    assert np.abs(out.data - expected).max() <= 1e-12


def test_combine_rows_gradients() -> None:
    y, weights = RNG.standard_normal((5, 3)), RNG.standard_normal(5)
    check_grad(lambda y, weights: ops.combine_rows(y, [2, 0, 2, 3, 0], weights, 5), y, weights)


def test_mixture_by_its_parts() -> None:
    """The three together are the sum over slots of gate times expert."""
    x, w = RNG.standard_normal((6, 4)), RNG.standard_normal((3, 4, 5))
    chosen, gates = np.argsort(RNG.random((6, 3)), axis=1)[:, :2], RNG.random((6, 2))
    order, counts = ops.sort_by_expert(chosen, 3)
    h = ops.grouped_matmul(x, w, counts, order // 2)
    y = ops.combine_rows(h, order // 2, gates.reshape(-1)[order], 6)
    expected = [sum(gates[n, s] * x[n] @ w[chosen[n, s]] for s in range(2)) for n in range(6)]
    assert np.abs(np.asarray(y) - np.array(expected)).max() <= 1e-12


def test_errors() -> None:
    x, w, y = np.ones((4, 3)), np.ones((2, 3, 5)), np.ones((4, 5))
    with pytest.raises(ShapeError, match="E >= 1"):
        ops.grouped_matmul(x, np.ones((2, 4, 5)), [2, 2])
    with pytest.raises(ShapeError, match="one for each group"):
        ops.grouped_matmul(x, w, [2, 1, 1])
    with pytest.raises(ShapeError, match="add up to 3"):
        ops.grouped_matmul(x, w, [2, 1])
    with pytest.raises(ValueError, match="counts must lie in"):
        ops.grouped_matmul(x, w, [5, -1])
    with pytest.raises(ValueError, match="rows must lie in"):
        ops.grouped_matmul(x, w, [1, 1], [0, 4])
    with pytest.raises(TypeError, match="counts must be integers"):
        ops.grouped_matmul(x, w, [2.0, 2.0])
    with pytest.raises(ShapeError, match=r"\(P, F\)"):
        ops.combine_rows(y, [0, 1], np.ones(4), 2)
    with pytest.raises(ShapeError, match=r"\(P, F\)"):
        ops.combine_rows(y, [0, 1, 0, 1], np.ones((4, 1)), 2)
    with pytest.raises(ValueError, match="rows must lie in"):
        ops.combine_rows(y, [0, 1, 2, 0], np.ones(4), 2)
    with pytest.raises(ValueError, match="experts must lie in"):
        ops.sort_by_expert([0, 3], 3)

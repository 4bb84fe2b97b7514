"""The strategies: what each draws, and to what it shrinks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

import minitf as mt
from minitf.nn import Case
from minitf.testing import FILLINGS, Subject, cases_for, dtypes, fillings, masks, sizes, subject
from minitf.testing.strategies import corner_cases, drawn_cases, smaller_cases

QUICK = settings(max_examples=2000, database=None)


def smallest(strategy: Any, condition: Any = lambda v: True) -> Any:
    return find(strategy, condition, settings=QUICK)


def drawn(strategy: Any, count: int = 300) -> list[Any]:
    """Many values of a strategy."""
    found: list[Any] = []

    @settings(max_examples=count, database=None)
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return found


def test_sizes() -> None:
    assert set(drawn(sizes(4, tiles=(8, 16)))) == {1, 2, 3, 4, 7, 8, 9, 15, 16, 17}, (
        "all sizes, and tile edges"
    )
    assert smallest(sizes()) == 1
    assert smallest(sizes(), lambda n: n > 10) == 15, "above the small sizes come the edges"


def test_dtypes() -> None:
    assert set(drawn(dtypes())) == {"float64", "float32"}
    assert set(drawn(dtypes(half=True))) == {"float64", "float32", "float16"}
    assert smallest(dtypes(half=True)) == "float64"


@given(batch=st.integers(1, 3), n=st.integers(1, 6), data=st.data())
def test_masks_broadcast(batch: int, n: int, data: Any) -> None:
    mask = data.draw(masks(batch, n))
    assert mask.dtype == bool
    assert np.broadcast_shapes(mask.shape, (batch, 2, n, n)) == (batch, 2, n, n), f"{mask.shape} does not fit"


def test_masks_of_every_kind() -> None:
    found = drawn(masks(2, 4))
    assert {m.shape for m in found} == {(2, 1, 4, 4), (1, 1, 4, 4), (2, 1, 1, 4)}
    empty = [not np.any(m, axis=-1).all() for m in found]
    assert any(empty) and not all(empty), "some masks, not all, have a row that sees nothing"
    assert any(not m.any() for m in found), "nothing visible must come up"
    assert any(np.array_equal(m[0, 0], np.tri(4, dtype=bool)) for m in found), "causal must come up"
    assert smallest(masks(2, 4)).all(), "they shrink to: all visible"


@pytest.mark.parametrize("name", FILLINGS)
def test_fillings(name: str) -> None:
    a = np.random.default_rng(0).standard_normal((2, 5, 4))
    b = FILLINGS[name](a, 1, 1)
    assert not np.shares_memory(a, b) or name == "nothing", "a filling must not hand out the caller's array"
    true = {
        "zeros": lambda: not b.any(),
        "equal rows": lambda: np.all(b == b[:, :1]),
        "equal features": lambda: np.all(b == b[..., :1]) and not np.all(b == b[:, :1]),
        "small integers": lambda: np.all(b == np.rint(a)) and len(np.unique(b)) < b.size / 2,
        "large values": lambda: np.abs(b).max() > 1e3,
        "a single token": lambda: b.shape == (2, 1, 4),
    }
    assert true[name](), f"{name}: {b}"
    # A grid is a grid.
    grid = FILLINGS[name](np.ones((2, 3, 4, 6)), 1, 2)
    assert grid.shape == ((2, 1, 1, 6) if name == "a single token" else (2, 3, 4, 6))


def test_fillings_shrink_to_normal() -> None:
    expected = np.random.default_rng(0).standard_normal((2, 3, 4))
    assert np.array_equal(smallest(fillings((2, 3, 4))), expected)


def test_cases_fit_the_variant() -> None:
    line, grid = (
        drawn(cases_for("softmax_attention")),
        drawn(cases_for(mt.catalogue["softmax"].load(), grid="2d")),
    )
    assert all(c.w == 1 for c in line) and {c.h for c in line} == {1, 2, 4} and max(c.t for c in line) == 17
    assert max(c.w for c in grid) > 1 and max(c.t for c in grid) <= 9
    small = drawn(cases_for("softmax_attention", size="small"))
    assert max(c.t for c in small) == 4 and max(c.dim for c in small) == 8
    fixed = drawn(cases_for(mt.build("softmax_attention", 12, heads=3)))
    assert {c.dim for c in fixed} == {12}, "an instance has the width that it has"
    assert smallest(cases_for("softmax_attention")) == Case(1, 1, 1, 2, 0, 1)
    assert smallest(cases_for("softmax_attention"), lambda c: c.t > 3) == Case(1, 4, 1, 2, 0, 1)


@pytest.mark.parametrize("size", ["small", "medium", "large"])
@pytest.mark.parametrize("grid", ["1d", "2d"])
def test_corners_come_first(size: str, grid: str) -> None:
    one = subject("softmax_attention", grid=grid)
    corners = corner_cases(one, size)
    assert {1} < {c.t for c in corners} and max(c.b for c in corners) > 1, (
        "one token, and more than one example"
    )
    if grid == "1d":
        assert max(c.t for c in corners) == {"small": 4, "medium": 17, "large": 130}[size]
    assert drawn_cases(one, size, 20, 2) == corners[:2]
    many = drawn_cases(one, size, 40, 30)
    assert many[: len(corners)] == corners and len(set(many)) == len(many) > len(corners)
    assert many == drawn_cases(one, size, 40, 30), "the same cases on every run"


def test_smaller_cases_differ_in_one_field() -> None:
    one: Subject = subject("softmax_attention")
    case = Case(2, 17, 4, 2, 9, 1)
    for smaller in smaller_cases(one, case):
        moved = [k for k in vars(case) if vars(case)[k] != vars(smaller)[k]]
        assert len(moved) == 1 and vars(smaller)[moved[0]] < vars(case)[moved[0]], f"{smaller} from {case}"
    assert not list(smaller_cases(one, Case(1, 1, 1, 2, 0, 1))), "nothing is smaller than the smallest"

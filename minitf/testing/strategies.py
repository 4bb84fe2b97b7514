"""Hypothesis strategies for people who test attention: sizes, masks, dtypes, special fillings, whole cases.

Sizes and a seed are drawn, never elements: hypothesis fills large arrays with one repeated value, and equal
rows hide mistakes in attention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from minitf.engine import Array
from minitf.nn import Case

from .subject import Subject, subject

# Every value that a field of a case may shrink to. Fields are tried in this order.
LADDER = {
    "t": [*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65, 70, 127, 128, 129],
    "w": [*range(1, 10)],
    "b": [1, 2, 3],
    "h": [1, 2, 4],
    "d": [2, 4, 6, 8, 16, 24],
    "seed": [0, 1, 2],
}


def sizes(largest: int = 9, tiles: tuple[int, ...] = (16,)) -> st.SearchStrategy[int]:
    """Numbers of tokens: 1..largest, and around the edge of every tile. They shrink to 1."""
    edges = [n for tile in tiles for n in (tile - 1, tile, tile + 1) if n > largest]
    return st.sampled_from([*range(1, largest + 1), *sorted(set(edges))])


def random_mask(rng: np.random.Generator, batch: int, n: int, empty: int | None = None) -> Array:
    """A mask (B, 1, N, N), True = visible, in which every token sees itself; row `empty` sees nothing."""
    mask = rng.random((batch, 1, n, n)) < 0.6
    mask |= np.eye(n, dtype=bool)
    if empty is not None:
        mask[:, :, empty] = False
    return mask


@st.composite
def masks(draw: st.DrawFn, batch: int, n: int) -> Array:
    """Boolean masks broadcastable to (B, H, N, N), True = visible.

    All visible, causal, padding, random, random with an empty row, nothing visible. They shrink to the first.
    """
    kind = draw(st.sampled_from(["all", "causal", "padding", "random", "empty row", "nothing"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind == "causal":
        return np.tri(n, dtype=bool)[None, None]
    if kind == "padding":
        return (np.arange(n) < rng.integers(1, n + 1, (batch, 1)))[:, None, None, :]
    if kind in ("random", "empty row"):
        return random_mask(rng, batch, n, int(rng.integers(n)) if kind == "empty row" else None)
    return np.full((batch, 1, n, n), kind == "all")


def dtypes(half: bool = False) -> st.SearchStrategy[str]:
    """ "float64" and "float32"; with `half` also "float16". They shrink to float64."""
    return st.sampled_from(["float64", "float32", *(["float16"] if half else [])])


def _first(a: Array, axis: int, axes: int) -> Array:
    return a[(slice(None),) * axis + (slice(0, 1),) * axes]


# What tokens may hold that often breaks things: (array, first token axis, number of token axes) -> array.
FILLINGS: dict[str, Callable[[Array, int, int], Array]] = {
    "zeros": lambda a, axis, axes: np.zeros_like(a),
    "equal rows": lambda a, axis, axes: np.broadcast_to(_first(a, axis, axes), a.shape).copy(),
    "equal features": lambda a, axis, axes: np.broadcast_to(a[..., :1], a.shape).copy(),
    "small integers": lambda a, axis, axes: np.round(a),
    "large values": lambda a, axis, axes: a * 1e3,
    "a single token": lambda a, axis, axes: _first(a, axis, axes).copy(),
}


@st.composite
def fillings(draw: st.DrawFn, shape: tuple[int, ...], axis: int = 1, axes: int = 1) -> Array:
    """Arrays of tokens: standard normal, or one of `FILLINGS`. They shrink to standard normal."""
    name = draw(st.sampled_from(["normal", *FILLINGS]))
    a = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).standard_normal(shape)
    return a if name == "normal" else FILLINGS[name](a, axis, axes)


def cases_for(
    variant: Any, *, size: str = "medium", kind: str | None = None, grid: str | None = None
) -> st.SearchStrategy[Case]:
    """Cases that fit a variant. They shrink to one token of one head of width 2, seed 0.

    Args:
        variant, kind, grid: as `subject` takes them, or a Subject.
        size: "small" for checks that differentiate numerically, else "medium".
    """
    one = variant if isinstance(variant, Subject) else subject(variant, kind=kind, grid=grid)
    return _cases(one.axes > 1, one.width, size == "small")


def _cases(on_grid: bool, width: int | None, small: bool) -> st.SearchStrategy[Case]:
    t = st.integers(1, 4 if small else 9) if small or on_grid else sizes()
    h, d = st.sampled_from([1, 2] if small else [1, 2, 4]), st.sampled_from([2, 4] if small else [2, 4, 6, 8])
    if width:
        # An instance has the width that it has.
        h, d = st.just(1), st.just(width)
    w = st.integers(1, 3 if small else 6) if on_grid else st.just(1)
    return st.builds(
        Case, b=st.integers(1, 2 if small else 3), t=t, h=h, d=d, seed=st.integers(0, 2**32 - 1), w=w
    )


def corner_cases(one: Subject, size: str) -> list[Case]:
    """The cases that every check begins with: where mistakes usually sit, the most telling first."""
    if size == "small":
        found = [Case(2, 3, 2, 2, 1, w=2), Case(1, 4, 1, 4, 2, w=1), Case(1, 1, 2, 2, 3, w=3)]
    elif one.axes > 1:
        found = [Case(2, 4, 2, 4, 1, w=3), Case(1, 1, 1, 2, 2, w=1), Case(2, 3, 1, 6, 3, w=5)]
        found += [Case(1, 8, 2, 2, 4, w=9)] if size == "large" else []
    else:
        # Tokens that end within a tile, alone, and one behind it; the second tile, and long enough that a
        # state is continued behind a tile of 64.
        found = [Case(2, 5, 2, 4, 1, w=1), Case(3, 1, 2, 4, 2, w=1), Case(2, 17, 4, 2, 3, w=1)]
        found[1:1] = [Case(1, 70, 2, 2, 4, w=1)] if size == "large" else []
        found += [Case(2, 33, 1, 6, 5, w=1)] if size == "large" else []
        found += [Case(3, 8, 1, 24 if one.kind == "attention_function" else 16, 6, w=1)]
        found += [Case(1, 130, 2, 2, 7, w=1)] if size == "large" else []
    return [replace(case, h=1, d=one.width) if one.width else case for case in found]


def drawn_cases(one: Subject, size: str, examples: int, count: int) -> list[Case]:
    """`count` cases of a check that may take up to `examples`: the corners, then what hypothesis draws."""
    corners = corner_cases(one, size)
    if count <= len(corners):
        return corners[:count]
    drawn = _draw(one.axes > 1, one.width, size == "small", examples)
    return list(dict.fromkeys([*corners, *drawn]))[:count]


@functools.cache
def _draw(on_grid: bool, width: int | None, small: bool, examples: int) -> list[Case]:
    found: list[Case] = []

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=_cases(on_grid, width, small))
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    return found


def smaller_cases(one: Subject, case: Case) -> Iterator[Case]:
    """Cases that differ from this one in a single, smaller field; the smallest value first."""
    for name, values in LADDER.items():
        if one.width and name in ("h", "d"):
            continue
        for value in values:
            if value < getattr(case, name):
                yield replace(case, **{name: value})


def hiding_row(case: Case, n: int) -> tuple[Array, int]:
    """A random mask (B, 1, N, N) of a case in which one row sees nothing, and which row that is."""
    rng = case.rng()
    row = int(rng.integers(n))
    return random_mask(rng, case.b, n, empty=row), row

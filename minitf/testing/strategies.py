"""Hypothesis strategies for people who test attention: sizes, masks, dtypes, special fillings, whole cases.

Sizes and a seed are drawn, never elements: hypothesis fills large arrays with one repeated value, and equal
rows hide mistakes in attention.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from minitf.engine import Array
from minitf.nn import Case

from .subject import Subject


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


def hiding_row(case: Case) -> tuple[Array, int]:
    """A random mask (B, 1, N, N) of a case in which one row sees nothing, and which row that is."""
    rng = case.rng()
    row = int(rng.integers(case.t))
    return random_mask(rng, case.b, case.t, empty=row), row


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
    "large values": lambda a, axis, axes: a * 1e3,
    "a single token": lambda a, axis, axes: _first(a, axis, axes).copy(),
}


@st.composite
def fillings(draw: st.DrawFn, shape: tuple[int, ...], axis: int = 1, axes: int = 1) -> Array:
    """Arrays of tokens: standard normal, or one of `FILLINGS`. They shrink to standard normal of seed 0."""
    a = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).standard_normal(shape)
    name = draw(st.sampled_from(["normal", *FILLINGS]))
    return a if name == "normal" else FILLINGS[name](a, axis, axes)


def cases_for(one: Subject, small: bool = False) -> st.SearchStrategy[Case]:
    """Cases that fit a subject. They shrink to one token of one head of width 2, seed 0."""
    grid = one.axes > 1
    t = st.sampled_from([1, 2, 3, 4] if small else [*range(1, 10)]) if small or grid else sizes()
    h, d = st.sampled_from([1, 2] if small else [1, 2, 4]), st.sampled_from([2, 4] if small else [2, 4, 6, 8])
    if one.width:
        # An instance has the width that it has.
        h, d = st.just(1), st.just(one.width)
    w = st.integers(1, 3 if small else 6) if grid else st.just(1)
    return st.builds(
        Case, b=st.integers(1, 2 if small else 3), t=t, h=h, d=d, seed=st.integers(0, 2**32 - 1), w=w
    )

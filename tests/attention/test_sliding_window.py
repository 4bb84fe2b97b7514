"""Sliding windows: the ways to count them, biases on scores, what memory a step needs, errors."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.attention.sliding_window import SlidingWindow, allowed, radii
from minitf.engine import ShapeError, Tensor
from minitf.nn import Case


def test_window_sizes_of_published_code() -> None:
    assert radii(4) == (3, 0)
    assert radii(4, "side") == (4, 4)
    assert radii(4, "total") == (1, 2) and radii(5, "total") == (2, 2)
    for window, counts in ((0, "causal"), (-1, "side"), (3, "keys")):
        with pytest.raises(ValueError, match=r"window|counts"):
            radii(window, counts)


def test_the_mask_is_that_of_the_equation() -> None:
    rows = [[j for j in range(7) if row[j]] for row in allowed(7, 2, 1, 2)]
    assert rows == [[0, 2], [1, 3], [0, 2, 4], [1, 3, 5], [0, 2, 4, 6], [1, 3, 5], [2, 4, 6]]


def test_a_state_stays_small_and_valid() -> None:
    layer = SlidingWindow(8, heads=2, left=3, dtype="float64")
    x, state = Case(t=12).tokens(), layer.start(2)
    states = []
    for t in range(12):
        states.append(state)
        state = layer.step(x[:, t], state)[1]
    assert state.keys.shape == (2, 2, 4, 4), "a ring holds as many tokens as the window"
    again = layer.step(x[:, 5], states[5])[0].data
    error = np.max(np.abs(again - layer(x).data[:, 5]))
    assert error <= 1e-12, f"an old state must stay valid: off by {error:.2g}"


def test_errors() -> None:
    for options in (
        {"left": -1},
        {"right": 2},
        {"dilation": 0},
        {"dilation": (1, 2, 3)},
        {"position": "alibi"},
    ):
        with pytest.raises(ValueError):
            SlidingWindow(8, heads=2, **options)
    with pytest.raises(ValueError, match="causal window streams"):
        SlidingWindow(8, heads=2, causal=False).step(Tensor(np.ones((1, 8), "float32")), None)
    with pytest.raises(ShapeError, match=r"\(B, N, D\)"):
        SlidingWindow(8)(Tensor(np.ones((3, 8), "float32")))

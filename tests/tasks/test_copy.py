"""Copy: the layout, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.tasks import Copy


def test_layout() -> None:
    x, y, w = Copy(n=3, v=5).sample(np.random.default_rng(0), 1)
    a, b, c = x[0, :3]
    assert x[0].tolist() == [a, b, c, 5, a, b], "symbols, the separator, all symbols but the last"
    assert y[0].tolist() == [0, 0, 0, a, b, c] and w[0].tolist() == [0, 0, 0, 1, 1, 1]
    task = Copy()
    assert (task.N, task.V_in, task.V_out, task.chance) == (32, 11, 11, 0.1)


def test_out_of_range() -> None:
    for numbers in ({"n": 0}, {"v": 0}):
        with pytest.raises(ValueError, match="n and v of at least 1"):
            Copy(**numbers)

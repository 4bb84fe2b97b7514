"""Top-k: every k of small rows, both sides of the limit of insertion and of the blocks, ties, infinities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def topk_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(*shape: int, k: int, axis: int = -1) -> dict[str, Any]:
        return {"x": rng.standard_normal(shape), "k": k, "axis": axis}

    def given(x: Any, k: int) -> dict[str, Any]:
        return {"x": np.asarray(x), "k": k}

    yield "one number", case(1, k=1)
    yield "none", case(3, 4, k=0)
    yield "no elements", case(3, 0, k=0)
    yield "no rows", case(0, 5, k=2)
    for k in range(1, 6):
        yield f"{k} of 5", case(3, 5, k=k)
    for k in (7, 8, 9, 17, 31, 32, 33, 34):
        for n in (k, k + 16, 81):
            yield f"{k} of {n}", case(4, n, k=k)
    for n in (17, 18, 33, 34, 35):
        yield f"2 of {n}", case(4, n, k=2)
    yield "all of a long row", case(2, 100, k=100)
    yield "half of a long row", case(2, 100, k=50)
    yield "the first axis", case(50, 3, 2, k=40, axis=0)
    yield "an axis in the middle", case(2, 9, 3, k=4, axis=-2)
    yield "many rows", case(40, 50, 30, k=3)
    yield "ties, short", given(rng.integers(0, 3, (20, 40)) * 1.0, 5)
    yield "ties, long", given(rng.integers(0, 3, (20, 190)) * 1.0, 50)
    yield "all equal", given(np.zeros((3, 90)), 35)
    yield "rising, short", given(np.arange(80.0).reshape(2, 40), 15)
    yield "rising, long", given(np.arange(400.0).reshape(2, 200), 40)
    yield "falling", given(-np.arange(200.0).reshape(2, 100), 40)
    yield "both zeros", given(np.where(rng.random((4, 40)) < 0.5, -0.0, 0.0), 34)
    x = rng.standard_normal((6, 120))
    x[rng.random(x.shape) < 0.2] = np.inf
    x[rng.random(x.shape) < 0.3] = -np.inf
    yield "infinities, short", given(x, 3)
    yield "infinities, long", given(x, 70)
    yield "nothing but -inf", given(np.full((2, 80), -np.inf), 40)
    yield "a row repeated", given(np.broadcast_to(rng.standard_normal(20), (5, 20)), 4)


CASES = {"topk": topk_cases}

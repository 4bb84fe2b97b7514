"""x W + b: sizes around the cuts at multiples of 16, one row, one column, with and without a bias."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def linear_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(*shape: int, out: int, bias: bool = True) -> dict[str, Any]:
        return {
            "x": rng.standard_normal(shape),
            "weight": rng.standard_normal((shape[-1], out)),
            "bias": rng.standard_normal(out) if bias else None,
        }

    yield "one number", case(1, out=1)
    yield "a vector", case(5, out=3)
    yield "one row, many columns", case(1, 1, 70, out=600)
    for rows in (127, 128, 129):
        yield f"{rows} rows", case(rows, 40, out=17)
        yield f"{rows} columns", case(6, 90, out=rows)
    yield "no bias", case(2, 65, 33, out=48, bias=False)
    yield "one row repeated", {**case(9, out=5), "x": np.broadcast_to(rng.standard_normal(9), (4, 3, 9))}


CASES = {"linear": linear_cases}

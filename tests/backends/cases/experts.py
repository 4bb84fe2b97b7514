"""Products by group and the ordered sum: empty groups, one group with everything, widths around the cuts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def product_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(counts: list[int], d: int, f: int, n: int | None = None) -> dict[str, Any]:
        total = sum(counts)
        args = {
            "x": rng.standard_normal((total if n is None else n, d)),
            "w": rng.standard_normal((len(counts), d, f)),
            "counts": np.array(counts),
        }
        return args if n is None else {**args, "rows": rng.integers(0, n, total)}

    yield "one number", case([1], 1, 1)
    yield "no rows", case([0, 0], 3, 2)
    yield "no rows taken", case([0, 0], 3, 2, n=4)
    yield "one group", case([7], 3, 5)
    yield "some groups empty", case([0, 3, 0, 5, 1, 0], 4, 3)
    yield "the rows of some groups", case([0, 3, 4, 0, 2], 4, 3, n=5)
    yield "one row for all", case([5, 4], 3, 2, n=1)
    yield "rows that nobody takes", case([2, 1], 3, 2, n=40)
    for f in (31, 32, 33):
        yield f"{f} columns in parts", case([40, 1, 0, 90, 60], 24, f)
    yield "one group with everything, in parts", case([0, 191, 0], 33, 40)
    yield "rows in parts", case([30, 0, 100, 61], 33, 40, n=120)
    yield "more groups than rows", case([0, 1] * 40, 16, 64)
    yield "small integers", {**case([2, 1], 3, 2), "counts": np.array([2, 1], np.int8)}


def combine_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(p: int, f: int, n: int) -> dict[str, Any]:
        return {
            "y": rng.standard_normal((p, f)),
            "rows": rng.integers(0, n, p),
            "weights": rng.standard_normal(p),
            "n": n,
        }

    yield "one number", case(1, 1, 1)
    yield "nothing to add", case(0, 5, 4)
    yield "everything in one row", case(30, 5, 1)
    yield "rows that nobody names", case(6, 3, 20)
    for f in (7, 8, 9, 33):
        yield f"width {f}", case(20, f, 11)
    yield "in parts", case(600, 70, 300)
    yield (
        "one weight, one row of y",
        {
            **case(12, 6, 5),
            "y": np.broadcast_to(rng.standard_normal(6), (12, 6)),
            "weights": np.broadcast_to(rng.standard_normal(1), (12,)),
        },
    )


CASES = {"grouped_matmul": product_cases, "combine_rows": combine_cases}

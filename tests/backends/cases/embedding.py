"""Embedding: widths around the cuts at multiples of 16, ids that repeat, tables with unused rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def embedding_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(rows: int, width: int, *shape: int) -> dict[str, Any]:
        return {"ids": rng.integers(0, rows, shape), "table": rng.standard_normal((rows, width))}

    yield "one number", case(1, 1, 1)
    yield "no ids", case(3, 4, 0)
    yield "no columns", case(3, 0, 5)
    for width in (15, 16, 17, 31, 33, 63, 64, 65):
        yield f"width {width}", case(7, width, 3, 20)
    for width in (31, 32, 33, 47, 48, 100):
        yield f"many ids, width {width}", case(50, width, 5, 220)
    yield "one row for all", case(1, 40, 400)
    yield "many rows, few ids", case(5000, 8, 3)
    yield "short integers", {**case(9, 5, 12), "ids": rng.integers(0, 9, 12).astype(np.uint8)}


CASES = {"embedding": embedding_cases}

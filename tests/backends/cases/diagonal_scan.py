"""Diagonal scan: columns around a block (128), every way in which a may broadcast, states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(shape: tuple[int, ...], of_a: tuple[int, ...], first: bool = True) -> dict[str, Any]:
        state = rng.standard_normal((shape[0], *shape[2:])) if first else None
        return {"a": rng.uniform(-1.0, 1.0, of_a), "b": rng.standard_normal(shape), "state": state}

    for tokens in (1, 2, 3, 17):
        for first in (False, True):
            words = f"{tokens} tokens, {'a state' if first else 'no state'}"
            yield words, case((2, tokens, 3), (2, tokens, 3), first)
    for width in (1, 7, 8, 127, 128, 129, 300):
        yield f"{width} columns", case((2, 5, width), (2, 5, width))
    for of_a in ((1, 9, 2, 3), (2, 1, 2, 3), (1, 1, 2, 3), (2, 9, 1, 3), (2, 9, 2, 1), (1, 1, 1, 1)):
        yield f"a {of_a}", case((2, 9, 2, 3), of_a)
    yield "no state, a of one token", case((2, 9, 5), (1, 1, 5), first=False)
    yield "no further axes", case((2, 9), (2, 9))
    yield "several parts", case((3, 200, 150), (3, 200, 150))
    yield "sums", {"a": np.ones((1, 1, 4)), "b": rng.standard_normal((2, 300, 4)), "state": None}
    yield (
        "b broadcast",
        {**case((2, 6, 4), (2, 6, 4)), "b": np.broadcast_to(rng.standard_normal(4), (2, 6, 4))},
    )


CASES = {"diagonal_scan": cases}

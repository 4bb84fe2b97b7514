"""Rotary positions: both layouts of pairs, positions for all or each batch, split heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def rope_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(*shape: int, batched: bool = False, interleaved: bool = True) -> dict[str, Any]:
        positions = np.arange(shape[2])
        if batched:
            positions = rng.integers(0, 5000, (shape[0], shape[2]))
        return {"x": rng.standard_normal(shape), "positions": positions, "interleaved": interleaved}

    for interleaved in (True, False):
        words = "neighbours" if interleaved else "halves"
        for d in (2, 6, 16, 18, 34):
            yield f"{words}, width {d}", case(2, 3, 5, d, interleaved=interleaved)
        yield f"{words}, positions of each batch", case(3, 2, 7, 8, batched=True, interleaved=interleaved)
        many = case(2, 4, 150, 16, batched=True, interleaved=interleaved)
        yield f"{words}, many rows", many
        split = rng.standard_normal((2, 9, 4 * 6)).reshape(2, 9, 4, 6).transpose(0, 2, 1, 3)
        yield f"{words}, split heads", {**case(2, 4, 9, 6, interleaved=interleaved), "x": split}
        split = np.broadcast_to(rng.standard_normal(6), (2, 4, 9, 6))
        yield f"{words}, one row repeated", {**case(2, 4, 9, 6, interleaved=interleaved), "x": split}
    yield "one position", case(1, 1, 1, 4)
    yield (
        "fractions and another base",
        {**case(1, 2, 3, 4), "positions": np.array([0.5, -2.0, 1e5]), "base": 50.0},
    )


CASES = {"rope": rope_cases}

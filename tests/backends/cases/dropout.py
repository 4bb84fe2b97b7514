"""Dropout by a key: every rate, sizes around the serial limit, keys at the ends of their range."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def dropout_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    for rate in (0.0, 0.1, 0.5, 0.999):
        yield f"rate {rate}", {"x": rng.standard_normal((4, 33)), "key": 12345, "rate": rate}
    for key in (0, 1, 2**63, 2**64 - 1):
        yield f"key {key}", {"x": rng.standard_normal(65), "key": key, "rate": 0.3}
    for size in (1, 4095, 4096, 4097, 10000):
        yield f"{size} elements", {"x": rng.standard_normal(size), "key": 7, "rate": 0.2}
    yield "no elements", {"x": np.zeros((3, 0)), "key": 7, "rate": 0.2}
    special = rng.standard_normal(40)
    special[::4] = np.nan
    yield "NaN", {"x": special, "key": 9, "rate": 0.5}
    yield "one row repeated", {"x": np.broadcast_to(rng.standard_normal(12), (6, 12)), "key": 9, "rate": 0.5}


CASES = {"keyed_dropout": dropout_cases}

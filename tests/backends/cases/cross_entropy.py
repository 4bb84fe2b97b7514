"""Cross-entropy: numbers of classes around the vector sizes and a piece of 2048, masked and large logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def cross_entropy_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(*shape: int, ignore: int | None = None, scale: float = 1.0) -> dict[str, Any]:
        targets = rng.integers(0, shape[-1], shape[:-1])
        return {"logits": scale * rng.standard_normal(shape), "targets": targets, "ignore": ignore}

    for classes in (1, 2, 7, 8, 9, 33, 65):
        yield f"{classes} classes", case(3, 5, classes)
    for classes in (2047, 2048, 2049, 5000):
        yield f"{classes} classes", case(3, classes)
    yield "many rows", case(4, 150, 40)
    yield "large logits", case(6, 30, scale=1e4)
    yield "rising over the pieces", {**case(2, 4100), "logits": np.sort(100 * rng.standard_normal((2, 4100)))}
    yield "some ignored", case(4, 8, 5, ignore=2)
    ignored = case(3, 4, ignore=-100)
    yield "all but one ignored", {**ignored, "targets": np.array([-100, 3, -100])}
    yield "all ignored", {**ignored, "targets": np.full(3, -100)}
    masked = case(4, 6)
    masked["logits"][np.arange(4), (masked["targets"] + 1) % 6] = -np.inf
    yield "classes at minus infinity", masked
    broken = case(4, 6)
    broken["logits"][2, 3] = np.nan
    yield "a NaN", broken
    small = case(5, 7)
    yield "targets of eight bits", {**small, "targets": small["targets"].astype(np.uint8)}
    yield "one row repeated", {**small, "logits": np.broadcast_to(rng.standard_normal(7), (5, 7))}


CASES = {"cross_entropy": cross_entropy_cases}

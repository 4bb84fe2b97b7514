"""The delta rule: tokens around the spans of 128, widths around vectors of 16, with decays and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def delta_rule_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(b: int, h: int, n: int, dk: int, dv: int, gates: str, first: bool = False) -> dict[str, Any]:
        q, k, v = (rng.standard_normal((b, h, n, d)) for d in (dk, dk, dv))
        # Keys of length 1, with which the memory does not grow.
        k = k / np.sqrt(np.sum(k * k, axis=-1, keepdims=True))
        g = -rng.exponential(size=(b, h, n, dk if gates == "channel" else 1))
        state = rng.standard_normal((b, h, dk, dv)) if first else None
        beta = rng.uniform(0.0, 1.5, (b, h, n, 1))
        return {"q": q, "k": k, "v": v, "beta": beta, "g": None if gates == "none" else g, "state": state}

    for n in (1, 2, 3, 127, 128, 129, 258):
        yield f"{n} tokens", case(1, 2, n, 5, 6, "channel", True)
    for dk, dv in ((1, 1), (15, 17), (17, 15), (33, 8)):
        yield f"widths {dk} and {dv}", case(1, 2, 20, dk, dv, "none", True)
        yield f"widths {dk} and {dv}, a decay per head", case(1, 2, 20, dk, dv, "head", True)
    for gates in ("channel", "head", "none"):
        yield f"{gates} decays without a state", case(2, 3, 70, 8, 8, gates)
        yield f"{gates} decays, one wide head", case(1, 1, 67, 16, 48, gates, True)
    yield "chunks of one", {**case(1, 2, 9, 4, 4, "channel"), "chunk": 1}
    yield "chunks of 64", {**case(1, 2, 90, 4, 4, "none"), "chunk": 64}
    yield "several parts", case(2, 4, 150, 16, 16, "channel", True)
    strong = case(1, 2, 70, 8, 8, "channel", True)
    yield "decays that forget all", {**strong, "g": 50.0 * strong["g"]}
    yield "some decays of zero", {**strong, "g": strong["g"] * rng.integers(0, 2, strong["g"].shape)}
    yield "all decays of zero", {**strong, "g": 0.0 * strong["g"]}
    yield "nothing written", {**strong, "beta": 0.0 * strong["beta"]}
    yield "one beta everywhere", {**strong, "beta": np.broadcast_to(np.array(0.5), strong["beta"].shape)}


CASES = {"delta_rule": delta_rule_cases}

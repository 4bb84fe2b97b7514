"""The gated scan: tokens around the spans of 128, widths around the vectors of 16, every kind of decay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def gated_scan_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(b: int, h: int, n: int, dk: int, dv: int, gates: str, first: bool = False) -> dict[str, Any]:
        q, k, v = (rng.standard_normal((b, h, n, d)) / np.sqrt(d) for d in (dk, dk, dv))
        g = -rng.exponential(size=(b, h, n, dk if gates == "channel" else 1))
        g = 0.0 * g if gates == "none" else g
        return {
            "q": q,
            "k": k,
            "v": v,
            "g": g,
            "state": rng.standard_normal((b, h, dk, dv)) if first else None,
        }

    for n in (1, 2, 3, 127, 128, 129, 258):
        yield f"{n} tokens", case(1, 2, n, 5, 6, "channel", True)
    for dk, dv in ((1, 1), (15, 17), (16, 16), (17, 15), (33, 8)):
        yield f"widths {dk} and {dv}", case(1, 2, 20, dk, dv, "channel", True)
        yield f"widths {dk} and {dv}, a decay per head", case(1, 2, 20, dk, dv, "head", True)
    for gates in ("channel", "head", "none"):
        yield f"{gates} decays without a state", case(2, 3, 70, 8, 8, gates)
        yield f"{gates} decays with a state", case(2, 3, 70, 8, 8, gates, True)
        yield f"{gates} decays, one wide head", case(1, 1, 67, 16, 48, gates, True)
    yield "chunks of one", {**case(1, 2, 9, 4, 4, "channel"), "chunk": 1}
    yield "chunks of 64", {**case(1, 2, 90, 4, 4, "head"), "chunk": 64}
    yield "several parts", case(2, 4, 150, 16, 16, "channel", True)
    strong = case(1, 2, 70, 8, 8, "channel", True)
    yield "decays that forget all", {**strong, "g": 50.0 * strong["g"]}
    yield "decays of all sizes", {**strong, "g": strong["g"] * 10.0 ** rng.integers(-6, 3, strong["g"].shape)}
    yield "some decays of zero", {**strong, "g": strong["g"] * rng.integers(0, 2, strong["g"].shape)}
    yield "all decays of zero", {**strong, "g": 0.0 * strong["g"]}
    yield "one decay everywhere", {**strong, "g": np.broadcast_to(np.array(-0.1), strong["g"].shape)}


CASES = {"gated_scan": gated_scan_cases}

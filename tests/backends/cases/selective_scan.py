"""Selective scan: channels around a block (64), tokens around a chunk (16), states, strong and no decay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(
        batch: int, tokens: int, width: int, n: int, first: bool = False, **others: Any
    ) -> dict[str, Any]:
        args = {
            "u": rng.standard_normal((batch, tokens, width)),
            "dt": rng.exponential(size=(batch, tokens, width)),
            "a": -rng.exponential(size=(width, n)),
            "b": rng.standard_normal((batch, tokens, n)),
            "c": rng.standard_normal((batch, tokens, n)),
            "state": rng.standard_normal((batch, width, n)) if first else None,
        }
        return {**args, **others}

    for tokens in (1, 15, 16, 17, 33):
        yield f"{tokens} tokens", case(2, tokens, 3, 4, first=tokens % 2 == 0)
    for width in (1, 7, 8, 63, 64, 65):
        yield f"{width} channels", case(1, 5, width, 2, first=True)
    for n in (1, 16):
        yield f"{n} states for each channel", case(1, 20, 8, n, first=True)
    yield "several parts", case(3, 40, 130, 4)
    yield "another chunk", case(1, 40, 5, 3, chunk=7)
    yield "everything forgotten", case(1, 20, 4, 3, first=True, dt=np.full((1, 20, 4), 300.0))
    yield "nothing forgotten", case(1, 200, 4, 3, first=True, a=np.zeros((4, 3)))
    yield "no steps", case(1, 20, 4, 3, first=True, dt=np.zeros((1, 20, 4)))
    yield "one step for all", case(2, 20, 4, 3, dt=np.broadcast_to(np.array(0.5), (2, 20, 4)))


CASES = {"selective_scan": cases}

"""Windows of a grid: sides that they divide and do not, one window, single cells, shifts, stripes, biases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def window_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(
        rows: int,
        columns: int,
        window: Any,
        shift: Any = 0,
        bias: bool = True,
        shape: tuple[int, ...] = (2, 2, 5, 3),
        size: float = 1.0,
        **options: Any,
    ) -> dict[str, Any]:
        """shape: B, H, d, dv."""
        b, h, d, dv = shape
        q, k, v = (rng.standard_normal((b, h, rows, columns, n)) for n in (d, d, dv))
        w = (window, window) if isinstance(window, int) else window
        given = {"q": size * q, "k": size * k, "v": v, "window": window, "shift": shift, **options}
        if bias:
            given["bias"] = rng.standard_normal((h, w[0] * w[1], w[0] * w[1]))
        return given

    for rows, columns, window, shift in (
        (1, 1, 1, 0), (4, 4, 2, 0), (4, 4, 2, 1), (5, 7, 3, 0), (5, 7, 3, 1), (7, 7, 7, 3), (8, 6, 7, 3),
        (3, 5, 8, 5), (1, 9, 4, 2), (9, 1, 4, 3),
    ):  # fmt: skip
        yield f"{rows} by {columns} in {window} shifted {shift}", case(rows, columns, window, shift)
    yield "no bias", case(6, 5, 3, 2, bias=False)
    yield "stripes", case(6, 5, (6, 2), (0, 1))
    yield "on several threads", case(28, 28, 7, 3, shape=(2, 3, 16, 16))
    yield "one head", case(20, 20, 5, 2, shape=(3, 1, 8, 8))
    yield "large logits", case(6, 6, 3, 1, size=12.0)
    yield "scaled", case(6, 6, 3, 1, scale=0.2)
    hidden = case(4, 4, 2)
    hidden["bias"][:, :, 1:] = -np.inf
    hidden["bias"][0, 2] = -np.inf
    yield "hidden by an infinite bias", hidden


CASES = {"window_attention": window_cases}

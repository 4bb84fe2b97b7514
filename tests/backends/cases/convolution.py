"""Depthwise convolutions: taps up to eight, grids around a tile (256; 8 x 64), channels around a vector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(
        shape: tuple[int, ...], kernel: tuple[int, ...], bias: bool = True, **options: Any
    ) -> dict[str, Any]:
        channels = shape[-1]
        args = {
            "x": rng.standard_normal(shape),
            "weight": rng.standard_normal((*kernel, 1, channels)),
            "bias": rng.standard_normal(channels) if bias else None,
        }
        return {**args, "groups": channels, **options}

    for taps in (1, 2, 3, 4, 5, 8):
        yield f"{taps} taps", case((2, 9, 3), (taps,), padding="causal")
    for tokens in (1, 3, 4, 5, 255, 256, 257, 515):
        yield f"{tokens} tokens", case((1, tokens, 2), (4,), bias=False, padding="causal")
    for channels in (1, 7, 8, 9, 15, 16, 17, 48):
        yield f"{channels} channels", case((2, 6, channels), (4,), padding="same")
    yield "no padding", case((2, 11, 5), (4,))
    yield "one place left", case((1, 4, 3), (4,))
    yield "more padding than the kernel", case((1, 5, 3), (2,), padding=4)
    yield "dilated", case((2, 23, 3), (4,), padding="causal", dilation=3)
    yield "dilated farther than the grid", case((1, 3, 2), (2,), padding="causal", dilation=5)
    for high in (1, 7, 8, 9):
        yield f"grid of {high} rows", case((1, high, 5, 3), (3, 3), padding="same")
    yield "grid, seven by seven", case((2, 14, 15, 3), (7, 7), padding="same")
    for wide in (63, 64, 65):
        yield f"grid of {wide} columns", case((1, 2, wide, 17), (2, 3), padding="same")
    yield "grid, other sizes", case((1, 9, 66, 2), (2, 5), padding=(1, 0), bias=False)
    yield "grid, dilated", case((1, 9, 12, 3), (3, 2), padding=(2, 1), dilation=(2, 3))
    yield "grid, causal", case((1, 5, 6, 2), (2, 3), padding="causal")
    yield "several parts", case((3, 150, 70), (4,), padding="causal")
    yield "stride given for each axis", case((1, 5, 6, 2), (3, 3), stride=(1, 1), padding=1)


CASES = {"conv": cases}

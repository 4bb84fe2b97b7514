"""Normalisation: widths around the vector sizes and the span of 256, rows around the serial limit, shifted,
constant and repeated rows; alone and of a sum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def norm_cases(
    rng: np.random.Generator, biased: bool, summed: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(x: Any, affine: bool = True) -> dict[str, Any]:
        args = {"x": x, "r": rng.standard_normal(x.shape)} if summed else {"x": x}
        args["weight"] = rng.standard_normal(x.shape[-1]) if affine else None
        return {**args, "bias": rng.standard_normal(x.shape[-1]) if affine else None} if biased else args

    for width in (1, 2, 7, 8, 9, 33, 255, 256, 257, 600):
        yield f"width {width}", case(rng.standard_normal((3, width)))
    yield "one row", case(rng.standard_normal(16))
    yield "no rows", case(np.zeros((0, 4)))
    yield "many rows", case(rng.standard_normal((2, 300, 40)))
    yield "no parameters", case(rng.standard_normal((5, 16)), affine=False)
    yield "far from zero", case(rng.standard_normal((4, 64)) + 100.0)
    yield "zeros", case(np.zeros((3, 8)))
    yield "one row repeated", case(np.broadcast_to(rng.standard_normal(12), (6, 12)))


CASES = {
    "layer_norm": lambda rng: norm_cases(rng, True),
    "rms_norm": lambda rng: norm_cases(rng, False),
    "add_layer_norm": lambda rng: norm_cases(rng, True, summed=True),
    "add_rms_norm": lambda rng: norm_cases(rng, False, summed=True),
}

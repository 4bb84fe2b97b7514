"""Linear attention and recurrent mixers against published code, values and gradients."""

from __future__ import annotations

import math
from typing import Any

from minitf import Tensor, ops
from minitf.attention import linear_attention
from tests.oracles.oracle import compare

# The naive references of flash-linear-attention compute in float32, over 19 tokens.
SINGLE = 1e-5


def swapped(*arrays: Tensor) -> list[Tensor]:
    """(B, N, H, d) -> (B, H, N, d), or back."""
    return [a.permute_dims((0, 2, 1, 3)) for a in arrays]


def test_linear_attention() -> None:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Any:
        # That code adds 1e-10 to the sum of the weights.
        return swapped(linear_attention.normalised(*swapped(q, k, v), eps=1e-10)[0])[0]

    compare("linear_attention", run, SINGLE)


def test_gla() -> None:
    def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Any:
        return swapped(ops.gated_scan(*swapped(q / math.sqrt(q.shape[-1]), k, v, g))[0])[0]

    compare("gla", run, SINGLE)

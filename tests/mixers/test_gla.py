"""GLA: hidden keys, gates near one at the start, errors."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.engine import ShapeError, Tensor
from minitf.mixers.gla import GLA
from minitf.nn import Case, visible_keys
from minitf.testing import check_variant


def test_hidden_tokens_on_the_left_leave_no_trace() -> None:
    layer, x = GLA(8, heads=2, dtype="float64"), Case(t=6).tokens()
    mask = np.arange(6) >= 2
    error = np.max(np.abs(layer(x, mask=mask[None, None, None]).data[:, 2:] - layer(x[:, 2:]).data))
    assert error <= 1e-12, f"padding in front changes the rest by {error:.2g}"


def test_with_convolutions_it_passes_the_checks() -> None:
    def make(dim: int, heads: int, seed: int, dtype: str) -> GLA:
        return GLA(dim, heads=heads, width=3, seed=seed, dtype=dtype)

    checks = ["gradients", "causal", "streams", "padding_invariant", "batch_independent", "finite"]
    claims = ("causal", "streams", "key_masks")
    check_variant(make, kind="token_mixer", claims=claims, checks=checks, examples=5)
    state = GLA(8, heads=2, width=3).start(2)
    assert [a.shape for a in state.inputs] == [(2, 2, 4), (2, 2, 4), (2, 2, 8)], "W - 1 inputs of q, k, v"
    assert GLA(8, heads=2).start(2).inputs == (), "without convolutions there is nothing to keep"


def test_gates_start_near_one() -> None:
    layer, x = GLA(32, heads=4), Case(t=50, h=4, d=8).tokens().astype("float32")
    g = -np.logaddexp(0.0, -layer.wa2(layer.wa1(x)).data) / 16.0
    assert np.exp(g).min() > 0.85, "sigmoid^(1/16) keeps most of the memory"


def test_masks_that_hide_pairs_are_errors() -> None:
    with pytest.raises(ShapeError, match="hides keys only"):
        visible_keys(np.ones((1, 1, 4, 4), bool), 1, 4)
    with pytest.raises(TypeError, match="boolean"):
        visible_keys(np.ones((1, 1, 1, 4)), 1, 4)
    with pytest.raises(ShapeError, match=r"\(B, N, D\)"):
        GLA(8)(Tensor(np.ones((3, 8), "float32")))
    with pytest.raises(ValueError, match="must divide"):
        GLA(9, heads=2)

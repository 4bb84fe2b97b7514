"""Combiner: options under the checks, hidden blocks, the cost with blocks that follow N, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

import minitf as mt
from minitf.attention.combiner_fixed import CombinerFixed
from minitf.testing import check_variant


@pytest.mark.parametrize(
    "options",
    [
        {"block": 2},
        {"block": 3, "causal": False},
        {"block": 2, "activation": "dense", "pool": "mean"},
        {"block": 4, "activation": "relu", "pool": "sum", "causal": False},
    ],
)
def test_options_pass_the_checks(options: dict) -> None:
    def make(dim: int, heads: int, seed: int, dtype: str) -> CombinerFixed:
        return CombinerFixed(dim, heads=heads, seed=seed, dtype=dtype, **options)

    claims = ("key_masks", "row_stochastic")
    checks = [
        "gradients",
        "full_jacobian",
        "finite",
        "padding_invariant",
        "batch_independent",
        "row_stochastic",
    ]
    if options.get("causal", True):
        claims, checks = (*claims, "causal", "streams"), [*checks, "causal", "streams"]
    check_variant(make, kind="token_mixer", claims=claims, checks=checks, examples=6)


def test_hidden_blocks_are_not_there() -> None:
    layer = CombinerFixed(8, heads=2, block=2, causal=False, dtype="float64")
    x = np.random.default_rng(0).standard_normal((1, 8, 8))
    mask = np.array([True, True, False, False, True, True, True, True])
    found = layer(mt.tensor(x), mask=mask).data[:, mask]
    error = np.max(np.abs(found - layer(mt.tensor(x[:, mask])).data))
    assert error <= 1e-12, f"a hidden block in the middle changes the others by {error:.2g}"
    assert np.all(layer(mt.tensor(x), mask=np.zeros(8, dtype=bool)).data == 0.0), (
        "nothing visible gives zeros"
    )


def test_the_last_block_may_be_shorter() -> None:
    layer = CombinerFixed(8, heads=2, block=4, causal=False, dtype="float64")
    x = np.random.default_rng(0).standard_normal((1, 6, 8))
    mask = np.arange(8) < 6
    padded = np.concatenate([x, np.full((1, 2, 8), 7.0)], axis=1)
    error = np.max(np.abs(layer(mt.tensor(padded), mask=mask).data[:, :6] - layer(mt.tensor(x)).data))
    assert error <= 1e-12, f"a block of two tokens and one with two hidden differ by {error:.2g}"


def test_the_cost_is_n_to_the_one_and_a_half() -> None:
    counted = []
    for n in (1024, 4096):
        layer = CombinerFixed(2, heads=1, block=math.isqrt(n))
        with mt.no_grad(), mt.profile() as p:
            layer(mt.tensor(np.ones((1, n, 2), "float32")))
        counted.append(p.flops)
    power = math.log(counted[1] / counted[0], 4)
    assert abs(power - 1.5) <= 0.05, f"with b = sqrt(N) the cost grows as N^{power:.2f}"


def test_the_memory_of_the_stream() -> None:
    layer = CombinerFixed(8, heads=2, block=4)
    state = layer.start(1)
    for _ in range(11):
        _, state = layer.step(mt.tensor(np.ones((1, 8), "float32")), state)
    assert state.complete.length == 2 and state.k.shape == (1, 2, 3, 4), "11 tokens are 2 blocks and 3 tokens"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, "must divide"),
        ({"block": 0}, "1 or more"),
        ({"activation": "gelu"}, "identity, relu, dense"),
        ({"pool": "min"}, "max, mean, sum"),
    ],
)
def test_errors(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CombinerFixed(8, **options)


def test_only_the_causal_form_streams() -> None:
    layer = CombinerFixed(8, heads=2, causal=False)
    with pytest.raises(ValueError, match="causal=True"):
        layer.step(mt.tensor(np.zeros((1, 8), "float32")), layer.start(1))

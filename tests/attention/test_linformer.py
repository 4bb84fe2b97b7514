"""Linformer: lengths, sharing of matrices between heads and layers, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.linformer import SHARING, Linformer
from minitf.testing import check_variant


@pytest.mark.parametrize("sharing", SHARING)
def test_every_way_to_share_passes_the_checks(sharing: str) -> None:
    def make(dim: int, heads: int, seed: int, dtype: str, context: int) -> Linformer:
        options = {"sharing": sharing, "rank": 3, "context": context}
        return Linformer(dim, heads=heads, seed=seed, dtype=dtype, **options)

    checks = ["gradients", "padding_invariant", "batch_independent", "finite", "state_dict_round_trip"]
    check_variant(make, kind="token_mixer", claims=("key_masks",), checks=checks, examples=5)


@pytest.mark.parametrize(("sharing", "matrices"), [("kv", 1), ("headwise", 2), ("none", 8)])
def test_parameters(sharing: str, matrices: int) -> None:
    layer = Linformer(8, heads=4, rank=5, context=20, sharing=sharing)
    count = sum(p.data.size for p in layer.parameters())
    assert count == 4 * 64 + matrices * 20 * 5, f"{sharing} has {count} parameters"


def test_one_matrix_for_the_whole_model() -> None:
    first = Linformer(8, heads=2, rank=3, context=6, sharing="headwise", dtype="float64")
    second = Linformer(8, heads=2, share_with=first, seed=1, dtype="float64")
    x = mt.tensor(np.random.default_rng(0).standard_normal((1, 6, 8)))
    (second(first(x)) ** 2.0).sum().backward()
    assert second.ek is first.ek and second.ev is first.ev, "both layers must hold the same matrices"
    step = 1e-6
    first.ek.data[0, 2, 1] += step
    up = (second(first(x)) ** 2.0).sum().item()
    first.ek.data[0, 2, 1] -= 2 * step
    down = (second(first(x)) ** 2.0).sum().item()
    error = abs(first.ek.grad.data[0, 2, 1] - (up - down) / (2 * step))
    assert error <= 1e-6, f"the gradient of the shared matrix must come from both layers: off by {error:.2g}"


def test_later_tokens_change_earlier_ones() -> None:
    layer = Linformer(8, heads=2, dtype="float64")
    x = np.random.default_rng(0).standard_normal((1, 6, 8))
    y = layer(mt.tensor(x)).data
    x[:, -1] += 1.0
    moved = np.max(np.abs(layer(mt.tensor(x)).data[:, 0] - y[:, 0]))
    assert moved > 1e-6, "summaries mix all positions"


def test_too_long() -> None:
    with pytest.raises(mt.ShapeError, match="larger context"):
        Linformer(8, context=4)(mt.tensor(np.zeros((1, 5, 8), "float32")))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, "must divide"),
        ({"rank": 0}, "1 or more"),
        ({"context": 0}, "1 or more"),
        ({"sharing": "layerwise"}, "kv, headwise, none"),
        ({"share_with": Linformer(8, heads=2, sharing="none")}, "for 2 heads"),
    ],
)
def test_errors(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Linformer(8, **options)

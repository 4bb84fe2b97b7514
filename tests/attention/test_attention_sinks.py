"""Attention sinks: the cache, its places, the options, long prompts, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.attention_sinks import AttentionSinks, Rule, SinkCache
from minitf.nn import Position
from minitf.testing import check_variant

RULE = Rule(2, 3, Position())


def numbered(*tokens: int) -> SinkCache:
    """A cache whose keys and values say which token they are."""
    entries = np.array(tokens, dtype=float).reshape(1, 1, -1, 1)
    return SinkCache(entries, entries)


@pytest.mark.parametrize(
    ("held", "coming", "kept"),
    [
        ([], 1, []),
        ([0, 1], 1, [0, 1]),
        ([0, 1, 2, 3], 1, [0, 1, 2, 3]),
        ([0, 1, 2, 3, 4], 1, [0, 1, 3, 4]),
        ([0, 1, 5, 6, 7], 2, [0, 1, 7]),
        ([0, 1, 5, 6, 7], 9, [0, 1]),
        ([0, 1, 2, 3, 4, 5, 6], 0, [0, 1, 4, 5, 6]),
    ],
)
def test_evict(held: list[int], coming: int, kept: list[int]) -> None:
    found = numbered(*held).evict(coming, RULE)
    assert found.keys.ravel().tolist() == kept, f"the cache {held} with {coming} coming must keep {kept}"
    assert np.array_equal(found.keys, found.values), "keys and values must be evicted together"


def test_allowed_by_hand() -> None:
    seen = [np.flatnonzero(row).tolist() for row in RULE.allowed(7)]
    expected = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 3, 4, 5], [0, 1, 4, 5, 6]]
    assert seen == expected, f"A_t must be {expected}, not {seen}"


def test_the_stream_is_endless_and_the_cache_is_not() -> None:
    layer = AttentionSinks(8, heads=2, sinks=2, window=3, position="rope", dtype="float64")
    state = layer.start(1)
    x = np.random.default_rng(0).standard_normal((1, 40, 8))
    for t in range(40):
        _, state = layer.step(mt.tensor(x[:, t]), state)
    assert state.keys.shape == (1, 2, 5, 4), f"the cache must hold s + w = 5 entries: {state.keys.shape}"


def test_places_are_those_in_the_cache() -> None:
    """With the same sinks and window, a later start of the window changes nothing, rotary or not."""
    layer = AttentionSinks(8, heads=2, sinks=2, window=3, position="rope", dtype="float64")
    x = np.random.default_rng(1).standard_normal((1, 60, 8))
    short = np.concatenate([x[:, :2], x[:, 50:]], axis=1)
    error = np.max(np.abs(layer(mt.tensor(x)).data[:, -7:] - layer(mt.tensor(short)).data[:, -7:]))
    assert error <= 1e-12, f"positions of the stream leak into the cache: {error:.2g}"


@pytest.mark.parametrize("split", [1, 4, 9, 17])
def test_prompts_before_and_after(split: int) -> None:
    layer = AttentionSinks(8, heads=2, sinks=2, window=3, position="rope", learned_sink=True, dtype="float64")
    x = mt.tensor(np.random.default_rng(2).standard_normal((2, 17, 8)))
    first, state = layer.prefill(x[:, :split], layer.start(2))
    rest = layer.prefill(x[:, split:], state)[0].data if split < 17 else np.zeros((2, 0, 8))
    error = np.max(np.abs(np.concatenate([first.data, rest], axis=1) - layer(x).data))
    assert error <= 1e-12, f"two prompts of {split} and {17 - split} tokens differ from one by {error:.2g}"


@pytest.mark.parametrize(
    "options",
    [
        {"sinks": 1, "window": 2, "position": "rope", "zero_sink": True},
        {"sinks": 2, "window": 2, "position": "alibi", "learned_sink": True, "bias": True},
    ],
)
def test_options_pass_the_checks(options: dict) -> None:
    def make(dim: int, heads: int, seed: int, dtype: str) -> AttentionSinks:
        return AttentionSinks(dim, heads=heads, seed=seed, dtype=dtype, **options)

    checks = ["gradients", "full_jacobian", "causal", "streams", "finite", "state_dict_round_trip"]
    checks += [] if "learned_sink" in options else ["mask_rule", "padding_invariant"]
    check_variant(make, kind="token_mixer", claims=("causal", "streams"), checks=checks, examples=5)


def test_no_mask_hides_the_learned_sink() -> None:
    layer = AttentionSinks(8, heads=2, learned_sink=True)
    p = layer.weights(mt.tensor(np.ones((1, 3, 8), "float32")), mask=np.zeros((1, 1, 1, 3), dtype=bool))
    assert p.shape == (1, 2, 4, 4) and np.all(p.data[..., 0] == 1.0), "all weight must rest on the sink"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, "must divide"),
        ({"sinks": -1}, "0 or more"),
        ({"window": 0}, "1 or more"),
        ({"sinks": 0, "learned_sink": True}, "one of the sinks"),
    ],
)
def test_errors(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AttentionSinks(8, **options)

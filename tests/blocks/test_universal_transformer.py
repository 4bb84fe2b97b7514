"""Universal Transformer: places and steps, random starts, decoders, models, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.blocks.universal_transformer import UniversalTransformer
from minitf.nn import Case

CASE = Case(2, 5, 2, 4, seed=1)


def test_positions_may_be_given() -> None:
    block, x = UniversalTransformer(8, heads=2, steps=2, dtype="float64"), CASE.tokens()
    again = block(x, positions=np.broadcast_to(np.arange(5), (2, 5))).data
    assert np.array_equal(again, block(x).data)
    assert not np.allclose(block(x, positions=np.arange(5) + 3).data, again), "places are absolute"


def test_random_starts_act_in_training_only() -> None:
    block, x = UniversalTransformer(8, heads=2, steps=1, random_start=True, dtype="float64"), CASE.tokens()
    with pytest.raises(ValueError, match="generator"):
        block(x)
    starts = {int(block.places(x, None, np.random.default_rng(seed))[0]) for seed in range(60)}
    assert starts == set(range(5)), f"starts should be all of 0..4, not {starts}"
    plain = UniversalTransformer(8, heads=2, steps=1, dtype="float64")
    assert np.array_equal(block.eval()(x).data, plain(x).data)


def test_dropout_acts_on_every_step() -> None:
    block, x = UniversalTransformer(8, heads=2, steps=3, dropout=0.5, dtype="float64"), CASE.tokens()
    a, b = (block(x, rng=np.random.default_rng(0)).data for _ in range(2))
    assert np.array_equal(a, b) and not np.allclose(a, block.eval()(x).data)


def test_a_language_model_of_one_shared_block() -> None:
    config = mt.models.Config(
        vocab=11, context=8, dim=8, depth=1, heads=2, block="universal_transformer", position="none"
    )
    model = mt.models.LanguageModel(config, seed=0)
    tokens = np.random.default_rng(0).integers(0, 11, (2, 8))
    logits, state = model(tokens).data, model.start(2)
    for t in range(8):
        y, state = model.step(tokens[:, t], state)
        error = np.max(np.abs(y.data - logits[:, t]))
        assert error <= 1e-4, f"step {t} differs from the whole by {error:.2g} in float32"


def test_errors_say_what_to_do() -> None:
    for options, words in (
        ({"steps": 0}, "1 or more"),
        ({"layout": "peri"}, "'post' or 'pre'"),
        ({"encoding": "rope"}, "'sinusoidal' or 'learned'"),
    ):
        with pytest.raises(ValueError, match=words):
            UniversalTransformer(8, heads=2, **options)
    x = CASE.tokens().astype("float32")
    with pytest.raises(ValueError, match="context_dim"):
        UniversalTransformer(8, heads=2)(x, context=x)
    with pytest.raises(ValueError, match="context_dim"):
        UniversalTransformer(8, heads=2, context_dim=8)(x)

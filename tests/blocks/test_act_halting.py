"""Adaptive computation time: steps that differ between tokens, what halted tokens do, the loss, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.blocks.act_halting import ACTHalting, constant
from minitf.nn import Case

CASE = Case(2, 6, 2, 4, seed=3)


def layer_with_a_choosy_head(**options: object) -> ACTHalting:
    layer = ACTHalting(8, heads=2, max_steps=6, dtype="float64", **options)
    layer.halt.weight.data = 2.0 * np.random.default_rng(0).standard_normal((8, 1))
    layer.halt.bias.data = np.zeros(1)
    return layer


def test_tokens_take_different_numbers_of_steps() -> None:
    found = layer_with_a_choosy_head().ponder(CASE.tokens())
    n = found.steps.data
    assert n.min() < n.max() <= 6, f"steps should differ between tokens: {n}"
    assert len(found.weights) == n.max(), "the loop ends with the last token"


def test_starting_bias_halts_after_two_steps() -> None:
    layer = ACTHalting(8, heads=2, dtype="float64")
    assert layer.halt.bias.data == 1.0
    layer.halt.weight.data = np.zeros((8, 1))
    # sigmoid(1) = 0.73: not enough once, more than enough twice.
    found = layer.ponder(CASE.tokens())
    assert np.all(found.steps.data == 2.0)
    assert np.max(np.abs(found.remainders.data - (1.0 - 0.7310585786))) <= 1e-9


def test_halted_tokens_are_copied_or_evolve() -> None:
    x = CASE.tokens()
    copy, evolve = (layer_with_a_choosy_head(halted=h).ponder(x) for h in ("copy", "evolve"))
    early = copy.steps.data == copy.steps.data.min()
    last = int(copy.steps.data.min()) - 1
    for later in copy.states[last + 1 :]:
        assert np.array_equal(later.data[early], copy.states[last].data[early]), "copied states must not move"
    assert not np.array_equal(evolve.states[-1].data[early], evolve.states[last].data[early])


def test_tokens_that_never_halt_have_less_than_the_whole_weight() -> None:
    found = constant(ACTHalting(8, heads=2, max_steps=3, dtype="float64"), 0.2).ponder(CASE.tokens())
    assert np.all(found.steps.data == 3.0) and np.all(found.remainders.data == 0.0)
    total = sum(w.data for w in found.weights)
    assert np.max(np.abs(total - 0.6)) <= 1e-12


def test_a_model_adds_the_loss_of_pondering() -> None:
    config = mt.models.Config(
        vocab=11, context=8, dim=8, depth=1, heads=2, block="act_halting", dropout=0.1, position="none"
    )
    model = mt.models.LanguageModel(config, seed=0)
    tokens = np.random.default_rng(0).integers(0, 11, (2, 8))
    rng = np.random.default_rng(1)
    trained = model.loss(tokens, tokens, rng=rng)
    trained.backward()
    assert np.any(model.blocks[0].halt.weight.grad.data != 0.0)
    assert all(module.training for module in model.modules()), "the loss must leave the modes as they were"
    model.eval()
    block = model.blocks[0]
    extra = block.auxiliary_loss(model.embed(tokens)).item()
    assert 0.01 <= extra <= 0.09, f"between one step and eight, times 0.01, not {extra}"


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        ACTHalting(8, eps=0.0)
    with pytest.raises(ValueError, match="copy, evolve"):
        ACTHalting(8, halted="stop")
    with pytest.raises(ValueError, match="basic, accumulated"):
        ACTHalting(8, update="mean")
    layer = ACTHalting(8, scope="sequence")
    with pytest.raises(ValueError, match="scope='position'"):
        layer.step(mt.zeros((1, 8)), layer.start(1))

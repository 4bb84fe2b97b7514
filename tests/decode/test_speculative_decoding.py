"""Speculative decoding with real models: the same tokens as plain decoding, states cut back, errors."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.decode import generate
from minitf.decode.speculative_decoding import SpeculativeDecoding
from minitf.models import Config, LanguageModel

PROMPT = [1, 5, 2]


def model(seed: int, depth: int = 2, **options: object) -> LanguageModel:
    config = Config(vocab=7, context=40, dim=8, depth=depth, heads=2, **options)
    made = LanguageModel(config, seed=seed, dtype="float64").eval()
    # Sharper than at the start, so that models disagree.
    made.embedding.weight.data = made.embedding.weight.data * 40.0
    return made


@pytest.mark.parametrize(
    "options", [{}, {"attention": "gla", "position": "none"}], ids=["cache", "recurrent"]
)
@pytest.mark.parametrize("g", [0, 1, 3, 8])
def test_greedy_gives_the_tokens_of_plain_decoding(g: int, options: dict[str, str]) -> None:
    target, draft = model(0, **options), model(1, depth=1, **options)
    plain = list(generate(target, PROMPT, 30, temperature=0.0))
    found = SpeculativeDecoding(draft_length=g, temperature=0.0)(target, draft, PROMPT, 30)
    assert found.tokens.tolist() == plain, f"with g={g} the tokens differ from plain decoding"
    assert found.passes <= 30 and (g or found.passes == 30), (
        "every pass gives a token, and without drafts just one"
    )


def test_a_draft_model_that_is_the_target_is_always_accepted() -> None:
    target = model(0)
    for temperature in (0.0, 1.0):
        found = SpeculativeDecoding(draft_length=4, temperature=temperature)(target, target, PROMPT, 30)
        assert found.accepted == found.drafted == 24 and found.passes == 6, f"{found}"


def test_samples_are_those_of_the_target() -> None:
    target, draft = model(0), model(1, depth=1)
    state = target.prefill(np.array([PROMPT[:-1]]), target.start(1))[1]
    logits = target.step(np.array([PROMPT[-1]]), state)[0].data[0]
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    rng = np.random.default_rng(0)
    first = [
        int(SpeculativeDecoding(draft_length=1, seed=rng)(target, draft, PROMPT, 2).tokens[0])
        for _ in range(200)
    ]
    error = np.max(np.abs(np.bincount(first, minlength=7) / 200 - p))
    # Five standard errors of a share in 200 samples.
    assert error <= 5 * 0.5 / 200**0.5, f"shares of the first token differ from p by {error:.2g}"


def test_lenience_accepts_more() -> None:
    target, draft = model(0), model(1, depth=1)
    strict, loose = (
        SpeculativeDecoding(draft_length=4, lenience=lenience)(target, draft, PROMPT, 30)
        for lenience in (1.0, 0.01)
    )
    assert loose.accepted / loose.drafted > strict.accepted / strict.drafted


def test_errors() -> None:
    other = LanguageModel(Config(vocab=8, context=40, dim=8, depth=1, heads=2))
    with pytest.raises(ValueError, match="same tokens"):
        SpeculativeDecoding()(model(0), other, PROMPT, 3)
    with pytest.raises(ValueError, match="fit 40"):
        SpeculativeDecoding()(model(0), model(1), PROMPT, 38)
    with pytest.raises(ValueError, match="lenience"):
        SpeculativeDecoding(lenience=0.0)

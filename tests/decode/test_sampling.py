"""Sampling: which tokens remain, with which probabilities; seeds; generation past the context; errors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minitf as mt
from minitf.decode import generate, probabilities, sample_logits
from minitf.models import Config, LanguageModel

LOGS = np.log([0.1, 0.4, 0.2, 0.3])


def model_of(context: int = 8, **options) -> LanguageModel:
    model = LanguageModel(
        Config(vocab=11, context=context, dim=8, depth=2, heads=2, **options), dtype="float64"
    )
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.data = p.data + 0.5 * rng.standard_normal(p.shape)
    return model


def kept(p) -> list[int]:
    return np.flatnonzero(p).tolist()


# --------------------------------------------------------------------------------------- probabilities


def test_plain_softmax() -> None:
    assert np.max(np.abs(probabilities(LOGS) - [0.1, 0.4, 0.2, 0.3])) <= 1e-15
    expected = np.sqrt([0.1, 0.4, 0.2, 0.3])
    assert np.max(np.abs(probabilities(LOGS, temperature=2.0) - expected / expected.sum())) <= 1e-15


def test_temperature_zero_is_greedy_and_the_lower_id_wins() -> None:
    assert probabilities(LOGS, 0.0).tolist() == [0, 1, 0, 0]
    assert sample_logits(LOGS, 0.0) == 1
    assert sample_logits(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), 0.0).tolist() == [1, 0], (
        "the lower id wins a tie"
    )


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_top_k(k: int, expected: list[int]) -> None:
    p = probabilities(LOGS, top_k=k)
    whole = np.where(np.isin(np.arange(4), expected), [0.1, 0.4, 0.2, 0.3], 0.0)
    assert kept(p) == expected and np.max(np.abs(p - whole / whole.sum())) <= 1e-15, (
        f"top_k={k} kept {kept(p)}"
    )


def test_ties_at_the_edge_go_to_the_lower_id() -> None:
    assert kept(probabilities(np.array([0.0, 1.0, 1.0, 1.0]), top_k=2)) == [1, 2]
    assert kept(probabilities(np.zeros(5), top_k=3)) == [0, 1, 2]
    # Four equal tokens of 1/4 each: two reach one half.
    assert kept(probabilities(np.zeros(4), top_p=0.5)) == [0, 1]
    assert kept(probabilities(np.zeros(4), top_p=0.51)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1e-9, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.69, [1, 3]),
        (0.71, [1, 2, 3]),
        (0.91, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p(top_p: float, expected: list[int]) -> None:
    p = probabilities(LOGS, top_p=top_p)
    assert kept(p) == expected and abs(p.sum() - 1) <= 1e-15, f"top_p={top_p} kept {kept(p)}"


def test_top_p_of_exact_sums() -> None:
    """1/2, 1/4, 1/8, 1/8 are exact in binary: the set that reaches top_p exactly is enough."""
    logits = np.log([0.125, 0.5, 0.25, 0.125])
    assert kept(probabilities(logits, top_p=0.5)) == [1]
    assert kept(probabilities(logits, top_p=0.75)) == [1, 2]
    assert kept(probabilities(logits, top_p=0.875)) == [0, 1, 2], "of equal tokens the lower id stays"


def test_top_k_acts_before_top_p() -> None:
    # After top_k=2 the two left have 4/7 and 3/7.
    assert kept(probabilities(LOGS, top_k=2, top_p=0.57)) == [1]
    assert kept(probabilities(LOGS, top_k=2, top_p=0.58)) == [1, 3]


def test_top_p_of_one_keeps_what_rounding_would_drop() -> None:
    logits = np.array([0.0, -40.0, -50.0])
    assert kept(probabilities(logits, top_p=1.0)) == [0, 1, 2], "top_p=1 must keep every token"


@given(
    seed=st.integers(0, 999),
    v=st.integers(1, 9),
    top_k=st.none() | st.integers(1, 10),
    top_p=st.none() | st.floats(0.01, 1.0),
    temperature=st.floats(0.05, 5.0),
)
def test_against_a_loop(
    seed: int, v: int, top_k: int | None, top_p: float | None, temperature: float
) -> None:
    """The definition in words, on logits with many ties."""
    z = np.random.default_rng(seed).integers(-3, 3, v).astype(float)
    p = np.exp(z / temperature) / np.exp(z / temperature).sum()
    ranked = sorted(range(v), key=lambda i: (-z[i], i))[:top_k]
    total, stay = math.fsum(p[ranked]), []
    for i in ranked:
        if top_p is not None and top_p < 1.0 and stay and math.fsum(p[stay]) / total >= top_p - 1e-12:
            break
        stay.append(i)
    got = probabilities(z, temperature, top_k, top_p)
    edge = top_p is not None and any(
        abs(math.fsum(p[ranked[:n]]) / total - top_p) <= 1e-12 for n in range(1, v + 1)
    )
    if not edge:
        assert kept(got) == sorted(stay), f"kept {kept(got)}, expected {sorted(stay)} of {z}"
        assert np.max(np.abs(got[stay] - p[stay] / math.fsum(p[stay]))) <= 1e-12
    assert abs(got.sum() - 1) <= 1e-12


def test_batches_are_rows() -> None:
    z = np.random.default_rng(0).standard_normal((5, 7))
    for options in ({}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 0.0}):
        rows = np.stack([probabilities(row, **options) for row in z])
        assert np.array_equal(probabilities(z, **options), rows), f"{options}: a batch differs from its rows"


def test_inputs_are_not_changed() -> None:
    z = np.random.default_rng(0).standard_normal((5, 7))
    before = z.copy()
    sample_logits(z, 0.5, 3, 0.5, np.random.default_rng(0))
    assert np.array_equal(z, before), "the logits were changed"


def test_hidden_tokens_are_never_drawn() -> None:
    z = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf])
    rng = np.random.default_rng(0)
    assert {sample_logits(z, rng=rng) for _ in range(200)} == {1, 3}, "-inf means never"
    # Smallest numbers and a tiny temperature overflow to -inf, silently.
    assert kept(probabilities(np.array([0.0, -1.0]), temperature=1e-308)) == [0]


# ----------------------------------------------------------------------------------------------- draws


def test_frequencies() -> None:
    """20,000 draws: each frequency is within 4.5 standard deviations of its probability."""
    p = np.array([0.1, 0.4, 0.2, 0.3])
    drawn = sample_logits(np.tile(LOGS, (20_000, 1)), rng=np.random.default_rng(3))
    off = np.abs(np.bincount(drawn, minlength=4) / 20_000 - p) / np.sqrt(p * (1 - p) / 20_000)
    assert np.max(off) <= 4.5, f"frequencies are {off.round(1)} standard deviations off"


def test_seeds_and_types() -> None:
    z = np.random.default_rng(0).standard_normal((4, 50))
    one, same, other = (sample_logits(z, rng=np.random.default_rng(s)) for s in (1, 1, 2))
    assert (
        one.dtype == np.int64
        and one.shape == (4,)
        and np.array_equal(one, same)
        and not np.array_equal(one, other)
    )
    assert type(sample_logits(z[0], rng=np.random.default_rng(1))) is int
    as_tensor = sample_logits(
        mt.tensor(z.astype(np.float32), requires_grad=True), rng=np.random.default_rng(1)
    )
    assert np.array_equal(as_tensor, one), "tensors and float32 may be given"


class Last(np.random.Generator):
    """Draws the largest number below 1, always."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def random(self, size=None):
        return np.full(size, np.nextafter(1.0, 0.0))


def test_the_last_draw_is_a_possible_token() -> None:
    for z in (np.array([0.0, 0.0, -np.inf, -np.inf]), np.log([0.7, 0.2, 0.1]), np.array([0.0, -800.0])):
        token = sample_logits(z, rng=Last())
        assert probabilities(z)[token] > 0.0, f"token {token} of {z} is impossible"


# -------------------------------------------------------------------------------------------- generate


def by_hand(model, prompt, tokens: int, **options):
    """The same tokens without a cache: the whole window goes through the model each time."""
    rng, window = np.random.default_rng(options.pop("seed", 0)), list(prompt)[-model.config.context :]
    for _ in range(tokens):
        z = model(np.array([window])).data[0, -1]
        token = sample_logits(z, rng=rng, **options)
        yield token
        full = len(window) == model.config.context
        window.append(token)
        if full:
            window = window[-max(model.config.context // 2, 1) :]


@pytest.mark.parametrize("context", [1, 3, 8])
@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": 0.8, "top_k": 5}, {"top_p": 0.9, "seed": 4}]
)
def test_generation_through_the_cache(context: int, position: str, options: dict) -> None:
    model = model_of(context, position=position)
    for prompt in ([3], [1, 2, 3, 4, 5, 6, 7, 8], list(range(11))):
        got = list(generate(model, prompt, 20, **options))
        assert got == list(by_hand(model, prompt, 20, **options)), (
            f"context {context}, prompt {prompt}: other tokens"
        )
        assert len(got) == 20 and all(type(i) is int and 0 <= i < 11 for i in got)


def test_generation_is_reproducible_and_lazy() -> None:
    model = model_of()
    one, same, other = (list(generate(model, [1], 20, seed=s)) for s in (1, 1, 2))
    assert one == same and one != other, "the seed decides the tokens"
    assert list(itertools.islice(generate(model, np.array([1]), 10**12, seed=1), 20)) == one, (
        "tokens come one by one"
    )
    assert list(generate(model, [1], 0)) == []
    rng = np.random.default_rng(1)
    assert list(generate(model, [1], 20, seed=rng)) == one, "a generator may be given"


def test_generation_runs_the_model_once_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = model_of(context=8), []
    for name in ("step", "prefill"):
        plain = getattr(model, name)
        monkeypatch.setattr(model, name, lambda *a, name=name, plain=plain: calls.append(name) or plain(*a))
    list(generate(model, [1, 2], 12))
    # 2 read, 6 steps to the context of 8, then the last 4 again, 4 steps, ...; nothing after the last token.
    assert calls == ["prefill", *["step"] * 6, "prefill", *["step"] * 4]


def test_settings_are_checked_at_the_call() -> None:
    model = model_of()
    for options, words in (
        ({"temperature": -0.1}, r"temperature must be 0 .* not -0\.1"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"temperature": float("inf")}, "temperature must be"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\].*not 0\.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\]"),
        ({"top_p": float("nan")}, r"top_p must be in \(0, 1\]"),
        ({"top_k": 0}, "top_k must be an integer of at least 1"),
        ({"top_k": 2.5}, "top_k must be an integer of at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            sample_logits(LOGS, **options, rng=np.random.default_rng(0))
        with pytest.raises(ValueError, match=words):
            generate(model, [1], 3, **options)


def test_inputs_are_checked_at_the_call() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="at least one"):
        generate(model, [], 3)
    with pytest.raises(ValueError, match=r"integers \(n,\)"):
        generate(model, [[1, 2]], 3)
    with pytest.raises(ValueError, match="tokens must be an integer of at least 0, not -1"):
        generate(model, [1], -1)
    with pytest.raises(ValueError, match=r"0\.\.10, found 11"):
        generate(model, [11], 3)
    with pytest.raises(TypeError, match="must be integers"):
        generate(model, [1.5], 3)
    with pytest.raises(ValueError, match=r"needs a generator: rng="):
        sample_logits(LOGS)


def test_broken_logits() -> None:
    for z in ([0.0, np.nan], [0.0, np.inf], [-np.inf, -np.inf]):
        for temperature in (0.0, 1.0):
            with pytest.raises(ValueError, match="NaN or infinity"):
                sample_logits(np.array(z), temperature, rng=np.random.default_rng(0))

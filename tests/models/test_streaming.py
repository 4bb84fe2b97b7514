"""Streaming through a whole model: equal to the parallel form, functional, without gradients or dropout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minitf as mt
from tests.models.small import BLOCKS, POSITIONS, build, distance, tokens_of


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("tied", [True, False])
def test_streaming_equals_parallel(block: str, position: str, tied: bool) -> None:
    model, tokens = build(block=block, position=position, tied=tied, kv_heads=1), tokens_of()
    expected = model(tokens).data
    # Cut into pieces: 0 tokens read at once means token by token.
    for pieces in ([1] * 9, [9], [4, 1, 1, 3], [1, 8]):
        state, got = model.start(2), []
        assert isinstance(state, tuple) and state.length == 0
        at = 0
        for n in pieces:
            if n == 1:
                y, state = model.step(tokens[:, at], state)
                got.append(y.data[:, None])
            else:
                y, state = model.prefill(tokens[:, at : at + n], state)
                got.append(y.data)
            at += n
            assert state.length == at, "the state must count its tokens"
        error = distance(np.concatenate(got, axis=1), expected)
        assert error <= 1e-12, (
            f"{block}, {position}, pieces {pieces}: streaming differs from parallel by {error:.2g}"
        )


@given(
    cut=st.integers(1, 8),
    block=st.sampled_from(BLOCKS),
    position=st.sampled_from(POSITIONS),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_branches_of_one_state_do_not_disturb_each_other(
    cut: int, block: str, position: str, seed: int
) -> None:
    model, left = build(seed, block=block, position=position), tokens_of(seed)
    right = left.copy()
    right[:, cut:] = (right[:, cut:] + 5) % 13
    _, root = model.prefill(left[:, :cut], model.start(2))
    ends = {"left": (left, root, []), "right": (right, root, [])}
    for n in range(cut, 9):
        # In turns, so that each writes behind the other.
        for name, (tokens, state, rows) in ends.items():
            y, state = model.step(tokens[:, n], state)
            rows.append(y.data)
            ends[name] = (tokens, state, rows)
    for name, (tokens, _, rows) in ends.items():
        error = distance(np.stack(rows, axis=1), model(tokens).data[:, cut:])
        assert error <= 1e-12, (
            f"the {name} branch from token {cut} differs from the parallel form by {error:.2g}"
        )


def test_streaming_records_nothing_and_ignores_dropout() -> None:
    model, tokens = build(dropout=0.5), tokens_of()
    y, state = model.prefill(tokens[:, :4], model.start(2))
    z, _ = model.step(tokens[:, 4], state)
    assert not y.requires_grad and not z.requires_grad, "streaming must not build a graph"
    error = distance(z.data, model.eval()(tokens).data[:, 4])
    assert error <= 1e-12, f"streaming must not drop anything: it differs from evaluation mode by {error:.2g}"


def test_streaming_checks_the_batch() -> None:
    model = build()
    state = model.start(2)
    with pytest.raises(mt.ShapeError, match="started for 2 sequences"):
        model.prefill(tokens_of(batch=1), state)
    with pytest.raises(mt.ShapeError, match="started for 2 sequences"):
        model.step(np.array([1, 2, 3]), state)


def test_a_mixer_without_prefill_is_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = build(), tokens_of()
    expected, state = model.prefill(tokens, model.start(2))
    mixer = type(model.blocks[0].mixer)

    def step(self, x, state, prefill=mixer.prefill):
        y, state = prefill(self, x.reshape((x.shape[0], 1, x.shape[1])), state)
        return y[:, 0], state

    monkeypatch.setattr(mixer, "step", step)
    monkeypatch.delattr(mixer, "prefill")
    got, again = model.prefill(tokens, model.start(2))
    assert again.length == state.length == 9
    error = distance(got.data, expected.data)
    assert error <= 1e-12, f"prefill by single steps differs by {error:.2g}"


def test_a_mixer_that_cannot_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    monkeypatch.delattr(type(model.blocks[0].mixer), "step")
    with pytest.raises(ValueError, match=r"attention='softmax' does not stream"):
        model.start(2)

"""Reformer attention beyond the checks: gradients through many chunks, more rounds, options, what leaks."""

import numpy as np
import pytest

from minitf import Tensor
from minitf.attention.reformer_lsh import ReformerLSH, at, lsh_attention
from minitf.engine import ShapeError, check_grad
from minitf.nn import Case

CASE = Case(2, 13, 2, 4, 5)


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"same_bucket": True, "dedupe": True}, {"back": 0}]
)
def test_gradients_pass_through_chunks_and_rounds(options: dict) -> None:
    """The checks run one chunk only: here four, over which the order is a constant."""
    rng = CASE.rng()
    q, v = (rng.standard_normal((2, 2, 13, 4)) for _ in range(2))
    bucket, visible = rng.integers(0, 6, (2, 2, 3, 13)), rng.random((2, 13)) < 0.8
    check_grad(lambda a, b: lsh_attention(a, b, bucket, visible, 4, **options), q, v)


def test_more_rounds_lose_no_candidate() -> None:
    """Rotations of fewer rounds among those of more: the best key is found more often, never less."""
    rng, n, chunk = np.random.default_rng(0), 256, 8
    layer = ReformerLSH(16, heads=1, rounds=8, chunk=chunk, back=0, dtype="float64")
    q = Tensor(rng.standard_normal((1, 1, n, 16)))
    bucket = layer.buckets(q, np.ones((1, n), dtype=bool))
    unit = q.data[0, 0] / np.linalg.norm(q.data[0, 0], axis=-1, keepdims=True)
    cosine = unit @ unit.T - 2.0 * np.eye(n)
    best = cosine.argmax(axis=-1)[None, None]
    same = np.stack([bucket[:, :, r] == at(bucket[:, :, r], best) for r in range(8)])[:, 0, 0]
    recall = np.logical_or.accumulate(same).mean(axis=-1)
    assert np.all(np.diff(recall) >= 0.0) and recall[-1] >= 2 * recall[0], f"recall by rounds: {recall}"


def test_values_never_leak_but_the_choice_does() -> None:
    """Causal: a later value reaches no earlier token; a later bucket may move who looks at whom."""
    rng = np.random.default_rng(1)
    q, v = (Tensor(rng.standard_normal((1, 1, 12, 4))) for _ in range(2))
    bucket = rng.integers(0, 4, (1, 1, 1, 12))
    visible = np.ones((1, 12), dtype=bool)
    y = lsh_attention(q, v, bucket, visible, 2, causal=True).data
    other = Tensor(np.where(np.arange(12)[:, None] >= 7, -v.data, v.data))
    moved = lsh_attention(q, other, bucket, visible, 2, causal=True).data
    assert np.array_equal(moved[:, :, :7], y[:, :, :7]), "a later value moved an earlier output"
    bucket[..., 7:] = 3 - bucket[..., 7:]
    moved = lsh_attention(q, v, bucket, visible, 2, causal=True).data
    assert not np.array_equal(moved[:, :, :7], y[:, :, :7]), "the leak that the docstring names is gone"


def test_hidden_tokens_alone_give_zeros() -> None:
    q = Tensor(np.ones((1, 1, 5, 2)))
    y = lsh_attention(q, q, np.zeros((1, 1, 2, 5), dtype=int), np.zeros((1, 5), dtype=bool), 2)
    assert np.array_equal(y.data, np.zeros((1, 1, 5, 2))), "nothing is visible, but something is seen"


@pytest.mark.parametrize(
    "options", [{"heads": 3}, {"rounds": 0}, {"chunk": 0}, {"back": -1}, {"buckets": 5}, {"buckets": 0}]
)
def test_options_out_of_range(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ReformerLSH(8, **options)


def test_grids_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(B, N, D\)"):
        ReformerLSH(8)(Tensor(np.zeros((1, 2, 3, 8), dtype="float32")))

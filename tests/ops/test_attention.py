"""Softmax attention against loops over queries and keys, its gradients, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import minitf as mt
from minitf import ops
from minitf.engine import ShapeError, check_grad

RNG = np.random.default_rng(0)
Q, K, V = (RNG.standard_normal(shape) for shape in ((2, 4, 6, 3), (2, 2, 6, 3), (2, 2, 6, 5)))
SLOPES = np.array([1.0, 0.5, 0.25, -0.125])
CUTS = np.array([0, 2, 2, 5, 6])


def looped(q: Any, k: Any, v: Any, sees: Any, score: Any) -> tuple[Any, Any]:
    """o and lse one query at a time; sees(i, j) says what is visible, score(h, i, j, x) makes S of q . k."""
    o, lse = np.zeros((*q.shape[:3], v.shape[-1])), np.full(q.shape[:3], -np.inf)
    group = q.shape[1] // k.shape[1]
    for b, h, i in np.ndindex(*q.shape[:3]):
        seen = [j for j in range(k.shape[2]) if sees(i, j)]
        if seen:
            s = [score(h, i, j, q[b, h, i] @ k[b, h // group, j] / np.sqrt(q.shape[-1])) for j in seen]
            e = np.exp(s)
            o[b, h, i], lse[b, h, i] = e @ v[b, h // group, seen] / e.sum(), np.log(e.sum())
    return o, lse


def close(found: Any, expected: tuple[Any, Any], words: str) -> None:
    for name, a, b in zip(("o", "lse"), found, expected, strict=True):
        a = np.asarray(a)
        assert np.array_equal(np.isinf(a), np.isinf(b)), f"{words}: {name} is infinite elsewhere"
        finite = np.isfinite(b)
        error = np.max(np.abs(a[finite] - b[finite]), initial=0.0)
        assert error <= 1e-13, f"{words}: {name} differs from loops by {error:.1e}"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shift", [-2, 0, 3])
def test_windows(causal: bool, shift: int) -> None:
    """Query i stands at key i + (Nk - Nq); a causal window keeps the last keys, another both sides."""
    q = RNG.standard_normal((1, 2, 6 - min(shift, 0), 3))
    k = RNG.standard_normal((1, 2, 6 + max(shift, 0), 3))
    off = k.shape[2] - q.shape[2]
    for window in (1, 2, 4, 99):
        expected = looped(
            q,
            k,
            k,
            lambda i, j, w=window: abs(i + off - j) < w and not (causal and j > i + off),
            lambda h, i, j, x: x,
        )
        found = ops.attention_with_logsumexp(q, k, k, causal=causal, window=window)
        close(found, expected, f"window {window}, causal {causal}")
        assert np.array_equal(found[0], ops.softmax_attention(q, k, k, causal=causal, window=window))


def test_cap_bias_slopes_in_their_order() -> None:
    bias = RNG.standard_normal((4, 6, 6))
    expected = looped(
        Q, K, V, lambda i, j: True,
        lambda h, i, j, x: 2.0 * np.tanh(x / 2.0) + bias[h, i, j] - SLOPES[h] * abs(i - j),
    )  # fmt: skip
    close(ops.attention_with_logsumexp(Q, K, V, softcap=2.0, bias=bias, slopes=SLOPES), expected, "scores")


@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_are_the_sequences(causal: bool) -> None:
    packed = ops.attention_with_logsumexp(Q, K, V, causal=causal, cu_seqlens=CUTS)
    parts = [
        ops.attention_with_logsumexp(*(x[:, :, a:b] for x in (Q, K, V)), causal=causal)
        for a, b in itertools.pairwise(CUTS)
        if b > a
    ]
    close(packed, tuple(np.concatenate([np.asarray(p[n]) for p in parts], axis=2) for n in (0, 1)), "packed")


def test_pieces_of_the_keys_merge_by_their_logsumexp() -> None:
    whole, total = ops.attention_with_logsumexp(Q, K, V)
    o = 0.0
    for part in (slice(0, 2), slice(2, 6)):
        piece, lse = ops.attention_with_logsumexp(Q, K[:, :, part], V[:, :, part])
        o = o + piece * np.exp(lse - total)[..., None]
    assert np.max(np.abs(o - whole)) <= 1e-14


def test_gradients() -> None:
    mask = RNG.random((2, 1, 6, 6)) < 0.6
    mask[0, 0, 1] = False
    bias = RNG.standard_normal((4, 1, 6))

    def run(q: Any, k: Any, v: Any, bias: Any, slopes: Any) -> Any:
        o, lse = ops.attention_with_logsumexp(
            q,
            k,
            v,
            mask,
            causal=True,
            scale=0.7,
            bias=bias,
            window=4,
            softcap=1.5,
            slopes=slopes,
            cu_seqlens=CUTS,
        )
        return o.sum(axis=-1) + ops.where(np.isfinite(lse.numpy()), lse, 0.0) * 0.3

    check_grad(run, Q, K, V, bias, SLOPES)


def test_a_mask_and_a_rule() -> None:
    rule, mask = np.tri(3, dtype=bool), np.array([True, False, True])
    assert ops.joint_mask(None, None) is None and ops.joint_mask(None, rule) is rule
    assert ops.joint_mask(mask, None) is mask
    for given in (mask, mt.tensor(mask)):
        assert np.array_equal(ops.joint_mask(given, rule), mask & rule), "both must be true"


def test_a_row_that_sees_nothing() -> None:
    q, k = (mt.tensor(x, requires_grad=True) for x in (Q, K))
    o, lse = ops.attention_with_logsumexp(q, k, V, mask=np.zeros((6, 6), bool))
    assert np.all(o.numpy() == 0.0) and np.all(lse.numpy() == -np.inf)
    o.sum().backward()
    assert q.grad is not None and np.all(q.grad.numpy() == 0.0)


def test_scores_weights_and_logsumexp_take_the_same_options() -> None:
    options: dict[str, Any] = dict(causal=True, window=3, softcap=2.0, slopes=SLOPES, cu_seqlens=CUTS)
    s = ops.attention_scores(Q, K, **options)
    p, lse = ops.attention_weights(Q, K, **options), ops.attention_logsumexp(Q, K, **options)
    o, other = ops.attention_with_logsumexp(Q, K, V, **options)
    assert np.array_equal(lse, other) and np.array_equal(ops.apply_weights(p, V), o)
    assert np.max(np.abs(np.exp(s - lse[..., None]) - p)) <= 1e-15


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"window": 0}, ValueError, "window=0 must be at least 1"),
        ({"softcap": 0.0}, ValueError, r"softcap=0\.0 must be above 0"),
        ({"slopes": np.ones(3)}, ShapeError, r"slopes \(3,\) must be one for each head, \(4,\)"),
        ({"cu_seqlens": np.array([0, 5])}, ValueError, "rise from 0 to N = 6"),
        ({"cu_seqlens": np.array([0, 4, 3, 6])}, ValueError, "rise from 0 to N = 6"),
        ({"cu_seqlens": np.array([0.0, 6.0])}, ValueError, "must be integers"),
    ],
)
@pytest.mark.parametrize("mode", ["reference", "auto"])
def test_wrong_options_are_refused(options: Any, error: Any, words: str, mode: str) -> None:
    with mt.use(mode), pytest.raises(error, match=words):
        ops.softmax_attention(Q, K, V, **options)


def test_packing_needs_as_many_queries_as_keys() -> None:
    with pytest.raises(ShapeError, match="as many queries as keys, not 5 and 6"):
        ops.softmax_attention(Q[:, :, :5], K, V, cu_seqlens=CUTS)

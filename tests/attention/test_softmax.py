"""Softmax attention: the mask rule, grouped heads, cross-attention, the cache, dropout, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minitf as mt
from minitf.attention.softmax import SoftmaxAttention, online
from minitf.nn import Case


def naive(q, k, v, visible):
    """Loops over every query, in the words of the card."""
    b, h, nq, d = q.shape
    out = np.zeros((b, h, nq, v.shape[-1]))
    for i in np.ndindex(b, h, nq):
        kv = (i[0], i[1] * k.shape[1] // h)
        keys = [j for j in range(k.shape[2]) if visible[(*i, j)]]
        if keys:
            s = np.array([q[i] @ k[kv][j] for j in keys]) / math.sqrt(d)
            p = np.exp(s - s.max())
            out[i] = (p / p.sum()) @ v[kv][keys]
    return out


@given(
    nq=st.integers(1, 6),
    nk=st.integers(1, 6),
    groups=st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 2), (3, 3)]),
    causal=st.booleans(),
    seed=st.integers(0, 999),
)
def test_against_loops(nq: int, nk: int, groups: tuple[int, int], causal: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    h, hkv = groups
    q, k, v = (
        rng.standard_normal((2, h, nq, 3)),
        rng.standard_normal((2, hkv, nk, 3)),
        rng.standard_normal((2, hkv, nk, 5)),
    )
    mask = rng.random((2, h, nq, nk)) < 0.7
    visible = mask & (np.arange(nk) <= np.arange(nq)[:, None] + nk - nq) if causal else mask
    got = mt.ops.softmax_attention(mt.tensor(q), mt.tensor(k), mt.tensor(v), mask=mask, causal=causal).data
    error = np.max(np.abs(got - naive(q, k, v, visible)))
    assert error <= 1e-12, f"softmax_attention differs from the loops by {error:.2g}"


def test_empty_rows_give_zeros_and_zero_gradients() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (mt.tensor(rng.standard_normal((1, 2, 4, 3)), requires_grad=True) for _ in range(3))
    mask = np.ones((4, 4), dtype=bool)
    mask[2] = False
    y = mt.ops.softmax_attention(q, k, v, mask=mask)
    assert np.all(y.data[:, :, 2] == 0.0), "a query that sees nothing must give zeros"
    y[:, :, 2].sum().backward()
    for name, t in (("q", q), ("k", k), ("v", v)):
        assert np.all(t.grad.data == 0.0), f"the gradient of {name} from an empty row must be zero"


def test_masks_broadcast() -> None:
    x = Case(3, 5, 2, 4).tokens()
    layer = SoftmaxAttention(8, heads=2, causal=False, dtype="float64")
    padding = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=bool)
    y = layer(x, mask=padding[:, None, None, :])
    for i, n in enumerate((4, 2, 5)):
        error = np.max(np.abs(y.data[i, :n] - layer(x[i : i + 1, :n]).data[0]))
        assert error <= 1e-12, f"padding must be invisible: example {i} differs by {error:.2g}"
    full = np.broadcast_to(padding[:, None, None, :], (3, 2, 5, 5))
    assert np.array_equal(layer(x, mask=full).data, y.data), "a broadcast mask and the full one must agree"


def test_cross_attention_ignores_causal() -> None:
    x = Case(2, 3, 2, 4).tokens()
    context = mt.tensor(np.random.default_rng(1).standard_normal((2, 7, 6)))
    layer = SoftmaxAttention(8, heads=2, context_dim=6, dtype="float64")
    y = layer(x, context=context)
    assert y.shape == (2, 3, 8)
    q = mt.ops.split_heads(layer.wq(x), 2)
    k, v = mt.ops.split_heads(layer.wk(context), 2), mt.ops.split_heads(layer.wv(context), 2)
    expected = layer.wo(mt.ops.merge_heads(mt.ops.softmax_attention(q, k, v)))
    assert np.max(np.abs(y.data - expected.data)) <= 1e-12, "every token of the context must be visible"


def test_scale_and_bias() -> None:
    rng = np.random.default_rng(2)
    q, k, v = (mt.tensor(rng.standard_normal((1, 1, 3, 4))) for _ in range(3))
    bias = rng.standard_normal((3, 3))
    got = mt.ops.softmax_attention(q, k, v, scale=0.3, bias=bias).data
    s = q.data @ np.swapaxes(k.data, -1, -2) * 0.3 + bias
    p = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    assert np.max(np.abs(got - p @ v.data)) <= 1e-12


def test_online_form_stores_no_square() -> None:
    n = 256
    q = mt.tensor(np.random.default_rng(0).standard_normal((1, 1, n, 8)))
    with mt.profile() as p:
        online(q, q, q, np.ones((n, n), dtype=bool), tile=16)
    assert p.peak_bytes <= n * n * 8, f"the online form peaked at {p.peak_bytes} bytes, as much as P itself"


def test_dropout_acts_on_weights_in_training_only() -> None:
    x = Case(1, 6, 2, 4).tokens()
    layer = SoftmaxAttention(8, heads=2, dropout=0.5, dtype="float64")
    with pytest.raises(ValueError, match="generator"):
        layer(x)
    a = layer(x, rng=np.random.default_rng(0)).data
    b = layer(x, rng=np.random.default_rng(0)).data
    c = layer(x, rng=np.random.default_rng(1)).data
    assert np.array_equal(a, b) and not np.array_equal(a, c), "dropout must depend on the generator only"
    layer.eval()
    plain = SoftmaxAttention(8, heads=2, dtype="float64")
    assert np.array_equal(layer(x).data, plain(x).data), "in eval mode dropout must not act"


def test_cache_grows_and_branches() -> None:
    case = Case(2, 40, 2, 4)
    layer, x = SoftmaxAttention(8, heads=2, position="alibi", dtype="float64"), case.tokens()
    whole = layer(x).data
    state = layer.start(2)
    for t in range(case.t):
        y, state = layer.step(x[:, t], state)
        assert np.max(np.abs(y.data - whole[:, t])) <= 1e-12, f"step {t} differs from the parallel form"
    assert state.keys.shape[2] <= 2 * case.t, "the buffers must not grow beyond twice the tokens"
    # Two different continuations of one state.
    _, early = layer.prefill(x[:, :10], layer.start(2))
    first, _ = layer.step(x[:, 10], early)
    second, _ = layer.step(x[:, 11], early)
    again, _ = layer.step(x[:, 10], early)
    assert np.array_equal(first.data, again.data) and not np.array_equal(first.data, second.data)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="must divide dim"):
        SoftmaxAttention(10, heads=4)
    with pytest.raises(ValueError, match="must divide heads"):
        SoftmaxAttention(8, heads=4, kv_heads=3)
    with pytest.raises(ValueError, match="choose one of"):
        SoftmaxAttention(8, heads=4, position="ropes")
    with pytest.raises(mt.ShapeError, match=r"\(B, N, D\)"):
        SoftmaxAttention(8)(mt.zeros((3, 8)))
    with pytest.raises(ValueError, match="causal=True"):
        layer = SoftmaxAttention(8, causal=False)
        layer.step(mt.zeros((1, 8)), layer.start(1))
    q = mt.zeros((1, 3, 2, 4))
    with pytest.raises(mt.ShapeError, match="Hkv dividing H"):
        mt.ops.softmax_attention(q, mt.zeros((1, 2, 2, 4)), mt.zeros((1, 2, 2, 4)))


@pytest.mark.parametrize("length", [1, 2, 7])
def test_attention_of_float32_stays_close_to_float64(length: int) -> None:
    case = Case(2, length, 2, 8, seed=4)
    wide = SoftmaxAttention(16, heads=2, seed=1, dtype="float64")
    narrow = SoftmaxAttention(16, heads=2, seed=1, dtype="float32")
    x = case.tokens()
    error = np.max(np.abs(narrow(x.astype("float32")).data - wide(x).data))
    # Some ten operations of relative error 6e-8 on values of order one.
    assert error <= 2e-6, f"float32 differs from float64 by {error:.2g}"

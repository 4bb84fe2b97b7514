"""Operations that layers are made of: values from their equations, gradients, refusals, and documentation."""

import inspect
from typing import Any

import numpy as np
import pytest

from minitf import ops
from minitf.engine import ShapeError, check_grad, grad, tensor

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4))
W, B = RNG.standard_normal(4), RNG.standard_normal(4)


def test_norms() -> None:
    centred = X - X.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * W + B
    error = np.max(np.abs(ops.layer_norm(X, W, B) - expected))
    assert error <= 1e-14, f"layer_norm differs from its equation by {error:.1e}"
    expected = X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-6) * W
    error = np.max(np.abs(ops.rms_norm(X, W) - expected))
    assert error <= 1e-14, f"rms_norm differs from its equation by {error:.1e}"
    check_grad(ops.layer_norm, X, W, B)
    check_grad(ops.rms_norm, X, W)
    check_grad(lambda x: ops.rms_norm(ops.layer_norm(x)), X)


def test_norms_of_a_residual_sum() -> None:
    r = RNG.standard_normal(X.shape)
    for add, norm, weights in (
        (ops.add_layer_norm, ops.layer_norm, (W, B)),
        (ops.add_rms_norm, ops.rms_norm, (W,)),
    ):
        y, s = add(X, r, *weights)
        assert np.array_equal(s, X + r) and np.array_equal(y, norm(X + r, *weights)), norm.__name__
        check_grad(lambda *a, add=add: add(*a)[0], X, r, *weights)
        check_grad(lambda *a, add=add: ops.multiply(*add(*a)), X, r, *weights)


@pytest.mark.parametrize("correction", [0.0, 1.0])
def test_variance(correction: float) -> None:
    for name in ("var", "std"):
        value = getattr(ops, name)(X, axis=(0, 2), correction=correction, keepdims=True)
        expected = getattr(np, name)(X, axis=(0, 2), ddof=correction, keepdims=True)
        error = np.max(np.abs(value - expected))
        assert error <= 1e-14, f"{name} differs from NumPy by {error:.1e}"
        check_grad(lambda x, name=name: getattr(ops, name)(x, axis=-1, correction=correction), X)


def test_cross_entropy() -> None:
    targets = np.array([[0, 3, 2], [1, 1, 9]])
    p = np.exp(X) / np.exp(X).sum(-1, keepdims=True)
    kept = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    expected = -np.mean([np.log(p[i][targets[i]]) for i in kept])
    value = ops.cross_entropy(X, targets, ignore=9)
    assert abs(value - expected) <= 1e-14, f"cross_entropy {value}, by its equation {expected}"
    check_grad(lambda x: ops.cross_entropy(x, targets, ignore=9), X)
    nothing = np.full((2, 3), 9)
    assert ops.cross_entropy(X, nothing, ignore=9) == 0.0
    g = grad(lambda x: ops.cross_entropy(x, nothing, ignore=9))(X).numpy()
    assert np.array_equal(g, np.zeros_like(X)), "with every position ignored the gradient is zero"
    with pytest.raises(ShapeError, match=r"need targets \(2, 3\), not \(2,\)"):
        ops.cross_entropy(X, np.array([0, 1]))
    with pytest.raises(TypeError, match="integers, not float64"):
        ops.cross_entropy(X, np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"0\.\.3, found 0\.\.9"):
        ops.cross_entropy(X, targets)


def test_embedding_and_dropout() -> None:
    table = RNG.standard_normal((5, 2))
    assert np.array_equal(ops.embedding([[4, 0]], table), table[[[4, 0]]])
    with pytest.raises(ValueError, match=r"token ids must lie in 0\.\.4, found -1\.\.5"):
        ops.embedding(np.array([-1, 5]), table)
    with pytest.raises(TypeError, match="token ids must be integers"):
        ops.embedding(np.array([0.5]), table)
    x = np.ones((200, 200))
    y = ops.dropout(x, 0.25, np.random.default_rng(3))
    assert np.array_equal(np.unique(y), [0.0, 1 / 0.75])
    # 40000 draws: the mean of kept elements is 0.75 within 5 standard deviations of 0.0022.
    assert abs((y > 0).mean() - 0.75) <= 0.011, "dropout keeps another share than 1 - rate"
    assert np.array_equal(y, ops.dropout(x, 0.25, np.random.default_rng(3))), "one seed, one draw"
    assert ops.dropout(x, 0.0, np.random.default_rng(3)) is x
    with pytest.raises(ValueError, match="rate must be in"):
        ops.dropout(x, 1.0, np.random.default_rng(3))
    check_grad(lambda t: ops.dropout(t, 0.5, np.random.default_rng(3)), X)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention(kv_heads: int) -> None:
    q, k = RNG.standard_normal((2, 4, 3, 5)), RNG.standard_normal((2, kv_heads, 4, 5))
    v, bias = RNG.standard_normal((2, kv_heads, 4, 2)), RNG.standard_normal((4, 3, 4))
    mask = RNG.random((2, 1, 3, 4)) < 0.6
    mask[0, 0, 1] = False
    group = 4 // kv_heads
    expected = np.zeros((2, 4, 3, 2))
    for b, h, i in np.ndindex(2, 4, 3):
        seen = [j for j in range(4) if mask[b, 0, i, j] and j <= i + 1]
        s = np.array([q[b, h, i] @ k[b, h // group, j] * 0.3 + bias[h, i, j] for j in seen])
        p = np.exp(s) / np.exp(s).sum()
        expected[b, h, i] = p @ v[b, h // group, seen] if seen else 0.0
    options: Any = dict(mask=mask, causal=True, scale=0.3)
    y = ops.softmax_attention(q, k, v, bias=bias, **options)
    error = np.max(np.abs(y - expected))
    assert error <= 1e-14, f"softmax_attention differs from a loop over queries by {error:.1e}"
    check_grad(lambda *a: ops.softmax_attention(*a[:3], bias=a[3], **options), q, k, v, bias)
    total = np.exp(ops.attention_scores(q, k, bias=bias, **options)).sum(-1)
    error = np.max(np.abs(np.exp(ops.attention_logsumexp(q, k, bias=bias, **options)) - total) / (1 + total))
    assert error <= 1e-14, f"attention_logsumexp differs from the sum of the scores by {error:.1e}"


def test_attention_refuses_shapes_that_do_not_fit() -> None:
    q = np.ones((1, 4, 2, 3))
    with pytest.raises(ShapeError, match="Hkv dividing H"):
        ops.softmax_attention(q, np.ones((1, 3, 2, 3)), np.ones((1, 3, 2, 3)))
    with pytest.raises(ShapeError, match=r"v \(1, 4, 5, 3\)"):
        ops.softmax_attention(q, q, np.ones((1, 4, 5, 3)))


def test_heads_split_and_merge() -> None:
    x = RNG.standard_normal((2, 3, 8))
    heads = ops.split_heads(tensor(x), 4)
    assert heads.shape == (2, 4, 3, 2)
    assert np.array_equal(heads.numpy()[0, 1, 2], x[0, 2, 2:4]), "head h holds columns h*d to (h+1)*d"
    assert np.array_equal(ops.merge_heads(heads).numpy(), x)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rope(interleaved: bool) -> None:
    x = RNG.standard_normal((1, 2, 3, 4))
    places = np.array([0, 2, 5])
    y = ops.rope(x, places, base=100.0, interleaved=interleaved)
    for n, j in np.ndindex(3, 2):
        first, second = (2 * j, 2 * j + 1) if interleaved else (j, j + 2)
        turn = np.exp(1j * places[n] * 100.0 ** (-2 * j / 4))
        expected = (x[..., n, first] + 1j * x[..., n, second]) * turn
        error = np.max(np.abs(y[..., n, first] + 1j * y[..., n, second] - expected))
        assert error <= 1e-14, (
            f"rope differs from a complex rotation by {error:.1e} at position {n}, pair {j}"
        )
    batched = ops.rope(x, tensor(places[None]), base=100.0, interleaved=interleaved)
    assert np.array_equal(batched, y), "positions (B, N) and (N,) must agree"
    check_grad(lambda t: ops.rope(t, places, interleaved=interleaved), x)
    with pytest.raises(ShapeError, match="one number for each row"):
        ops.rope(x, [0, 1])


def test_creation() -> None:
    assert ops.zeros((2, 3)).dtype == ops.ones(2).dtype == ops.eye(2).dtype == np.float32
    assert ops.full((2,), 7.0, requires_grad=True).requires_grad
    assert np.array_equal(ops.arange(2, 8, 3).numpy(), [2, 5]) and np.array_equal(
        ops.arange(3).numpy(), [0, 1, 2]
    )
    assert np.array_equal(ops.linspace(0, 1, num=3, dtype="float64").numpy(), [0.0, 0.5, 1.0])
    assert (
        np.array_equal(ops.zeros_like(tensor([1, 2])).numpy(), [0, 0])
        and ops.ones_like(np.ones(2)).dtype == float
    )


def test_creation_beside_another() -> None:
    for like in (tensor([1.0], dtype="float64"), np.ones(3)):
        made = [
            ops.zeros(2, like=like),
            ops.ones(2, like=like),
            ops.full(2, 7.0, like=like),
            ops.eye(2, like=like),
        ]
        assert all(y.dtype == np.float64 and y.device == "cpu" for y in made), "they must have its dtype"
    assert ops.full(2, 7.0, like=np.ones(3)).numpy().tolist() == [7.0, 7.0]


def test_every_operation_is_documented_and_typed() -> None:
    for name in ops.__all__:
        operation = getattr(ops, name)
        assert inspect.getdoc(operation), f"ops.{name} has no docstring"
        signature = inspect.signature(operation)
        assert signature.return_annotation is not inspect.Signature.empty, f"ops.{name} has no return type"
        for p in signature.parameters.values():
            assert p.annotation is not inspect.Parameter.empty, f"ops.{name}: {p.name} has no type"

"""The scans against loops over the tokens: outputs, states, chunks, derivatives, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitf import ops
from minitf.engine import ShapeError, Tensor, check_grad
from minitf.ops.scans import inverse_of_unit_lower

SIZES = st.tuples(st.integers(1, 2), st.integers(1, 2), st.sampled_from([1, 2, 3, 5, 8, 16, 17, 33]))


def heads(sizes: tuple[int, int, int], seed: int, gates: str) -> tuple[Any, ...]:
    """q, k (B, H, N, 3), v (B, H, N, 4), g per head or channel or None, and a state (B, H, 3, 4)."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((*sizes, d)) for d in (3, 3, 4))
    g = -rng.exponential(size=(*sizes, {"head": 1, "channel": 3, "none": 1}[gates]))
    # Keys shorter than 1, with which the delta rule does not grow.
    k = k / np.sqrt(np.sum(k * k, axis=-1, keepdims=True))
    return q, k, v, None if gates == "none" else g, rng.standard_normal((*sizes[:2], 3, 4))


def steps(q: Any, k: Any, v: Any, beta: Any, g: Any, s: Any) -> tuple[Any, Any]:
    """Both matrix memories, token by token; beta None: what is written is v itself."""
    rows, s = [], s.copy()
    for t in range(q.shape[2]):
        decayed = s if g is None else np.exp(g[:, :, t])[..., None] * s
        value = v[:, :, t]
        if beta is not None:
            value = beta[:, :, t] * (value - np.einsum("bhi,bhij->bhj", k[:, :, t], decayed))
        s = decayed + k[:, :, t, :, None] * value[:, :, None, :]
        rows.append(np.einsum("bhi,bhij->bhj", q[:, :, t], s))
    return np.stack(rows, axis=2), s


def assert_equal(found: Any, expected: Any, words: str) -> None:
    for name, a, b in zip(("outputs", "last state"), found, expected):
        a = a.data if isinstance(a, Tensor) else a
        assert a.shape == b.shape, f"{words}: {name} of shape {a.shape}, expected {b.shape}"
        error = np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(b)))
        assert error <= 1e-12, f"{words}: {name} differ by {error:.2g}"


@given(sizes=SIZES, gates=st.sampled_from(["head", "channel"]), first=st.booleans(), seed=st.integers(0, 999))
def test_gated_scan_against_a_loop(sizes: Any, gates: str, first: bool, seed: int) -> None:
    q, k, v, g, state = heads(sizes, seed, gates)
    expected = steps(q, k, v, None, g, state if first else np.zeros_like(state))
    for chunk in (1, 2, 3, 16, sizes[2] + 5):
        given_state = Tensor(state) if first else None
        found = ops.gated_scan(*map(Tensor, (q, k, v, g)), given_state, chunk)
        assert_equal(found, expected, f"gated_scan with chunk={chunk}")


@given(
    sizes=SIZES,
    gates=st.sampled_from(["head", "channel", "none"]),
    first=st.booleans(),
    seed=st.integers(0, 999),
)
def test_delta_rule_against_a_loop(sizes: Any, gates: str, first: bool, seed: int) -> None:
    q, k, v, g, state = heads(sizes, seed, gates)
    # Up to 2: from forgetting nothing to turning the memory around.
    beta = np.random.default_rng([seed, 1]).uniform(0.0, 2.0, (*sizes, 1))
    expected = steps(q, k, v, beta, g, state if first else np.zeros_like(state))
    for chunk in (1, 2, 3, 16, sizes[2] + 5):
        decay = None if g is None else Tensor(g)
        given_state = Tensor(state) if first else None
        found = ops.delta_rule(*map(Tensor, (q, k, v, beta)), decay, given_state, chunk)
        assert_equal(found, expected, f"delta_rule with chunk={chunk}")


@given(
    n=st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16, 17, 31]),
    trailing=st.sampled_from([(), (2,), (2, 3)]),
    complex_=st.booleans(),
    fixed=st.booleans(),
    first=st.booleans(),
    seed=st.integers(0, 999),
)
def test_diagonal_scan_against_a_loop(
    n: int, trailing: Any, complex_: bool, fixed: bool, first: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Any:
        x = rng.uniform(-1.0, 1.0, shape)
        return x + 1j * rng.uniform(-1.0, 1.0, shape) if complex_ else x

    a, b, state = draw(*((1, 1) if fixed else (2, n)), *trailing), draw(2, n, *trailing), draw(2, *trailing)
    h, rows = state if first else np.zeros_like(state), []
    for t in range(n):
        h = a[:, 0 if fixed else t] * h + b[:, t]
        rows.append(h)
    found = ops.diagonal_scan(Tensor(a), Tensor(b), Tensor(state) if first else None)
    assert_equal([found], [np.stack(rows, axis=1)], "diagonal_scan")


def test_diagonal_scan_resets_and_keeps() -> None:
    b = np.random.default_rng(0).standard_normal((1, 9, 2))
    assert_equal([ops.diagonal_scan(Tensor(0.0 * b), Tensor(b))], [b], "a = 0 forgets everything")
    sums = np.cumsum(b, axis=1)
    assert_equal([ops.diagonal_scan(Tensor(0.0 * b + 1.0), Tensor(b))], [sums], "a = 1 sums")


@given(n=st.sampled_from([1, 2, 3, 8, 17]), first=st.booleans(), seed=st.integers(0, 999))
def test_selective_scan_against_a_loop(n: int, first: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    u, b, c = (rng.standard_normal((2, n, w)) for w in (3, 4, 4))
    dt, a = rng.exponential(size=(2, n, 3)), -rng.exponential(size=(3, 4))
    state = rng.standard_normal((2, 3, 4))
    x, rows = state if first else np.zeros_like(state), []
    for t in range(n):
        x = np.exp(dt[:, t, :, None] * a) * x + (dt[:, t] * u[:, t])[..., None] * b[:, t, None, :]
        rows.append(np.sum(x * c[:, t, None, :], axis=-1))
    for chunk in (1, 2, 5, n + 3):
        found = ops.selective_scan(*map(Tensor, (u, dt, a, b, c)), Tensor(state) if first else None, chunk)
        assert_equal(found, (np.stack(rows, axis=1), x), f"selective_scan with chunk={chunk}")


def test_inverse_of_unit_lower_for_every_size_and_large_elements() -> None:
    rng = np.random.default_rng(0)
    for n in range(1, 19):
        a = np.tril(2.0 * rng.standard_normal((3, n, n)), -1)
        found = inverse_of_unit_lower(Tensor(a)).data
        error = np.max(np.abs(found @ (a + np.eye(n)) - np.eye(n))) / np.max(np.abs(found))
        assert error <= 1e-13, (
            f"size {n}: the inverse times the matrix differs from the identity by {error:.2g}"
        )
        assert np.all(np.triu(found, 1) == 0.0), f"size {n}: elements above the diagonal are not exactly 0"


def soft(f: Callable[..., Any], gates: str) -> Callable[..., Any]:
    """f with gates of at most 0 from free numbers, and its keys made shorter than 1."""

    def run(q: Any, k: Any, v: Any, beta: Any, g: Any, state: Any) -> Any:
        k = k / ops.sqrt((k * k).sum(axis=-1, keepdims=True) + 1.0)
        decay = None if gates == "none" else -ops.softplus(g)
        return f(q, k, v, ops.sigmoid(beta), decay, state)

    return run


@pytest.mark.parametrize("gates", ["head", "channel", "none"])
def test_derivatives_of_matrix_memories(gates: str) -> None:
    sizes = (1, 2, 5)
    q, k, v, g, state = heads(sizes, 0, "head" if gates == "none" else gates)
    beta = np.random.default_rng(1).standard_normal((*sizes, 1))
    args = (q, k, v, beta, g, state)
    check_grad(soft(lambda q, k, v, beta, g, s: ops.delta_rule(q, k, v, beta, g, s, 2), gates), *args)
    if gates != "none":
        check_grad(soft(lambda q, k, v, _, g, s: ops.gated_scan(q, k, v, g, s, 2), gates), *args)


def test_derivatives_of_diagonal_memories() -> None:
    rng = np.random.default_rng(0)
    real, other = (rng.uniform(-1.0, 1.0, (2, 5, 3)) for _ in range(2))
    check_grad(lambda a, b, s: ops.diagonal_scan(a, b, s), real, other, real[:, 0])
    z = real + 1j * other
    check_grad(lambda a, b, s: ops.diagonal_scan(a, b, s), z[:1, :1], z, z[:, 0])
    u, b, c = (rng.standard_normal((2, 5, w)) for w in (3, 2, 2))
    dt, a, state = rng.standard_normal((2, 5, 3)), rng.standard_normal((3, 2)), rng.standard_normal((2, 3, 2))

    def scan(u: Any, dt: Any, a: Any, b: Any, c: Any, state: Any) -> Any:
        return ops.selective_scan(u, ops.softplus(dt), -ops.exp(a), b, c, state, 2)

    check_grad(scan, u, dt, a, b, c, state)


@pytest.mark.parametrize("gates", ["head", "channel"])
def test_strong_decay_stays_finite(gates: str) -> None:
    # exp(-G) alone would overflow.
    q, k, v, g, state = heads((1, 1, 20), 0, gates)
    beta = np.ones((1, 1, 20, 1))
    for found in (
        ops.gated_scan(*map(Tensor, (q, k, v, 300.0 * g, state))),
        ops.delta_rule(*map(Tensor, (q, k, v, beta, 300.0 * g, state))),
    ):
        assert np.all(np.isfinite(found[0].data)), "outputs under strong decay are not finite"


def test_outputs_do_not_depend_on_later_tokens_bit_by_bit() -> None:
    q, k, v, g, _ = (None if x is None else Tensor(x) for x in heads((1, 2, 20), 0, "head"))
    beta = Tensor(np.full((1, 2, 20, 1), 1.9))
    late = np.arange(20)[:, None] >= 7
    for f in (
        lambda k, v: ops.gated_scan(q, k, v, g)[0],
        lambda k, v: ops.delta_rule(q, k, v, beta, g)[0],
    ):
        one, two = f(k, v).data, f(ops.where(late, -3.0 * k, k), ops.where(late, 9.0, v)).data
        assert np.array_equal(one[:, :, :7], two[:, :, :7]), "later keys and values reach earlier outputs"


def test_errors_say_which_shapes_do_not_fit() -> None:
    x, one = Tensor(np.zeros((1, 2, 3, 4))), Tensor(np.zeros((1, 2, 3, 1)))
    short, wide = Tensor(np.zeros((1, 2, 2, 4))), Tensor(np.zeros((1, 2, 3, 2)))
    for bad in ((x, short, x, x), (x, x, short, x), (x, x, x, wide)):
        with pytest.raises(ShapeError, match=r"gated_scan.*must be"):
            ops.gated_scan(*bad)
    for bad in ((x, short, x, one), (x, x, short, one), (x, x, x, x), (x, x, x, one, wide)):
        with pytest.raises(ShapeError, match=r"delta_rule.*must be"):
            ops.delta_rule(*bad)
    u, a, b = Tensor(np.zeros((1, 3, 2))), Tensor(np.zeros((2, 4))), Tensor(np.zeros((1, 3, 4)))
    for bad in ((u, b, a, b, b), (u, u, b, b, b), (u, u, a, u, b), (u, u, a, b, u)):
        with pytest.raises(ShapeError, match=r"selective_scan.*must be"):
            ops.selective_scan(*bad)
    for bad in ((u, b), (b, u[:, 0]), (u, u, u)):
        with pytest.raises(ShapeError, match="diagonal_scan"):
            ops.diagonal_scan(*bad)
    for f, args in (
        (ops.gated_scan, (x, x, x, one)),
        (ops.delta_rule, (x, x, x, one)),
        (ops.selective_scan, (u, u, a, b, b)),
    ):
        with pytest.raises(ValueError, match="chunk must be at least 1, not 0"):
            f(*args, chunk=0)

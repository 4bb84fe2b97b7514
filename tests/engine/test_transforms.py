"""Functions of functions, up to third order, nested in the ways that could mix up which variable is which."""

import math
from typing import Any

import numpy as np
import pytest

from minitf import ops
from minitf.engine import (
    GraphError,
    Tensor,
    check_grad,
    checkpoint,
    grad,
    hvp,
    jacobian,
    tensor,
    value_and_grad,
    vjp,
)

RNG = np.random.default_rng(0)
A = RNG.standard_normal((3, 3))
X = RNG.standard_normal(3)


def test_grad_and_value() -> None:
    value, g = value_and_grad(lambda x: (x * x).sum())(X)
    assert value.item() == float((X * X).sum()) and np.array_equal(g.numpy(), 2 * X)
    assert not value.requires_grad and not g.requires_grad, (
        "a result outside any differentiation is a constant"
    )


def test_argnums() -> None:
    f = lambda a, b, c: (a * b * c).sum()  # noqa: E731
    one = grad(f, argnums=1)(X, 2.0, X)
    assert abs(one.item() - float(X @ X)) <= 1e-15 * 10
    pair = grad(f, argnums=(2, 0))(X, 2.0, X + 1)
    assert isinstance(pair, tuple) and np.array_equal(pair[0].numpy(), 2 * X)
    assert np.array_equal(pair[1].numpy(), 2 * (X + 1))
    assert np.array_equal(grad(f, argnums=-1)(X, 1.0, X).numpy(), X)
    with pytest.raises(GraphError, match="argnums=3, but the function was called with 3 arguments"):
        grad(f, argnums=3)(X, X, X)
    zero = grad(lambda a, b: (a * a).sum(), argnums=1)(tensor(X), X)
    assert np.array_equal(zero.numpy(), np.zeros(3)), "an argument that is not used has gradient zero"


def test_functions_that_do_not_fit() -> None:
    with pytest.raises(GraphError, match=r"returns a scalar tensor, not shape \(3,\); use mt\.jacobian"):
        grad(lambda x: x * 2.0)(X)
    with pytest.raises(GraphError, match="not float"):
        grad(lambda x: 1.0)(X)
    for name, call in (
        ("vjp", lambda f: vjp(f, X)),
        ("jacobian", lambda f: jacobian(f)(X)),
        ("checkpoint", lambda f: checkpoint(f)(X)),
    ):
        with pytest.raises(GraphError, match=f"{name} needs a function that returns one tensor, not tuple"):
            call(lambda x: (x, x))
    with pytest.raises(GraphError, match="jacobian needs a real function"):
        jacobian(ops.fft)(X)


def test_third_order() -> None:
    f = lambda x: ops.sin(x)  # noqa: E731
    third = grad(grad(grad(f)))(0.3).item()
    assert abs(third + math.cos(0.3)) <= 1e-15, f"sin''' = -cos, got {third}"
    check_grad(lambda x: ops.tanh(x) * ops.exp(x), X, order=3, tolerance=1e-5)
    check_grad(lambda a: ops.softmax(a @ a), A, order=3, tolerance=1e-5)


def test_perturbations_are_not_confused() -> None:
    # d/dx [x * d/dy (x + y)] = 1, not 2.
    assert grad(lambda x: x * grad(lambda y: x + y)(1.0))(1.0).item() == 1.0
    # d/dx [x * d/dy (x y^2) at y = x] = d/dx [2 x^3] = 6 x^2
    assert grad(lambda x: x * grad(lambda y: x * y * y)(x))(2.0).item() == 24.0
    # The same through vjp and jacobian, which differentiate inside too.
    inner = lambda x: grad(lambda y: (x * y * y).sum())(np.ones(3))  # noqa: E731
    assert np.array_equal(jacobian(inner)(X).numpy(), 2 * np.eye(3))
    assert np.array_equal(vjp(inner, X)[1](np.ones(3))[0].numpy(), 2 * np.ones(3))


def test_gradients_through_gradients_and_backward() -> None:
    x = tensor(X, requires_grad=True)
    slope = grad(lambda t: (t * t * t).sum())(x)
    slope.sum().backward()
    assert np.max(np.abs(x.grad.numpy() - 6 * X)) <= 1e-14, "grad of a tensor in a graph belongs to the graph"
    y = tensor(X, requires_grad=True)
    (y * y * y).sum().backward(create_graph=True)
    first = y.grad
    y.grad = None
    first.sum().backward()
    assert np.max(np.abs(y.grad.numpy() - 6 * X)) <= 1e-14, "backward(create_graph=True) can be walked again"


def test_vjp() -> None:
    y, pull = vjp(lambda a, x: a @ x, A, X)
    assert np.array_equal(y.numpy(), A @ X) and not y.requires_grad
    for _ in range(2):
        ga, gx = pull(X)
        assert np.max(np.abs(ga.numpy() - np.outer(X, X))) <= 1e-15
        assert np.max(np.abs(gx.numpy() - A.T @ X)) <= 1e-14


def test_jacobian() -> None:
    j = jacobian(lambda x: ops.tanh(ops.matmul(A, x)))(X)
    expected = (1 - np.tanh(A @ X) ** 2)[:, None] * A
    assert np.max(np.abs(j.numpy() - expected)) <= 1e-14
    h = jacobian(jacobian(lambda x: (x * x * x).sum()))(X)
    assert np.max(np.abs(h.numpy() - np.diag(6 * X))) <= 1e-14
    assert jacobian(lambda a, x: a @ x, argnums=0)(A, X).shape == (3, 3, 3)
    assert jacobian(lambda x: x[:0])(X).shape == (0, 3)


def test_hvp() -> None:
    f = lambda x: (ops.exp(x) * x).sum()  # noqa: E731
    v = RNG.standard_normal(3)
    expected = np.exp(X) * (X + 2) * v
    assert np.max(np.abs(hvp(f, X, v).numpy() - expected)) <= 1e-14
    assert np.max(np.abs(hvp(f, tensor(X), tensor(v)).numpy() - expected)) <= 1e-14


def layer(x: Any, w: Any) -> Tensor:
    return ops.tanh(ops.tanh(x @ w) @ w)


def test_checkpoint_gives_equal_gradients() -> None:
    w = tensor(A, requires_grad=True)

    def run(f: Any) -> tuple[np.ndarray, np.ndarray]:
        x = tensor(A.T, requires_grad=True)
        w.grad = None
        (f(f(x)) * X).sum().backward()
        return x.grad.numpy(), w.grad.numpy()

    # `w` is not an argument: it is found because the results depend on it.
    closed = lambda x: layer(x, w)  # noqa: E731
    for plain, saved in zip(run(closed), run(checkpoint(closed)), strict=True):
        assert np.max(np.abs(plain - saved)) <= 1e-15, "a checkpoint changed a gradient"


def test_checkpoint_to_second_order_and_inside_itself() -> None:
    check_grad(checkpoint(layer), A.T, A)
    check_grad(lambda x, w: checkpoint(lambda a: checkpoint(layer)(layer(a, w), w))(x), A.T, A)
    h = hvp(lambda x: checkpoint(lambda a: (ops.exp(a) * a).sum())(x), X, np.ones(3)).numpy()
    assert np.max(np.abs(h - np.exp(X) * (X + 2))) <= 1e-14


def test_checkpoint_rewinds_generators() -> None:
    x = tensor(np.ones(1000), requires_grad=True)
    rng = np.random.default_rng(5)
    y = checkpoint(lambda t, rng: ops.dropout(t, 0.5, rng))(x, rng=rng)
    after = rng.bit_generator.state
    y.sum().backward()
    assert np.array_equal(x.grad.numpy(), y.numpy()), "the second run must drop what the first dropped"
    assert rng.bit_generator.state == after, "the backward pass must leave the generator where it found it"


def test_checkpoint_of_constants() -> None:
    y = checkpoint(lambda x: x * 2.0)(tensor(X))
    assert not y.requires_grad and np.array_equal(y.numpy(), 2 * X)

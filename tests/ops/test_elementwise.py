"""The elementwise family: values against NumPy and math, shapes that broadcast, and the slopes at kinks."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes

from minitf import ops
from minitf.engine import Tensor, check_grad, grad, tensor

# Name -> (NumPy's function, the interval on which it is tested).
UNARY: dict[str, tuple[Any, float, float]] = {
    "negative": (np.negative, -2, 2),
    "reciprocal": (np.reciprocal, 0.5, 2),
    "square": (np.square, -2, 2),
    "sqrt": (np.sqrt, 0.5, 2),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 0.5, 2),
    "abs": (np.abs, -2, 2),
    "exp": (np.exp, -2, 2),
    "expm1": (np.expm1, -2, 2),
    "log": (np.log, 0.5, 2),
    "log1p": (np.log1p, -0.5, 2),
    "log2": (np.log2, 0.5, 2),
    "sin": (np.sin, -3, 3),
    "cos": (np.cos, -3, 3),
    "tan": (np.tan, -1, 1),
    "asin": (np.arcsin, -0.9, 0.9),
    "acos": (np.arccos, -0.9, 0.9),
    "atan": (np.arctan, -3, 3),
    "sinh": (np.sinh, -2, 2),
    "cosh": (np.cosh, -2, 2),
    "tanh": (np.tanh, -2, 2),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -4, 4),
    "softplus": (lambda x: np.log(1 + np.exp(x)), -4, 4),
    "relu": (lambda x: np.where(x > 0, x, 0), -2, 2),
    "erf": (np.vectorize(math.erf, otypes="d"), -4, 4),
    "gelu": (np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))), otypes="d"), -3, 3),
    "silu": (lambda x: x / (1 + np.exp(-x)), -3, 3),
}
BINARY: dict[str, tuple[Any, float, float]] = {
    "add": (np.add, -2, 2),
    "subtract": (np.subtract, -2, 2),
    "multiply": (np.multiply, -2, 2),
    "divide": (np.divide, 0.5, 2),
    "pow": (np.power, 0.5, 2),
    "maximum": (np.maximum, -2, 2),
    "minimum": (np.minimum, -2, 2),
    "logaddexp": (np.logaddexp, -2, 2),
    "atan2": (np.arctan2, 0.5, 2),
}
# Operations that give integers, booleans, or steps: constants to differentiation.
CONSTANT: dict[str, Any] = {
    "sign": np.sign, "floor": np.floor, "ceil": np.ceil, "round": np.round, "isfinite": np.isfinite,
    "isnan": np.isnan,
    "floor_divide": np.floor_divide, "remainder": np.remainder, "equal": np.equal, "not_equal": np.not_equal,
    "less": np.less, "less_equal": np.less_equal, "greater": np.greater, "greater_equal": np.greater_equal,
}  # fmt: skip


@given(
    name=st.sampled_from(sorted(UNARY)),
    shape=array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    seed=st.integers(0, 99),
)
def test_one_argument(name: str, shape: tuple[int, ...], seed: int) -> None:
    reference, low, high = UNARY[name]
    x = np.asarray(np.random.default_rng(seed).uniform(low, high, shape))
    agree(name, [x], reference)
    check_grad(getattr(ops, name), x)


@given(
    name=st.sampled_from(sorted(BINARY)),
    shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=4),
    seed=st.integers(0, 99),
)
def test_two_arguments(name: str, shapes: Any, seed: int) -> None:
    reference, low, high = BINARY[name]
    rng = np.random.default_rng(seed)
    a, b = (np.asarray(rng.uniform(low, high, shape)) for shape in shapes.input_shapes)
    agree(name, [a, b], reference)
    assert getattr(ops, name)(tensor(a), tensor(b)).shape == shapes.result_shape, (
        f"{name}: shape of the result"
    )
    check_grad(getattr(ops, name), a, b)


def agree(name: str, args: list[np.ndarray], reference: Any) -> None:
    """Tensors and plain arrays, in both precisions, give the reference's values."""
    exact = reference(*args)
    for dtype, tolerance in ((np.float64, 1e-14), (np.float32, 1e-6)):
        cast = [a.astype(dtype) for a in args]
        plain = getattr(ops, name)(*cast)
        assert not isinstance(plain, Tensor), f"{name}: plain arrays must give a plain array"
        wrapped = getattr(ops, name)(*map(tensor, cast))
        assert wrapped.dtype == dtype, f"{name}: {np.dtype(dtype)} became {wrapped.dtype}"
        for out in (np.asarray(plain), wrapped.numpy()):
            error = np.max(np.abs(out - exact) / np.maximum(1, np.abs(exact)), initial=0.0)
            assert error <= tolerance, (
                f"{name} differs from the reference by {error:.1e} in {np.dtype(dtype)}"
            )


@pytest.mark.parametrize("name", sorted(CONSTANT))
def test_steps_are_constants(name: str) -> None:
    args = [np.array([-1.5, 0.0, 2.5, 1.0]), np.array([1.0, 0.5, -2.0, 1.0])]
    args = (
        args[: 2 if name in ("floor_divide", "remainder") or CONSTANT[name].nin == 2 else 1]
        if name != "round"
        else args[:1]
    )
    out = getattr(ops, name)(*[tensor(a, requires_grad=True) for a in args])
    assert np.array_equal(out.numpy(), CONSTANT[name](*args)), f"{name} differs from NumPy"
    assert not out.requires_grad, f"{name} must be a constant to differentiation"


def test_logic() -> None:
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    for name in ("logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor"):
        out = getattr(ops, name)(tensor(a), b)
        assert np.array_equal(out.numpy(), getattr(np, name)(a, b)), f"{name} differs from NumPy"
    x, y = tensor(a), tensor(b)
    assert np.array_equal((x & y).numpy(), a & b)
    assert np.array_equal((a | y).numpy(), a | b)
    assert np.array_equal((x ^ b).numpy(), a ^ b)
    assert np.array_equal((~x).numpy(), ~a)
    assert np.array_equal(ops.logical_not(x).numpy(), ~a)
    assert np.array_equal((tensor([6, 5]) & 3).numpy(), [2, 1]), "& on integers works bit by bit, as in NumPy"


def test_integers_become_floats_where_they_must() -> None:
    for name in ("reciprocal", "erf", "sigmoid", "rsqrt", "exp"):
        x = np.array([1, 2])
        error = np.abs(getattr(ops, name)(x) - getattr(ops, name)(x.astype(float)))
        assert np.all(error <= 1e-15), f"{name} of integers differs from {name} of the same floats"


@pytest.mark.parametrize(
    ("name", "f", "x", "expected"),
    [
        ("relu at 0", ops.relu, [0.0], [0.0]),
        ("abs at 0", ops.abs, [0.0], [0.0]),
        ("complex abs at 0", ops.abs, [0.0j], [0.0]),
        ("maximum tie", lambda x: ops.maximum(x, 1.0), [1.0], [0.5]),
        ("minimum tie", lambda x: ops.minimum(1.0, x), [1.0], [0.5]),
        ("max shared", ops.max, [2.0, 1.0, 2.0], [0.5, 0.0, 0.5]),
        ("min shared", ops.min, [1.0, 1.0, 1.0], [1 / 3, 1 / 3, 1 / 3]),
        ("clip closed", lambda x: ops.clip(x, 0.0, 1.0), [-1.0, 0.0, 0.5, 1.0, 2.0],
        [0.0, 1.0, 1.0, 1.0, 0.0]),
        ("clip below", lambda x: ops.clip(x, min=0.0), [-1.0, 0.0, 9.0], [0.0, 1.0, 1.0]),
        ("pow at exponent 0", lambda x: x**0, [0.0, 2.0], [0.0, 0.0]),
        ("pow array exponent", lambda x: x ** np.array([0.0, 1.0, 2.0]), [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
        ("exponent of base 0", lambda x: np.array([0.0]) ** x, [2.0], [0.0]),
        ("max_pool tie", lambda x: ops.max_pool(x.reshape(1, 4, 1), 2), [1.0, 1.0, 0.0, 3.0],
        [0.5, 0.5, 0.0, 1.0]),
    ],
)  # fmt: skip
def test_slopes_at_kinks(name: str, f: Any, x: list[float], expected: list[float]) -> None:
    g = grad(lambda t: ops.sum(f(t)))(np.array(x)).numpy()
    assert np.array_equal(g, np.array(expected)), f"{name}: gradient {g}, documented {expected}"


def test_erf_to_the_last_places() -> None:
    x = np.concatenate([np.linspace(-7, 7, 4001), [0.0, -0.0, 0.46875, 1e-300, 30.0, np.inf, -np.inf]])
    exact = np.array([math.erf(v) for v in x])
    error = np.max(np.abs(ops.erf(x) - exact))
    assert error <= 4 * np.finfo(float).eps, f"erf differs from math.erf by {error:.1e}"
    assert np.isnan(ops.erf(np.array([np.nan]))).all()


def test_extremes_do_not_overflow() -> None:
    x = np.array([-1e4, -800.0, 0.0, 800.0, 1e4])
    assert np.array_equal(ops.sigmoid(x), [0.0, 0.0, 0.5, 1.0, 1.0])
    assert np.array_equal(ops.softplus(x), [0.0, 0.0, math.log(2.0), 800.0, 1e4])
    assert np.array_equal(ops.logaddexp(x, x), x + math.log(2.0))


def test_gelu_and_clip_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="'none' or 'tanh'"):
        ops.gelu(tensor([1.0]), approximate="fast")
    with pytest.raises(ValueError, match="min=2"):
        ops.clip(tensor([1.0]), 2, 1)
    check_grad(lambda x: ops.gelu(x, approximate="tanh"), np.array([-1.0, 0.3, 2.0]))

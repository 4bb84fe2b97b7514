"""Activations with a bias or as a gate: values from their equations, gradients, refusals."""

import math

import numpy as np
import pytest

from minitf import ops
from minitf.engine import check_grad, tensor
from minitf.nn.activations import ACTIVATIONS as NAMED
from minitf.ops.activations import ACTIVATIONS

RNG = np.random.default_rng(0)
X, U, B = RNG.standard_normal((2, 3, 4)), RNG.standard_normal((2, 3, 4)), RNG.standard_normal(4)

# One number through each, written with the standard library.
EQUATIONS = {
    "identity": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "gelu": lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "softplus": lambda x: math.log(1 + math.exp(x)),
}


def test_every_kind_has_an_equation_here_and_the_name_that_layers_use() -> None:
    assert set(EQUATIONS) == set(ACTIVATIONS) == set(NAMED)


@pytest.mark.parametrize("kind", sorted(EQUATIONS))
def test_values_and_gradients(kind: str) -> None:
    act = np.vectorize(EQUATIONS[kind])
    for name, value, expected in [
        ("with a bias", ops.bias_activation(X, B, kind), act(X + B)),
        ("without a bias", ops.bias_activation(X, kind=kind), act(X)),
        ("as a gate", ops.gated_activation(X, U, kind), act(X) * U),
        ("of one number", ops.bias_activation(tensor(0.5), kind=kind).numpy(), act(0.5)),
    ]:
        error = np.max(np.abs(value - expected))
        assert error <= 1e-14, f"{kind} {name} differs from its equation by {error:.1e}"
    check_grad(lambda x, b: ops.bias_activation(x, b, kind), X, B)
    check_grad(lambda x, u: ops.gated_activation(x, u, kind), X, U)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    for wrong in (lambda: ops.bias_activation(X, B, "swish"), lambda: ops.gated_activation(X, U, "swish")):
        with pytest.raises(ValueError, match="kind='swish'; choose one of: identity, relu"):
            wrong()

"""Activations of feed-forward networks, as one operation with the bias before or the product after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minitf.engine import Tensor

from .elementwise import Like, gelu, multiply, relu, sigmoid, silu, softplus, square, tanh
from .kernels import kernelized

# act by name. "relu2" is the squared ReLU of Primer (So et al., 2021).
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda x: x,
    "relu": relu,
    "relu2": lambda x: square(relu(x)),
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
    "silu": silu,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "softplus": softplus,
}


def activation(kind: str) -> Callable[[Any], Any]:
    """act by name, or ValueError."""
    if kind not in ACTIVATIONS:
        raise ValueError(f"unknown activation kind={kind!r}; choose one of: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[kind]


@kernelized("bias_activation")
def bias_activation(x: Like, bias: Like = None, kind: str = "gelu") -> Tensor:
    """y = act(x + b).

    Args:
        x: (..., F).
        bias: b, (F,) or None.
        kind: act: identity, relu, relu2 (its square), gelu, gelu_tanh, silu, sigmoid, tanh or
            softplus.

    Raises:
        ValueError: another `kind`.
    """
    return activation(kind)(x if bias is None else x + bias)


@kernelized("gated_activation")
def gated_activation(a: Like, b: Like, kind: str = "silu") -> Tensor:
    """y = act(a) * b, the hidden layer of gated networks (Shazeer, arXiv:2002.05202, 2020).

    Args:
        a: what passes through the activation, (..., F).
        b: what it gates, (..., F).
        kind: act: sigmoid is GLU, identity Bilinear, relu ReGLU, gelu or gelu_tanh GEGLU, silu SwiGLU; also
            relu2, tanh, softplus.

    Raises:
        ValueError: another `kind`.
    """
    return multiply(activation(kind)(a), b)

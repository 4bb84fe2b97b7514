"""Activations by name, for options such as `act="silu"`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minitf import ops
from minitf.engine import Tensor


def identity(x: Tensor) -> Tensor:
    """x."""
    return x


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU."""
    return ops.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """max(x, 0) squared (Primer, So et al., 2021)."""
    return ops.square(ops.relu(x))


ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "identity": identity,
    "relu": ops.relu,
    "relu2": relu2,
    "gelu": ops.gelu,
    "gelu_tanh": gelu_tanh,
    "silu": ops.silu,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "softplus": ops.softplus,
}


def activation(name: str) -> Callable[..., Any]:
    """The activation of that name.

    Raises:
        ValueError: unknown; the message lists what there is.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation act={name!r}; choose one of: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]

"""New tensors from nothing. They are constants until `requires_grad` is set."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.engine import Tensor

Shape = int | tuple[int, ...]


def zeros(shape: Shape, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
    """Zeros of the given shape."""
    return Tensor(np.zeros(shape, dtype=dtype), requires_grad)


def ones(shape: Shape, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
    """Ones of the given shape."""
    return Tensor(np.ones(shape, dtype=dtype), requires_grad)


def full(shape: Shape, fill_value: float, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
    """`fill_value` everywhere."""
    return Tensor(np.full(shape, fill_value, dtype=dtype), requires_grad)


def arange(start: float, stop: float | None = None, step: float = 1, dtype: Any = None) -> Tensor:
    """Numbers from `start` (or 0) up to but without `stop`."""
    return Tensor(
        np.arange(start, stop, step, dtype=dtype) if stop is not None else np.arange(start, dtype=dtype)
    )


def eye(n: int, dtype: Any = "float32") -> Tensor:
    """The identity matrix (n, n)."""
    return Tensor(np.eye(n, dtype=dtype))


def linspace(start: float, stop: float, num: int, dtype: Any = "float32") -> Tensor:
    """`num` numbers from `start` to `stop`, both included, evenly spaced."""
    return Tensor(np.linspace(start, stop, num, dtype=dtype))

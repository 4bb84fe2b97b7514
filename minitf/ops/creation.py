"""New tensors from nothing. They are constants until `requires_grad` is set.

`like`, where it can be given: a tensor or an array. What is made lives where it lives, in its dtype.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from minitf.engine import Tensor, array_module

Shape = int | tuple[int, ...]


def beside(like: Any, dtype: Any) -> tuple[ModuleType, Any]:
    """The library that makes arrays where `like` lives, and its dtype; NumPy and `dtype` where it is None."""
    if like is None:
        return np, dtype
    return array_module(like.data if isinstance(like, Tensor) else like), like.dtype


def zeros(shape: Shape, dtype: Any = "float32", requires_grad: bool = False, like: Any = None) -> Tensor:
    """Zeros of the given shape."""
    xp, dtype = beside(like, dtype)
    return Tensor(xp.zeros(shape, dtype=dtype), requires_grad)


def ones(shape: Shape, dtype: Any = "float32", requires_grad: bool = False, like: Any = None) -> Tensor:
    """Ones of the given shape."""
    xp, dtype = beside(like, dtype)
    return Tensor(xp.ones(shape, dtype=dtype), requires_grad)


def full(
    shape: Shape, fill_value: float, dtype: Any = "float32", requires_grad: bool = False, like: Any = None
) -> Tensor:
    """`fill_value` everywhere."""
    xp, dtype = beside(like, dtype)
    return Tensor(xp.full(shape, fill_value, dtype=dtype), requires_grad)


def arange(start: float, stop: float | None = None, step: float = 1, dtype: Any = None) -> Tensor:
    """Numbers from `start` (or 0) up to but without `stop`."""
    return Tensor(
        np.arange(start, stop, step, dtype=dtype) if stop is not None else np.arange(start, dtype=dtype)
    )


def eye(n: int, dtype: Any = "float32", like: Any = None) -> Tensor:
    """The identity matrix (n, n)."""
    xp, dtype = beside(like, dtype)
    return Tensor(xp.eye(n, dtype=dtype))


def linspace(start: float, stop: float, num: int, dtype: Any = "float32") -> Tensor:
    """`num` numbers from `start` to `stop`, both included, evenly spaced."""
    return Tensor(np.linspace(start, stop, num, dtype=dtype))

"""What a tensor shows to the outside: the types of its operators, and NumPy's protocols.

`array + tensor` is recorded like `tensor + array`. Any other NumPy function takes a tensor that needs no
gradient for its array, and refuses one that does, because the gradient would be lost without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .state import F

if TYPE_CHECKING:
    from .tape import Tensor

# The operation for each of NumPy's operators.
ARRAY_OPERATORS = {
    "add": "add",
    "subtract": "subtract",
    "multiply": "multiply",
    "divide": "divide",
    "floor_divide": "floor_divide",
    "remainder": "remainder",
    "power": "pow",
    "matmul": "matmul",
    "bitwise_and": "bitwise_and",
    "bitwise_or": "bitwise_or",
    "bitwise_xor": "bitwise_xor",
    "equal": "equal",
    "not_equal": "not_equal",
    "less": "less",
    "less_equal": "less_equal",
    "greater": "greater",
    "greater_equal": "greater_equal",
}


class Surface:
    """The base of `Tensor`. It has no state."""

    __slots__ = ()

    if TYPE_CHECKING:
        # `minitf.ops.methods` attaches the operators and methods: x + y, x[0], x.sum(axis=-1) and so on.
        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __iter__(self) -> Iterator[Tensor]: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __invert__(self) -> Tensor: ...

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "tensors are values and cannot be assigned into: build a new one with mt.ops.where or "
            "mt.ops.put_along_axis, or write to x.data before x is used"
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(without_tensors(self, "np.asarray"), dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        # `array + tensor` arrives here and is recorded like `tensor + array`.
        if method == "__call__" and not options and ufunc.__name__ in ARRAY_OPERATORS:
            return getattr(F, ARRAY_OPERATORS[ufunc.__name__])(*inputs)
        plain, options = without_tensors((inputs, options), f"np.{ufunc.__name__}")
        return getattr(ufunc, method)(*plain, **options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        args, options = without_tensors((args, options), f"np.{function.__name__}")
        return function(*args, **options)


def without_tensors(a: Any, caller: str) -> Any:
    """The arrays in place of the tensors inside `a`, for a NumPy function; refuses to cut a graph."""
    if isinstance(a, Surface):
        if a.requires_grad:
            raise TypeError(
                f"{caller} on a tensor that requires a gradient would cut the graph silently: use the "
                "function of mt.ops, or x.detach().numpy() for the plain array"
            )
        return a.numpy()
    if isinstance(a, dict):
        return {name: without_tensors(v, caller) for name, v in a.items()}
    return type(a)([without_tensors(v, caller) for v in a]) if type(a) in (list, tuple) else a

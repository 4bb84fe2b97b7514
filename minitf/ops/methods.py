"""Attaches operators and the common operations to `Tensor`: `x + y`, `x[0]`, `x.sum(axis=-1)`."""

from __future__ import annotations

from typing import Any

from minitf.engine import Tensor

from . import elementwise, indexing, linalg, reductions, shape

OPERATORS = {
    "add": elementwise.add,
    "sub": elementwise.subtract,
    "mul": elementwise.multiply,
    "truediv": elementwise.divide,
    "floordiv": elementwise.floor_divide,
    "mod": elementwise.remainder,
    "pow": elementwise.pow,
    "matmul": linalg.matmul,
    "and": elementwise.bitwise_and,
    "or": elementwise.bitwise_or,
    "xor": elementwise.bitwise_xor,
}
COMPARISONS = {
    "eq": elementwise.equal,
    "ne": elementwise.not_equal,
    "lt": elementwise.less,
    "le": elementwise.less_equal,
    "gt": elementwise.greater,
    "ge": elementwise.greater_equal,
}
METHODS = """
sum mean prod max min argmax argmin any all var std cumsum cumprod logsumexp softmax log_softmax reshape
permute_dims moveaxis matrix_transpose expand_dims squeeze broadcast_to flip roll repeat astype exp log sqrt
rsqrt square abs sin cos tanh sigmoid relu clip sort argsort topk tril triu take_along_axis
"""


def reflected(operation: Any) -> Any:
    def call(self: Tensor, other: Any) -> Tensor:
        return operation(other, self)

    return call


def reshape_method(self: Tensor, *shape_: Any) -> Tensor:
    """The same elements in another shape: x.reshape((2, 3)) or x.reshape(2, 3)."""
    return shape.reshape(self, shape_[0] if len(shape_) == 1 and isinstance(shape_[0], tuple) else shape_)


def attach() -> None:
    cls: Any = Tensor
    for name, operation in OPERATORS.items():
        setattr(cls, f"__{name}__", operation)
        setattr(cls, f"__r{name}__", reflected(operation))
    for name, operation in COMPARISONS.items():
        setattr(cls, f"__{name}__", operation)
    # Comparisons are elementwise; tensors are told apart by identity, in sets and as keys.
    cls.__hash__ = object.__hash__
    cls.__neg__ = elementwise.negative
    cls.__abs__ = elementwise.abs
    cls.__invert__ = elementwise.bitwise_invert
    cls.__getitem__ = indexing.get
    cls.__iter__ = lambda self: (self[i] for i in range(len(self)))
    for name in METHODS.split():
        for room in (elementwise, reductions, shape, indexing):
            if hasattr(room, name):
                setattr(cls, name, getattr(room, name))
                break
    cls.reshape = reshape_method
    cls.T = cls.mT = property(
        shape.matrix_transpose, doc="The last two axes swapped, for any number of axes."
    )


attach()

"""Turns functions of plain arrays into operations of the library."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from .arrays import fingerprint
from .rules import RULES
from .tape import NOT_ARRAYS, STATE, F, Op, Tensor, next_order, record

Body = TypeVar("Body", bound=Callable[..., Any])

# Every primitive by name: what the profiler prices and the tests draw from.
OPS: dict[str, Op] = {}

_no_options: dict[str, Any] = {}
_ndarray = np.ndarray


def primitive(body: Body) -> Body:
    """Make an operation of `body`, under its name, with the derivative that `RULES` has for that name.

    Given a tensor, the operation returns a tensor and records its recipe; given plain arrays only, it returns a
    plain array, so that rules can use it in an ordinary backward. Tensors are looked for among the positional
    arguments. An operation without a rule is a constant to differentiation.
    """
    op = Op(body.__name__, body, RULES.get(body.__name__))

    @functools.wraps(body)
    def operation(*args: Any, **options: Any) -> Any:
        for a in args:
            if isinstance(a, Tensor):
                return record(op, args, options)
        out = body(*args, **options)
        if STATE.watch is not None:
            STATE.watch(op.name, args, options, out)
        return out

    register(op, operation)
    return cast(Body, operation)


def ufunc_operation(ufunc: Callable[..., Any]) -> Callable[[Body], Body]:
    """Make an operation of a NumPy ufunc of one or two arguments; the decorated function gives name and text.

    Does what `primitive` does. Operators on small arrays spend their time here, so `record` is written out for
    two arguments instead of a loop.
    """

    def decorate(described: Body) -> Body:
        op = Op(described.__name__, ufunc, RULES.get(described.__name__))
        recordable = op.rule is not None

        @functools.wraps(described)
        def one(x: Any) -> Any:
            if not isinstance(x, Tensor) or STATE.watch is not None:
                return general(x)
            value = x.data
            out = ufunc(value)
            y = Tensor.__new__(Tensor)
            y.data = out = out if type(out) is _ndarray else np.asarray(out)
            y.grad = None
            if recordable and x.requires_grad and STATE.grad:
                seals = (fingerprint(value),) if x.recipe is None else None
                y.recipe = (op, (value,), _no_options, (x,), seals, fingerprint(out))
                y.requires_grad = True
                y.order = next_order()
            else:
                y.recipe = None
                y.requires_grad = False
                y.order = 0
            return y

        @functools.wraps(described)
        def two(a: Any, b: Any) -> Any:
            if isinstance(a, Tensor):
                va = a.data
                if isinstance(b, Tensor):
                    vb = b.data
                    plain = va.dtype is vb.dtype
                else:
                    vb = b
                    plain = type(b) in NOT_ARRAYS
            else:
                va = a
                plain = isinstance(b, Tensor) and type(a) in NOT_ARRAYS
                vb = b.data if plain else b
            # What needs a second look (arrays among tensors, mixed types, errors, watching) goes the general way.
            if not plain or STATE.watch is not None:
                return general(a, b)
            try:
                out = ufunc(va, vb)
            except ValueError:
                return general(a, b)
            y = Tensor.__new__(Tensor)
            y.data = out = out if type(out) is _ndarray else np.asarray(out)
            y.grad = None
            if recordable and STATE.grad:
                pa = a if va is not a and a.requires_grad else None
                pb = b if vb is not b and b.requires_grad else None
                if pa is not None or pb is not None:
                    seals = None
                    # The output of an operation was sealed where it was made.
                    leaf_a = va is not a and a.recipe is None
                    leaf_b = vb is not b and b.recipe is None
                    if leaf_a or leaf_b:
                        seals = (fingerprint(va) if leaf_a else None, fingerprint(vb) if leaf_b else None)
                    seal = out.tobytes() if out.nbytes <= 2048 else fingerprint(out)
                    y.recipe = (op, (va, vb), _no_options, (pa, pb), seals, seal)
                    y.requires_grad = True
                    y.order = next_order()
                    return y
            y.recipe = None
            y.requires_grad = False
            y.order = 0
            return y

        general = functools.wraps(described)(lambda *args: general_call(op, args))
        operation = one if described.__code__.co_argcount == 1 else two
        register(op, operation)
        return cast(Body, operation)

    return decorate


def general_call(op: Op, args: tuple[Any, ...]) -> Any:
    if any(isinstance(a, Tensor) for a in args):
        return record(op, args, _no_options)
    out = op.body(*args)
    if STATE.watch is not None:
        STATE.watch(op.name, args, _no_options, out)
    return out


def register(op: Op, operation: Callable[..., Any]) -> None:
    OPS[op.name] = op
    setattr(F, op.name, operation)

"""Turns functions of plain arrays into operations of the library."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from .arrays import SMALL, fingerprint
from .rules import RULES
from .state import STATE, F, Op
from .tape import NOT_ARRAYS, Tensor, next_order, record

Body = TypeVar("Body", bound=Callable[..., Any])

# Every primitive by name: what the profiler prices and the tests draw from.
OPS: dict[str, Op] = {}

no_options: dict[str, Any] = {}
# Names that the fast path looks up for every operation.
ndarray, generic, asarray, new = np.ndarray, np.generic, np.asarray, Tensor.__new__


def primitive(body: Body) -> Body:
    """Make an operation of `body`, under its name, with the derivative that `RULES` has for that name.

    Given a tensor, the operation returns a tensor and records its recipe; given plain arrays only, it returns
    a plain array, so that rules can use it in an ordinary backward. An operation without a rule is a constant
    to differentiation.
    """
    op = Op(body.__name__, body, RULES.get(body.__name__))
    signature = inspect.signature(body)

    @functools.wraps(body)
    def operation(*args: Any, **options: Any) -> Any:
        for a in options.values():
            if isinstance(a, Tensor):
                bound = signature.bind(*args, **options)
                bound.apply_defaults()
                args, options = bound.args, bound.kwargs
                break
        for a in args:
            if isinstance(a, Tensor):
                return record(op, args, options)
        out = body(*args, **options)
        if STATE.watch is not None:
            STATE.watch(op.name, args, options, out)
        return out

    register(op, operation)
    return cast(Body, operation)


def ufunc_operation(function: Callable[..., Any]) -> Callable[[Body], Body]:
    """Make an operation of a function of one or two arrays; the decorated function gives name and text.

    Does what `primitive` does. Operators on small arrays spend their time here, so `record` is written out
    for one and two arguments instead of a loop.
    """

    def decorate(described: Body) -> Body:
        op = Op(described.__name__, function, RULES.get(described.__name__))
        recordable = op.rule is not None

        def plainly(*args: Any) -> Any:
            out = function(*args)
            if STATE.watch is not None:
                STATE.watch(op.name, args, no_options, out)
            return out

        @functools.wraps(described)
        def one(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return plainly(x)
            if STATE.watch is not None:
                return record(op, (x,), no_options)
            value = x.data
            out = function(value)
            if type(out) is not ndarray and isinstance(out, generic):
                out = asarray(out)
            y = new(Tensor)
            y.data = out
            y.grad = None
            if recordable and x.requires_grad and STATE.grad:
                seals = ((value, fingerprint(value)),) if x.recipe is None else ()
                seal = out.tobytes() if type(out) is ndarray and out.nbytes <= SMALL else fingerprint(out)
                y.recipe = (op, (value,), no_options, (x,), seals, seal)
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
                    simple = va.dtype is vb.dtype
                else:
                    vb = b
                    simple = type(b) in NOT_ARRAYS
            elif isinstance(b, Tensor):
                va = a
                vb = b.data
                simple = type(a) in NOT_ARRAYS
            else:
                return plainly(a, b)
            # What needs a second look (arrays among tensors, mixed types, errors) goes the long way.
            if not simple or STATE.watch is not None:
                return record(op, (a, b), no_options)
            try:
                out = function(va, vb)
            except (ValueError, TypeError):
                return record(op, (a, b), no_options)
            if type(out) is not ndarray and isinstance(out, generic):
                out = asarray(out)
            y = new(Tensor)
            y.data = out
            y.grad = None
            if recordable and STATE.grad:
                pa = a if va is not a and a.requires_grad else None
                pb = b if vb is not b and b.requires_grad else None
                if pa is not None or pb is not None:
                    seals: tuple[Any, ...] = ()
                    if va is not a and a.recipe is None:
                        seals = ((va, fingerprint(va)),)
                    if vb is not b and b.recipe is None:
                        seals = (*seals, (vb, fingerprint(vb)))
                    seal = out.tobytes() if type(out) is ndarray and out.nbytes <= SMALL else fingerprint(out)
                    y.recipe = (op, (va, vb), no_options, (pa, pb), seals, seal)
                    y.requires_grad = True
                    y.order = next_order()
                    return y
            y.recipe = None
            y.requires_grad = False
            y.order = 0
            return y

        operation = one if described.__code__.co_argcount == 1 else two
        register(op, operation)
        return cast(Body, operation)

    return decorate


def register(op: Op, operation: Callable[..., Any]) -> None:
    OPS[op.name] = op
    setattr(F, op.name, operation)

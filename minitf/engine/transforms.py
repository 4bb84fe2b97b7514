"""Functions of functions: gradients, Jacobians, Hessian-vector products, checkpoints; modes of recording."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .arrays import array_module
from .errors import AnomalyError, GraphError
from .state import STATE, F, Op, Together
from .tape import Tensor, cotangent_for, next_order, record, tensor, walk

Function = Callable[..., Any]


@contextmanager
def no_grad() -> Iterator[None]:
    """Record no recipes inside: results are constants, and nothing is kept for a backward pass."""
    with _recording(False):
        yield


@contextmanager
def _recording(on: bool) -> Iterator[None]:
    before, STATE.grad = STATE.grad, on
    try:
        yield
    finally:
        STATE.grad = before


def stop_gradient(x: Tensor) -> Tensor:
    """x as a constant: the same values, and no gradient passes."""
    return x.detach() if isinstance(x, Tensor) else x


def _inputs(args: tuple[Any, ...], argnums: int | tuple[int, ...]) -> tuple[list[Any], list[Tensor], bool]:
    """Fresh tensors for the arguments to differentiate, and whether an outer differentiation is watching."""
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    full = list(args)
    chosen = []
    nested = False
    for i in positions:
        if not -len(args) <= i < len(args):
            raise GraphError(f"argnums={i}, but the function was called with {len(args)} arguments")
        a = full[i]
        if isinstance(a, Tensor) and a.requires_grad and STATE.grad:
            # A new name for the same value, so that this derivative is not mixed up with the outer one.
            nested = True
            full[i] = F.copy(a)
        else:
            data = a.data if isinstance(a, Tensor) else np.asarray(a)
            full[i] = tensor(data if data.dtype.kind in "fc" else data.astype(np.float64), requires_grad=True)
        chosen.append(full[i])
    return full, chosen, nested


# How many differentiations are in progress: inside another, gradients must themselves be differentiable.
_depth = 0


@contextmanager
def _differentiating() -> Iterator[None]:
    global _depth
    _depth += 1
    try:
        with _recording(True):
            yield
    finally:
        _depth -= 1


def _one_tensor(name: str, y: Any) -> Tensor:
    if not isinstance(y, Tensor):
        raise GraphError(f"{name} needs a function that returns one tensor, not {type(y).__name__}")
    return y


def value_and_grad(
    f: Function, argnums: int | tuple[int, ...] = 0, create_graph: bool | None = None
) -> Function:
    """Return a function that gives (f(*args), gradient of f with respect to the arguments `argnums`).

    Args:
        f: gives a scalar tensor from tensors or arrays.
        argnums: a position, or a tuple of positions for a tuple of gradients.
        create_graph: make the gradient differentiable. Default: where another differentiation is in progress.

    Raises:
        GraphError: f does not give a scalar, or a position does not exist.
    """

    def run(*args: Any, **options: Any) -> Any:
        full, chosen, nested = _inputs(args, argnums)
        create = (nested or _depth > 0) if create_graph is None else create_graph
        with _differentiating():
            y = f(*full, **options)
        if not isinstance(y, Tensor) or y.size != 1:
            what = f"shape {y.shape}" if isinstance(y, Tensor) else type(y).__name__
            raise GraphError(
                f"grad needs a function that returns a scalar tensor, not {what}; use mt.jacobian or mt.vjp"
            )
        grads = _walked(y, cotangent_for(y, None), chosen, create)
        return y if create else y.detach(), grads[0] if isinstance(argnums, int) else tuple(grads)

    return functools.wraps(f)(run)


def grad(f: Function, argnums: int | tuple[int, ...] = 0, create_graph: bool | None = None) -> Function:
    """Return the function that gives the gradient of the scalar function `f`; see `value_and_grad`."""
    both = value_and_grad(f, argnums, create_graph)
    return functools.wraps(f)(lambda *args, **options: both(*args, **options)[1])


def _walked(
    y: Tensor, g: Any, inputs: list[Tensor], create_graph: bool, retain: bool | None = None
) -> list[Tensor]:
    """Gradients of `y` with respect to `inputs` as tensors, zeros where nothing arrives."""
    found = walk([y], [g], inputs, create_graph, retain) if y.requires_grad else [None] * len(inputs)
    out = []
    for x, gx in zip(inputs, found, strict=True):
        if gx is None:
            gx = Tensor(array_module(x.data).zeros_like(x.data))
        else:
            # Copies: rules may hand the same array to two arguments, or a view of it.
            gx = F.copy(gx) if isinstance(gx, Tensor) else Tensor(array_module(gx).array(gx))
        out.append(F.conj(gx) if gx.dtype.kind == "c" else gx)
    return out


def vjp(f: Function, *args: Any) -> tuple[Tensor, Callable[[Any], tuple[Tensor, ...]]]:
    """Return (f(*args), pull), where pull(g) gives the gradients of <g, f> with respect to every argument.

    `pull` may be called many times. Its results are differentiable where `grad`'s are.

    Raises:
        GraphError: f does not give one tensor.
    """
    full, chosen, nested = _inputs(args, tuple(range(len(args))))
    with _differentiating():
        y = _one_tensor("vjp", f(*full))
    create = nested or _depth > 0

    def pull(g: Any) -> tuple[Tensor, ...]:
        return tuple(_walked(y, cotangent_for(y, g), chosen, create, retain=True))

    return (y if create else y.detach()), pull


def jacobian(f: Function, argnums: int = 0) -> Function:
    """Return the function that gives the Jacobian of `f`: shape f(x).shape + x.shape, one backward a row.

    Raises:
        GraphError: f does not give one tensor, or a complex one, which would need two rows for an element.
    """

    def run(*args: Any, **options: Any) -> Tensor:
        full, (x,), nested = _inputs(args, (argnums,))
        with _differentiating():
            y = _one_tensor("jacobian", f(*full, **options))
        if y.dtype.kind == "c":
            raise GraphError("jacobian needs a real function: take mt.ops.real and mt.ops.imag apart")
        create = nested or _depth > 0
        rows = []
        for i in range(y.size):
            g = np.zeros(y.size, dtype=y.dtype)
            g[i] = 1.0
            g = array_module(y.data).asarray(g.reshape(y.shape))
            rows.append(_walked(y, cotangent_for(y, g), [x], create, retain=True)[0])
        if not rows:
            return Tensor(np.zeros(y.shape + x.shape, dtype=x.dtype))
        return F.reshape(F.stack_parts(*rows), y.shape + x.shape)

    return functools.wraps(f)(run)


def hvp(f: Function, x: Any, v: Any) -> Tensor:
    """The Hessian of the scalar function `f` at `x`, times `v` (the shape of x), never formed as a matrix."""
    v = v.data if isinstance(v, Tensor) else np.asarray(v)
    slope = grad(f, create_graph=True)
    return grad(lambda a: F.sum(slope(a) * v))(x)


def checkpoint(f: Function) -> Function:
    """Return `f` with its intermediate results forgotten after the forward pass and made again in the walk.

    Saves memory for the time of one more forward pass. `f` gives one tensor. Tensors that `f` uses from
    outside (the parameters of a model) get their gradients too. Generators among the arguments are rewound
    for the second run.

    Raises:
        GraphError: f does not give one tensor.
    """

    def run(*args: Any, **options: Any) -> Tensor:
        if not STATE.grad:
            return f(*args, **options)
        generators = [a for a in (*args, *options.values()) if isinstance(a, np.random.Generator)]
        states = [copy.deepcopy(a.bit_generator.state) for a in generators]
        start = next_order()
        y = _one_tensor("checkpoint", f(*args, **options))
        outside = _outside(y, start)

        def again(needed: Any, g: Any, _: Any, *values: Any) -> list[Any]:
            now = [a.bit_generator.state for a in generators]
            for a, state in zip(generators, states, strict=True):
                a.bit_generator.state = copy.deepcopy(state)
            try:
                with _recording(True):
                    y2 = f(*args, **options)
            finally:
                for a, state in zip(generators, now, strict=True):
                    a.bit_generator.state = state
            return walk([y2], [g], outside, create_graph=STATE.grad)

        if not outside:
            return y
        # Only the array: `y` itself would keep every intermediate result alive.
        value = y.data
        return record(Op("checkpoint", lambda *_: value, Together(again)), outside, {})

    return functools.wraps(f)(run)


def _outside(y: Tensor, start: int) -> list[Tensor]:
    """The tensors that `y` depends on and that were there before `start`."""
    seen, stack, outside = {y}, [y], []
    while stack:
        t = stack.pop()
        # Later tensors have smaller numbers.
        if t.order > start:
            if t.requires_grad:
                outside.append(t)
            continue
        for a in t.recipe[3] if t.recipe else ():
            if a is not None and a not in seen:
                seen.add(a)
                stack.append(a)
    return outside


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Raise an AnomalyError that names the operation which first makes a NaN or an infinity.

    Covers the forward and the backward pass. Infinities that an operation was given do not count against it.
    Slow: every result is searched. Kernels step aside, so an anomaly that goes away was made by a kernel.
    """

    def watch(name: str, values: Any, options: Any, out: Any) -> None:
        for part in out if isinstance(out, tuple) else (out,):
            if getattr(part, "dtype", None) is None or part.dtype.kind not in "fc":
                continue
            nan, inf = bool(np.isnan(part).any()), bool(np.isinf(part).any())
            if nan or (inf and not any(_has_infinity(v) for v in values)):
                where = f"in the backward pass of {STATE.walking}, {name}" if STATE.walking else name
                shapes = [f"{v.shape} {v.dtype}" for v in values if hasattr(v, "dtype")]
                raise AnomalyError(
                    f"{where} made the first {'NaN' if nan else 'infinity'}, from arguments "
                    f"{', '.join(shapes)}; look at their values just before this operation"
                )
        if before is not None:
            before(name, values, options, out)

    before = STATE.watch
    STATE.watch = watch
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        STATE.watch = before


def _has_infinity(v: Any) -> bool:
    if isinstance(v, float):
        return np.isinf(v)
    return getattr(v, "dtype", None) is not None and v.dtype.kind in "fc" and bool(np.isinf(v).any())

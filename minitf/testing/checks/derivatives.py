"""Derivatives against central differences: along random directions, and one whole Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minitf.engine import Array, GradientError, Tensor, check_grad, jacobian
from minitf.nn import Case, Module, Parameter

from ..subject import Subject
from .core import check, difference, run


def as_function(subject: Subject, case: Case) -> tuple[Callable[..., Tensor], list[Array]]:
    """The call as a function of its inputs and of every parameter, and where to evaluate it."""
    layer, x = subject.layer(case), subject.inputs(case)
    # Parameters become arguments, moved off values such as 0 and 1 where a wrong derivative can hide.
    parameters = layer.parameters() if isinstance(layer, Module) else []
    place = {id(p): i for i, p in enumerate(parameters)}
    slots = [
        (module, key, place[id(value)])
        for module in (layer.modules() if parameters else ())
        for key, value in vars(module).items()
        if isinstance(value, Parameter)
    ]
    rng = case.rng()
    arrays = [p.data + 0.1 * rng.standard_normal(p.shape) for p in parameters]
    # What has no derivative, such as integer positions, stays as it is.
    smooth = [i for i, v in enumerate(x) if v.dtype.kind == "f"]

    def f(*args: Tensor) -> Tensor:
        inputs: list[Any] = list(x)
        for i, value in zip(smooth, args):
            inputs[i] = value
        for owner, key, i in slots:
            setattr(owner, key, args[len(smooth) + i])
        return run(layer, tuple(inputs))

    return f, [*(x[i].data for i in smooth), *arrays]


@check(share=0.15, small=True)
def gradients(subject: Subject, case: Case) -> None:
    """First and second derivatives of inputs and of every parameter match central differences."""
    f, arrays = as_function(subject, case)
    # A strongly curved function needs a shorter step; a wrong derivative agrees with none.
    for step in (1e-6, 1e-7, 1e-8):
        try:
            check_grad(f, *arrays, seed=case.seed, step=step, tolerance=1e-5)
            return
        except GradientError as error:
            wrong = error
    raise wrong


@check(share=0.0, small=True)
def full_jacobian(subject: Subject, case: Case) -> None:
    """At the smallest size every single derivative of the tokens matches: none can hide in a sum."""
    case = Case(1, min(case.t, 2), 1, subject.width or 2, case.seed, w=2)
    f, arrays = as_function(subject, case)
    x, rest = arrays[0], [Tensor(a) for a in arrays[1:]]
    exact = jacobian(lambda v: f(v, *rest))(Tensor(x)).data
    errors = []
    for step in (1e-6, 1e-7):
        columns = []
        for i in range(x.size):
            shift = np.zeros(x.size)
            shift[i] = step
            up, down = (f(Tensor(x + sign * shift.reshape(x.shape)), *rest).data for sign in (1, -1))
            columns.append((up - down) / (2 * step))
        numeric = np.stack(columns, axis=-1).reshape(exact.shape)
        errors.append(difference(exact, numeric))
        if errors[-1] <= 1e-5:
            return
    raise AssertionError(f"the Jacobian of the output by the tokens is off by {min(errors):.2g}")

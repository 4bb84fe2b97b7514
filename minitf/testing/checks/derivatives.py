"""Derivatives against central differences: along random directions, one by one, and a whole Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minitf.engine import Array, GradientError, Tensor, check_grad, jacobian
from minitf.nn import Case, Module, Parameter

from ..strategies import random_mask
from ..subject import Subject
from .core import MIXERS, check, difference, flat, run

# A strongly curved function needs a shorter step; a wrong derivative agrees with none.
STEPS = (1e-6, 1e-7, 1e-8)
# How many rows and columns of a Jacobian at most.
MOST = 64


def as_function(subject: Subject, case: Case) -> tuple[Callable[..., Tensor], list[Array], list[str]]:
    """The call as a function of its inputs and of every parameter, where to evaluate it, and their names."""
    layer, x = subject.layer(case), subject.inputs(case)
    # Parameters become arguments, moved off values such as 0 and 1 where a wrong derivative can hide.
    parameters = dict(layer.named_parameters()) if isinstance(layer, Module) else {}
    place = {id(p): i for i, p in enumerate(parameters.values())}
    slots = [
        (module, key, place[id(value)])
        for module in (layer.modules() if parameters else ())
        for key, value in vars(module).items()
        if isinstance(value, Parameter)
    ]
    rng = case.rng()
    arrays = [p.data + 0.1 * rng.standard_normal(p.shape) for p in parameters.values()]
    # What has no derivative, such as integer positions, stays as it is.
    smooth = [i for i, v in enumerate(x) if v.dtype.kind == "f"]
    options: dict[str, Any] = {}
    if subject.kind in MIXERS and subject.masks and case.seed % 2:
        b, n = x[0].shape[0], flat(subject, x[0]).shape[subject.axis]
        mask = random_mask(rng, b, n)
        options["mask"] = mask[:, :, :1] if "key_masks" in subject.claims else mask

    def f(*args: Any) -> Tensor:
        inputs: list[Any] = list(x)
        for i, value in zip(smooth, args):
            inputs[i] = value
        for owner, key, i in slots:
            setattr(owner, key, args[len(smooth) + i])
        return run(layer, tuple(inputs), **options)

    names = [*(f"input {i}" for i in smooth), *parameters]
    return f, [*(x[i].data for i in smooth), *arrays], names


@check(share=0.15, size="small")
def gradients(subject: Subject, case: Case) -> None:
    """Derivatives match central differences: to second order of all, to first of each input and parameter."""
    f, arrays, names = as_function(subject, case)
    for step in STEPS:
        try:
            check_grad(f, *arrays, seed=case.seed, step=step, tolerance=1e-5)
            break
        except GradientError as error:
            wrong = error
    else:
        raise wrong
    # Each alone, so that none hides behind larger ones.
    rng = np.random.default_rng([case.seed, 2])
    args = [Tensor(a, requires_grad=True) for a in arrays]
    y = f(*args)
    c = rng.standard_normal(y.shape)
    if y.requires_grad:
        y.backward(c)
    scale = max(1.0, float(np.sum(np.abs(c * y.data))))
    for i, name in enumerate(names):
        v = rng.standard_normal(arrays[i].shape)
        slope = args[i].grad
        exact = 0.0 if slope is None else float(np.sum(v * slope.data))
        errors = []
        for step in STEPS:
            ends = [[*arrays[:i], arrays[i] + sign * step * v, *arrays[i + 1 :]] for sign in (1, -1)]
            up, down = (float(np.sum(c * f(*map(Tensor, end)).data)) for end in ends)
            numeric = (up - down) / (2 * step)
            # Differences of values carry their rounding, divided by the step.
            errors.append(abs(exact - numeric) / (abs(numeric) + 1e-2 * scale))
            if errors[-1] <= 1e-5:
                break
        else:
            raise AssertionError(f"the gradient of {name} alone is off by {min(errors):.2g}")


@check(share=0.0, size="small")
def full_jacobian(subject: Subject, case: Case) -> None:
    """At a small size every single derivative of the tokens matches: none can hide in a sum."""
    case = Case(1, 3 if subject.axes == 1 else 2, 1, subject.width or 2, case.seed, w=2)
    f, arrays, _ = as_function(subject, case)
    x, rest = arrays[0], [Tensor(a) for a in arrays[1:]]
    y, rng = f(Tensor(x), *rest), case.rng()
    # All of them, or of a large output or input some.
    rows, columns = (np.sort(rng.permutation(size)[:MOST]) for size in (y.size, x.size))
    exact = jacobian(lambda v: f(v, *rest).reshape((-1,))[rows])(Tensor(x)).data
    exact = exact.reshape(len(rows), -1)[:, columns]
    errors = []
    for step in STEPS[:2]:
        numeric = np.empty(exact.shape)
        for k, i in enumerate(columns):
            shift = np.zeros(x.size)
            shift[i] = step
            up, down = (f(Tensor(x + sign * shift.reshape(x.shape)), *rest).data for sign in (1, -1))
            numeric[:, k] = ((up - down) / (2 * step)).reshape(-1)[rows]
        errors.append(difference(exact, numeric))
        if errors[-1] <= 1e-5:
            return
    raise AssertionError(f"the Jacobian of the output by the tokens is off by {min(errors):.2g}")

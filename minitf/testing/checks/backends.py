"""Whether the kernels of backends compute what the plain definitions do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array
from minitf.nn import Case, Module
from minitf.ops.kernels import BackendError

from ..strategies import hiding_row
from ..subject import Subject
from .contract import views
from .core import CALLED, ROUNDING, check, difference, flat, gradients_of, run, trainable


@contextmanager
def poisoned(xp: Any = np) -> Iterator[None]:
    """Let `empty` and `empty_like` of a library give NaN: whoever reads what it never wrote is found out."""
    names = ("empty", "empty_like")
    before = {name: getattr(xp, name) for name in names}

    def poisonous(make: Any) -> Any:
        def made(*args: Any, **options: Any) -> Array:
            a = make(*args, **options)
            if a.dtype.kind in "fc":
                a[...] = np.nan
            return a

        return made

    try:
        for name in names:
            setattr(xp, name, poisonous(before[name]))
        yield
    finally:
        for name in names:
            setattr(xp, name, before[name])


def has_kernels(subject: Subject) -> str:
    able = [name for name, module in ops.kernels.backends().items() if not module.unavailable()]
    return "" if able else "no backend can run here"


def results(subject: Subject, case: Case, dtype: str, mode: str) -> dict[str, Array]:
    """The output and every gradient, by name. Another call comes before the backward."""
    options: dict[str, Any] = {}
    if subject.masks and case.seed % 3:
        n = flat(subject, subject.inputs(case)[0]).shape[subject.axis]
        mask = hiding_row(case, n)[0]
        options["mask"] = mask[:, :, :1] if "key_masks" in subject.claims else mask
    with ops.kernels.use(mode), poisoned():
        layer = subject.layer(case, dtype)
        x = trainable(subject.inputs(case, dtype))
        if mode != "reference" and case.seed % 2:
            # Kernels are also handed views.
            which = case.seed // 2 % 3
            x = tuple(type(v)(views(v.data)[which][1], v.requires_grad) if v.ndim else v for v in x)
        y = run(layer, x, **options)
        run(layer, tuple(v * -0.5 if v.dtype.kind == "f" else v for v in x))
        found = {"the output": y.numpy()}
        for i, g in enumerate(gradients_of(y, x)):
            found[f"the gradient of input {i}"] = g
        for name, p in layer.named_parameters() if isinstance(layer, Module) else ():
            found[f"the gradient of {name}"] = np.zeros(p.shape) if p.grad is None else p.grad.numpy()
        return found


@check(kinds=CALLED, needs=has_kernels, share=0.1)
def kernels(subject: Subject, case: Case) -> None:
    """Kernels of any backend give the plain results in float64, and in float32 at most twice their error."""
    exact, plain = (results(subject, case, dtype, "reference") for dtype in ("float64", "float32"))
    able = [name for name, module in ops.kernels.backends().items() if not module.unavailable()]
    # Where one backend cannot take the arguments of some operation, "auto" lets the others run.
    for name in (*able, "auto"):
        try:
            fast, single = (results(subject, case, dtype, name) for dtype in ("float64", "float32"))
        except BackendError:
            continue
        again = results(subject, case, "float64", name)
        for what, b in exact.items():
            assert np.array_equal(again[what], fast[what]), f"{name}: {what} differs between two runs"
            error = difference(fast[what], b)
            assert error <= ROUNDING, f"{name}: {what} differs from the plain code by {error:.2g}"
            error, allowed = difference(single[what], b), difference(plain[what], b)
            # A result that the plain code happens to round perfectly still leaves the kernel a few roundings.
            allowed = 2 * allowed + 16 * float(np.finfo("float32").eps)
            assert error <= allowed, f"{name}: {what} in float32 is off by {error:.2g}, allowed {allowed:.2g}"

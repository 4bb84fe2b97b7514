"""Kernelized operations: one plain definition, and faster ways to compute it that backends may offer.

The decorated body is the definition. A backend is a module under the entry-point group `minitf.backends` with

    KERNELS: Mapping[str, Kernel]  operation name -> kernel
    unavailable() -> str | None    None, or a sentence saying why the backend cannot run here
    enter(), leave()               optional: called when `use` lets the backend compute, and when it stops
    update(optimiser)              optional: None, or the step of that class of optimiser in one pass:
                                   a function (what to update, options) -> what it leaves to the plain step

A kernel has three functions, which travel together:

    supports(*args) -> str | None          None, or a sentence saying why it cannot take these arguments
    forward(*args) -> (output, residuals)  on plain arrays, all arguments in the order of the definition
    vjp(residuals, g) -> tuple             the gradient of every argument, None for constants; for several
                                           outputs g is a list, None where nothing arrives

Derivatives of higher order, every case without a fitting kernel, and everything inside `profile` or
`detect_anomaly` go through the plain body.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar, cast

from minitf.engine import STATE, F, MinitfError, Op, Tensor, Together, record, vjp

Body = TypeVar("Body", bound=Callable[..., Any])


@dataclass(frozen=True)
class Kernel:
    """A fast way to compute one operation; see the module's text for the three functions."""

    forward: Callable[..., tuple[Any, Any]]
    vjp: Callable[[Any, Any], tuple[Any, ...]]
    supports: Callable[..., str | None]


class LazyKernels(Mapping[str, Kernel]):
    """The kernels of a package, each from a file that is imported when the kernel is first needed.

    Args:
        package: its import name. files: operation -> the module in it whose KERNELS has the kernel.
    """

    def __init__(self, package: str, files: Mapping[str, str]):
        self.package, self.files = package, files

    def __getitem__(self, name: str) -> Kernel:
        kernel: Kernel = import_module(f"{self.package}.{self.files[name]}").KERNELS[name]
        return kernel

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


class BackendError(MinitfError, RuntimeError):
    """A backend that was asked for by name and cannot run."""


# The plain definition and its parameter names, by operation.
DEFINITIONS: dict[str, tuple[Callable[..., Any], inspect.Signature]] = {}
# "reference", "auto", or the name of a backend. A plain global, so that a notebook cell sets it for the next.
_mode = "reference"
# Backends by name, and why others failed to import. Filled on first need.
_backends: dict[str, ModuleType] = {}
_failures: dict[str, str] = {}
_discovered = False
# By operation, the kernels that may run in this mode. Filled on first need.
_ready: dict[str, list[Op]] = {}


def kernelized(name: str) -> Callable[[Body], Body]:
    """Let backends offer kernels for the decorated operation under `name`. Its body stays the definition."""

    def decorate(body: Body) -> Body:
        signature = inspect.signature(body)
        DEFINITIONS[name] = (body, signature)
        defaults = tuple(p.default for p in signature.parameters.values())
        position = {key: i for i, key in enumerate(signature.parameters)}
        count, required = len(defaults), sum(d is inspect.Parameter.empty for d in defaults)

        def complete(args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            """All arguments in the order of the definition; None where the definition will complain."""
            n = len(args)
            if required <= n <= count and not options:
                return args + defaults[n:]
            given = [*args, *defaults[n:]]
            for key, value in options.items():
                i = position.get(key, -1)
                if i < n:
                    return None
                given[i] = value
            return None if n > count or any(a is inspect.Parameter.empty for a in given) else given

        @functools.wraps(body)
        def operation(*args: Any, **options: Any) -> Any:
            # No loop, list or call that the usual case can do without: choosing may cost 0.3 us.
            ready = _ready.get(name)
            if ready is None:
                ready = find_ready(name)
            # Whoever watches operations (`profile`, `detect_anomaly`) sees those of the definition.
            if not ready or STATE.watch is not None:
                return body(*args, **options)
            given: Any = args
            if options or len(args) != count:
                given = complete(args, options)
                if given is None:
                    return body(*args, **options)
            reasons: tuple[str, ...] = ()
            for op in ready:
                try:
                    if isinstance(given[0], Tensor) or any(isinstance(a, Tensor) for a in given):
                        return record(op, given, {"kept": []})
                    # Plain arrays give plain arrays, so that rules can use the operation in a backward.
                    return op.body(*given, kept=[])
                except Unfit as why:
                    reasons += (str(why),)
            if _mode != "auto":
                raise BackendError(
                    f"{name}: backend {_mode!r} was asked for and cannot run: {'; '.join(reasons)}"
                )
            return body(*args, **options)

        return cast(Body, operation)

    return decorate


class Unfit(Exception):
    """A kernel that does not take these arguments; the text says whose, and why."""


def operation_of(name: str, backend: str, kernel: Kernel) -> Op:
    """The kernel as one recorded operation. `kept` carries the residuals from forward to backward."""

    def forward(*values: Any, kept: list[Any]) -> Any:
        why = kernel.supports(*values)
        if why is not None:
            raise Unfit(f"{backend}: {why}")
        out, residuals = kernel.forward(*values)
        kept.append(residuals)
        return out

    def rule(needed: set[int], g: Any, y: Any, *values: Any, kept: list[Any]) -> Any:
        parts = g if isinstance(g, list) else [g]
        if not any(isinstance(part, Tensor) for part in parts):
            return kernel.vjp(kept[0], g)
        # A differentiable backward: differentiate the definition instead.
        body, order = DEFINITIONS[name][0], sorted(needed)
        arrived = [i for i, part in enumerate(parts) if part is not None]

        def plain(*chosen: Any) -> Any:
            full = list(values)
            for i, value in zip(order, chosen, strict=True):
                full[i] = value
            out = body(*full)
            return flat([out[i] for i in arrived]) if isinstance(out, tuple) else out

        _, pull = vjp(plain, *(values[i] for i in order))
        # Inside a walk a cotangent is the conjugate of what enters and leaves.
        pulled = pull(F.conj(flat([parts[i] for i in arrived]) if isinstance(g, list) else g))
        found = dict(zip(order, map(F.conj, pulled), strict=True))
        return [found.get(i) for i in range(len(values))]

    return Op(name, forward, Together(rule))


def flat(tensors: list[Any]) -> Any:
    """All elements in one vector."""
    rows = [F.reshape(t, (-1,)) for t in tensors]
    return rows[0] if len(rows) == 1 else F.concat_parts(*rows, axis=0)


def backends() -> dict[str, ModuleType]:
    """Every backend that imports, by name; discovered on first call."""
    global _discovered
    if not _discovered:
        _discovered = True
        # Imported here: it is slow, and most programs ask for no kernels.
        from importlib.metadata import entry_points

        for point in entry_points(group="minitf.backends"):
            if point.name not in _backends:
                try:
                    _backends[point.name] = point.load()
                except Exception as error:
                    _failures[point.name] = f"{type(error).__name__}: {error}"
    return _backends


def failures() -> dict[str, str]:
    """Why backends failed to import, by name."""
    backends()
    return dict(_failures)


def register_backend(name: str, module: Any) -> None:
    """Add a backend by hand, for tests and notebooks; packages use the entry-point group instead."""
    _backends[name] = module
    _ready.clear()


def unregister_backend(name: str) -> None:
    """Forget a backend that `register_backend` added."""
    _backends.pop(name, None)
    _ready.clear()


def find_ready(name: str) -> list[Op]:
    """The kernels that may run for the operation `name` in this mode, in the order of the backends."""
    found = [
        operation_of(name, backend, module.KERNELS[name])
        for backend, module in ({} if _mode == "reference" else backends()).items()
        if _mode in ("auto", backend) and name in module.KERNELS and module.unavailable() is None
    ]
    _ready[name] = found
    return found


def choose(name: str, args: tuple[Any, ...]) -> tuple[Kernel | None, list[str]]:
    """The kernel that would run, or None and every reason against."""
    reasons: list[str] = []
    plain = [a.data if isinstance(a, Tensor) else a for a in args]
    for backend, module in backends().items():
        if _mode not in ("auto", "reference", backend):
            continue
        why = module.unavailable() if name in module.KERNELS else f"no kernel for {name}"
        if why is None:
            kernel = module.KERNELS[name]
            why = kernel.supports(*plain)
            if why is None:
                return kernel, reasons
        reasons.append(f"{backend}: {why}")
    return None, reasons


class use:
    """Choose who computes the kernelized operations: `mt.use("auto")`, or `with mt.use("numba"): ...`.

    "reference" runs the plain definitions, "auto" the first kernel that fits, else the definition. The name
    of a backend means that backend only: where its kernel cannot run, the operation raises with the reasons.

    Raises:
        BackendError: no such backend, or one that cannot run here.
    """

    def __init__(self, mode: str):
        if mode not in ("reference", "auto"):
            known = backends()
            if mode not in known:
                failed = f"; it failed to import: {_failures[mode]}" if mode in _failures else ""
                names = ", ".join(["reference", "auto", *sorted(known)])
                raise BackendError(f"no backend {mode!r}{failed}. Choose one of: {names}")
            if why := known[mode].unavailable():
                raise BackendError(f"backend {mode!r} cannot run: {why}. `minitf doctor` says how to mend it")
        self.before = _mode
        switch(mode)

    def __enter__(self) -> use:
        return self

    def __exit__(self, *_: object) -> None:
        switch(self.before)


def switch(mode: str) -> None:
    """Make `mode` the active one. A backend learns that it is in use, or no longer."""
    global _mode
    before, _mode = engaged(_mode), mode
    _ready.clear()
    after = engaged(mode)
    for module in before:
        if module not in after and hasattr(module, "leave"):
            module.leave()
    for module in after:
        if module not in before and hasattr(module, "enter"):
            module.enter()


def engaged(mode: str) -> list[ModuleType]:
    """The backends that may compute in `mode`."""
    if mode == "reference":
        return []
    return [m for name, m in backends().items() if mode in ("auto", name) and m.unavailable() is None]


def active() -> str:
    """The mode that `use` set: "reference", "auto" or the name of a backend."""
    return _mode


def explain(operation: str, *args: Any, **options: Any) -> str:
    """Say in words which kernel would run for `operation` with these arguments, and why the others would not.

    Raises:
        KeyError: not a kernelized operation.
    """
    if operation not in DEFINITIONS:
        raise KeyError(
            f"{operation!r} is not a kernelized operation; these are: {', '.join(sorted(DEFINITIONS))}"
        )
    bound = DEFINITIONS[operation][1].bind(*args, **options)
    bound.apply_defaults()
    kernel, reasons = choose(operation, bound.args)
    reasons += [f"{name}: failed to import: {why}" for name, why in sorted(_failures.items())]
    if _mode == "reference":
        first = (
            f"{operation}: the plain definition runs, because the mode is 'reference' "
            "(mt.use('auto') lets kernels run)"
        )
    elif kernel is not None:
        owner = next(
            name
            for name, module in backends().items()
            if operation in module.KERNELS
            and module.unavailable() is None
            and module.KERNELS[operation] is kernel
        )
        first = f"{operation}: the kernel of {owner!r} runs"
    else:
        first = f"{operation}: the plain definition runs, because no kernel fits"
    return "\n".join([first, *(f"  {reason}" for reason in reasons)])

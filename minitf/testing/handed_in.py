"""What is handed in: how a name, class, instance, factory or function is built, named and imported."""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minitf.nn import Module
from minitf.registry import build

from .kinds import UsageError, known


def from_file(path: str, name: str) -> Any:
    """The object `name` of a Python file.

    Raises:
        UsageError: no such file, or nothing of that name in it.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise UsageError(f"there is no file {path}")
    module = sys.modules.get(file.stem)
    if module is None or getattr(module, "__file__", None) != str(file):
        # A file may be called as some installed module is: then it gets a name of its own.
        own = file.stem if file.stem not in sys.modules else f"minitf_checked_{file.stem}"
        spec = importlib.util.spec_from_file_location(own, file)
        if spec is None or spec.loader is None:
            raise UsageError(f"{path} is not a Python file")
        module = sys.modules[own] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    if not hasattr(module, name):
        known(f"name in {path}", name, [k for k, v in vars(module).items() if callable(v) and k[0] != "_"])
    return getattr(module, name)


def name_of(variant: Any) -> str:
    if isinstance(variant, str):
        return variant
    return getattr(variant, "__name__", type(variant).__name__)


def parameters_of(f: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(f).parameters)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{f!r} does not say which arguments it takes: wrap it in a function") from error


def inherited(cls: Any, method: str) -> dict[str, inspect.Parameter]:
    """The arguments of a method, with those that its `**options` hand on to the class above."""
    found: dict[str, inspect.Parameter] = {}
    for owner in cls.__mro__:
        if method in vars(owner) and owner is not Module:
            here = parameters_of(vars(owner)[method])
            found = {**here, **found}
            if not any(p.kind is p.VAR_KEYWORD for p in here.values()):
                break
    return found


def builder_of(variant: Any, cls: Any) -> tuple[Callable[..., Any], frozenset[str], int | None]:
    """How to build it, the keywords it takes, and its width where that is fixed."""
    if isinstance(variant, str):
        make: Any = functools.partial(build, variant)
        return make, frozenset({"dim", "heads", "seed", "dtype"}) | set(parameters_of(cls)), None
    if isinstance(variant, Module):
        return functools.partial(copy.deepcopy, variant), frozenset(), width_of(variant)
    if not callable(variant):
        raise UsageError(f"{variant!r} is neither a name, a class, an instance nor a factory")
    takes = parameters_of(variant)
    given = {"dim", "heads", "seed", "dtype", "grid", "context"}
    rest = [k for k, p in takes.items() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    needed = [k for k, p in takes.items() if p.default is p.empty and k not in {*given, *rest}]
    if needed:
        raise UsageError(
            f"{name_of(variant)} needs {', '.join(needed)}; a class or factory is called with dim, heads, "
            "seed and dtype, as far as it takes them. Wrap it: lambda dim, heads, seed: ..."
        )
    accepts = set(takes) | ({"dim", "heads", "seed", "dtype"} if rest else set())
    if isinstance(variant, type):
        accepts |= set(inherited(variant, "__init__"))
    width = None if "dim" in accepts else width_of(variant())
    return variant, frozenset(accepts), width


def width_of(layer: Any) -> int:
    """D of a layer that exists already."""
    sizes = [p.shape[0] for p in layer.parameters() if p.ndim] if isinstance(layer, Module) else []
    return int(getattr(layer, "dim", sizes[0] if sizes else 8))


def code_of(variant: Any) -> tuple[str, str]:
    """The line that a reader needs first, and the expression for the variant."""
    if variant is None or isinstance(variant, str):
        return "import minitf as mt", repr(variant)
    name, module = getattr(variant, "__qualname__", ""), getattr(variant, "__module__", "__main__")
    if name.isidentifier() and module != "__main__":
        return f"from {module} import {name}", name
    shown = name if name.isidentifier() else "variant"
    return f"# {shown}: the {type(variant).__name__} that was checked", shown

"""What the pages about the API tell: the public packages and their names."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .docstrings import Block, Text, blocks

# The public packages, in the order of the page about the API. An object is described where it comes first.
PACKAGES = (
    "minitf", "minitf.ops", "minitf.nn", "minitf.nn.init", "minitf.models", "minitf.tasks", "minitf.train",
    "minitf.decode", "minitf.testing", "minitf.testing.checks", "minitf.viz", "minitf.catalogue",
    "minitf.course", "minitf.engine",
)  # fmt: skip


@dataclass(frozen=True)
class Public:
    """A public name of a package. kind: "class", "function" or "data". home: where it is described."""

    name: str
    kind: str
    summary: str
    home: str
    value: Any


@dataclass(frozen=True)
class Package:
    """A public package: its docstring, and its public names in their order."""

    name: str
    doc: list[Block]
    names: tuple[Public, ...]
    # Packages and modules among its names.
    rooms: tuple[str, ...]

    @property
    def own(self) -> tuple[Public, ...]:
        """The names that are described here."""
        return tuple(public for public in self.names if public.home == self.name)


def packages() -> list[Package]:
    """The public packages. What several of them export is described by the first."""
    homes: dict[int, str] = {}
    found = []
    for name in PACKAGES:
        module = importlib.import_module(name)
        values = {key: getattr(module, key) for key in public_names(module)}
        rooms = tuple(key for key, value in values.items() if isinstance(value, ModuleType))
        names = []
        for key, value in values.items():
            if key in rooms:
                continue
            kind = "class" if inspect.isclass(value) else "function" if callable(value) else "data"
            # Small numbers and the like are one object wherever they are.
            home = homes.setdefault(id(value), name) if kind != "data" else name
            doc = (inspect.getdoc(value) or "") if kind != "data" else ""
            first = next((b.words for b in blocks(doc) if isinstance(b, Text)), f"A {type(value).__name__}.")
            names.append(Public(key, kind, first, home, value))
        found.append(Package(name, blocks(module.__doc__ or ""), tuple(names), rooms))
    return found


def public_names(module: ModuleType) -> list[str]:
    """What `__all__` lists, or else the functions and classes that the module defines itself."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    return [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", "") == module.__name__ and callable(value)
    ]

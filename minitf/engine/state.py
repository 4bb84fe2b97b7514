"""What the whole engine shares: what an operation is, the operations by name, and the mode of recording."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

# The operations by name, filled by `minitf.ops`. Rules look operations up here, so the engine imports nothing
# that stands on it.
F: Any = SimpleNamespace()

# grad: whether recipes are recorded. walking: name of the operation whose rule is running, else None.
# watch: None, or called as watch(name, values, options, output) after every operation.
STATE = SimpleNamespace(grad=True, walking=None, watch=None)


class Op:
    """One operation: its name, its body on plain arrays, and its rule from the table (None: a constant)."""

    __slots__ = ("body", "name", "rule")

    def __init__(self, name: str, body: Callable[..., Any], rule: Any = None):
        self.name, self.body, self.rule = name, body, rule


class Each(NamedTuple):
    """A rule for any number of arguments, called as rule(i, g, y, *arguments) for each argument i in need."""

    rule: Callable[..., Any]


class Together(NamedTuple):
    """A rule that gives all gradients at once, as a tuple: rule(needed, g, y, *arguments).

    `needed` is the set of positions that want a gradient. If the operation has several outputs, `g` is a
    list, `y` a tuple, and g[i] is None for an output that nothing depends on.
    """

    rule: Callable[..., Any]

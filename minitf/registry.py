"""Finds variants by name and builds them, importing a variant's file only when it is asked for."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from minitf.engine import MinitfError
from minitf.nn import Module

INDEX_FILE = Path(__file__).parent / "catalogue" / "_index.json"


class UnknownVariantError(MinitfError, LookupError):
    """A name that no variant has."""


@functools.cache
def index() -> dict[str, dict[str, Any]]:
    """The cards of all variants by name, from the generated index, without importing any variant."""
    return json.loads(INDEX_FILE.read_text(encoding="utf-8"))


@functools.cache
def names() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every name and alias: the variant's name, and the options the alias stands for."""
    found: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in index()}
    for name, card in index().items():
        for alias, options in card["aliases"].items():
            found[alias] = (name, options)
    return found


def resolve(name: str, kinds: tuple[str, ...] = ()) -> tuple[str, dict[str, Any]]:
    """The variant's own name and the options its alias stands for.

    Raises:
        UnknownVariantError: no such name, or a variant of another kind; the message suggests the closest.
    """
    allowed = {n: target for n, target in names().items() if not kinds or index()[target[0]]["kind"] in kinds}
    if name in allowed:
        return allowed[name]
    close = difflib.get_close_matches(name, allowed, n=3, cutoff=0.0)
    what = f"{' or '.join(kinds)} variant" if kinds else "variant"
    wrong = f" ({name!r} is of kind {index()[names()[name][0]]['kind']!r})" if name in names() else ""
    raise UnknownVariantError(
        f"no {what} is called {name!r}{wrong}; the closest are: {', '.join(close)}. `minitf list` shows all"
    )


def variant_class(name: str) -> Any:
    """The class of a variant, by name or alias."""
    entry = index()[resolve(name)[0]]
    return getattr(importlib.import_module(entry["module"]), entry["class"])


def build(name: str, dim: int, **options: Any) -> Module:
    """Build a variant by name, with defaults that suit any `dim`.

    Args:
        name: a name or alias of the catalogue, such as "softmax_attention" or "swiglu".
        dim: the model width D.
        options: what the variant takes: `heads`, `seed`, `dtype` ("float32" by default) and its own.

    Raises:
        UnknownVariantError: no such name; the message suggests the closest.
        TypeError: an option that the variant does not take; the message lists those it does.
        ValueError: an option out of range.
    """
    own, implied = resolve(name)
    cls = variant_class(own)
    accepted = inspect.signature(cls).parameters
    if not isinstance(dim, int) or dim < 1:
        raise ValueError(f"dim must be a positive integer, not {dim!r}")
    # Every variant may be built with the same call; some have no heads, and some nothing random.
    for common in ("heads", "seed"):
        if common not in accepted:
            options.pop(common, None)
    if (
        "heads" in accepted
        and "heads" not in options
        and accepted["heads"].default is not inspect.Parameter.empty
    ):
        # The default number of heads, halved until it divides the width.
        heads = accepted["heads"].default
        while dim % heads:
            heads //= 2
        options["heads"] = heads
    unknown = [key for key in options if key not in accepted]
    if unknown:
        takes = ", ".join(key for key in accepted if key != "dim")
        raise TypeError(f"{name} does not take {', '.join(unknown)}; it takes: {takes}")
    return cls(dim, **{**implied, **options})

"""Finds variants by name and builds them, importing a variant's file only when it is asked for."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import json
import numbers
from pathlib import Path
from typing import Any

import numpy as np

from minitf.engine import MinitfError
from minitf.nn import Module

INDEX_FILE = Path(__file__).parent / "catalogue" / "_index.json"
# What the plain annotations of options accept, numbers of NumPy included. Others are left to the variant.
ACCEPTS: dict[str, tuple[type, ...]] = {
    "int": (numbers.Integral,),
    "float": (numbers.Real,),
    "bool": (bool, np.bool_),
    "str": (str,),
    "None": (type(None),),
}
DTYPES = ("float16", "float32", "float64")
# Options that are numbers of channels, heads or tokens wherever they occur.
SIZES = ("kv_heads", "head_dim", "hidden", "context_dim", "chunk", "rank")


class UnknownVariantError(MinitfError, LookupError):
    """A name that no variant has."""


class OptionError(MinitfError, TypeError):
    """An option that a variant does not take, lacks, or takes in another type."""


class RangeError(MinitfError, ValueError):
    """An option that every variant understands, out of range."""


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
    # Names are lower case with underscores; people also write "Linear-Attention".
    close = difflib.get_close_matches(name.lower().replace("-", "_"), allowed, n=3, cutoff=0.0)
    what = f"{' or '.join(kinds)} variant" if kinds else "variant"
    wrong = f" ({name!r} is of kind {index()[names()[name][0]]['kind']!r})" if name in names() else ""
    raise UnknownVariantError(
        f"no {what} is called {name!r}{wrong}; the closest are: {', '.join(close)}. `minitf list` shows all"
    )


def variant_class(name: str) -> Any:
    """The class of a variant, by name or alias."""
    entry = index()[resolve(name)[0]]
    return getattr(importlib.import_module(entry["module"]), entry["class"])


def parameters(cls: Any) -> dict[str, Any]:
    """What a class takes beside `dim`, each with its default."""
    return {k: p.default for k, p in inspect.signature(cls).parameters.items() if k != "dim"}


def build(name: str, dim: int, **options: Any) -> Module:
    """Build a variant by name, with defaults that suit any `dim`.

    Args:
        name: a name or alias of the catalogue, such as "softmax_attention" or "swiglu".
        dim: the model width D.
        options: what the variant takes: `heads`, `seed`, `dtype` ("float32" by default) and its own.

    Raises:
        UnknownVariantError: no such name; the message suggests the closest.
        OptionError: (a TypeError) an option that the variant does not take, lacks, or takes in another type;
            the message lists those it takes, or says which type.
        ValueError: an option out of range; the message says what is allowed.
    """
    own, implied = resolve(name)
    cls = variant_class(own)
    accepted = inspect.signature(cls).parameters
    if not is_count(dim):
        raise RangeError(f"dim must be a positive integer, not {dim!r}")
    # Every variant may be built with the same call; some have no heads, nothing random or no parameters.
    for common in ("heads", "seed", "dtype"):
        if common not in accepted:
            options.pop(common, None)
    takes = ", ".join(key for key in accepted if key != "dim") or "no options"
    unknown = [key for key in options if key not in accepted]
    if unknown:
        raise OptionError(f"{name} does not take {', '.join(unknown)}; it takes: {takes}")
    options = {**implied, **options}
    empty = inspect.Parameter.empty
    missing = [k for k, p in accepted.items() if p.default is empty and k not in options and k != "dim"]
    if missing:
        raise OptionError(f"{name} needs {', '.join(missing)}; it takes: {takes}")
    for key, value in options.items():
        check_option(name, key, value, accepted[key].annotation)
    if "heads" in accepted and "heads" not in options and is_count(accepted["heads"].default):
        # The default number of heads, halved until it divides the width.
        heads = accepted["heads"].default
        while dim % heads:
            heads //= 2
        options["heads"] = heads
    return cls(int(dim), **options)


def is_count(value: Any) -> bool:
    """Whether it is a positive integer."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) > 0


def check_option(name: str, key: str, value: Any, annotation: Any) -> None:
    """Refuse a value that the option's annotation, or its meaning in every variant, rules out.

    Raises:
        OptionError: another type. RangeError: out of range.
    """
    words = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    kinds = words.split(" | ")
    if all(kind in ACCEPTS for kind in kinds):
        types = tuple(t for kind in kinds for t in ACCEPTS[kind])
        # True is an integer to Python, and a mistake to everybody else.
        if not isinstance(value, types) or (isinstance(value, bool) and "bool" not in kinds):
            raise OptionError(
                f"{name}: {key} must be {' or '.join(kinds)}, not {value!r} ({type(value).__name__})"
            )
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if key == "heads" and value is not None and not is_count(value):
        raise RangeError(f"{name}: heads must be a positive integer, not {value!r}")
    if key in SIZES and number and value < 1:
        raise RangeError(f"{name}: {key} must be at least 1, not {value!r}")
    if number and value != value:
        raise RangeError(f"{name}: {key} must be a number, not NaN")
    if key == "seed" and not (isinstance(value, np.random.Generator) or value == 0 or is_count(value)):
        raise RangeError(f"{name}: seed must be 0 or more, or a numpy Generator, not {value!r}")
    if key == "dtype":
        try:
            known = np.dtype(value).name in DTYPES
        except TypeError:
            known = False
        if not known:
            raise RangeError(f"{name}: dtype must be one of: {', '.join(DTYPES)}, not {value!r}")

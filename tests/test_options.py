"""Options out of range: every variant refuses them, and says which option it was and what is allowed."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import minitf as mt

CLASSES = {entry.name: entry.load() for entry in mt.catalogue.find()}
NO_SUCH = "no such thing"
# What is tried, by the words of an option's annotation. The class itself may leave types to Python.
TRIED: dict[str, tuple[Any, ...]] = {"int": (0, -3), "float": (-1.0, float("nan")), "str": (NO_SUCH,)}
# Left to Python and NumPy by the classes themselves, checked for every variant by mt.build alone.
COMMON = ("seed", "dtype")

# (variant or "*", option): the values among those tried that are legitimate, and why.
ALLOWED: dict[tuple[str, str], tuple[tuple[Any, ...], str]] = {}


def options(name: str) -> list[tuple[str, Any]]:
    """(option, value) pairs that the variant must refuse."""
    found = []
    for option, parameter in inspect.signature(CLASSES[name]).parameters.items():
        if option in COMMON:
            continue
        allowed, _ = ALLOWED.get((name, option), ALLOWED.get(("*", option), ((), "")))
        words = str(parameter.annotation).split(" | ")
        for word in words:
            for value in TRIED.get(word, ()):
                # An integer whose default is 0 allows 0.
                zero = value == 0 and parameter.default == 0
                if not zero and value not in allowed:
                    found.append((option, value))
    return found


CASES = [(name, option, value) for name in CLASSES for option, value in options(name)]


def fault(name: str, option: str, value: Any, door: str) -> str:
    """What is wrong with the refusal, or nothing."""
    given = {"dim": 8, option: value}
    try:
        mt.build(name, **given) if door == "build" else CLASSES[name](**given)
    except (ValueError, TypeError) as error:
        named = re.search(rf"\b{option}\b", str(error))
        return "" if named else f"the message does not name {option}: {error}"
    except Exception as error:
        return f"{type(error).__name__}, not a ValueError: {error}"
    return "accepted silently"


@pytest.mark.parametrize("door", ["build", "class"])
@pytest.mark.parametrize(("name", "option", "value"), CASES)
def test_out_of_range(name: str, option: str, value: Any, door: str) -> None:
    found = fault(name, option, value, door)
    assert not found, f"{name}({option}={value!r}) by {door}: {found}"

"""Options out of range: every variant refuses them, and says which option it was and what is allowed."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import minitf as mt
from minitf.nn import not_negative, positive

CLASSES = {entry.name: entry.load() for entry in mt.catalogue.find()}
# What is tried, by the words of an option's annotation. Options without such words take objects.
TRIED: dict[str, tuple[Any, ...]] = {"int": (0, -3), "float": (-1.0, float("nan")), "str": ("no such thing",)}

# What is tried and yet allowed, and why.
UNUSED = "all position schemes are built with one call; this one does not need it"
COMMON = "for the common call; nothing depends on it"
ALLOWED: dict[tuple[str, str], tuple[tuple[Any, ...], str]] = {
    ("alibi", "dim"): ((-3,), UNUSED),
    ("alibi", "context"): ((-3,), UNUSED),
    ("attention_sinks", "sinks"): ((0,), "a plain window"),
    ("axial_attention", "axes"): ((0,), "the first axis"),
    ("bigbird", "random"): ((0,), "no random blocks"),
    ("clipped_softmax", "gamma"): ((-1.0,), "weights are stretched downwards, then cut off at 0"),
    ("deepseek_moe", "k"): ((0,), "shared experts alone"),
    ("deepseek_moe", "shared"): ((0,), "routed experts alone"),
    ("gla", "width"): ((0,), "no convolutions"),
    ("itransformer", "depth"): ((0,), "maps of the past and the forecast alone"),
    ("learned_pos", "heads"): ((0, -3), UNUSED),
    ("mla", "rope_dim"): ((0,), "no rotated part"),
    ("moh", "shared"): ((0,), "routed heads alone"),
    ("nope", "dim"): ((-3,), UNUSED),
    ("nope", "heads"): ((0, -3), UNUSED),
    ("nope", "context"): ((-3,), UNUSED),
    ("reformer_lsh", "back"): ((0,), "the token's own chunk alone"),
    ("rope", "dim"): ((-3,), UNUSED),
    ("rope", "heads"): ((0, -3), UNUSED),
    ("rope", "context"): ((-3,), UNUSED),
    ("score_mod", "scale"): ((-1.0,), "any factor on q . k"),
    ("sigma_reparam", "gamma"): ((-1.0,), "a factor on W / sigma; its sign is free"),
    ("sinusoidal_pos", "heads"): ((0, -3), UNUSED),
    ("sinusoidal_pos", "context"): ((-3,), UNUSED),
    ("sliding_window", "left"): ((0,), "the token itself is always seen"),
    ("sliding_window", "right"): ((0,), "the token itself is always seen"),
    ("speculative_decoding", "dim"): ((-3,), COMMON),
    ("speculative_decoding", "draft_length"): ((0,), "plain decoding"),
    ("tome", "dim"): ((-3,), COMMON),
    ("tome", "r"): ((0,), "nothing is merged"),
}
# Heads that need not divide dim, and why.
FREE_HEADS = {
    "alibi": "slopes for any number of heads",
    "diff_attn": "the width of a head is rounded up",
    "learned_pos": UNUSED,
    "mla": "the width of a head is rounded down, and W_o leads back",
    "nope": UNUSED,
    "pkm": "every head has its own query of key_dim",
    "rope": UNUSED,
    "sinusoidal_pos": UNUSED,
}


def options(name: str) -> list[tuple[str, Any]]:
    """(option, value) pairs that the variant must refuse."""
    found = []
    for option, parameter in inspect.signature(CLASSES[name]).parameters.items():
        # Seeds and dtypes are NumPy's: `mt.build` alone checks them.
        if option in ("seed", "dtype"):
            continue
        allowed, _ = ALLOWED.get((name, option), ((), ""))
        for word in str(parameter.annotation).split(" | "):
            for value in TRIED.get(word, ()):
                # Where the default is 0, 0 is allowed.
                if value not in allowed and not (value == 0 and parameter.default == 0):
                    found.append((option, value))
    return found


def refusal(name: str, door: str, given: dict[str, Any]) -> str:
    """The message of a ValueError or TypeError; no other error will do."""
    try:
        mt.build(name, **given) if door == "build" else CLASSES[name](**given)
    except (ValueError, TypeError) as error:
        return str(error)
    except Exception as error:
        return f"another error, {error!r}"
    return "nothing: the value was accepted"


def names_it(message: str, option: str) -> bool:
    return re.search(rf"\b{option}\b", message) is not None


HEADED = [name for name, cls in CLASSES.items() if "heads" in inspect.signature(cls).parameters]


@pytest.mark.parametrize("door", ["build", "class"])
@pytest.mark.parametrize("name", CLASSES)
def test_out_of_range(name: str, door: str) -> None:
    faults = []
    for option, value in options(name):
        message = refusal(name, door, {"dim": 8, option: value})
        if not names_it(message, option) or not re.search("must|choose one of", message):
            faults.append(f"{option}={value!r}: {message}")
    assert not faults, f"{name} must refuse these, name the option and say what is allowed: {faults}"


@pytest.mark.parametrize("door", ["build", "class"])
@pytest.mark.parametrize("name", HEADED)
def test_heads_that_do_not_divide(name: str, door: str) -> None:
    message = refusal(name, door, {"dim": 8, "heads": 3})
    if name in FREE_HEADS:
        assert message.startswith("nothing"), f"{name} takes any number of heads, but: {message}"
    else:
        assert names_it(message, "heads") and names_it(message, "dim"), f"{name} of 3 heads: {message}"


@pytest.mark.parametrize(("name", "option"), ALLOWED)
def test_allowed_values_build(name: str, option: str) -> None:
    values, reason = ALLOWED[name, option]
    for value in values:
        message = refusal(name, "class", {"dim": 8, option: value})
        assert message.startswith("nothing"), f"{name}({option}={value}): {reason}; but: {message}"


def test_one_line_checks() -> None:
    positive(rank=1, tau=0.5, hidden=None)
    not_negative(eps=0.0, balance=None)
    for check, value in ((positive, 0), (positive, float("nan")), (not_negative, -0.5)):
        with pytest.raises(ValueError, match=rf"^width must be .*, not {value}$"):
            check(rank=1, width=value)

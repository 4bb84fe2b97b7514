"""Exercises that check themselves: a check says what differs instead of stopping the notebook."""

from __future__ import annotations

import os
from collections.abc import Callable

from minitf.engine import MinitfError

from .report import MARKS, CheckError

# Examples for `check_variant` in a lesson: under five seconds.
NOTEBOOK = 8


# How what a check prints begins, and what stands between the name and the reason.
SOLVED, NOT_YET, BECAUSE = MARKS["passed"], MARKS["failed"], ": not yet. "

# Read once, so that no answer can change it.
STRICT = bool(os.environ.get("MINITF_STRICT"))


class ExerciseError(MinitfError, AssertionError):
    """An exercise that is not solved, where the environment asks for strictness."""


def exercise(name: str) -> Callable[[Callable[[], None]], None]:
    """Run the decorated check now and print whether the exercise is solved.

        @exercise("my_softmax")
        def check():
            assert abs(my_softmax(x).sum() - 1) <= 1e-12, "the weights must sum to 1"

    A failed assertion prints its message, `check_variant` the first check that failed with its smallest case,
    any other error its type and text. With the environment variable MINITF_STRICT set, as when a lesson is
    graded, it raises instead.

    Raises:
        ExerciseError: not solved, and MINITF_STRICT is set.
    """

    def run(check: Callable[[], None]) -> None:
        try:
            check()
        except Exception as error:
            what = in_words(error)
            if STRICT:
                # The message of an assertion says it all; a student need not read where it was raised.
                raise ExerciseError(f"{name}: {what}") from (
                    None if isinstance(error, AssertionError) else error
                )
            print(f"{NOT_YET} {name}{BECAUSE}{what}")
        else:
            print(f"{SOLVED} {name}: solved")

    return run


def in_words(error: Exception) -> str:
    """What a check says about a wrong answer."""
    if isinstance(error, CheckError) and error.report.failed:
        first = error.report.failed[0]
        where = f" The smallest case found: {first.case}." if first.case else ""
        return f"The check {first.check!r} fails: {first.reason}.{where}\nTo see it again:\n{first.snippet}"
    words = str(error) or "an assertion failed"
    return words if isinstance(error, AssertionError) else f"{type(error).__name__}: {words}"

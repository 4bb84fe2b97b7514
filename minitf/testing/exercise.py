"""Exercises that check themselves: a check says what differs instead of stopping the notebook."""

from __future__ import annotations

import os
from collections.abc import Callable

from minitf.engine import MinitfError


class ExerciseError(MinitfError, AssertionError):
    """An exercise that is not solved, where the environment asks for strictness."""


def exercise(name: str) -> Callable[[Callable[[], None]], None]:
    """Run the decorated check now and print whether the exercise is solved.

        @exercise("my_softmax")
        def check():
            assert abs(my_softmax(x).sum() - 1) <= 1e-12, "the weights must sum to 1"

    A failed assertion prints its message, any other error its type and text. With the environment variable
    MINITF_STRICT set, as in the tests of the lessons, it raises instead.

    Raises:
        ExerciseError: not solved, and MINITF_STRICT is set.
    """

    def run(check: Callable[[], None]) -> None:
        try:
            check()
        except Exception as error:
            what = str(error) or "an assertion failed"
            if not isinstance(error, AssertionError):
                what = f"{type(error).__name__}: {what}"
            if os.environ.get("MINITF_STRICT"):
                raise ExerciseError(f"{name}: {what}") from error
            print(f"\N{BALLOT X} {name}: not yet. {what}")
        else:
            print(f"\N{CHECK MARK} {name}: solved")

    return run

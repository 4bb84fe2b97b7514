"""Options of layers that must be above zero, or not below it, checked in one line."""

from __future__ import annotations


def positive(**options: float | None) -> None:
    """Refuse options that are not above 0: `positive(expand_k=expand_k)`. None, for a default, passes.

    Raises:
        ValueError: names the first such option and its value.
    """
    for name, value in options.items():
        # Written so that NaN is refused too.
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, not {value!r}")


def not_negative(**options: float | None) -> None:
    """Refuse options below 0: `not_negative(eps=eps)`. None, for a default, passes.

    Raises:
        ValueError: names the first such option and its value.
    """
    for name, value in options.items():
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must be 0 or more, not {value!r}")

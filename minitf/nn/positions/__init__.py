"""Position schemes, one file each."""

from typing import Any

from .alibi import ALiBi
from .base import Position
from .learned_pos import LearnedPosition
from .nope import NoPosition
from .rope import RoPE
from .sinusoidal_pos import SinusoidalPosition

POSITIONS: dict[str, type[Position]] = {
    "none": NoPosition,
    "nope": NoPosition,
    "sinusoidal": SinusoidalPosition,
    "sinusoidal_pos": SinusoidalPosition,
    "learned": LearnedPosition,
    "learned_pos": LearnedPosition,
    "rope": RoPE,
    "alibi": ALiBi,
}


def as_position(position: Position | str, **options: Any) -> Position:
    """The scheme itself, or a new one of that name built with `options` (dim, heads, context, seed, dtype).

    Raises:
        ValueError: unknown name; the message lists what there is.
    """
    if isinstance(position, Position):
        return position
    if position not in POSITIONS:
        raise ValueError(f"unknown position scheme {position!r}; choose one of: {', '.join(POSITIONS)}")
    scheme: Any = POSITIONS[position]
    return scheme(**options)


__all__ = [
    "POSITIONS",
    "ALiBi",
    "LearnedPosition",
    "NoPosition",
    "Position",
    "RoPE",
    "SinusoidalPosition",
    "as_position",
]

"""What all pictures share: the figure, the colours, readable tokens, saving."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import font_manager, ft2font
from matplotlib.figure import Figure

# Three of the colours of Okabe and Ito, which people with any colour vision can tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, SLATE, GREY, PALE = "#222222", "#5A5A5A", "#8A8A8A", "#E6E6E6"
DPI = 150


class Picture(Figure):
    """A matplotlib figure that notebooks show by itself, without pyplot and its list of open figures."""

    def __init__(self, width: float, height: float, layout: Any = "constrained"):
        super().__init__(figsize=(width, height), layout=layout, facecolor="white")

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()

    def finish(self, save: str | Path | None) -> Picture:
        """Write the picture to `save`, if given, making its folder; the file's ending chooses the format.

        Raises:
            ValueError: an ending that matplotlib does not write.
            OSError: the file cannot be written.
        """
        if save is not None:
            Path(save).parent.mkdir(parents=True, exist_ok=True)
            self.savefig(save, dpi=DPI)
        return self


@functools.cache
def font() -> ft2font.FT2Font:
    """matplotlib's default font, to ask which characters it has."""
    return font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))


def readable(token: Any) -> str:
    """A token as an axis label: spaces and line ends made visible, what the font lacks as U+number."""
    shown = {" ": "␣", "\n": "↵", "\t": "⇥"}
    return "".join(
        shown.get(c) or (c if c.isprintable() and font().get_char_index(ord(c)) else f"U+{ord(c):04X}")
        for c in str(token)
    )


def readable_all(tokens: Sequence[Any]) -> list[str]:
    """All tokens as axis labels."""
    return [readable(token) for token in tokens]

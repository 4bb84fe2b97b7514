"""The picture of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitf.viz.picture import BLUE, GREEN, ORANGE, Picture
from minitf.viz.variant import frame

COLOURS = (BLUE, ORANGE, GREEN, "#8c6bb1", "#969696", "#d6616b")
# What a longer bar says, where it is not "slower".
MEANING = {"GB/s": "longer is faster", "power of N": "1 is linear"}


def draw_bars(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Medians of a benchmark as bars, quartiles as lines; a group for a case, a colour for a library."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    picture = Picture(6.0, 1.0 + 0.26 * len(cases) * (len(libraries) + 0.8))
    axes = picture.subplots()
    named: set[str] = set()
    for row in rows:
        i = libraries.index(row["library"])
        place = cases.index(row["case"]) + (i - (len(libraries) - 1) / 2) * 0.8 / len(libraries)
        error = [[row["median"] - row["low"]], [row["high"] - row["median"]]]
        axes.barh(
            place, row["median"], 0.75 / len(libraries), color=COLOURS[i % len(COLOURS)], xerr=error,
            label=None if row["library"] in named else row["library"],
        )  # fmt: skip
        named.add(row["library"])
    frame(axes)
    axes.set_box_aspect(None)
    axes.set_yticks(range(len(cases)), cases)
    axes.invert_yaxis()
    unit = rows[0]["unit"]
    medians = [row["median"] for row in rows]
    if max(medians) > 20 * min(medians):
        axes.set_xscale("log")
        unit += " (logarithmic)"
    axes.set_xlabel(f"{unit}; {MEANING.get(rows[0]['unit'], 'shorter is faster')}")
    if len(libraries) > 1:
        # Above the bars, which may reach any corner.
        columns = min(3, len(libraries))
        axes.legend(
            frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2
        )
    picture.finish(file)

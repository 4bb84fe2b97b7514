"""One page about a variant of the catalogue: its pattern, and its cost against the number of tokens.

study = mt.viz.study("softmax_attention", tokens=32, dim=32)
mt.viz.variant_picture(study, save="softmax_attention.png")
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from minitf.engine import Array

from .picture import BLUE, GREY, INK, ORANGE, PALE, SLATE, Picture
from .studies import Study

# More heads than this are not drawn.
HEADS = 8


def variant_picture(study: Study, *, save: str | Path | None = None) -> Picture:
    """Draw a study: its pattern, FLOPs and memory against N, and above them maps of heads or of a few tokens.

    Args:
        study: from `mt.viz.study`.
        save: where to write the picture.
    """
    strip = strip_of(study)
    # Inches: the headline, the row of small maps, the panels
    top, middle, low = 0.75, (0.0 if strip is None else 2.6 if len(strip) <= 4 else 2.0), 4.4
    picture = Picture(9.6 if study.cost is None else 13.5, top + middle + low)
    picture.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    heights = (top, middle, low) if strip else (top, low)
    head, *rows = picture.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    size = dict(ha="center", va="center", parse_math=False)
    head.text(0.5, 0.68, f"{study.name}: {study.title}", fontsize=14, weight="bold", color=INK, **size)
    head.text(0.5, 0.2, how_built(study), fontsize=10, color=SLATE, **size)
    if strip:
        draw_strip(rows[0], strip)
    axes = rows[-1].subplots(1, 2 if study.cost is None else 3)
    draw_pattern(axes[0], study)
    if study.cost is None:
        draw_distance(axes[1], study)
    else:
        cost = study.cost
        for place, words, values, unit, power, below in (
            (axes[1], "FLOPs grow", cost.flops, "", cost.slopes[0], f"card: {study.complexity}"),
            (axes[2], "memory grows", cost.peak_bytes, "B", cost.slopes[1], "peak of results, float32"),
        ):
            draw_cost(place, cost.lengths, values, unit)
            # No power where nothing is counted: views cost nothing.
            entitle(place, words.split()[0] if math.isnan(power) else f"{words} like N^{power:.2f}", below)
            place.set_xlabel("N, tokens;  the power is that from {} to {}".format(*cost.lengths[-2:]))
    return picture.finish(save)


def how_built(study: Study) -> str:
    """One line of facts."""
    facts = [] if study.pattern == "channels" else [f"{' × '.join(map(str, study.grid))} tokens"]
    facts.append(f"D = {study.dim}")
    if study.heads:
        facts.append(f"{study.heads} head{'' if study.heads == 1 else 's'}")
    facts += [f"{key}={value!r}" for key, value in study.options.items()]
    facts += ["weights that begin as zeros drawn"] if study.drawn else []
    return textwrap.shorten(",  ".join([*facts, f"seed {study.seed}"]), 120, placeholder=" …")


def entitle(axes: Axes, title: str, below: str) -> None:
    """A title, and a smaller line under it."""
    axes.annotate(
        textwrap.shorten(below, 80, placeholder=" …"), (0.5, 1), (0, 6), xycoords="axes fraction",
        textcoords="offset points", ha="center", va="bottom", color=SLATE, parse_math=False,
        fontsize=9 if len(below) <= 60 else 7,
    )  # fmt: skip
    axes.set_title(title, fontsize=11.5, color=INK, pad=20, parse_math=False)


# Of each pattern: title, what stands below it, names of the axes, what the colours are.
PATTERNS = {
    "mixing": ("who influences whom", "exact Jacobian, its size for every pair of tokens",
               "input token", "output token", "‖∂ output / ∂ input‖"),
    "channels": ("who influences whom in one token", "exact Jacobian, channel by channel",
                 "input channel", "output channel", "∂ output / ∂ input"),
    "bias": ("bias of head 0", "what is added to its scores", "key", "query", "bias"),
    "rotation": ("score of equal vectors", "mean over 64 random vectors",
                 "place of the key", "place of the query", "q · k / |q|²"),
    "similarity": ("similarity of places", "cosine of what is added to the tokens",
                   "place", "place", "cosine"),
}  # fmt: skip


def draw_pattern(axes: Axes, study: Study) -> None:
    """The matrix of the study as an image."""
    title, below, across, down, words = PATTERNS[study.pattern]
    m = study.maps[0] if study.pattern == "bias" and study.maps is not None else study.matrix
    # What is infinite, such as the bias of a hidden key, has no colour.
    m = np.where(np.isfinite(m), m, np.nan)
    image = axes.imshow(m, interpolation="nearest", **colours(m, root=study.pattern == "mixing"))
    if max(m.shape) > 2 * min(m.shape):
        # Few tokens come out of many: wide cells, because a thin strip cannot be read.
        axes.set_aspect("auto")
        axes.set_box_aspect(1)
    if study.pattern == "mixing" and len(study.grid) == 2:
        across = f"{across}, row by row"
        down = f"{down}, row by row" if m.shape[0] == m.shape[1] else down
        for line in range(study.grid[1], max(m.shape), study.grid[1]):
            for draw, length in ((axes.axvline, m.shape[1]), (axes.axhline, m.shape[0])):
                if line < length:
                    draw(line - 0.5, color=GREY, linewidth=0.4)
    entitle(axes, title, below)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.figure.colorbar(image, cax=axes.inset_axes((1.03, 0, 0.045, 1))).set_label(words)


def colours(m: Array, root: bool) -> dict[str, Any]:
    """How to colour values: white is 0, blue more, and red and blue the two signs where there are both.

    root: let the colour follow the square root, which keeps small values visible beside large ones.
    """
    low, high = float(np.nanmin(m)), float(np.nanmax(m))
    largest = max(abs(low), abs(high), 1e-12)
    if low < 0 < high:
        return dict(cmap="RdBu_r", vmin=-largest, vmax=largest)
    if low < 0:
        return dict(cmap="Blues_r", vmin=low, vmax=0)
    return dict(cmap="Blues", norm=PowerNorm(0.5 if root else 1.0, vmin=0, vmax=largest))


@dataclass(frozen=True)
class Small:
    """One of the small maps: what a head attends to, or what the token at `place` of a grid sees."""

    title: str
    values: Array
    place: tuple[int, int] | None = None


def strip_of(study: Study) -> list[Small] | None:
    """The small maps above the panels, if the variant has any."""
    if study.pattern != "mixing":
        return None
    if study.maps is not None:
        more = f" of {len(study.maps)}" if len(study.maps) > HEADS else ""
        return [Small(f"head {i}{more}", values) for i, values in enumerate(study.maps[:HEADS])]
    if len(study.grid) == 2 and len(study.matrix) == math.prod(study.grid):
        rows, columns = study.grid
        places = [(0, 0), (rows // 2, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)]
        return [
            Small(f"seen from row {r}, column {c}", study.matrix[r * columns + c].reshape(study.grid), (r, c))
            for r, c in dict.fromkeys(places)
        ]
    return None


def draw_strip(part: Any, maps: Sequence[Small]) -> None:
    """One row of small maps in one scale of colours."""
    row = part.subplots(1, len(maps), squeeze=False)[0]
    style = colours(np.stack([small.values for small in maps]), root=True)
    for axes, small in zip(row, maps):
        image = axes.imshow(small.values, interpolation="nearest", **style)
        axes.set_title(small.title, fontsize=10, pad=4)
        axes.set_xticks([])
        axes.set_yticks([])
        if small.place is not None:
            corner = (small.place[1] - 0.5, small.place[0] - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=ORANGE, linewidth=1.8))
    row[0].set_ylabel("query" if maps[0].place is None else "row")
    row[0].set_xlabel("key" if maps[0].place is None else "column")
    words = "attention weight" if maps[0].place is None else "‖∂ output / ∂ input‖"
    part.colorbar(image, cax=row[-1].inset_axes((1.06, 0, 0.06, 1))).set_label(words)


def draw_distance(axes: Axes, study: Study) -> None:
    """The mean of every diagonal of a position scheme's maps: what it does to tokens at a distance."""
    maps = study.matrix[None] if study.maps is None else study.maps[:HEADS]
    n = study.matrix.shape[0]
    offsets = np.arange(1 - n, n)
    for i, values in enumerate(maps):
        line = [np.diagonal(values, o).mean() for o in offsets]
        colour = BLUE if len(maps) == 1 else colormaps["viridis"](i / len(maps))
        axes.plot(offsets, line, color=colour, linewidth=2, label=f"head {i}")
    if len(maps) > 1:
        axes.legend(frameon=False, fontsize=9)
    frame(axes)
    entitle(axes, "against distance", "mean over pairs at that distance")
    axes.set_xlabel("place of the key - place of the query")
    axes.set_ylabel(PATTERNS[study.pattern][-1])


def draw_cost(axes: Axes, lengths: Sequence[int], values: Sequence[int], unit: str) -> None:
    """One curve on logarithmic axes, with powers 1 and 2 through its first point to compare it with."""
    frame(axes)
    axes.set_xscale("log", base=2)
    if min(values) > 0:
        axes.set_yscale("log")
        ends = np.array([lengths[0], lengths[-1]], dtype=float)
        for power, name, style in ((1, "N", ":"), (2, "N²", "--")):
            axes.plot(
                ends, values[0] * (ends / ends[0]) ** power, style, color=GREY, linewidth=1.2, label=name
            )
    axes.plot(lengths, values, color=BLUE, linewidth=2, marker="o", markersize=5, label="counted")
    axes.xaxis.set_major_locator(FixedLocator(list(lengths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v, unit)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, loc="upper left")


def frame(axes: Axes) -> None:
    """A square plot with a pale grid behind it."""
    axes.set_box_aspect(1)
    axes.grid(color=PALE)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def short(value: float, unit: str) -> str:
    """A number with k, M, G, T for thousands."""
    power = 0 if value < 1000 else min(4, int(math.log10(value) / 3 + 1e-9))
    return f"{value / 1000**power:g} {('', 'k', 'M', 'G', 'T')[power]}{unit}".strip()

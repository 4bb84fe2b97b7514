"""The training curve: loss against step, in nats and in bits."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from .picture import BLUE, INK, ORANGE, PALE, Picture

Points = list[tuple[int, float]]


def loss_curve(
    history: str | Path | Iterable[Mapping[str, Any]], *, title: str = "", save: str | Path | None = None
) -> Picture:
    """Training and validation loss against the step, with nats on the left axis and bits on the right.

    Args:
        history: a `log.csv`, the folder of a run that holds one, or rows with "step", "loss", "val_loss".
        title: above the picture.
        save: where to write it.

    Raises:
        ValueError: no row has a step and a finite loss.
        OSError: the log cannot be read, or the picture not written.
    """
    rows = read_log(Path(history)) if isinstance(history, str | Path) else list(history)
    train, validation = points(rows, "loss"), points(rows, "val_loss")
    if not train and not validation:
        raise ValueError("loss_curve: nothing to draw: no row has a step and a finite loss or val_loss")
    picture = Picture(7.5, 4.5)
    axes = picture.add_subplot()
    if train:
        axes.plot(*zip(*train), color=BLUE, linewidth=1, alpha=0.35)
        axes.plot(*zip(*smooth(train)), color=BLUE, linewidth=1.8, label="training (running mean)")
    if validation:
        last = validation[-1][1]
        words = f"validation (last: {last:.3f} nats = {last / math.log(2):.3f} bits)"
        axes.plot(*zip(*validation), color=ORANGE, linewidth=2, marker="o", markersize=4, label=words)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bits = axes.secondary_yaxis("right", functions=(to_bits, to_nats))
    bits.set_ylabel("loss (bits per token)")
    axes.grid(color=PALE)
    axes.set_axisbelow(True)
    axes.spines["top"].set_visible(False)
    axes.legend(frameon=True, framealpha=1.0, edgecolor="none", loc="upper right")
    if title:
        axes.set_title(title, color=INK, parse_math=False)
    return picture.finish(save)


def to_bits(nats: Any) -> Any:
    return nats / math.log(2)


def to_nats(bits: Any) -> Any:
    return bits * math.log(2)


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a run's log.csv."""
    with open(path / "log.csv" if path.is_dir() else path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def points(rows: Iterable[Mapping[str, Any]], key: str) -> Points:
    """(step, value) of every row where both are there and the value is finite."""
    found = []
    for row in rows:
        step, value = row.get("step"), row.get(key)
        if step not in (None, "") and value not in (None, "") and math.isfinite(float(value)):
            found.append((int(step), float(value)))
    return found


def smooth(line: Points) -> Points:
    """The mean over a window of about a fortieth of the line that ends at each point."""
    width = max(1, len(line) // 40)
    means = []
    for i, (step, _) in enumerate(line):
        window = line[max(0, i - width + 1) : i + 1]
        means.append((step, sum(value for _, value in window) / len(window)))
    return means

"""`minitf list`: the catalogue as a table."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .output import on_terminal, print_json, print_table

# Read directly: `minitf.catalogue` would import layers first, and this command should answer at once.
INDEX_FILE = Path(__file__).parents[1] / "catalogue" / "_index.json"
# How truth values look in the table.
CELL = {True: "yes", False: "-"}
COLUMNS = ("name", "kind", "family", "year", "causal", "streams", "grid", "parity", "title")
# On a terminal: what stays however narrow it is, then what is added while the title keeps its room.
ALWAYS = ("name", "kind")
ADDED = ("year", "causal", "streams", "grid", "family", "parity")
TITLE = 20


@click.command("list")
@click.argument("pattern", default="*")
@click.option("--kind", help="Only this kind: attention, ffn, block, norm, position, ...")
@click.option("--family", help="Only this family: softmax, dense, gated, ...")
@click.option("--grid", help="Only those for this grid of tokens: 1d, 2d, nd, any.")
@click.option(
    "--causal/--no-causal", default=None, help="Only those that can look at the past alone, or the others."
)
@click.option(
    "--streams/--no-streams", default=None, help="Only those that work token by token, or the others."
)
@click.option(
    "--parity/--no-parity",
    default=None,
    help="Only those whose values were compared with an independent implementation, or the others.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the rows as JSON.")
def command(
    pattern: str, kind: str | None, family: str | None, grid: str | None, causal: bool | None,
    streams: bool | None, parity: bool | None, as_json: bool,
) -> None:  # fmt: skip
    """List the variants whose name, alias or title matches PATTERN.

    PATTERN may hold * and ?; without them it is looked for anywhere in the names. A narrow terminal shows
    fewer columns; --json, or a pipe, has them all.

    \b
    Examples:
      minitf list
      minitf list norm
      minitf list '*attention' --streams
      minitf list --grid 2d --no-parity
      minitf list --kind ffn --json
    """
    cards = json.loads(INDEX_FILE.read_text(encoding="utf-8"))
    wanted = {"kind": kind, "family": family, "grid": grid, "causal": causal, "streams": streams}
    for key in ("kind", "family", "grid"):
        known = {card[key] for card in cards.values()}
        if wanted[key] is not None and wanted[key] not in known:
            words = f"{wanted[key]!r} is none of: {', '.join(sorted(known))}"
            raise click.BadParameter(words, param_hint=f"--{key}")
    pattern = pattern.lower() if set(pattern) & set("*?[") else f"*{pattern.lower()}*"
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "kind": card["kind"],
            "family": card["family"],
            "year": card["papers"][0]["year"],
            "causal": card["causal"],
            "streams": card["streams"],
            "grid": card["grid"],
            "parity": card.get("parity", []),
            "title": card["title"],
            "complexity": card["complexity"],
            "aliases": list(card["aliases"]),
        }
        for name, card in cards.items()
        if any(fnmatch.fnmatchcase(text, pattern) for text in (name, *card["aliases"], card["title"].lower()))
        and all(value is None or card[key] == value for key, value in wanted.items())
        and parity in (None, bool(card.get("parity")))
    ]
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo(f"Nothing matches; `minitf list` shows all {len(cards)} variants.", err=True)
    else:
        texts = [{**row, "parity": bool(row["parity"])} for row in rows]
        cells = [[cell(row[column]) for column in COLUMNS] for row in texts]
        if on_terminal():
            print_fitting(cells, shutil.get_terminal_size().columns)
        else:
            print_table(COLUMNS, cells)


def cell(value: Any) -> str:
    return CELL[value] if isinstance(value, bool) else str(value)


def print_fitting(cells: Sequence[Sequence[str]], width: int) -> None:
    """Write one line a variant in `width` columns, with as many facts as leave room for the titles.

    rich would do this too, but importing it takes longer than all the rest.
    """
    widths = {c: max(map(len, column)) for c, column in zip(COLUMNS, zip(COLUMNS, *cells))}
    shown = [*ALWAYS]
    for column in ADDED:
        if sum(widths[c] + 2 for c in (*shown, column)) + TITLE <= width:
            shown.append(column)
    columns = [c for c in COLUMNS if c in shown]
    room = max(8, width - sum(widths[c] + 2 for c in columns))
    for i, row in enumerate((COLUMNS, *cells)):
        texts = dict(zip(COLUMNS, row))
        title = texts["title"] if len(texts["title"]) <= room else f"{texts['title'][: room - 1]}…"
        name = texts["name"].ljust(widths["name"])
        rest = "".join(f"  {texts[c].ljust(widths[c])}" for c in columns[1:])
        if i == 0:
            click.secho(f"{name}{rest}  {title}", bold=True)
        else:
            click.echo(f"{click.style(name, fg='cyan')}{rest}  {title}")
    more = "" if len(columns) == len(COLUMNS) else "; a wider terminal shows more columns"
    click.secho(f"\n{len(cells)} variant{'' if len(cells) == 1 else 's'}{more}", dim=True)

"""`minitf list`: the catalogue as a table."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import click

from .output import print_json, print_table

# Read directly: `minitf.catalogue` would import layers first, and this command should answer at once.
INDEX_FILE = Path(__file__).parents[1] / "catalogue" / "_index.json"
# How truth values look in the table.
CELL = {"True": "yes", "False": "-"}


@click.command("list")
@click.argument("pattern", default="*")
@click.option("--kind", help="Only this kind: attention, ffn, block, norm, position, ...")
@click.option("--family", help="Only this family: softmax, dense, gated, ...")
@click.option(
    "--causal/--no-causal", default=None, help="Only those that can look at the past alone, or the others."
)
@click.option(
    "--streams/--no-streams", default=None, help="Only those that work token by token, or the others."
)
@click.option("--json", "as_json", is_flag=True, help="Write the rows as JSON.")
def command(
    pattern: str,
    kind: str | None,
    family: str | None,
    causal: bool | None,
    streams: bool | None,
    as_json: bool,
) -> None:
    """List the variants whose name, alias or title matches PATTERN.

    PATTERN may hold * and ?; without them it is looked for anywhere in the names.

    \b
    Examples:
      minitf list
      minitf list norm
      minitf list '*attention' --streams
      minitf list --kind ffn --json
    """
    cards = json.loads(INDEX_FILE.read_text(encoding="utf-8"))
    wanted = {"kind": kind, "family": family, "causal": causal, "streams": streams}
    for key in ("kind", "family"):
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
            "title": card["title"],
            "complexity": card["complexity"],
            "aliases": list(card["aliases"]),
        }
        for name, card in cards.items()
        if any(fnmatch.fnmatch(text, pattern) for text in (name, *card["aliases"], card["title"].lower()))
        and all(value is None or card[key] == value for key, value in wanted.items())
    ]
    if as_json:
        print_json(rows)
    elif rows:
        columns = ("name", "kind", "family", "year", "causal", "streams", "title")
        print_table(columns, [[CELL.get(str(row[c]), str(row[c])) for c in columns] for row in rows])
    else:
        click.echo(f"Nothing matches; `minitf list` shows all {len(cards)} variants.", err=True)

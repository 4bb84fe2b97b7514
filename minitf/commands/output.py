"""How commands write: tables and colours for a terminal, plain text into a pipe, JSON for machines."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import click

# What installs into the environment that is running, active or not.
PIP = f"{shlex.quote(sys.executable)} -m pip install"


def on_terminal() -> bool:
    """Whether a person is reading standard output."""
    return sys.stdout.isatty()


def say(text: str = "", **style: Any) -> None:
    """Write one line; click leaves the style out where the output is no terminal, or NO_COLOR is set."""
    click.secho(text, **style)


def heading(text: str) -> None:
    """Write a heading with an empty line above it."""
    say(f"\n{text}", bold=True)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table: ruled and wrapped on a terminal, plain columns of full width into a pipe."""
    if not on_terminal():
        widths = [max(map(len, column)) for column in zip(headings, *rows)]
        for row in (headings, *rows):
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for i, name in enumerate(headings):
        table.add_column(name, style="cyan" if i == 0 else None, no_wrap=i == 0)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def print_json(value: Any, indent: int | None = 2) -> None:
    """Write one JSON value; with indent None, on one line that a reader gets at once."""
    click.echo(json_text(value, indent))


def json_text(value: Any, indent: int | None = 2) -> str:
    """The value as JSON; NaN and infinity become null."""
    return json.dumps(finite(value), indent=indent, allow_nan=False, default=float)


def finite(value: Any) -> Any:
    """The value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

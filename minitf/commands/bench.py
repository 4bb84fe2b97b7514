"""`minitf bench`: speed on this machine."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from .output import on_terminal, print_json, say


@click.command("bench")
@click.option(
    "--repetitions", type=click.IntRange(min=1), default=15, show_default=True, help="More are steadier."
)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def command(repetitions: int, as_json: bool) -> None:
    """Measure speed on this machine, beside autograd and torch where they are installed.

    Medians and quartiles; it says so if the machine was busy with something else.

    \b
    Examples:
      minitf bench
      minitf bench --repetitions 50
      minitf bench --json
    """
    from minitf import bench

    waiting: Any = contextlib.nullcontext()
    if on_terminal() and not as_json:
        from rich.console import Console

        waiting = Console().status("measuring; leave the machine alone for a while")
    with waiting:
        report = bench.run(repetitions=repetitions)
    if as_json:
        print_json(report)
    else:
        say(bench.text(report).rstrip())

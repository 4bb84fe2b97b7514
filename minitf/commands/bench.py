"""`minitf bench`: speed on this machine."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from .output import json_text, on_terminal, print_json, say


def names() -> list[str]:
    """Every benchmark, by the name of its function."""
    from minitf import bench

    return [function.__name__ for function in bench.BENCHMARKS]


class Benchmark(click.ParamType[str]):
    """The name of a benchmark; the list is made when it is needed, so that `--help` stays quick."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in names():
            self.fail(f"there is no benchmark {value!r}; choose among: {', '.join(names())}", param, ctx)
        return value


@click.command("bench")
@click.argument("which", metavar="[NAME]...", nargs=-1, type=Benchmark())
@click.option(
    "--repetitions", type=click.IntRange(min=1), default=15, show_default=True, help="More are steadier."
)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object instead of the table.")
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the JSON to this file as well."
)
def command(which: tuple[str, ...], repetitions: int, as_json: bool, save: Path | None) -> None:
    """Measure speed on this machine, beside torch, JAX and autograd where they are installed.

    NAME: engine_overhead, dispatch, startup, training, attention, decode, recurrences, growth; default: all,
    which takes some minutes. Libraries must agree on the values before anything is timed, and take turns.
    Medians and quartiles; it says so if the machine was busy with something else.

    \b
    Examples:
      minitf bench
      minitf bench training attention
      minitf bench engine_overhead --repetitions 50 --json
      minitf bench --save docs/benchmarks.json
    """
    from minitf import bench
    from minitf.models.files import write_atomic

    waiting: Any = contextlib.nullcontext()
    told: Any = lambda name: None  # noqa: E731
    if on_terminal() and not as_json:
        from rich.console import Console

        waiting = Console().status("measuring; leave the machine alone for a while")
        told = lambda name: waiting.update(f"measuring {name}; leave the machine alone for a while")  # noqa: E731
    if save is not None and not save.parent.is_dir():
        raise click.UsageError(f"--save: there is no folder {save.parent}")
    chosen = [function for function in bench.BENCHMARKS if function.__name__ in which]
    with waiting:
        report = bench.run(chosen, repetitions=repetitions, told=told)
    if save is not None:
        write_atomic(save, (json_text(report) + "\n").encode())
    if as_json:
        print_json(report)
    else:
        say(bench.text(report).rstrip())

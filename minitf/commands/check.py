"""`minitf check NAME`: run the checks on one variant, on several, or on the whole catalogue."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from minitf.ops.kernels import use
from minitf.registry import index
from minitf.testing import (
    CHECKS,
    CLAIMS,
    GRIDS,
    KINDS,
    Report,
    Reports,
    Result,
    UsageError,
    check_variant,
    from_file,
    known,
)

from .output import on_terminal, print_table, say

# Cases per check for one variant, and for several.
EXAMPLES = (100, 10)


def reasons(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Pairs CHECK=REASON as a dictionary."""
    found = {}
    for value in values:
        name, _, reason = value.partition("=")
        if not reason.strip():
            raise click.BadParameter(f"{value!r} is not CHECK=REASON, such as 'gradients=it rounds'")
        found[name.strip()] = reason.strip()
    return found


@click.command("check")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Every variant of the catalogue.")
@click.option("--kind", type=click.Choice(list(KINDS)), help="What it is; needed where it has no card.")
@click.option("--claim", "claims", multiple=True, type=click.Choice(CLAIMS), help="What must hold.")
@click.option("--reference", help="What it must equal: a name of the catalogue, or an operation.")
@click.option("--grid", type=click.Choice(GRIDS), help="2d for images (B, rows, columns, D).")
@click.option("--check", "checks", multiple=True, metavar="CHECK", help="Only this check; may be repeated.")
@click.option("--examples", type=click.IntRange(1), help="Cases per check.  [default: 100; 10 for several]")
@click.option(
    "--backend", "backends", multiple=True, help="Who computes; may be repeated.  [default: reference]"
)
@click.option(
    "--expected-failure", "expected", multiple=True, callback=reasons, metavar="CHECK=REASON",
    help="A check that cannot hold, and why.",
)  # fmt: skip
@click.option("-j", "--jobs", default=1, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    names: tuple[str, ...],
    everything: bool,
    examples: int | None,
    backends: tuple[str, ...],
    checks: tuple[str, ...],
    expected: dict[str, str],
    jobs: int,
    as_json: bool,
    **how: Any,
) -> None:
    """Check the variants NAME, and exit with code 1 if a check fails.

    NAME is a name of the catalogue, or FILE.py:NAME for a class, factory or function of your own. With
    several, or --all, a table shows which check passed, was expected to fail, or does not apply.

    \b
    Examples:
      minitf check softmax_attention
      minitf check swiglu --check gradients --check finite --json
      minitf check mine.py:MyMixer --kind token_mixer --claim causal --claim streams
      minitf check mine.py:attend --kind attention_function --reference softmax_attention
      minitf check --all -j 4
    """
    if everything == bool(names):
        raise click.UsageError("Say which: minitf check NAME, or --all for the whole catalogue.")
    # Otherwise hypothesis leaves a folder of notes wherever the user stands.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "hypothesis"))
    wanted = tuple(index()) if everything else names
    options = {
        **how,
        "checks": checks or None,
        "examples": examples or EXAMPLES[len(wanted) > 1],
        "backends": backends or ("reference",),
        "expected_failures": expected,
        "on_fail": None,
    }
    if len(wanted) == 1:
        ok = one(wanted[0], options, as_json)
    else:
        ok = many(wanted, options, jobs, as_json)
    ctx.exit(0 if ok else 1)


def report_of(name: str, options: dict[str, Any]) -> Report:
    """The report on a name of the catalogue, or on FILE.py:NAME."""
    path, colon, inner = name.rpartition(":")
    if name.endswith(".py"):
        raise UsageError(f"{name} is a file: say which of its classes or functions to check, as {name}:NAME")
    variant = from_file(path, inner) if colon else name
    try:
        report = check_variant(variant, **options)
    except UsageError as error:
        # Said to callers in Python; here it is an option.
        raise UsageError(str(error).replace("say kind=, ", "say --kind with ")) from error
    report.name = name
    return report


def guarded(name: str, options: dict[str, Any]) -> Report:
    """The same; what cannot even be built is a failure among others."""
    try:
        return report_of(name, options)
    except Exception as error:
        return Report(name, [Result("build", "", "failed", f"{type(error).__name__}: {error}")])


def one(name: str, options: dict[str, Any], as_json: bool) -> bool:
    """Check and show one variant. Whether nothing failed."""
    report = report_of(name, options)
    if as_json:
        click.echo(report.to_json())
        return not report.failed
    print_table(("check", "status", "seconds", "reason"), report.rows())
    show_failures(report)
    say(f"\n{report.summary()}", bold=True)
    return not report.failed


def show_failures(report: Report, name: str = "") -> None:
    """Each reason once with what reproduces it: a layer that cannot even run fails every check alike."""
    alike: dict[tuple[str, str], list[Result]] = {}
    for result in report.failed:
        alike.setdefault((result.reason, result.backend), []).append(result)
    for first, *others in alike.values():
        say(f"\n# {name}{first.check}: {first.reason}", fg="red")
        if others:
            say(f"# the same in {', '.join(result.check for result in others)}", fg="red")
        say(first.snippet)


def many(names: tuple[str, ...], options: dict[str, Any], jobs: int, as_json: bool) -> bool:
    """Check several variants and show them as a table. Whether nothing failed."""
    # A wrong option is told once, and not in every variant.
    for check in (*(options["checks"] or ()), *options["expected_failures"]):
        known("check", check, CHECKS)
    for backend in options["backends"]:
        with use(backend):
            pass
    found = []
    with watched(len(names), as_json) as seen:
        for report in run_all(names, options, jobs):
            seen(report)
            found.append(report)
    reports = Reports(found)
    if as_json:
        click.echo(reports.to_json())
        return not reports.failed
    for line in (*reports.lines(), "", *reports.legend(), "", *reports.reasons()):
        say(line)
    for report in reports.failed:
        show_failures(report, f"{report.name} ")
    say(f"\n{reports.summary()}", bold=True)
    return not reports.failed


def run_all(names: tuple[str, ...], options: dict[str, Any], jobs: int) -> Iterator[Report]:
    """The reports in the order of the names, each as soon as it and those before it are there."""
    if jobs == 1:
        yield from (guarded(name, options) for name in names)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Spawned, because threads of BLAS do not survive a fork; one such thread each.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, one_thread) as pool:
        for running in [pool.submit(guarded, name, options) for name in names]:
            yield running.result()


def one_thread() -> None:
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


@contextmanager
def watched(count: int, as_json: bool) -> Iterator[Any]:
    """Give a function to call with each report: a bar on a terminal, one line each into a pipe."""
    if as_json:
        yield lambda report: None
    elif not on_terminal():
        yield lambda report: say(report.summary())
        say()
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task("", total=count)

            def show(report: Report) -> None:
                if report.failed:
                    bar.console.print(f"[red]{report.summary()}[/]")
                bar.update(task, advance=1, description=report.name)

            yield show


# Known to `minitf check --help` alone: the names that --check takes.
command.epilog = f"Checks: {', '.join(CHECKS)}."

"""Measure speed on this machine, beside other libraries where they are installed. Results are plain data.

    report = run()              # every benchmark in BENCHMARKS
    print(text(report))

A benchmark is a function of a number of repetitions that returns rows; append it to `BENCHMARKS`. Before
anything is timed, the libraries must agree on the values. Repetitions of the libraries take turns, so that a
slow moment of the machine meets all of them; medians and quartiles are reported, and whether the machine was
busy with something else.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict
from io import StringIO
from typing import Any

from minitf.machine import machine_line, usable_cores

from .attention import attention, decode
from .engine import dispatch, engine_overhead
from .measure import BenchError, Row, agree, compared, foreign_load, importable, snapshot
from .recurrences import growth, recurrences
from .startup import startup
from .training import training

__all__ = [
    "BENCHMARKS", "BenchError", "Row", "agree", "attention", "compared", "decode", "dispatch",
    "engine_overhead", "foreign_load", "growth", "importable", "recurrences", "run", "snapshot",
    "startup", "text", "training",
]  # fmt: skip

# Add a benchmark here: a function of the number of repetitions that returns rows.
BENCHMARKS: list[Callable[[int], list[Row]]] = [
    engine_overhead, dispatch, startup, training, attention, decode, recurrences, growth,
]  # fmt: skip


def run(
    benchmarks: Sequence[Callable[[int], list[Row]]] = (),
    repetitions: int = 15,
    told: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Run `benchmarks` (default: all), and describe the machine.

    Args:
        repetitions: of each measurement. told: called with the name of each benchmark before it runs.

    Returns:
        {"date": str, "machine": str, "warnings": list of str, "rows": dicts with the fields of `Row`}.

    Raises:
        BenchError: libraries disagree on the values.
    """
    before = snapshot()
    rows = []
    for benchmark in benchmarks or BENCHMARKS:
        told(benchmark.__name__)
        rows += benchmark(repetitions)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine_line(("numba", "torch", "jax", "autograd")),
        "warnings": foreign_load(before, snapshot(), usable_cores()),
        "rows": [asdict(row) for row in rows],
    }


def text(report: dict[str, Any]) -> str:
    """The report as a table for the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=report["machine"], caption="\n".join(report["warnings"]) or None)
    for title in ("benchmark", "case", "library"):
        table.add_column(title)
    for title in ("median", "quartiles", "unit", "times minitf"):
        table.add_column(title, justify="right")
    case = None
    for row in report["rows"]:
        if case is not None and row["case"] != case:
            table.add_section()
        case = row["case"]
        numbers = (
            f"{row['median']:.2f}",
            f"{row['low']:.2f} - {row['high']:.2f}",
            row["unit"],
            f"{row['ratio']:.2f}",
        )
        table.add_row(row["benchmark"], case, row["library"], *numbers)
    out = StringIO()
    Console(file=out, width=110).print(table)
    return out.getvalue()

"""Timing side by side: rows of results, turns, agreement before anything is timed, and foreign load."""

from __future__ import annotations

import contextlib
import importlib
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minitf.engine import MinitfError


class BenchError(MinitfError, AssertionError):
    """Two libraries that should compute the same and do not."""


@dataclass
class Row:
    """One measurement.

    Attributes:
        benchmark, case, library: what was measured.
        unit: of the numbers below, for example "us/op" (microseconds for each operation).
        median, low, high: over the repetitions; low and high are the quartiles.
        ratio: median over minitf's median in the same case.
    """

    benchmark: str
    case: str
    library: str
    unit: str
    median: float
    low: float
    high: float
    ratio: float = 1.0


# Of `compared`, for libraries that keep threads of their own.
PAUSE = 0.1


def compared(
    benchmark: str,
    case: str,
    runs: dict[str, Callable[[], Any]],
    repetitions: int,
    unit: str,
    scale: float,
    pause: float = 0.0,
) -> list[Row]:
    """Time the runs in turns and return a row for each; "minitf" must be among them.

    Args:
        runs: library -> a function to time.
        repetitions: how often each runs.
        scale: from seconds for one run to `unit`.
        pause: seconds of rest before each turn, and then one run that is not timed. Threads of a library
            spin for some 30 ms after their work, on cores that the next one needs.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    # Once for each, not timed: what is compiled or allocated on first use.
    for run in runs.values():
        run()
    for _ in range(repetitions):
        for name, run in runs.items():
            if pause:
                time.sleep(pause)
                run()
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * scale)
    ours = statistics.median(times["minitf"])
    rows = []
    for name, t in times.items():
        low, median, high = (float(q) for q in np.percentile(t, [25, 50, 75]))
        rows.append(Row(benchmark, case, name, unit, median, low, high, ratio=median / ours))
    return rows


def agree(case: str, found: Mapping[str, Sequence[Any]], tolerance: float) -> None:
    """Compare every library's arrays with minitf's, in order; None stands for zeros.

    Args:
        case: for the message.
        found: library -> arrays; "minitf" must be among them.
        tolerance: largest difference allowed, relative to the largest value of an array (at least 1).

    Raises:
        BenchError: they differ.
    """
    for name, arrays in found.items():
        for i, (ours, theirs) in enumerate(zip(found["minitf"], arrays, strict=True)):
            if ours is None and theirs is None:
                continue
            shape = np.shape(theirs if ours is None else ours)
            a, b = (np.zeros(shape) if x is None else np.asarray(x) for x in (ours, theirs))
            error = float(
                np.max(np.abs(a - b), initial=0.0) / max(1.0, float(np.max(np.abs(b), initial=0.0)))
            )
            if not error <= tolerance:
                raise BenchError(
                    f"{case}: result {i} of minitf and {name} differs by {error:.1e}, more than "
                    f"{tolerance:.0e}; nothing was timed"
                )


class Snapshot(NamedTuple):
    """Seconds since some moment: of the clock, of all processors at work or taken away, of this program."""

    clock: float
    busy: float | None
    own: float


def snapshot() -> Snapshot:
    """What the machine has done so far. `busy` is None where the system does not tell."""
    times = os.times()
    busy = None
    with contextlib.suppress(OSError):
        # user nice system idle iowait irq softirq steal, in ticks
        fields = [
            float(x) for x in Path("/proc/stat").read_text(encoding="utf-8").split("\n")[0].split()[1:9]
        ]
        busy = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
    return Snapshot(
        time.perf_counter(), busy, times.user + times.system + times.children_user + times.children_system
    )


def foreign_load(before: Snapshot, after: Snapshot, cores: int) -> list[str]:
    """A sentence where other programs, or the host of a virtual machine, used more than 5 % of the cores."""
    if before.busy is None or after.busy is None:
        return ["this system does not tell whether other programs were running"]
    foreign = (after.busy - before.busy) - (after.own - before.own)
    share = foreign / max(1e-9, cores * (after.clock - before.clock))
    if share <= 0.05:
        return []
    return [
        f"other programs used {share:.0%} of the {cores} cores meanwhile: look at ratios, or measure again"
    ]


def importable(name: str) -> bool:
    """Whether a library that is not required is installed and loads."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True

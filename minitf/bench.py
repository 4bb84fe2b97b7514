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
import importlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import MinitfError, tensor
from minitf.machine import machine_line

# Steps of a chain on 8x8 float64 arrays: y is the running value, w a parameter, k a constant, lib has `tanh`.
# (operations in a step, step)
Step = Callable[[Any, Any, Any, Any], Any]
CHAINS: dict[str, tuple[int, Step]] = {
    "y * 0.9 + 0.1": (2, lambda y, w, k, lib: y * 0.9 + 0.1),
    "y * k + k": (2, lambda y, w, k, lib: y * k + k),
    "y * w + w": (2, lambda y, w, k, lib: y * w + w),
    "tanh(y) * w - w": (3, lambda y, w, k, lib: lib.tanh(y) * w - w),
    "y @ w": (1, lambda y, w, k, lib: y @ w),
}


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


def engine_overhead(repetitions: int = 15, length: int = 1000) -> list[Row]:
    """Microseconds for each operation, forward plus backward, of chains of `length` steps on 8x8 arrays.

    Includes NumPy's own time. minitf, and HIPS autograd and torch where they can be imported.
    """
    rng = np.random.default_rng(0)
    x, k = rng.standard_normal((2, 8, 8))
    # Orthogonal, so that long products neither vanish nor explode; entries below 1 do the same elementwise.
    w = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    k = np.clip(k, -0.9, 0.9)
    runners = {"minitf": minitf_chain, "autograd": autograd_chain, "torch": torch_chain}
    runners = {name: make for name, make in runners.items() if name == "minitf" or importable(name)}
    rows = []
    for case, (operations, step) in CHAINS.items():
        runs = {name: make(step, length, x, w, k) for name, make in runners.items()}
        same_gradients(case, {name: run() for name, run in runs.items()})
        rows += compared("engine_overhead", case, runs, repetitions, "us/op", 1e6 / (length * operations))
    return rows


def minitf_chain(step: Step, length: int, x: Any, w: Any, k: Any) -> Callable[[], Any]:
    k, start = tensor(k), np.ones_like(x)

    def run() -> Any:
        leaves = y, p = tensor(x, requires_grad=True), tensor(w, requires_grad=True)
        for _ in range(length):
            y = step(y, p, k, ops)
        y.backward(start)
        return [leaf.grad.data if leaf.grad is not None else None for leaf in leaves]

    return run


def torch_chain(step: Step, length: int, x: Any, w: Any, k: Any) -> Callable[[], Any]:
    torch = importlib.import_module("torch")
    k, start = torch.tensor(k), torch.ones(x.shape, dtype=torch.float64)

    def run() -> Any:
        leaves = y, p = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
        for _ in range(length):
            y = step(y, p, k, torch)
        y.backward(start)
        return [leaf.grad.numpy() if leaf.grad is not None else None for leaf in leaves]

    return run


def autograd_chain(step: Step, length: int, x: Any, w: Any, k: Any) -> Callable[[], Any]:
    autograd, anp = importlib.import_module("autograd"), importlib.import_module("autograd.numpy")

    def chain(leaves: Any) -> Any:
        y, p = leaves
        for _ in range(length):
            y = step(y, p, k, anp)
        return y

    def run() -> Any:
        pull, _ = autograd.make_vjp(chain)((x, w))
        return pull(np.ones_like(x))

    return run


def same_gradients(case: str, found: dict[str, Any]) -> None:
    """Compare every library's gradients with minitf's; None stands for zero.

    Raises:
        BenchError: they differ.
    """
    for name, gradients in found.items():
        for ours, theirs in zip(found["minitf"], gradients, strict=True):
            a, b = (np.zeros((8, 8)) if g is None else g for g in (ours, theirs))
            error = float(np.max(np.abs(a - b)) / max(1.0, float(np.max(np.abs(b)))))
            if not error <= 1e-9:
                raise BenchError(
                    f"{case}: gradients of minitf and {name} differ by {error:.1e}; nothing was timed"
                )


def compared(
    benchmark: str, case: str, runs: dict[str, Callable[[], Any]], repetitions: int, unit: str, scale: float
) -> list[Row]:
    """Time the runs in turns and return a row for each; "minitf" must be among them.

    Args:
        runs: library -> a function to time.
        repetitions: how often each runs.
        scale: from seconds for one run to `unit`.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * scale)
    ours = statistics.median(times["minitf"])
    rows = []
    for name, t in times.items():
        low, median, high = (float(q) for q in np.percentile(t, [25, 50, 75]))
        rows.append(Row(benchmark, case, name, unit, median, low, high, ratio=median / ours))
    return rows


# Add a benchmark here: a function of the number of repetitions that returns rows.
BENCHMARKS: list[Callable[[int], list[Row]]] = [engine_overhead]


def run(benchmarks: Sequence[Callable[[int], list[Row]]] = (), repetitions: int = 15) -> dict[str, Any]:
    """Run `benchmarks` (default: all), and describe the machine.

    Returns:
        {"date": str, "machine": str, "warnings": list of str, "rows": dicts with the fields of `Row`}.

    Raises:
        BenchError: libraries disagree on the values.
    """
    before = spin()
    rows = [row for benchmark in benchmarks or BENCHMARKS for row in benchmark(repetitions)]
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine_line(("torch", "autograd")),
        "warnings": foreign_load(before, spin()),
        "rows": [asdict(row) for row in rows],
    }


def spin() -> list[float]:
    """Seconds that the same piece of work takes, many times over."""
    times = []
    for _ in range(50):
        start = time.perf_counter()
        sum(range(20_000))
        times.append(time.perf_counter() - start)
    return times


def foreign_load(before: list[float], after: list[float]) -> list[str]:
    """Sentences about other work on the machine: its load, and how evenly the same work ran."""
    found = []
    cores = os.cpu_count() or 1
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 1.2 + 0.1 * cores:
        found.append(f"load average {os.getloadavg()[0]:.1f} on {cores} cores: other programs are running")
    best = min(before + after)
    uneven = max(statistics.median(before), statistics.median(after)) / best
    if uneven > 1.25:
        found.append(f"the same work took {uneven:.2f} times its best time: other programs are running")
    return found


def importable(name: str) -> bool:
    """Whether a library that is not required is installed and loads."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


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

"""The benchmark's structure and its checks, at a tiny size. No test depends on how fast the machine is."""

import json

import numpy as np
import pytest

from minitf import bench
from minitf.bench import engine
from minitf.bench.engine import CHAINS
from minitf.bench.measure import Snapshot
from minitf.bench.startup import python
from minitf.bench.training import Size


def tiny(repetitions: int) -> list[bench.Row]:
    return bench.engine_overhead(repetitions, length=3)


def test_rows_and_table() -> None:
    report = bench.run([tiny], repetitions=2)
    json.dumps(report)
    assert {row["case"] for row in report["rows"]} == set(CHAINS)
    for row in report["rows"]:
        assert 0 < row["low"] <= row["median"] <= row["high"], f"quartiles out of order in {row}"
        assert row["unit"] == "us/op" and row["ratio"] > 0
    ours = [row for row in report["rows"] if row["library"] == "minitf"]
    assert len(ours) == len(CHAINS) and all(row["ratio"] == 1.0 for row in ours)
    assert f"NumPy {np.__version__}" in report["machine"] and "cores" in report["machine"]
    shown = bench.text(report)
    assert "tanh(y) * w - w" in shown and "times minitf" in shown


def test_values_are_compared_before_anything_is_timed() -> None:
    right = [np.ones((8, 8)), None]
    bench.agree("case", {"minitf": right, "other": [np.ones((8, 8)), np.zeros((8, 8))]}, 1e-9)
    for wrong in (np.full((8, 8), 1.001), np.full((8, 8), np.nan)):
        with pytest.raises(bench.BenchError, match="case: result 0 of minitf and other differs"):
            bench.agree("case", {"minitf": right, "other": [wrong, None]}, 1e-9)


def test_every_runner_that_can_be_imported_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own chain stands in for each of the other libraries: the plumbing is the same."""
    monkeypatch.setattr(engine, "importable", lambda name: True)
    monkeypatch.setattr(engine, "torch_chain", engine.minitf_chain)
    monkeypatch.setattr(engine, "autograd_chain", engine.minitf_chain)
    libraries = [row.library for row in tiny(1)]
    assert libraries == ["minitf", "autograd", "torch"] * len(CHAINS)


def test_every_benchmark_runs_at_a_tiny_size() -> None:
    rows = [
        *bench.dispatch(1, length=3),
        *bench.training(1, {"tiny": Size(vocab=5, context=4, dim=8, heads=2, depth=1, batch=2)}),
        *bench.attention(1, [(1, 2, 8, 4)]),
        *bench.decode(1, (1, 2, 32, 8)),
        *bench.recurrences(1, (1, 1, 64, 4)),
        *bench.growth(1, (8, 16)),
    ]
    for row in rows:
        assert np.isfinite(row.median) and row.low <= row.median <= row.high, f"quartiles out of order: {row}"
    assert {row.benchmark for row in rows} == {function.__name__ for function in bench.BENCHMARKS} - {
        "engine_overhead", "startup",
    }  # fmt: skip
    speeds = {row.library: row for row in rows if row.benchmark == "decode"}
    assert speeds["minitf"].unit == "GB/s" and speeds["memory"].ratio > 0


@pytest.mark.slow
def test_startup() -> None:
    rows = bench.startup(1)
    assert [row.library for row in rows] == [
        "minitf", "numpy alone", *["minitf", "minitf, plain"] * 2, "minitf",
    ]  # fmt: skip
    with pytest.raises(bench.BenchError, match="NameError"):
        python("nonsense")


def test_foreign_load_is_told() -> None:
    before, after = Snapshot(0.0, 0.0, 0.0), Snapshot(10.0, 12.0, 11.8)
    assert bench.foreign_load(before, after, cores=2) == []
    assert (
        "other programs used 10% of the 2 cores" in bench.foreign_load(before, after._replace(own=10.0), 2)[0]
    )
    assert "does not tell" in bench.foreign_load(before, after._replace(busy=None), 2)[0]
    assert not bench.importable("no_such_library")
    now = bench.snapshot()
    assert now.own > 0 and (now.busy is None or now.busy > 0)

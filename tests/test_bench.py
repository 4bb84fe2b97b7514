"""The benchmark's structure and its checks, at a tiny size. No test depends on how fast the machine is."""

import json
from typing import Any

import numpy as np
import pytest

from minitf import bench


def tiny(repetitions: int) -> list[bench.Row]:
    return bench.engine_overhead(repetitions, length=3)


def test_rows_and_table() -> None:
    report = bench.run([tiny], repetitions=2)
    json.dumps(report)
    assert {row["case"] for row in report["rows"]} == set(bench.CHAINS)
    for row in report["rows"]:
        assert 0 < row["low"] <= row["median"] <= row["high"], f"quartiles out of order in {row}"
        assert row["unit"] == "us/op" and row["ratio"] > 0
    ours = [row for row in report["rows"] if row["library"] == "minitf"]
    assert len(ours) == len(bench.CHAINS) and all(row["ratio"] == 1.0 for row in ours)
    assert f"NumPy {np.__version__}" in report["machine"] and "cores" in report["machine"]
    shown = bench.text(report)
    assert "tanh(y) * w - w" in shown and "times minitf" in shown


def test_gradients_are_compared_before_anything_is_timed() -> None:
    right = [np.ones((8, 8)), None]
    bench.same_gradients("case", {"minitf": right, "other": [np.ones((8, 8)), np.zeros((8, 8))]})
    for wrong in (np.full((8, 8), 1.001), np.full((8, 8), np.nan)):
        with pytest.raises(bench.BenchError, match="case: gradients of minitf and other differ"):
            bench.same_gradients("case", {"minitf": right, "other": [wrong, None]})


def test_every_runner_that_can_be_imported_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own chain stands in for each of the other libraries: the plumbing is the same."""
    monkeypatch.setattr(bench, "importable", lambda name: True)
    monkeypatch.setattr(bench, "torch_chain", bench.minitf_chain)
    monkeypatch.setattr(bench, "autograd_chain", bench.minitf_chain)
    libraries = [row.library for row in tiny(1)]
    assert libraries == ["minitf", "autograd", "torch"] * len(bench.CHAINS)


def test_foreign_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    calm: Any = [1.0] * 50
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    assert bench.foreign_load(calm, calm) == []
    assert "1.50 times its best" in bench.foreign_load(calm, [1.5] * 50)[0]
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (7.0, 7.0, 7.0))
    assert "load average 7.0" in bench.foreign_load(calm, calm)[0]
    assert not bench.importable("no_such_library")

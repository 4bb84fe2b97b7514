"""The tiny run as a fixture, and what tests of whole runs compare."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minitf.train import read_checkpoint

SCRIPT = Path(__file__).with_name("tiny_run.py")


@pytest.fixture(scope="session")
def tiny() -> Any:
    """The module tiny_run.py."""
    spec = importlib.util.spec_from_file_location("tiny_run", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def same_run() -> Any:
    """A function that asserts that two folders hold the same run, bit for bit, but for times."""

    def compare(folder: Path, other: Path) -> None:
        (arrays, about), (wanted, of_other) = (
            read_checkpoint(f / "checkpoint.safetensors") for f in (folder, other)
        )
        assert arrays.keys() == wanted.keys(), "both checkpoints hold the same arrays"
        assert any(name.startswith("optimizer.") for name in arrays), "moments are in the checkpoint"
        for name, a in arrays.items():
            assert a.dtype == wanted[name].dtype and np.array_equal(a, wanted[name]), f"{name} differs"
        for progress in (about["progress"], of_other["progress"]):
            progress["seconds"] = None
        assert about == of_other, "step, best loss and options of the optimiser must be equal"
        assert rows_of(folder) == rows_of(other), "the logs must be equal but for times"
        csvs = [
            [line.split(",")[:-2] for line in (f / "log.csv").read_text().splitlines()]
            for f in (folder, other)
        ]
        assert csvs[0] == csvs[1], "log.csv must be equal but for times"
        for name in ("model.safetensors", "config.json"):
            assert (folder / name).read_bytes() == (other / name).read_bytes(), f"{name} differs"

    return compare


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("tokens_per_s", "seconds")} for row in rows]

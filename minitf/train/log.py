"""The log of a run: one row a step, as log.csv for spreadsheets and as log.jsonl for programs."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any, Self

from minitf.models.files import reason, write_atomic

from .errors import TrainingError

# loss in nats; bits = nats / ln 2. The bits are empty where the loss is something else, such as a squared
# error; validation columns where no validation took place, or none of accuracy. The last two are times: only
# these differ between two runs of one configuration.
COLUMNS = (
    "step", "loss", "bits", "val_loss", "val_bits", "lr", "grad_norm", "val_accuracy", "tokens_per_s",
    "seconds",
)  # fmt: skip

Row = dict[str, Any]


class Log:
    """Open the log in `folder`, keep its rows up to step `upto`, and forget what comes after.

    A process that was killed leaves rows that its last checkpoint does not know, and perhaps half a row.
    Forgetting them makes the log of a resumed run that of an undisturbed one.

    Attributes:
        rows: all rows so far.
    """

    def __init__(self, folder: Path, upto: int):
        self._paths = {"jsonl": folder / "log.jsonl", "csv": folder / "log.csv"}
        self.rows = [row for row in read_rows(folder) if row["step"] <= upto]
        write_atomic(self._paths["jsonl"], "".join(map(_jsonl, self.rows)).encode())
        write_atomic(self._paths["csv"], "".join(map(_csv, [{c: c for c in COLUMNS}, *self.rows])).encode())
        self._files = {
            kind: path.open("a", encoding="utf-8", newline="") for kind, path in self._paths.items()
        }

    def add(self, row: Row) -> None:
        """Append a row with the keys of `COLUMNS` and hand it to the operating system at once."""
        self.rows.append(row)
        self._all("write", {"jsonl": _jsonl(row), "csv": _csv(row)})

    def sync(self) -> None:
        """Wait until the rows are on the disk, so that no checkpoint survives a power cut without its log."""
        self._all("sync", {})

    def _all(self, what: str, lines: dict[str, str]) -> None:
        try:
            for kind, file in self._files.items():
                if what == "write":
                    file.write(lines[kind])
                    file.flush()
                else:
                    os.fsync(file.fileno())
        except OSError as error:
            raise TrainingError(
                f"cannot write the log {self._paths[kind]}: {reason(error)}, then resume"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        for file in self._files.values():
            file.close()


def read_rows(folder: str | os.PathLike[str]) -> list[Row]:
    """The rows of the log in a folder, whole ones only; none where there is no log."""
    path = Path(folder) / "log.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            # A process was killed while it wrote this row.
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _jsonl(row: Row) -> str:
    return json.dumps(row) + "\n"


def _csv(row: Row) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([row.get(column) for column in COLUMNS])
    return text.getvalue()

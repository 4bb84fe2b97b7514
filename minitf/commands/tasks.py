"""What `minitf train --task` can train on: for each task, the settings that stand where no option is given.

Only numbers and names, so that `--help` answers at once; `training.py` makes models and data of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import demo


@dataclass(frozen=True)
class Task:
    """A row of the table.

    title: what is learned.
    model: fields of the model's config that differ from `COMMON`; only tasks that have `context` here let it
        be chosen.
    training: fields of TrainConfig that differ from `TRAINING`.
    """

    title: str
    model: dict[str, Any]
    training: dict[str, Any]


# The parts of a model. Where the mixer takes no position scheme, "rope" gives way to "learned".
COMMON: dict[str, Any] = {
    "kv_heads": None, "attention": "softmax", "ffn": "swiglu", "norm": "rmsnorm", "position": "rope",
    "block": "pre", "dropout": 0.0,
}  # fmt: skip
TRAINING: dict[str, Any] = {
    "seed": 0, "accumulate": 1, "warmup": None, "weight_decay": 0.1, "clip": 1.0, "eval_every": 100,
    "save_every": 200,
}  # fmt: skip

TASKS: dict[str, Task] = {
    "moby": Task("the next character of Moby-Dick", demo.MODEL, demo.TRAINING),
    "digits": Task(
        "which digit an 8 x 8 image shows",
        {"dim": 64, "depth": 2, "heads": 4, "position": "learned", "dropout": 0.1},
        {"batch": 64, "lr": 2e-3, "steps": 600},
    ),
    "co2": Task(
        "26 weeks of CO2 from the 104 before",
        {"dim": 64, "depth": 2, "heads": 4, "context": 104, "position": "learned", "dropout": 0.1},
        {"batch": 64, "lr": 2e-3, "steps": 500},
    ),
    "copy": Task(
        "16 symbols, to repeat",
        {"dim": 64, "depth": 2, "heads": 4},
        {"batch": 64, "lr": 2e-3, "steps": 400},
    ),
    "mqar": Task(
        "8 pairs of key and value, to recall",
        # Recall needs embeddings that the first branches do not drown: peri-norm blocks scale them up, and a
        # head of its own does not hold them down.
        {"dim": 64, "depth": 2, "heads": 4, "block": "peri", "tied": False},
        {"batch": 64, "lr": 4e-3, "steps": 400},
    ),
    "listops": Task(
        "the value of [MAX 2 [MIN 4 7 ] ]",
        {"dim": 64, "depth": 3, "heads": 4, "position": "learned", "block": "peri"},
        {"batch": 64, "lr": 3e-3, "steps": 2000},
    ),
}


def defaults(task: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """All settings of a task: of its model, and of its training."""
    row = TASKS[task]
    return {**COMMON, **row.model}, {**TRAINING, **row.training}


def table() -> str:
    """The table as lines of text."""
    columns = ("dim", "depth", "heads", "context", "position", "block", "dropout", "batch", "lr", "steps")
    rows = [["task", *columns, "what is learned"]]
    for name, task in TASKS.items():
        model, training = defaults(name)
        rows.append([name, *(str((model | training).get(c, "-")) for c in columns), task.title])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines)

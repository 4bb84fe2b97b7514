"""Checkpoints: one safetensors file that holds all of a run, so that it can go on as if it had never stopped.

    model.{name}          parameters and buffers
    optimizer.{i}.{name}  what the optimiser remembers about parameter i
    metadata              JSON: progress, identity (model, training numbers, data), the optimiser's options

Written whole or not at all, with a checksum. Reading verifies everything before it changes anything.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from minitf.models.files import WEIGHTS, FileError, arrays_to_bytes, read_arrays, write_atomic
from minitf.nn import Module, StateError

from .errors import TrainingError
from .optim import Optimizer

CHECKPOINT = "checkpoint.safetensors"
FORMAT = "minitf checkpoint 1"
# Training numbers that a resumed run may change: how long it takes and how often it saves.
MAY_DIFFER = ("training.steps", "training.save_every")

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass
class Progress:
    """How far a run has come.

    step: updates done. seconds: time spent.
    best_val_loss, best_step: the lowest validation loss and its step.
    """

    step: int = 0
    seconds: float = 0.0
    best_val_loss: float | None = None
    best_step: int | None = None


def write_checkpoint(
    path: str | os.PathLike[str],
    model: Module,
    optimizer: Optimizer,
    progress: Progress,
    identity: dict[str, Any],
) -> None:
    """Write a run to `path`, whole or not at all.

    Args:
        identity: sections of JSON values that must be equal when the run is resumed.

    Raises:
        FileError: it cannot be written; an earlier checkpoint at `path` is untouched.
    """
    state = optimizer.state_dict()
    arrays = {f"model.{name}": a for name, a in model.state_dict().items()}
    for i, entry in state["state"].items():
        arrays |= {f"optimizer.{i}.{slot}": a for slot, a in entry.items() if slot != "step"}
    about = {
        "format": FORMAT,
        "progress": {f.name: getattr(progress, f.name) for f in fields(Progress)},
        "identity": identity,
        "optimizer": {"groups": state["groups"], "steps": {i: e["step"] for i, e in state["state"].items()}},
    }
    write_atomic(path, arrays_to_bytes(arrays, {"minitf": json.dumps(about)}))


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of a checkpoint by name, and its metadata, verified against the checksum.

    Raises:
        FileError: missing, cut short, damaged, or another kind of file.
    """
    arrays, metadata = read_arrays(path)
    text = metadata.get("minitf", "")
    if f'"format": "{FORMAT}"' not in text:
        raise FileError(
            f"{path} is not a checkpoint of this version of minitf: give the folder of a training run"
        )
    return arrays, json.loads(text)


def load_checkpoint(
    path: str | os.PathLike[str], model: Module, optimizer: Optimizer, identity: dict[str, Any]
) -> Progress:
    """Put the run at `path` into `model` and `optimizer`. Where an error is raised, neither has changed.

    Raises:
        FileError: missing or damaged. TrainingError: the checkpoint of another run.
    """
    arrays, about = read_checkpoint(path)
    different = [d for d in differences(about["identity"], identity) if not d.startswith(MAY_DIFFER)]
    if different:
        raise TrainingError(
            f"{path} is the checkpoint of another run: {'; '.join(different)}. "
            "Resume with the old settings, or start anew in another folder"
        )
    weights = {name.removeprefix("model."): a for name, a in arrays.items() if name.startswith("model.")}
    state: dict[int, dict[str, Any]] = {int(i): {"step": n} for i, n in about["optimizer"]["steps"].items()}
    for name, a in arrays.items():
        if name.startswith("optimizer."):
            _, i, slot = name.split(".", 2)
            state[int(i)][slot] = a
    _check_weights(path, model, weights)
    try:
        optimizer.load_state_dict({"groups": about["optimizer"]["groups"], "state": state})
    except (StateError, ValueError) as error:
        raise TrainingError(f"{path} does not fit this optimiser: {error}") from error
    model.load_state_dict(weights)
    return Progress(**about["progress"])


def holds_run(folder: str | os.PathLike[str]) -> bool:
    """Whether training anew in `folder` would lose something: a run beyond its start, or a saved model."""
    path = Path(folder) / CHECKPOINT
    if not path.exists():
        return (Path(folder) / WEIGHTS).exists()
    try:
        return read_checkpoint(path)[1]["progress"]["step"] > 0
    except FileError:
        # Damaged, or of another kind: for a person to decide.
        return True


def differences(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two dictionaries of JSON values, as phrases that start with the dotted name."""
    # Through JSON and back: tuples become lists, as they did in the file.
    now = json.loads(json.dumps(now))
    found = []
    for key in {**saved, **now}:
        a, b, name = saved.get(key), now.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name} is {_short(a)} in the checkpoint and {_short(b)} now")
    return found


def _check_weights(path: str | os.PathLike[str], model: Module, weights: Arrays) -> None:
    own = model.state_dict()
    for name in {**own, **weights}:
        if name not in own or name not in weights:
            raise TrainingError(
                f"{path} does not fit this model: {name} is only in the {'model' if name in own else 'file'}"
            )
        a, b = weights[name], own[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            raise TrainingError(
                f"{path} does not fit this model: {name} is {a.shape} {a.dtype} there "
                f"and {b.shape} {b.dtype} here"
            )


def _short(value: Any) -> str:
    if value is None:
        return "not set"
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."

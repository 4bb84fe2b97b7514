"""The training loop.

    for each step:  loss and gradient on a fresh batch -> clip -> AdamW at the learning rate of this step
                    now and then: validation; a row in the log; now and then: a checkpoint

All that is random in step s comes from the seed and s alone, so a run that goes on from a checkpoint is, bit
for bit, the run that never stopped.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minitf.engine import no_grad
from minitf.models.files import FileError, reason, save, write_atomic
from minitf.nn import Module

from .checkpoint import CHECKPOINT, Progress, holds_run, load_checkpoint, write_checkpoint
from .clip import clip_grad_norm
from .config import TrainConfig
from .data import Batch
from .errors import TrainingError
from .log import Log, Row
from .optim import AdamW

Event = dict[str, Any]


class Data(Protocol):
    """What `fit` asks of data; `TextData`, `ArrayData` and `TaskData` are three.

    A batch is a tuple of arrays, the arguments of the model's `loss`. `describe` gives JSON values that tell
    data sets apart. Data with a true attribute `accuracy` wants validation to report the model's
    `accuracy(*batch)` too.
    """

    def batch(self, rng: np.random.Generator, batch: int) -> Batch: ...
    def validation_batches(self, batch: int, count: int) -> Sequence[Batch]: ...
    def describe(self) -> dict[str, Any]: ...


@dataclass
class History(Progress):
    """What `fit` returns: how far the run has come, and all rows of its log.

    rows: one a step, with "step", "loss", "bits", "val_loss", "val_bits" and "val_accuracy" (None where no
        validation took place, or it has no such number), "lr", "grad_norm", "tokens_per_s", "seconds".
    stopped: whether Ctrl-C ended it early.
    """

    rows: list[Row] = field(default_factory=list)
    stopped: bool = False

    @property
    def loss(self) -> float | None:
        """The training loss of the last step."""
        return self.rows[-1]["loss"] if self.rows else None

    @property
    def val_loss(self) -> float | None:
        """The last validation loss."""
        return self._last("val_loss")

    @property
    def val_accuracy(self) -> float | None:
        """The last accuracy of a validation."""
        return self._last("val_accuracy")

    def _last(self, key: str) -> float | None:
        return next((row[key] for row in reversed(self.rows) if row.get(key) is not None), None)


def fit(
    model: Module,
    data: Data,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    extra_files: Mapping[str, str | bytes] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> History:
    """Train `model` in place, and keep all of the run in the folder `out`.

    The folder holds checkpoint.safetensors (the whole run), model.safetensors and config.json (for `mt.load`;
    if the model has a `config`), log.csv and log.jsonl, and the extra files.
    Ctrl-C finishes the step, saves and returns; a second Ctrl-C interrupts at once.

    Args:
        model: has loss(*batch, rng=...) -> scalar, in nats unless it has an attribute `nats` that is false.
        data: gives batches; see `Data`.
        config: the numbers of the run.
        out: a folder, made if need be.
        resume: go on from the checkpoint in `out`. Only `steps` and `save_every` may have changed.
        overwrite: start anew even if `out` holds a run or a model, which is lost.
        extra_files: contents by name, for example {"tokenizer.json": tokenizer.to_json()}.
        on_event: called with dictionaries. All have "event", "step", "steps".
            "start"  parameters, resumed, unit (what tokens_per_s counts)
            "step"   the row of the log, best_val_loss, seconds_left
            "eval"   val_loss, val_bits, val_accuracy, best_val_loss, best_step
            "save"   path                      "stop"  reason: "interrupted" or "finished"

    Returns:
        The history from step 1, earlier sittings included.

    Raises:
        TrainingError: the data does not fit the model, `out` already holds a run, nothing to resume, the
            checkpoint of another run, a loss or gradient that is not finite. The last checkpoint is intact.
        FileError: a file cannot be read or written; what was there before is untouched.
    """
    folder, path = Path(out), Path(out) / CHECKPOINT
    check_fits(model, data)
    optimizer = make_optimizer(model, config)
    identity = {"model": describe(model), "training": config.to_dict(), "data": data.describe()}
    history = History()
    if resume:
        if not path.exists():
            raise TrainingError(
                f"nothing to resume: there is no {path}. Start without resume, or give another folder"
            )
        vars(history).update(vars(load_checkpoint(path, model, optimizer, identity)))
        if history.step > config.steps:
            raise TrainingError(
                f"{path} is at step {history.step}, beyond steps={config.steps}: ask for more steps"
            )
    elif holds_run(folder) and not overwrite:
        raise TrainingError(
            f"{folder} already holds a run or a model: resume the run, choose another folder, or say "
            "overwrite to lose what is there"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {folder}: {reason(error)}") from error
    for name, contents in (extra_files or {}).items():
        write_atomic(folder / name, contents.encode() if isinstance(contents, str) else contents)
    validation = data.validation_batches(config.batch, config.eval_batches) if config.eval_batches else []
    saved, first, seconds_before = history.step, history.step, history.seconds

    def tell(event: str, **more: Any) -> None:
        if on_event is not None:
            on_event({"event": event, "step": history.step, "steps": config.steps, **more})

    def save_all() -> int:
        log.sync()
        # The checkpoint last: when it says that the run is complete, all other files are.
        if hasattr(model, "config"):
            save(model, folder)
        write_checkpoint(path, model, optimizer, history, identity)
        tell("save", path=str(path))
        return history.step

    mode = model.training
    with interrupts() as asked, Log(folder, history.step) as log:
        history.rows = log.rows
        unit = getattr(data, "unit", "tokens")
        tell("start", parameters=model.count_parameters(), resumed=resume, unit=unit)
        if not resume:
            # A full disk or a forbidden folder shows now, and not after an hour. The checkpoint comes first,
            # this once: a model without one is not ours to overwrite.
            write_checkpoint(path, model, optimizer, history, identity)
            save_all()
        begin = time.perf_counter()
        try:
            while history.step < config.steps and not asked.is_set():
                row = train_step(model, data, config, optimizer, history.step)
                step = row["step"]
                last = step == config.steps
                if validation and (last or (config.eval_every and step % config.eval_every == 0)):
                    row["val_loss"] = evaluate(model, validation)
                    row["val_bits"] = bits(model, row["val_loss"])
                    if getattr(data, "accuracy", False):
                        row["val_accuracy"] = evaluate(model, validation, "accuracy")
                    check_finite("validation loss", row["val_loss"], step, config)
                    if history.best_val_loss is None or row["val_loss"] < history.best_val_loss:
                        history.best_val_loss, history.best_step = row["val_loss"], step
                elapsed = time.perf_counter() - begin
                row["seconds"] = history.seconds = seconds_before + elapsed
                history.step = step
                log.add(row)
                best = {"best_val_loss": history.best_val_loss, "best_step": history.best_step}
                tell("step", **row, **best, seconds_left=elapsed / (step - first) * (config.steps - step))
                if row["val_loss"] is not None:
                    tell("eval", **{k: v for k, v in row.items() if k.startswith("val_")}, **best)
                if last or (config.save_every and step % config.save_every == 0):
                    saved = save_all()
            history.stopped = history.step < config.steps
            if saved < history.step:
                saved = save_all()
        except TrainingError as error:
            raise TrainingError(
                f"{error}. The last checkpoint, of step {saved}, is intact: {path}"
            ) from error
        finally:
            model.train(mode)
        tell("stop", reason="interrupted" if history.stopped else "finished")
    return history


def train_step(model: Any, data: Data, config: TrainConfig, optimizer: AdamW, step: int) -> Row:
    """One update in training mode, the one after `step` others. Returns its row of the log.

    Raises:
        TrainingError: a loss or a gradient that is not finite. No parameter has changed then.
    """
    begin = time.perf_counter()
    model.train()
    optimizer.zero_grad()
    optimizer.lr = config.lr_at(step)
    # All rows of the step at once: how they are split into passes then makes no difference.
    batch = data.batch(np.random.default_rng([config.seed, step, 0]), config.batch * config.accumulate)
    mean_loss = 0.0
    # The checks below say more than NumPy's warnings about overflow would.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for i in range(config.accumulate):
            part = slice(i * config.batch, (i + 1) * config.batch)
            loss = model.loss(
                *(a[part] for a in batch), rng=np.random.default_rng([config.seed, step, 1 + i])
            )
            mean_loss += float(loss) / config.accumulate
            check_finite("loss", mean_loss, step + 1, config)
            loss.backward(1.0 / config.accumulate)
        norm = clip_grad_norm(optimizer.parameters(), config.clip)
        check_finite("gradient norm", norm, step + 1, config, f" at a loss of {mean_loss:.4g}")
        optimizer.step()
    return {
        "step": step + 1,
        "loss": mean_loss,
        "bits": bits(model, mean_loss),
        "val_loss": None,
        "val_bits": None,
        "lr": optimizer.lr,
        "grad_norm": norm,
        "val_accuracy": None,
        # Tokens of a text, pixels of an image, steps of a series.
        "tokens_per_s": np.size(batch[0]) / (time.perf_counter() - begin),
        "seconds": None,
    }


def evaluate(model: Any, batches: Sequence[Batch], what: str = "loss") -> float:
    """The mean over batches of the model's loss or another number, by rows and in evaluation mode."""
    mode = model.training
    model.eval()
    try:
        with no_grad(), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            total = sum([len(batch[0]) * float(getattr(model, what)(*batch)) for batch in batches])
    finally:
        model.train(mode)
    return total / sum(len(batch[0]) for batch in batches)


def bits(model: Module, loss: float) -> float | None:
    """A loss in bits; None where it is not in nats."""
    return loss / math.log(2) if getattr(model, "nats", True) else None


def make_optimizer(model: Module, config: TrainConfig) -> AdamW:
    """AdamW whose weight decay acts on matrices only: on parameters with two or more axes."""
    params = model.parameters()
    groups: list[dict[str, Any]] = [
        {"params": [p for p in params if p.ndim >= 2]},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, config.lr, config.betas, config.eps, config.weight_decay)


def describe(model: Module) -> dict[str, Any]:
    """What identifies the architecture of a model in a checkpoint."""
    config = getattr(model, "config", None)
    return {"class": type(model).__name__, **(config.to_dict() if config is not None else {})}


def check_fits(model: Module, data: Data) -> None:
    """Raise TrainingError where the data has windows or token ids beyond what the model can take."""
    config = getattr(model, "config", None)
    context, largest = getattr(data, "context", 0), getattr(data, "largest_id", -1)
    if config is not None and context > getattr(config, "context", math.inf):
        raise TrainingError(
            f"the data has windows of {context} tokens, the model takes at most {config.context}"
        )
    if config is not None and largest >= getattr(config, "vocab", math.inf):
        raise TrainingError(
            f"the data holds token id {largest}, but the model knows only 0..{config.vocab - 1}: "
            "build it with the vocabulary of the tokeniser"
        )


def check_finite(what: str, value: float, step: int, config: TrainConfig, where: str = "") -> None:
    """Raise TrainingError, with what to do, where `value` is NaN or infinite."""
    if not math.isfinite(value):
        clip = "clipping (clip=1.0)" if config.clip is None else f"a smaller clip (now {config.clip:g})"
        raise TrainingError(
            f"step {step}: the {what} is {value}{where}. Try a lower lr (now {config.lr:g}), a longer warmup "
            f"or {clip}. To find the operation that made it, resume inside `with mt.detect_anomaly():`"
        )


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into the event that is yielded; the second one interrupts as ever.

    Python delivers signals to the main thread only; in others nothing changes.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(signum: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        # None: it was installed by something other than Python, and cannot be put back.
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)

"""What `train` and `demo` share: from options to a model with its data, and on to a finished run."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from minitf import use
from minitf.decode import generate
from minitf.engine import ShapeError
from minitf.machine import usable_cores
from minitf.models import (
    Config,
    Encoder,
    FileError,
    ForecastConfig,
    Forecaster,
    ImageConfig,
    ImageModel,
    LanguageModel,
    seasonal_naive,
)
from minitf.models.backbone import accepts, takes_mask
from minitf.models.config import PARTS
from minitf.models.files import read_json, reason
from minitf.registry import resolve
from minitf.tasks import (
    MQAR,
    ByteTokenizer,
    CharTokenizer,
    Copy,
    ListOps,
    Task,
    linear_forecast,
    load_moby,
    split_digits,
    split_series,
    standardised_error,
)
from minitf.train import (
    ArrayData,
    History,
    TaskData,
    TextData,
    TrainConfig,
    evaluate,
    fit,
    read_checkpoint,
)

TOKENIZERS: dict[str, Callable[[str], Any]] = {
    "char": CharTokenizer.from_text,
    "byte": lambda text: ByteTokenizer(),
}
# How a run was started, kept beside its checkpoint so that `--resume` needs no other option.
SETTINGS_FILE = "run.json"
# The weeks of CO2 that are forecast, those in a token, and those in a year.
HORIZON, WEEKS, YEAR = 26, 8, 52
# Synthetic tasks are tested on so many samples of this seed.
TEST_SEED, TEST_SAMPLES = 2, 1024


@dataclass(frozen=True)
class Settings:
    """All that a run is made of.

    task: a name in TASKS, or "" if text is the path of a file. tokenizer: a name in TOKENIZERS, for texts.
    backend: for `mt.use`. threads: for BLAS. model: fields of the model's config that the task leaves open.
    training: fields of TrainConfig, whose seed is that of the model too.
    """

    task: str
    text: str
    tokenizer: str
    backend: str
    threads: int
    model: dict[str, Any]
    training: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """How well a run did: a sentence for people, and its numbers for machines."""

    words: str
    numbers: dict[str, float | None]


class Run:
    """A model and its data, built from settings and ready to be trained; texts have a tokenizer too."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.training = TrainConfig(**settings.training)
        self.tokenizer: Any = None
        self.model: Any
        self.data: Any
        # What `result` computes after training.
        self.judge: Callable[[History], Result]
        MAKERS.get(settings.task, make_text)(self)
        self.config = self.model.config
        # Parts that do not fit each other show here, before there is a folder.
        try:
            evaluate(self.model, [self.data.batch(np.random.default_rng(0), 1)])
        except ShapeError as error:
            raise ValueError(
                f"a part of the model does not fit these data: {error}; choose another"
            ) from error

    def fit(
        self, out: Path, resume: bool, overwrite: bool, on_event: Callable[[dict[str, Any]], None]
    ) -> History:
        """Train and keep everything in `out`; see `minitf.train.fit`."""
        files = {SETTINGS_FILE: json.dumps(asdict(self.settings), indent=1) + "\n"}
        if self.tokenizer is not None:
            files["tokenizer.json"] = self.tokenizer.to_json()
        return fit(
            self.model, self.data, self.training, out,
            resume=resume, overwrite=overwrite, extra_files=files, on_event=on_event,
        )  # fmt: skip

    def result(self, history: History) -> Result:
        """How well the model does now."""
        return self.judge(history)

    def write(self, prompt: str, tokens: int) -> str:
        """The prompt and what the model makes of it."""
        ids = self.tokenizer.encode(prompt)
        made = generate(self.model, ids, tokens, temperature=0.8, seed=self.training.seed)
        return prompt + self.tokenizer.decode(list(made))


def make_text(run: Run) -> None:
    """A language model of Moby-Dick or another text."""
    settings = run.settings
    text = load_moby() if settings.task else read_text(settings.text)
    run.tokenizer = TOKENIZERS[settings.tokenizer](text)
    config = Config(vocab=run.tokenizer.vocab, **settings.model)
    run.data = TextData(run.tokenizer.encode(text), config.context)
    run.model = LanguageModel(config, seed=run.training.seed)

    def judge(history: History) -> Result:
        nats = {"training_loss": last_loss(history), "validation_loss": history.val_loss}
        words = f"training loss {losses(last_loss(history))}, validation {losses(history.val_loss)}"
        return Result(words, nats | {"validation_bits": history.val_loss and history.val_loss / math.log(2)})

    run.judge = judge


def make_digits(run: Run) -> None:
    """A classifier of handwritten digits."""
    learn, test = split_digits()
    run.data = ArrayData(learn, test, accuracy=True, unit="pixels")
    run.model = ImageModel(ImageConfig(size=(8, 8), **run.settings.model), seed=run.training.seed)

    def judge(history: History) -> Result:
        accuracy = run.model.accuracy(*test)
        words = f"accuracy {accuracy:.3f} on {len(test[1])} images that it never saw (chance 0.100)"
        return Result(words, {"accuracy": accuracy, "chance": 0.1})

    run.judge = judge


def make_co2(run: Run) -> None:
    """A forecaster of CO2 in the air."""
    config = ForecastConfig(horizon=HORIZON, patch=WEEKS, **run.settings.model)
    learn, validation, test = split_series("co2", config.context, HORIZON)
    run.data = ArrayData(learn, validation, unit="weeks")
    run.model = Forecaster(config, seed=run.training.seed)

    def judge(history: History) -> Result:
        past, future = test
        with run.model.evaluating():
            forecasts = {
                "squared_error": run.model(past).numpy(),
                "seasonal_naive": seasonal_naive(past, HORIZON, min(YEAR, config.context)),
                "linear_map": linear_forecast(learn, past),
            }
        errors = {name: standardised_error(past, future, f) for name, f in forecasts.items()}
        words = (
            f"squared error {errors['squared_error']:.4f} in standardised units on the last fifth of the "
            f"series (seasonal naive {errors['seasonal_naive']:.4f}, linear map {errors['linear_map']:.4f})"
        )
        return Result(words, {**errors})

    run.judge = judge


def make_recall(task: Task) -> Callable[[Run], None]:
    """What makes a language model of a synthetic task."""

    def make(run: Run) -> None:
        config = Config(vocab=task.V_in, context=task.N, **run.settings.model)
        run.model = LanguageModel(config, seed=run.training.seed)
        run.data = TaskData(task)
        run.judge = lambda history: accuracy_of(run, task)

    return make


def make_listops(run: Run) -> None:
    """An encoder that classifies expressions."""
    task = ListOps()
    config = Config(vocab=task.V_in, context=task.N, **run.settings.model)
    run.model = Encoder(config, seed=run.training.seed, classes=task.V_out)
    # A mixer without masks sees the padding as a symbol of its own.
    run.data = TaskData(task, masked=takes_mask(config.attention))
    run.judge = lambda history: accuracy_of(run, task)


def accuracy_of(run: Run, task: Task) -> Result:
    """The accuracy on samples of their own, beside that of guessing."""
    accuracy = run.model.accuracy(*run.data.batch(np.random.default_rng(TEST_SEED), TEST_SAMPLES))
    words = f"accuracy {accuracy:.3f} on {TEST_SAMPLES:,} new samples (chance {task.chance:.3f})"
    return Result(words, {"accuracy": accuracy, "chance": task.chance})


MAKERS: dict[str, Callable[[Run], None]] = {
    "moby": make_text,
    "digits": make_digits,
    "co2": make_co2,
    "copy": make_recall(Copy(n=16, v=10)),
    "mqar": make_recall(MQAR(vocab=64, length=64, k=8, a=0.1)),
    "listops": make_listops,
}


def fitting_position(attention: str, block: str, position: str) -> str:
    """The position scheme, or "learned" where the mixer or the whole block takes none.

    Raises:
        UnknownVariantError: no such mixer or block.
    """
    resolve(attention, PARTS["attention"])
    resolve(block, PARTS["block"])
    takes = accepts(attention, "position") if accepts(block, "mixer") else accepts(block, "position")
    return position if takes else "learned"


@contextmanager
def computing(backend: str, threads: int) -> Iterator[None]:
    """Choose who computes, and with how many BLAS threads.

    The number of threads changes the last bits of a product, so a run keeps the one it began with.
    """
    with use(backend), threadpool_limits(limits=threads, user_api="blas"):
        yield


def default_threads() -> int:
    """All usable cores but one.

    BLAS threads wait for each other. Where another program takes one of their cores, all of them become slow:
    two threads on two cores were seen to take ten times as long.
    """
    return max(1, usable_cores() - 1)


def read_text(path: str) -> str:
    """The text of a UTF-8 file.

    Raises:
        ValueError: the file is empty or not UTF-8. FileError: it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"cannot read {path}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start} cannot be read): convert it first"
        ) from error
    if not text:
        raise ValueError(f"{path} is empty: there is nothing to learn from")
    return text


def saved_settings(out: Path) -> Settings:
    """The settings that the run in `out` was started with.

    Raises:
        FileError: no run there, or a damaged settings file.
    """
    path = out / SETTINGS_FILE
    if path.exists():
        try:
            return Settings(**read_json(path))
        except TypeError as error:
            raise FileError(f"{path} does not hold the settings of a run: {error}") from error
    if not (out / "checkpoint.safetensors").exists():
        raise FileError(
            f"there is no run to resume in {out}: give the folder of a run, or leave out --resume"
        )
    # A run of the Python interface: its checkpoint knows all but the text.
    identity = read_checkpoint(out / "checkpoint.safetensors")[1]["identity"]
    if identity["model"]["class"] != "LanguageModel":
        raise FileError(
            f"{out} holds a run of the Python interface, not of `minitf train`: resume it with mt.train.fit"
        )
    model = {k: v for k, v in identity["model"].items() if k in Config.__dataclass_fields__ and k != "vocab"}
    return Settings("moby", "", "char", "auto", default_threads(), model, identity["training"])


def losses(nats: float | None) -> str:
    """A loss in both units."""
    return "-" if nats is None else f"{nats:.3f} nats ({nats / math.log(2):.3f} bits)"


def last_loss(history: History) -> float | None:
    """The training loss in nats, a mean over fifty steps since batches vary; None without a log."""
    rows = history.rows[-50:]
    return fmean(row["loss"] for row in rows) if rows else None


def shown(path: Path) -> str:
    """A path as it may be pasted into a shell."""
    return shlex.quote(str(path))

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

from threadpoolctl import threadpool_limits

from minitf import use
from minitf.decode import generate
from minitf.machine import usable_cores
from minitf.models import Config, FileError, LanguageModel
from minitf.models.files import read_json, reason
from minitf.tasks import ByteTokenizer, CharTokenizer, load_moby
from minitf.train import History, TextData, TrainConfig, fit, read_checkpoint

TASKS: dict[str, Callable[[], str]] = {"moby": load_moby}
TOKENIZERS: dict[str, Callable[[str], Any]] = {
    "char": CharTokenizer.from_text,
    "byte": lambda text: ByteTokenizer(),
}
# How a run was started, kept beside its checkpoint so that `--resume` needs no other option.
SETTINGS_FILE = "run.json"


@dataclass(frozen=True)
class Settings:
    """All that a run is made of.

    task: a name in TASKS, or "" if text is the path of a file. tokenizer: a name in TOKENIZERS.
    backend: for `mt.use`. threads: for BLAS. model: fields of Config but `vocab`.
    training: fields of TrainConfig, whose seed is that of the model too.
    """

    task: str
    text: str
    tokenizer: str
    backend: str
    threads: int
    model: dict[str, Any]
    training: dict[str, Any]


class Run:
    """A model, its tokenizer and its data, built from settings and ready to be trained."""

    def __init__(self, settings: Settings):
        self.settings = settings
        text = read_text(settings.task, settings.text)
        self.tokenizer = TOKENIZERS[settings.tokenizer](text)
        self.config = Config(vocab=self.tokenizer.vocab, **settings.model)
        self.training = TrainConfig(**settings.training)
        self.data = TextData(self.tokenizer.encode(text), self.config.context)
        self.model = LanguageModel(self.config, seed=self.training.seed)

    def fit(
        self, out: Path, resume: bool, overwrite: bool, on_event: Callable[[dict[str, Any]], None]
    ) -> History:
        """Train and keep everything in `out`; see `minitf.train.fit`."""
        files = {
            "tokenizer.json": self.tokenizer.to_json(),
            SETTINGS_FILE: json.dumps(asdict(self.settings), indent=1) + "\n",
        }
        return fit(
            self.model, self.data, self.training, out,
            resume=resume, overwrite=overwrite, extra_files=files, on_event=on_event,
        )  # fmt: skip

    def write(self, prompt: str, tokens: int) -> str:
        """The prompt and what the model makes of it."""
        ids = self.tokenizer.encode(prompt)
        made = generate(self.model, ids, tokens, temperature=0.8, seed=self.training.seed)
        return prompt + self.tokenizer.decode(list(made))


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


def read_text(task: str, path: str) -> str:
    """The text of a task, or of a UTF-8 file if no task is named.

    Raises:
        ValueError: the file is empty or not UTF-8. FileError: it cannot be read.
    """
    if task:
        return TASKS[task]()
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
    model = {k: v for k, v in identity["model"].items() if k in Config.__dataclass_fields__ and k != "vocab"}
    return Settings("moby", "", "char", "auto", default_threads(), model, identity["training"])


def holds_run(out: Path) -> bool:
    """Whether training into `out` would lose something: a run beyond its start, or a model without a run."""
    checkpoint = out / "checkpoint.safetensors"
    if not checkpoint.exists():
        return (out / "model.safetensors").exists()
    try:
        return read_checkpoint(checkpoint)[1]["progress"]["step"] > 0
    except FileError:
        # Damaged, or not ours: for a person to decide.
        return True


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

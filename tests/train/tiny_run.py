"""A training run that takes milliseconds a step, for tests in this process and in others.

python tiny_run.py FOLDER STEPS [--resume] prints "step N" after each step, and at the end "stop REASON".
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from minitf.models import Config, LanguageModel
from minitf.train import History, TextData, TrainConfig, fit

VOCAB, CONTEXT = 11, 8
# Dropout and accumulation, so that every use of random numbers takes part.
NUMBERS: dict[str, Any] = dict(
    batch=2, accumulate=2, lr=1e-2, eval_every=5, eval_batches=1, save_every=1, seed=3
)


def text(seed: int = 0, length: int = 400) -> np.ndarray:
    """Ids with something to learn: a repeated phrase with errors."""
    rng = np.random.default_rng(seed)
    ids = np.tile(rng.integers(0, VOCAB, 7), length // 7 + 1)[:length]
    return np.where(rng.random(length) < 0.1, rng.integers(0, VOCAB, length), ids)


def text_data() -> TextData:
    return TextData(text(), CONTEXT)


def model(seed: int = 0, dtype: str = "float32", **options: Any) -> LanguageModel:
    sizes = {"vocab": VOCAB, "context": CONTEXT, "dim": 8, "depth": 1, "heads": 2, "dropout": 0.1}
    return LanguageModel(Config(**{**sizes, **options}), seed=seed, dtype=dtype)


def run(out: Path | str, steps: int, resume: bool = False, on_event: Any = None, **numbers: Any) -> History:
    config = TrainConfig(steps=steps, **{**NUMBERS, **numbers})
    # A resumed model starts from other weights: all must come from the checkpoint.
    return fit(model(seed=resume), text_data(), config, out, resume=resume, on_event=on_event)


def show(event: dict[str, Any]) -> None:
    if event["event"] == "step":
        print("step", event["step"], flush=True)
    if event["event"] == "stop":
        print("stop", event["reason"], flush=True)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), resume="--resume" in sys.argv, on_event=show)

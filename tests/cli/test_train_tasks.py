"""`minitf train --task`: every task from its start to its result, resumed runs, and what makes no sense."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import minitf as mt
from minitf.cli import main
from minitf.commands import progress, tasks, training
from minitf.models import Encoder, Forecaster, ImageModel, LanguageModel

RUNNER = CliRunner()
SIZES = {"dim": 8, "depth": 1, "heads": 2, "batch": 4, "eval-every": 2, "save-every": 2, "threads": 1}
TINY = [f"--{name}={value}" for name, value in SIZES.items()]
MODELS = {
    "digits": ImageModel,
    "co2": Forecaster,
    "copy": LanguageModel,
    "mqar": LanguageModel,
    "listops": Encoder,
}


def call(*args: object, code: int = 0) -> Result:
    result = RUNNER.invoke(main, [str(a) for a in args])
    assert result.exit_code == code, f"minitf {args}: exit code {result.exit_code}: {result.output}"
    assert result.exception is None or isinstance(result.exception, SystemExit), "an error came through"
    return result


def train(task: str, out: Path, *args: object, code: int = 0) -> Result:
    return call("train", "--task", task, "--out", out, *TINY, *args, code=code)


@pytest.mark.parametrize("task", MODELS)
def test_a_run_tells_how_well_it_did(tmp_path: Path, task: str) -> None:
    told = [
        json.loads(line) for line in train(task, tmp_path / "a", "--steps", 4, "--json").stdout.splitlines()
    ]
    done, evals = told[-1], [event for event in told if event["event"] == "eval"]
    assert len(evals) == 2 and [e["event"] for e in told].count("step") == 4
    model = mt.load(tmp_path / "a")
    assert type(model) is MODELS[task] and model.config.dim == 8
    if task == "co2":
        assert evals[0]["val_bits"] is None and evals[0]["val_accuracy"] is None
        assert 0.5 <= done["result"]["seasonal_naive"] <= 0.7 and done["result"]["linear_map"] <= 0.07
        assert done["result"]["squared_error"] > 0.0
    else:
        assert 0.0 <= evals[0]["val_accuracy"] <= 1.0 and 0.0 < done["result"]["chance"] < 0.15
        assert 0.0 <= done["result"]["accuracy"] <= 1.0
    assert done["next"].startswith("minitf train --resume"), "a task cannot be sampled from"
    assert not (tmp_path / "a" / "tokenizer.json").exists()


def test_lines_for_people(tmp_path: Path) -> None:
    words = train("digits", tmp_path / "a", "--steps", 4).output
    assert "accuracy 0." in words and "360 images" in words and "chance 0.100" in words and "nats" in words
    assert "pixels/s" in words
    assert "minitf sample" not in words and "--resume" in words
    words = train("co2", tmp_path / "b", "--steps", 4).output
    assert "seasonal naive 0.6" in words and "linear map 0.05" in words, words
    assert "nats" not in words and "bits" not in words, "a squared error has no bits"


@pytest.mark.parametrize("task", MODELS)
def test_resume_is_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    options = ("--steps", 5, "--seed", 5, "--dropout", 0.2, "--accumulate", 2)
    train(task, whole, *options)
    take = progress.Numbers.take

    def interrupt(self: progress.Numbers, event: dict[str, Any]) -> None:
        take(self, event)
        if event["event"] == "step" and event["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(progress.Numbers, "take", interrupt)
    assert "Stopped at step 3 of 5" in train(task, halves, *options).output
    monkeypatch.undo()
    assert "Finished step 5" in call("train", "--resume", "--out", halves).output
    one, other = mt.load(whole).state_dict(), mt.load(halves).state_dict()
    for name, a in one.items():
        assert np.array_equal(a, other[name]), f"{task}: {name} differs after a resume"
    logs = [[r.rsplit(",", 2)[0] for r in (f / "log.csv").read_text().splitlines()] for f in (whole, halves)]
    assert logs[0] == logs[1], "the log of the resumed run differs"


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("moby", "--attention gla --context 8"),
        ("copy", "--attention gla --ffn relu2"),
        ("mqar", "--attention mqa --position alibi"),
        ("listops", "--attention softmax --block post"),
        ("listops", "--attention bigbird"),
        ("digits", "--attention swin_attention --norm layernorm"),
        ("digits", "--variant mha --position rope"),
        ("co2", "--attention gla --ffn gelu --context 40"),
    ],
)
def test_variants_by_name(tmp_path: Path, task: str, options: str) -> None:
    train(task, tmp_path / "a", "--steps", 2, *options.split())
    config = mt.load(tmp_path / "a").config
    assert options.split()[1] in (config.attention, "mha")
    if "gla" in options:
        assert config.position == "learned", "a mixer without a position scheme gets learned positions"


@pytest.mark.parametrize(
    ("task", "options", "message", "code"),
    [
        ("moby", "--attention swin_attention", "grid of 2 axes, and a language model has a sequence", 1),
        ("co2", "--attention swin_attention", "grid of 2 axes, and a forecaster has a sequence", 1),
        ("digits", "--attention gla", "sees only the past, so an image model cannot use it", 1),
        ("listops", "--attention gla", "sees only the past, so an encoder cannot use it", 1),
        ("copy", "--attention linformer", "lets a token see later ones, so a language model cannot", 1),
        ("copy", "--attention gla --position rope", "takes no position scheme", 1),
        ("copy", "--attention swiglu", "no attention or mixer variant is called 'swiglu'", 1),
        ("copy", "--heads 3", "heads=3 must divide dim=8", 1),
        ("co2", "--context 100", "patch=8 must divide context=100", 1),
        ("co2", "--context 400", "choose a shorter context", 1),
        ("copy", "--context 64", "the task copy has one length", 2),
        ("digits", "--context 64", "the task digits has one length", 2),
        ("digits", "--tokenizer byte", "the task digits has none", 2),
        ("digits", "--text x.txt", "give one of them", 2),
        ("digit", "", "'digit' is none of: moby, digits, co2, copy, mqar, listops", 2),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, task: str, options: str, message: str, code: int) -> None:
    result = train(task, tmp_path / "a", "--steps", 2, *options.split(), code=code)
    words = " ".join(result.output.split())
    assert message in words, f"train --task {task} {options}: {result.output}"
    assert not (tmp_path / "a").exists(), "a failure left a folder behind"


def test_a_mixer_without_masks_sees_padding_as_a_symbol(monkeypatch: pytest.MonkeyPatch) -> None:
    model, numbers = tasks.defaults("listops")
    settings = training.Settings("listops", "", "char", "reference", 1, model | {"dim": 8}, numbers)
    assert training.Run(settings).data.masked
    monkeypatch.setattr(training, "takes_mask", lambda name: False)
    assert not training.Run(settings).data.masked


def test_resume_of_another_task(tmp_path: Path) -> None:
    out = tmp_path / "a"
    train("copy", out, "--steps", 2)
    words = call("train", "--resume", "--out", out, "--task", "digits", code=1).output
    assert "the run learns the task copy, and the task digits was asked for" in words
    (tmp_path / "x.txt").write_text("some text")
    words = call("train", "--resume", "--out", out, "--text", tmp_path / "x.txt", code=1).output
    assert "the run learns the task copy, and a text was asked for" in words
    call("train", "--resume", "--out", out, "--task", "copy", "--steps", 3)
    call("train", "--resume", "--out", out, "--tokenizer", "byte", code=2)


def test_resume_of_a_run_from_python(tmp_path: Path) -> None:
    from minitf.models import ImageConfig
    from minitf.tasks import split_digits
    from minitf.train import ArrayData, TrainConfig, fit

    model = ImageModel(ImageConfig(size=(8, 8), dim=8, depth=1, heads=2))
    fit(model, ArrayData(*split_digits()), TrainConfig(steps=1, batch=4), tmp_path / "a")
    words = call("train", "--resume", "--out", tmp_path / "a", "--steps", 3, code=1).output
    assert "resume it with mt.train.fit" in words


@pytest.mark.parametrize(("task", "message"), [("digits", "holds ImageModel, which cannot write"),
                                               ("copy", "the model's tokens are no text")])  # fmt: skip
def test_only_texts_can_be_sampled(tmp_path: Path, task: str, message: str) -> None:
    train(task, tmp_path / "a", "--steps", 1)
    assert message in call("sample", tmp_path / "a", code=1).output


def test_help_shows_the_defaults_of_each_task() -> None:
    words = call("train", "--help").output
    for task in tasks.TASKS:
        model, numbers = tasks.defaults(task)
        line = next(line for line in words.splitlines() if line.split()[:1] == [task])
        assert str(model["dim"]) in line.split() and str(numbers["steps"]) in line.split(), line


@pytest.mark.parametrize(
    ("task", "options", "code", "words"),
    [
        ("digits", ["--block", "convnext_block", "--attention", "gqa"], 2, "leave out --attention"),
        (
            "copy",
            ["--block", "mamba_block", "--ffn", "gelu", "--kv-heads", "1"],
            2,
            "leave out --ffn and --kv-heads",
        ),
        ("co2", ["--attention", "axial_attention"], 1, "a part of the model does not fit these data"),
    ],
)
def test_parts_that_play_no_part_are_refused(
    tmp_path: Path, task: str, options: list[str], code: int, words: str
) -> None:
    out = tmp_path / "a"
    said = " ".join(train(task, out, *options, "--steps", 1, code=code).output.split())
    assert words in said and not out.exists(), f"it says {said!r}"

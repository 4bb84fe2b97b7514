"""`train`, `sample` and `demo`: a run from its start over Ctrl-C and resume to samples and pictures."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from rich.live import Live

import minitf as mt
from minitf import machine
from minitf.cli import main
from minitf.commands import progress, sample, training
from minitf.tasks import ByteTokenizer
from minitf.train import TextData, TrainConfig, fit

RUNNER = CliRunner()
SIZES = {"--dim": 16, "--depth": 1, "--heads": 2, "--context": 8, "--batch": 2}
TINY = [str(part) for pair in (SIZES | {"--eval-every": 4, "--save-every": 3}).items() for part in pair]


def call(*args: object, code: int = 0) -> Result:
    result = RUNNER.invoke(main, [str(a) for a in args])
    assert result.exit_code == code, f"minitf {args}: exit code {result.exit_code}: {result.output}"
    assert result.exception is None or isinstance(result.exception, SystemExit), "an error came through"
    return result


def events(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def weights(folder: Path) -> dict[str, np.ndarray]:
    return mt.load(folder).state_dict()


def assert_equal_weights(one: Path, other: Path) -> None:
    for name, a in weights(one).items():
        assert np.array_equal(a, weights(other)[name]), f"{name} differs between {one.name} and {other.name}"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 20, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps on Moby-Dick."""
    out = tmp_path_factory.mktemp("runs") / "run"
    call("train", "--task", "moby", "--out", out, "--steps", 8, "--seed", 3, *TINY)
    return out


def test_train_leaves_a_whole_run(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    expected = {
        "checkpoint.safetensors",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "log.csv",
        "run.json",
    }
    assert expected <= names, f"missing: {expected - names}"
    assert mt.load(run).config.vocab == 81, "the model does not fit the novel's alphabet"


def test_train_tells_lines_to_a_pipe(tmp_path: Path, text: Path) -> None:
    words = call("train", "--text", text, "--out", tmp_path / "a", "--steps", 8, *TINY).output
    assert "parameters, starting, 8 steps" in words and "step 4/8" in words and "tokens/s" in words
    assert "nats" in words and "bits" in words and "minitf sample" in words, (
        "the end does not say what to do next"
    )
    assert "\x1b" not in words, "there are colours in a pipe"


def test_train_tells_events_as_json(tmp_path: Path, text: Path) -> None:
    told = events(call("train", "--text", text, "--out", tmp_path / "a", "--steps", 4, "--json", *TINY))
    kinds = [event["event"] for event in told]
    assert kinds.count("step") == 4 and kinds[-2:] == ["stop", "done"], f"odd events: {kinds}"
    steps = [event["step"] for event in told if event["event"] == "step"]
    assert steps == [1, 2, 3, 4], "a step is missing"
    assert told[-1]["next"].startswith("minitf sample"), "the last event does not say what to do next"


def test_same_seed_gives_the_same_run(tmp_path: Path, run: Path) -> None:
    call("train", "--out", tmp_path / "again", "--steps", 8, "--seed", 3, *TINY)
    assert_equal_weights(run, tmp_path / "again")


def test_options_reach_the_model_and_the_training(tmp_path: Path, text: Path) -> None:
    options = "--variant mqa --ffn gelu --norm layernorm --position alibi --block parallel --dropout 0.1"
    options += " --tokenizer byte --backend reference --threads 2"
    more = "--lr 0.01 --warmup 1 --weight-decay 0 --clip 2 --accumulate 2"
    out = tmp_path / "a"
    call("train", "--text", text, "--out", out, "--steps", 2, *TINY, *options.split(), *more.split())
    config = mt.load(out).config
    assert (config.attention, config.ffn, config.norm) == ("mqa", "gelu", "layernorm")
    assert (config.position, config.block, config.dropout, config.vocab) == ("alibi", "parallel", 0.1, 256)
    settings = json.loads((out / "run.json").read_text())
    assert (settings["backend"], settings["threads"]) == ("reference", 2), (
        "a resumed run would compute otherwise"
    )
    training = settings["training"]
    assert (training["lr"], training["clip"], training["accumulate"]) == (0.01, 2.0, 2)


def test_train_never_overwrites_unasked(run: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    message = call("train", "--out", run, "--steps", 2, *TINY, code=1).output
    assert "already holds a run" in message and "--resume" in message and "--force" in message
    assert (run / "model.safetensors").read_bytes() == before, "the run was touched"
    call("train", "--out", run, "--resume", "--force", code=2)


def test_train_does_not_overwrite_a_bare_model(tmp_path: Path) -> None:
    mt.save(mt.models.LanguageModel(mt.models.Config(vocab=5, dim=8, heads=2, depth=1)), tmp_path / "m")
    assert "already holds" in call("train", "--out", tmp_path / "m", *TINY, code=1).output


def test_force_starts_anew(tmp_path: Path, text: Path) -> None:
    call("train", "--text", text, "--out", tmp_path / "a", "--steps", 4, "--seed", 1, *TINY)
    call("train", "--text", text, "--out", tmp_path / "a", "--steps", 4, "--seed", 2, "--force", *TINY)
    call("train", "--text", text, "--out", tmp_path / "b", "--steps", 4, "--seed", 2, *TINY)
    assert_equal_weights(tmp_path / "a", tmp_path / "b")


def test_ctrl_c_saves_and_resume_is_bit_identical(tmp_path: Path, text: Path) -> None:
    out, whole = tmp_path / "stopped", tmp_path / "whole"
    # The child process does not know a backend that only these tests have (`pytest --backend loopback`).
    options = [
        "--backend",
        "reference",
        "--text",
        str(text),
        "--steps",
        "150",
        "--seed",
        "3",
        *TINY,
        "--save-every",
        "999",
        "--eval-every",
        "75",
    ]
    command = [sys.executable, "-m", "minitf.cli", "train", "--out", str(out), *options, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "step":
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, f"Ctrl-C must end with exit code 0, not {process.returncode}: {errors}"
    told = [json.loads(line) for line in rest.splitlines()]
    assert told[-2]["reason"] == "interrupted", f"the last events are {told[-2:]}"
    assert told[-1]["next"].startswith("minitf train --resume"), "it does not say how to go on"
    call("train", "--out", out, "--resume")
    call("train", "--out", whole, *options)
    assert_equal_weights(whole, out)


def test_resume_takes_everything_from_the_run(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    common = ["--text", text, "--steps", 9, "--seed", 5, "--tokenizer", "byte", "--dropout", 0.2, *TINY]
    call("train", "--out", whole, *common)
    stop_after(monkeypatch, 4)
    words = call("train", "--out", halves, *common).output
    assert "Stopped at step 4 of 9" in words and "minitf train --resume" in words, (
        "it does not say how to go on"
    )
    monkeypatch.undo()
    assert "going on from step 4" in call("train", "--out", halves, "--resume").output
    assert_equal_weights(whole, halves)
    drop_times = [line.rsplit(",", 2)[0] for line in (whole / "log.csv").read_text().splitlines()]
    resumed = [line.rsplit(",", 2)[0] for line in (halves / "log.csv").read_text().splitlines()]
    assert drop_times == resumed, "the log of the resumed run differs"


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process the signal of Ctrl-C when the given step is told."""
    take = progress.Numbers.take

    def interrupt(self: progress.Numbers, event: dict[str, Any]) -> None:
        take(self, event)
        if event["event"] == "step" and event["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(progress.Numbers, "take", interrupt)


def test_resume_of_a_finished_run_may_ask_for_more(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "a"
    call("train", "--text", text, "--out", out, "--steps", 3, *TINY)
    assert "Finished step 3" in call("train", "--out", out, "--resume").output
    assert "Finished step 5" in call("train", "--out", out, "--resume", "--steps", 5).output
    assert "beyond steps=2" in call("train", "--out", out, "--resume", "--steps", 2, code=1).output
    assert "model.dim is 16" in call("train", "--out", out, "--resume", "--dim", 32, code=1).output


def test_resume_before_the_first_checkpoint_starts_over(tmp_path: Path, text: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    call("train", "--text", text, "--out", a, "--steps", 4, *TINY)
    b.mkdir()
    # What a run that was killed at once leaves: how it was started, and nothing else.
    (b / "run.json").write_bytes((a / "run.json").read_bytes())
    call("train", "--out", b, "--resume")
    assert_equal_weights(a, b)


def test_resume_of_a_run_from_python(tmp_path: Path) -> None:
    tokenizer = mt.tasks.CharTokenizer.from_text(mt.tasks.load_moby())
    config = mt.models.Config(vocab=tokenizer.vocab, context=8, dim=16, depth=1, heads=2)
    data = TextData(tokenizer.encode(mt.tasks.load_moby()), 8)
    fit(mt.models.LanguageModel(config), data, TrainConfig(steps=2, batch=2), tmp_path / "a")
    assert "going on from step 2" in call("train", "--out", tmp_path / "a", "--resume", "--steps", 3).output


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        ("--task mob", "'mob' is none of: moby", 2),
        ("--task moby --text x.txt", "give one of them", 2),
        ("--tokenizer word", "'word' is not one of", 2),
        ("--steps many", "not a valid integer", 2),
        ("--steps 0", "steps must be at least 1", 1),
        ("--lr 0", "lr must be above 0", 1),
        ("--seed -1", "seed must be at least 0", 1),
        ("--heads 5", "heads=5 must divide dim=128", 1),
        ("--attention sofmax", "the closest are: softmax", 1),
        ("--ffn softmax", "no ffn variant is called 'softmax'", 1),
        ("--context 2000000", "the corpus is too short", 1),
        ("--backend abacus", "no backend 'abacus'", 1),
        ("--text missing.txt", "missing.txt: there is no such file", 1),
        ("--resume", "there is no run to resume", 1),
    ],
)
def test_train_failures(tmp_path: Path, options: str, message: str, code: int) -> None:
    result = call("train", "--out", tmp_path / "a", *options.split(), code=code)
    assert message in result.output, f"train {options}: {result.output}"
    assert not (tmp_path / "a").exists(), "a failure left a folder behind"


@pytest.mark.parametrize(
    ("contents", "message"),
    [(b"", "is empty"), (b"\xff\xfe\x00", "not UTF-8"), (b"too short", "the corpus is too short")],
)
def test_train_on_odd_texts(tmp_path: Path, contents: bytes, message: str) -> None:
    (tmp_path / "odd.txt").write_bytes(contents)
    assert message in call("train", "--out", tmp_path / "a", "--text", tmp_path / "odd.txt", code=1).output


def test_train_with_a_diverging_loss_keeps_the_checkpoint(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "a"
    wild = ["--lr", 1e30, "--clip", 1e30, "--warmup", 0, "--steps", 20]
    message = call("train", "--text", text, "--out", out, *TINY, *wild, code=1).output
    assert "Try a lower lr" in message and "is intact" in message, message
    assert mt.load(out).config.dim == 16, "the model in the folder does not load"


def test_damaged_runs_are_told_in_a_sentence(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "a"
    call("train", "--text", text, "--out", out, "--steps", 2, *TINY)
    (out / "run.json").write_text('{"task": "moby"}')
    assert "does not hold the settings of a run" in call("train", "--out", out, "--resume", code=1).output
    (out / "run.json").unlink()
    (out / "checkpoint.safetensors").write_bytes(b"nonsense")
    assert "checkpoint.safetensors" in call("train", "--out", out, "--resume", code=1).output
    assert "already holds a run" in call("train", "--out", out, *TINY, code=1).output


def test_sample_repeats_with_its_seed(run: Path) -> None:
    args = ("sample", run, "--prompt", "Call me", "--tokens", 20)
    first = call(*args, "--seed", 1).output
    assert first.startswith("Call me") and len(first) == len("Call me") + 20 + 1, f"odd sample: {first!r}"
    assert call(*args, "--seed", 1).output == first, "the same seed wrote another text"
    assert call(*args, "--seed", 2).output != first, "another seed wrote the same text"
    about = json.loads(call(*args, "--seed", 1, "--json").stdout)
    assert about["prompt"] + about["text"] + "\n" == first, "--json writes another text"


def test_sample_without_a_prompt_and_with_every_setting(run: Path) -> None:
    options = ["--tokens", 5, "--temperature", 0.5, "--top-k", 3, "--top-p", 0.9, "--backend", "reference"]
    assert len(call("sample", run, *options).output) == 6
    cold = ("sample", run, "--tokens", 5, "--temperature", 0)
    assert call(*cold, "--seed", 1).output == call(*cold, "--seed", 2).output, "temperature 0 needs no seed"


def test_sample_failures(tmp_path: Path, run: Path) -> None:
    assert "not a folder" in call("sample", tmp_path / "none", code=1).output
    assert "character '漢' at position 1" in call("sample", run, "--prompt", "a漢", code=1).output
    assert "top_p must be" in call("sample", run, "--top-p", 2, code=1).output
    assert "temperature must be" in call("sample", run, "--temperature", -1, code=1).output
    call("sample", run, "--tokens", 0, code=2)
    mt.save(mt.load(run), tmp_path / "bare")
    assert "tokenizer.json" in call("sample", tmp_path / "bare", code=1).output
    (tmp_path / "bare" / "tokenizer.json").write_text("[]")
    assert "not a tokenizer" in call("sample", tmp_path / "bare", code=1).output
    (tmp_path / "bare" / "tokenizer.json").write_text(ByteTokenizer().to_json())
    assert "256 tokens" in call("sample", tmp_path / "bare", code=1).output
    mt.save(mt.models.Encoder(mt.load(run).config), tmp_path / "encoder")
    assert "cannot write" in call("sample", tmp_path / "encoder", code=1).output


def test_bytes_wait_until_they_make_a_character() -> None:
    text = "aé漢🐋z"
    pieces = list(sample.readable_pieces(iter(ByteTokenizer().encode(text).tolist()), ByteTokenizer()))
    assert pieces == list(text), f"characters of several bytes came as {pieces}"
    broken = list(sample.readable_pieces(iter([0xE2, 0x82]), ByteTokenizer()))
    assert "".join(broken) == "\ufffd", "a character that never ends must not be lost"


def test_demo_from_start_to_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minitf.commands import demo

    monkeypatch.setattr(demo, "MODEL", {"dim": 16, "depth": 2, "heads": 2, "context": 32})
    monkeypatch.setitem(demo.TRAINING, "batch", 2)
    out = tmp_path / "demo"
    words = call("demo", "--out", out, "--steps", 15).output
    for expected in (
        "Before training",
        "After 15 steps",
        "nats",
        "bits",
        "loss.png",
        "minitf sample",
        "--resume",
    ):
        assert expected in words, f"the demo does not say {expected!r}"
    for picture in ("loss.png", "attention.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG"), f"{picture} is not a picture"
    report = json.loads((out / "report.json").read_text())
    assert report["validation_loss"]["bits"] == pytest.approx(report["validation_loss"]["nats"] / np.log(2))
    assert report["tokens_per_s"] > 0 and report["machine"] and report["parameters"] > 1000
    assert "Call" in call("sample", out, "--prompt", "Call", "--tokens", 3).output
    stop_after(monkeypatch, 3)
    stopped = call("demo", "--out", out, "--steps", 15).output
    assert "Stopped at step 3 of 15" in stopped and "minitf train --resume" in stopped
    assert (
        f"is now in {out}-1" in stopped
        and json.loads((tmp_path / "demo-1/report.json").read_text()) == report
    )
    (out / "report.json").write_text("old")
    assert "Stopped at step 3" in call("demo", "--out", out, "--steps", 15, "--force").output
    assert not (tmp_path / "demo-2").exists(), "--force must replace"
    assert not (out / "report.json").exists(), "figures of the old run are left beside the new one"
    monkeypatch.undo()
    assert "Finished step 15" in call("train", "--resume", "--out", out).output


def test_live_display_shows_every_number() -> None:
    page = io.StringIO()
    console = Console(file=page, force_terminal=True, width=90, highlight=False)
    common = {"steps": 40}
    step = {"event": "step", "loss": 2.0, "val_loss": None, "tokens_per_s": 5000.0, "seconds_left": 75.0}
    with Live(console=console, auto_refresh=False, transient=True) as live:
        screen = progress.Screen(live)
        screen({"event": "start", "step": 0, "parameters": 1234, "resumed": False, **common})
        screen({**step, "step": 1, **common})
        screen({"event": "eval", "step": 1, "val_loss": 3.0, **common})
        live.refresh()
    words = page.getvalue()
    for expected in (
        "1,234 parameters",
        "1/40",
        "1:15 left",
        "5,000 tokens/s",
        "2.000 nats, 2.885 bits",
        "3.000 nats, 4.328",
    ):
        assert expected in words, f"the live display does not show {expected!r}"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, "-:--"), (float("nan"), "-:--"), (5.4, "0:05"), (75, "1:15"), (3725, "1:02:05")],
)
def test_clock(seconds: float | None, expected: str) -> None:
    assert progress.clock(seconds) == expected


def test_threads_are_limited_and_given_back() -> None:
    def count() -> int:
        return max(pool["num_threads"] for pool in machine.thread_pools())

    before, mode = count(), mt.active()
    with training.computing("auto", 1):
        assert count() == 1 and mt.active() == "auto", "the run computes with more threads than it was given"
    assert count() == before and mt.active() == mode, "the settings outlive the run"
    assert 1 <= training.default_threads() <= max(1, machine.usable_cores() - 1)

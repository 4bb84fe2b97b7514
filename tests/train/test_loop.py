"""The training loop: what it computes, what it reports, how it stops, resumes and fails."""

import json
import math
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minitf as mt
from minitf import ops
from minitf.nn import Module, Parameter
from minitf.train import (
    AdamW,
    ArrayData,
    TextData,
    TrainConfig,
    TrainingError,
    clip_grad_norm,
    evaluate,
    fit,
    read_rows,
)
from minitf.train.loop import make_optimizer, train_step


class Bigram(Module):
    """The smallest language model: logits are a row of a table. `spoil[n]` multiplies the n-th loss."""

    def __init__(self, vocab: int = 11, spoil: dict[int, float] | None = None, dtype: str = "float32"):
        self.table = Parameter(np.zeros((vocab, vocab), dtype=dtype))
        self.bias = Parameter(np.zeros(vocab, dtype=dtype))
        self.calls, self.spoil = 0, spoil or {}

    def loss(self, tokens: Any, targets: Any, rng: Any = None) -> Any:
        self.calls += 1
        loss = ops.cross_entropy(ops.embedding(tokens, self.table) + self.bias, targets)
        return loss * self.spoil.get(self.calls, 1.0)


def quick(**numbers: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 6, "batch": 4, "lr": 0.1, "eval_every": 2, "save_every": 2, **numbers})


def test_the_loss_falls_and_everything_is_kept(tmp_path: Path, tiny: Any) -> None:
    out = tmp_path / "new" / "run"
    events: list[dict[str, Any]] = []
    model = tiny.model()
    history = fit(
        model,
        tiny.text_data(),
        TrainConfig(steps=120, batch=8, lr=1e-2, eval_every=40, save_every=50, eval_batches=2),
        out,
        extra_files={"tokenizer.json": '{"é": 1}', "raw.bin": b"\x00\xff"},
        on_event=events.append,
    )
    first, last = history.rows[0], history.rows[-1]
    assert last["loss"] < 0.7 * first["loss"], f"the loss fell from {first['loss']} to {last['loss']} only"
    assert abs(first["loss"] - math.log(tiny.VOCAB)) <= 0.3, "an untrained model guesses"
    assert history.step == 120 and not history.stopped
    validated = [row["step"] for row in history.rows if row["val_loss"] is not None]
    assert validated == [40, 80, 120]
    best = min(row["val_loss"] for row in history.rows if row["val_loss"] is not None)
    assert (
        history.best_val_loss == best
        and history.val_loss == last["val_loss"]
        and history.loss == last["loss"]
    )
    for row in history.rows:
        assert abs(row["bits"] - row["loss"] / math.log(2)) <= 1e-15, "bits = nats / ln 2"
        assert row["grad_norm"] > 0 and row["tokens_per_s"] > 0
    assert abs(last["val_bits"] * math.log(2) - last["val_loss"]) <= 1e-15

    kinds = [e["event"] for e in events]
    assert kinds[:2] == ["start", "save"] and kinds[-1] == "stop" and kinds.count("step") == 120
    assert [e["step"] for e in events if e["event"] == "save"] == [0, 50, 100, 120]
    assert [e["step"] for e in events if e["event"] == "eval"] == validated
    assert all(e["steps"] == 120 for e in events) and events[-1]["reason"] == "finished"
    assert events[0]["parameters"] == model.count_parameters()
    left = [e["seconds_left"] for e in events if e["event"] == "step"]
    assert left[-1] == 0.0 and min(left) >= 0.0

    assert (out / "tokenizer.json").read_text(encoding="utf-8") == '{"é": 1}'
    assert (out / "raw.bin").read_bytes() == b"\x00\xff"
    assert [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] == history.rows
    assert read_rows(out) == history.rows
    lines = (out / "log.csv").read_text().splitlines()
    assert lines[0].startswith("step,loss,bits,val_loss,val_bits,lr,grad_norm") and len(lines) == 121
    assert lines[1].split(",")[3] == "" and float(lines[40].split(",")[3]) == history.rows[39]["val_loss"]
    assert not list(out.glob(".*")), "no temporary files are left"

    loaded = mt.load(out)
    for name, a in model.state_dict().items():
        assert np.array_equal(a, loaded.state_dict()[name]), f"mt.load gives another {name}"
    assert model.training, "the model's mode is what it was"


def test_a_step_is_gradient_clipping_and_adamw(tiny: Any) -> None:
    config = quick(clip=0.05, weight_decay=0.3)
    data = tiny.text_data()
    model, twin = Bigram(), Bigram()
    optimizer = make_optimizer(model, config)
    other = AdamW(
        [{"params": [twin.table]}, {"params": [twin.bias], "weight_decay": 0.0}], 0.1, (0.9, 0.95), 1e-8, 0.3
    )
    for step in range(3):
        row = train_step(model, data, config, optimizer, step)
        tokens, targets = data.batch(np.random.default_rng([0, step, 0]), 4)
        twin.zero_grad()
        loss = twin.loss(tokens, targets)
        loss.backward()
        norm = clip_grad_norm(twin.parameters(), 0.05)
        other.lr = config.lr_at(step)
        other.step()
        assert (row["loss"], row["grad_norm"], row["lr"]) == (float(loss), norm, other.lr)
    for name, a in model.state_dict().items():
        assert np.array_equal(a, twin.state_dict()[name]), f"{name} differs from the step written out"


def test_only_matrices_decay(tiny: Any) -> None:
    model = tiny.model()
    decayed, kept = make_optimizer(model, quick(weight_decay=0.5)).groups
    assert decayed["weight_decay"] == 0.5 and kept["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decayed["params"]) and all(p.ndim < 2 for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(model.parameters())


def test_accumulation_equals_the_big_batch(tmp_path: Path, tiny: Any) -> None:
    big, small = (tiny.model(dtype="float64", dropout=0.0) for _ in range(2))
    a = fit(big, tiny.text_data(), quick(batch=12), tmp_path / "big")
    b = fit(small, tiny.text_data(), quick(batch=3, accumulate=4), tmp_path / "small")
    for row, other in zip(a.rows, b.rows, strict=True):
        for key in ("loss", "grad_norm"):
            err = abs(row[key] - other[key])
            assert err <= 1e-12, f"step {row['step']}: {key} of the accumulated batch differs by {err}"
    for name, p in big.state_dict().items():
        err = float(np.abs(p - small.state_dict()[name]).max())
        assert err <= 1e-9, f"{name} differs by {err} between one batch of 12 and four of 3"


def test_evaluation_is_without_dropout_and_weighs_rows(tiny: Any) -> None:
    model = tiny.model(dropout=0.5, dtype="float64")
    tokens, targets = tiny.text_data().batch(np.random.default_rng(0), 5)
    whole = evaluate(model, [(tokens, targets)])
    parts = evaluate(model, [(tokens[:4], targets[:4]), (tokens[4:], targets[4:])])
    assert abs(whole - parts) <= 1e-14, f"batches of 4 and 1 give {parts}, one of 5 gives {whole}"
    assert model.training and all(p.grad is None for p in model.parameters())
    model.eval()
    evaluate(model, [(tokens, targets)])
    assert not model.training, "the mode before is restored"


def test_two_runs_with_one_seed_are_equal(tmp_path: Path, tiny: Any, same_run: Any) -> None:
    for name in ("a", "b"):
        tiny.run(tmp_path / name, 7)
    same_run(tmp_path / "a", tmp_path / "b")
    other = tiny.run(tmp_path / "c", 7, seed=4)
    assert other.loss != read_rows(tmp_path / "a")[-1]["loss"], "another seed gives other batches"


def press_at(step: int, times: int = 1) -> Any:
    """A callback that presses Ctrl-C after a step."""

    def press(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return press


@pytest.mark.parametrize("stop_at", [1, 5, 9])
def test_interrupt_saves_and_resume_is_exact(tmp_path: Path, tiny: Any, same_run: Any, stop_at: int) -> None:
    tiny.run(tmp_path / "whole", 10, save_every=4)
    events: list[dict[str, Any]] = []
    press = press_at(stop_at)
    before = signal.getsignal(signal.SIGINT)
    history = tiny.run(tmp_path / "parts", 10, on_event=lambda e: (events.append(e), press(e)), save_every=4)
    assert signal.getsignal(signal.SIGINT) is before, "the handler from before is back"
    assert history.stopped and history.step == stop_at and len(history.rows) == stop_at
    assert events[-1]["event"] == "stop" and events[-1]["reason"] == "interrupted"
    assert events[-2]["event"] == "save" and events[-2]["step"] == stop_at
    history = tiny.run(tmp_path / "parts", 10, resume=True, save_every=4)
    assert not history.stopped and [row["step"] for row in history.rows] == list(range(1, 11))
    same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_second_interrupt_stops_at_once(tmp_path: Path, tiny: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path, 10, on_event=press_at(3, times=2))
    assert signal.getsignal(signal.SIGINT) is before
    assert tiny.run(tmp_path, 10, resume=True).step == 10, "what was saved before is intact"


def test_training_in_another_thread(tmp_path: Path, tiny: Any) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(tiny.run(tmp_path, 3)))
    thread.start()
    thread.join(timeout=60)
    assert found and found[0].step == 3, "signals are for the main thread only, training is not"


def test_a_finished_run_can_be_resumed_and_made_longer(tmp_path: Path, tiny: Any) -> None:
    tiny.run(tmp_path, 4)
    again = tiny.run(tmp_path, 4, resume=True)
    assert again.step == 4 and len(again.rows) == 4 and not again.stopped, "nothing is left to do"
    longer = tiny.run(tmp_path, 6, resume=True)
    assert [row["step"] for row in longer.rows] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(TrainingError, match="at step 6, beyond steps=5"):
        tiny.run(tmp_path, 5, resume=True)


def test_a_run_is_not_overwritten_by_mistake(tmp_path: Path, tiny: Any) -> None:
    tiny.run(tmp_path, 4)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="already holds a run or a model: resume the run, choose"):
        tiny.run(tmp_path, 4)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    history = fit(tiny.model(), tiny.text_data(), quick(steps=2), tmp_path, overwrite=True)
    assert [row["step"] for row in history.rows] == [1, 2], "the old log is gone too"


def test_a_saved_model_is_not_overwritten_by_mistake(tmp_path: Path, tiny: Any) -> None:
    mt.save(tiny.model(), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="already holds a run or a model"):
        tiny.run(tmp_path, 4)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_run_that_never_took_a_step_may_be_started_again(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_step(*args: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr("minitf.train.loop.train_step", no_step)
    with pytest.raises(RuntimeError, match="killed"):
        tiny.run(tmp_path, 4)
    monkeypatch.undo()
    assert tiny.run(tmp_path, 4, lr=0.5).step == 4, "nothing is lost by starting anew from step 0"


def test_rows_after_the_checkpoint_are_forgotten(tmp_path: Path, tiny: Any, same_run: Any) -> None:
    tiny.run(tmp_path / "whole", 8)
    tiny.run(tmp_path / "parts", 8, on_event=press_at(5))
    # As a killed process leaves it: rows that no checkpoint knows, the last one half.
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1.0}\n{"step": 7, "lo')
    with (tmp_path / "parts" / "log.csv").open("a") as file:
        file.write("6,1.0,,,,,,,\n7,")
    tiny.run(tmp_path / "parts", 8, resume=True)
    same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(tmp_path: Path, tiny: Any, bad: float) -> None:
    model = Bigram(spoil={4: bad})
    with pytest.raises(TrainingError) as caught:
        fit(model, tiny.text_data(), quick(eval_batches=0), tmp_path)
    message = str(caught.value)
    words = [
        "step 4",
        f"the loss is {bad}",
        "lower lr (now 0.1)",
        "clip",
        "mt.detect_anomaly()",
        "of step 2, is intact",
    ]
    assert all(word in message for word in words), message
    assert message.endswith(str(tmp_path / "checkpoint.safetensors"))
    history = fit(Bigram(), tiny.text_data(), quick(eval_batches=0), tmp_path, resume=True)
    assert [row["step"] for row in history.rows] == [1, 2, 3, 4, 5, 6], "the checkpoint is as good as ever"


def test_a_gradient_that_is_not_finite_changes_no_parameter(tmp_path: Path, tiny: Any) -> None:
    class Steep(Bigram):
        # sqrt(sum of squares) is 0 at zero weights, and its slope there is not finite.
        def loss(self, tokens: Any, targets: Any, rng: Any = None) -> Any:
            return super().loss(tokens, targets) + ops.sqrt((self.table**2).sum())

    model = Steep()
    with pytest.raises(
        TrainingError, match=r"step 1: the gradient norm is (inf|nan) at a loss of 2\.398.*\(clip=1\.0\)"
    ):
        fit(model, tiny.text_data(), quick(clip=None, eval_batches=0), tmp_path)
    for name, a in model.state_dict().items():
        assert not a.any(), f"{name} must not have moved"


def test_a_validation_loss_that_is_not_finite(tmp_path: Path, tiny: Any) -> None:
    # Calls 1 and 2 are training steps, call 3 is the first validation.
    with pytest.raises(TrainingError, match=r"step 2: the validation loss is nan.*of step 0, is intact"):
        fit(Bigram(spoil={3: math.nan}), tiny.text_data(), quick(eval_batches=1), tmp_path)


def test_anomaly_detection_finds_the_operation(tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(mt.AnomalyError, match="multiply made the first NaN"), mt.detect_anomaly():
        fit(Bigram(spoil={2: math.nan}), tiny.text_data(), quick(), tmp_path)


def test_data_that_does_not_fit_the_model(tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(TrainingError, match=r"token id 10, but the model knows only 0..6"):
        fit(tiny.model(vocab=7), tiny.text_data(), quick(), tmp_path / "run")
    with pytest.raises(TrainingError, match="windows of 8 tokens, the model takes at most 4"):
        fit(tiny.model(context=4), tiny.text_data(), quick(), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing is written before the checks"


def test_a_run_without_validation_part(tmp_path: Path, tiny: Any) -> None:
    history = fit(tiny.model(), TextData(tiny.text(), 8, validation=0.0), quick(), tmp_path)
    assert history.val_loss is None and history.best_val_loss is None and history.step == 6


def test_an_error_in_a_callback_ends_the_run_and_restores_everything(tmp_path: Path, tiny: Any) -> None:
    def fail(event: dict[str, Any]) -> None:
        if event["step"] == 2:
            raise RuntimeError("the display is broken")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="the display is broken"):
        tiny.run(tmp_path, 4, on_event=fail)
    assert signal.getsignal(signal.SIGINT) is before
    assert tiny.run(tmp_path, 4, resume=True).step == 4


def test_saving_less_often_changes_nothing_else(tmp_path: Path, tiny: Any) -> None:
    a, b = tiny.run(tmp_path / "a", 6, save_every=1), tiny.run(tmp_path / "b", 6, save_every=0)
    assert [row["loss"] for row in a.rows] == [row["loss"] for row in b.rows]
    assert replace(a, rows=[], seconds=0.0) == replace(b, rows=[], seconds=0.0)


def test_any_batch_and_the_accuracy_of_the_model(tmp_path: Path) -> None:
    class Line(Module):
        """y = w x with a squared error, a third array of weights, and a share of small errors."""

        nats = False

        def __init__(self) -> None:
            self.w = Parameter(np.zeros(1))

        def errors(self, x: Any, y: Any) -> Any:
            return ops.square(self.w * x - y)

        def loss(self, x: Any, y: Any, weight: Any, rng: Any = None) -> Any:
            return (weight * self.errors(x, y)).mean()

        def accuracy(self, x: Any, y: Any, weight: Any) -> float:
            return float(np.mean(self.errors(x, y).data <= 0.01))

    x = np.linspace(-1.0, 1.0, 21)
    parts = (x, 3.0 * x, np.ones(21))
    events: list[dict[str, Any]] = []
    config = quick(steps=100, eval_every=50, accumulate=2, weight_decay=0.0, clip=None)
    history = fit(
        Line(), ArrayData(parts, parts, accuracy=True), config, tmp_path / "a", on_event=events.append
    )
    assert history.val_accuracy == 1.0, f"w x = 3 x was not learned: {history.val_accuracy}"
    assert history.rows[0]["bits"] is None and history.rows[-1]["val_bits"] is None, "no bits of an error"
    told = [e for e in events if e["event"] == "eval"]
    assert [e["val_accuracy"] for e in told] == [history.rows[49]["val_accuracy"], 1.0]
    lines = (tmp_path / "a" / "log.csv").read_text().splitlines()
    column = lines[0].split(",").index("val_accuracy")
    assert lines[1].split(",")[column] == "" and float(lines[100].split(",")[column]) == 1.0
    plain = fit(Line(), ArrayData(parts, parts), quick(), tmp_path / "b")
    assert plain.val_accuracy is None and plain.val_loss is not None


def test_evaluation_of_something_else_than_the_loss(tiny: Any) -> None:
    model, batch = tiny.model(), tiny.text_data().batch(np.random.default_rng(0), 5)
    assert abs(evaluate(model, [batch], "accuracy") - model.accuracy(*batch)) <= 1e-12

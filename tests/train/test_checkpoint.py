"""Checkpoints that are damaged, foreign or of another run; disks that are full."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import minitf as mt
from minitf.models.files import FileError
from minitf.nn import Parameter
from minitf.train import (
    AdamW,
    Progress,
    TextData,
    TrainConfig,
    TrainingError,
    fit,
    load_checkpoint,
    read_checkpoint,
)
from minitf.train.checkpoint import differences, write_checkpoint

FILE = "checkpoint.safetensors"


@pytest.fixture
def run(tmp_path: Path, tiny: Any) -> Path:
    """The folder of a run of three steps."""
    tiny.run(tmp_path, 3)
    return tmp_path


def refuse(folder: Path, tiny: Any, words: str, error: type[Exception] = FileError) -> None:
    """Resuming in `folder` raises an error with `words`, and leaves every file as it is."""
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(error, match=words):
        tiny.run(folder, 6, resume=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before, (
        "a refused resume must change no file"
    )


def test_nothing_to_resume(tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(
        TrainingError, match=r"nothing to resume: there is no .*checkpoint.safetensors\. Start without"
    ):
        tiny.run(tmp_path / "none", 3, resume=True)
    assert not (tmp_path / "none").exists(), "a failed resume makes no folder"


@pytest.mark.parametrize("part", [0, 4, 100, 0.5, 0.99])
def test_truncated(run: Path, tiny: Any, part: float) -> None:
    whole = (run / FILE).read_bytes()
    (run / FILE).write_bytes(whole[: int(part if part >= 1 else part * len(whole))])
    refuse(run, tiny, "not a whole safetensors file")


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9999])
def test_one_flipped_bit(run: Path, tiny: Any, place: float) -> None:
    contents = bytearray((run / FILE).read_bytes())
    contents[int(place * len(contents))] ^= 4
    (run / FILE).write_bytes(contents)
    refuse(run, tiny, "damaged|not a whole safetensors file")


def test_damaged_metadata_is_noticed(run: Path) -> None:
    contents = (run / FILE).read_bytes()
    for words in (b"minitf checkpoint 1", b"progress", b"best_val_loss", b"identity", b"sha256", b"groups"):
        changed = bytearray(contents)
        changed[contents.index(words)] ^= 1
        (run / FILE).write_bytes(changed)
        with pytest.raises(FileError):
            read_checkpoint(run / FILE)


def test_files_of_another_kind(run: Path, tiny: Any) -> None:
    for contents in (b"PK\x03\x04 a zip file", b"hello\n" * 100, bytes(1000)):
        (run / FILE).write_bytes(contents)
        refuse(run, tiny, "not a whole safetensors file")
    save_file({"weight": np.zeros(3)}, run / FILE)
    refuse(run, tiny, "not a checkpoint of this version of minitf")
    (run / FILE).unlink()
    (run / FILE).mkdir()
    with pytest.raises(FileError, match="it is a folder"):
        tiny.run(run, 6, resume=True)


def test_another_run_is_refused_and_the_difference_named(run: Path, tiny: Any) -> None:
    def attempt(words: str, model: Any = None, text: Any = None, **numbers: Any) -> None:
        before = (run / FILE).read_bytes()
        model = tiny.model() if model is None else model
        weights = model.state_dict()
        config = TrainConfig(steps=6, **{**tiny.NUMBERS, **numbers})
        with pytest.raises(TrainingError, match=words):
            fit(model, TextData(tiny.text() if text is None else text, 8), config, run, resume=True)
        assert (run / FILE).read_bytes() == before
        for name, a in model.state_dict().items():
            assert np.array_equal(a, weights[name]), f"a refused resume changed {name}"

    attempt(r"training\.lr is 0.01 in the checkpoint and 0.5 now", lr=0.5)
    attempt(r"training\.seed is 3 in the checkpoint and 4 now", seed=4)
    attempt(r"training\.clip is 1.0 in the checkpoint and not set now", clip=None)
    attempt(r"model\.dim is 8 in the checkpoint and 16 now", model=tiny.model(dim=16))
    attempt(r"model\.ffn is swiglu in the checkpoint and gelu now", model=tiny.model(ffn="gelu"))
    attempt(r"data\.sha256 is .* in the checkpoint and .* now", text=tiny.text(seed=1))
    attempt(r"data\.tokens is 400 in the checkpoint and 300 now", text=tiny.text()[:300])
    attempt(
        r"embedding.weight is \(11, 8\) float32 there and \(11, 8\) float64 here", tiny.model(dtype="float64")
    )


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    class Net(mt.nn.Module):
        def __init__(self, **sizes: int):
            for name, size in sizes.items():
                setattr(self, name, Parameter(np.arange(float(size))))

    path = tmp_path / FILE
    net = Net(a=3, b=2)
    write_checkpoint(path, net, AdamW(net.parameters()), Progress(step=5), {})
    for other, words in [
        (Net(a=4, b=2), r"a is \(3,\) float64 there and \(4,\) float64 here"),
        (Net(a=3), "b is only in the file"),
        (Net(a=3, b=2, c=1), "c is only in the model"),
    ]:
        before = other.state_dict()
        with pytest.raises(TrainingError, match=words):
            load_checkpoint(path, other, AdamW(other.parameters()), {})
        assert all(np.array_equal(a, before[name]) for name, a in other.state_dict().items())
    with pytest.raises(TrainingError, match="does not fit this optimiser"):
        load_checkpoint(path, net, AdamW([{"params": [net.a]}, {"params": [net.b]}]), {})


def test_loading_keeps_the_memory_layout(tmp_path: Path) -> None:
    class Net(mt.nn.Module):
        def __init__(self) -> None:
            self.w = Parameter(np.arange(6.0).reshape(2, 3).T)

    net, other = Net(), Net()
    net.w.data[...] = 7.0 * net.w.data
    write_checkpoint(tmp_path / FILE, net, AdamW(net.parameters()), Progress(), {})
    load_checkpoint(tmp_path / FILE, other, AdamW(other.parameters()), {})
    assert np.array_equal(other.w.data, net.w.data) and other.w.data.strides == net.w.data.strides


def test_differences_are_phrases() -> None:
    saved = {"a": {"x": 1, "list": [1, 2]}, "b": True}
    assert differences(saved, {"a": {"x": 1, "list": (1, 2)}, "b": True}) == [], "tuples are lists in JSON"
    assert differences(saved, {"a": {"x": 2, "list": [1, 2]}, "c": None, "b": True}) == [
        "a.x is 1 in the checkpoint and 2 now"
    ]


def fill_disk(monkeypatch: pytest.MonkeyPatch, folder: Path, pattern: str) -> None:
    """Let waiting for the disk fail, as on a full one, for the files in the folder that fit the pattern."""
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino in [p.stat().st_ino for p in folder.glob(pattern)]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)


def test_a_full_disk_while_saving(
    tmp_path: Path, tiny: Any, same_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.run(tmp_path / "whole", 6, save_every=2)
    out = tmp_path / "parts"

    def fill(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            fill_disk(monkeypatch, out, ".checkpoint*.tmp")

    with pytest.raises(FileError, match=r"cannot write .*: the disk is full; free some space") as caught:
        tiny.run(out, 6, save_every=2, on_event=fill)
    assert "untouched" in str(caught.value)
    monkeypatch.undo()
    assert read_checkpoint(out / FILE)[1]["progress"]["step"] == 2, "the checkpoint of step 2 is still there"
    mt.load(out)
    names = {"checkpoint.safetensors", "model.safetensors", "config.json", "log.csv", "log.jsonl"}
    assert {p.name for p in out.iterdir()} == names, "no temporary files are left"
    tiny.run(out, 6, resume=True, save_every=2)
    same_run(out, tmp_path / "whole")


def test_a_disk_that_is_full_from_the_start(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Any] = []
    fill_disk(monkeypatch, tmp_path / "run", ".*.tmp")
    with pytest.raises(FileError, match="the disk is full"):
        tiny.run(tmp_path / "run", 3, on_event=lambda e: e["event"] == "step" and steps.append(e))
    assert not steps, "a full disk shows before the first step"
    assert list((tmp_path / "run").iterdir()) == []


def test_a_log_that_cannot_be_written(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            fill_disk(monkeypatch, tmp_path, "log.*")

    with pytest.raises(TrainingError, match=r"cannot write the log .*the disk is full.*of step 2, is intact"):
        tiny.run(tmp_path, 6, on_event=fill)
    monkeypatch.undo()
    assert tiny.run(tmp_path, 6, resume=True).step == 6


def test_a_folder_that_cannot_be_made(tmp_path: Path, tiny: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(FileError, match=r"cannot make the folder|a part of the path is a file"):
            tiny.run(out, 3)

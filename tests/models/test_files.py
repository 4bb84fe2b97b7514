"""Models on disk: the round trip, and every way in which files can be wrong or cannot be written."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import minitf as mt
from minitf.models import Config, Encoder, FileError, LanguageModel
from minitf.models.files import read_arrays
from tests.models.small import SMALL, same_weights

# ---------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": False, "block": "post", "position": "learned", "norm": "layernorm", "ffn": "gelu"},
        {
            "block": "peri",
            "attention": "mqa",
            "position": "alibi",
            "bias": False,
            "attention_options": {"head_dim": 2},
        },
        {"block": "parallel", "position": "sinusoidal", "ffn": "relu2", "ffn_hidden": 5, "dropout": 0.25},
    ],
)
def test_round_trip_is_exact_to_the_bit(tmp_path: Path, dtype: str, options: dict) -> None:
    config = Config(vocab=11, context=8, dim=8, depth=2, heads=2).to_dict() | options
    model = LanguageModel(Config.from_dict(config), seed=1, dtype=dtype)
    mt.save(model, tmp_path / "new" / "folder")
    again = mt.load(tmp_path / "new" / "folder")
    assert type(again) is LanguageModel and again.config == model.config, (
        "load gave another config than was saved"
    )
    assert same_weights(again, model), f"weights changed on their way through the file ({options}, {dtype})"
    if dtype != "float16":
        tokens = np.arange(16).reshape(2, 8) % 11
        assert np.array_equal(again.eval()(tokens).data, model.eval()(tokens).data), (
            "the loaded model computes something else"
        )


@pytest.mark.parametrize("classes", [None, 3])
def test_encoders_too(tmp_path: Path, classes: int | None) -> None:
    model = Encoder(SMALL, seed=1, classes=classes)
    mt.save(model, tmp_path)
    again = mt.load(tmp_path)
    assert type(again) is Encoder and again.classes == classes, "load gave another kind of model"
    assert same_weights(again, model), "the encoder's weights changed on their way through the file"


def test_weights_stored_in_another_order_in_memory(tmp_path: Path) -> None:
    model = LanguageModel(SMALL)
    weight = model.blocks[0].mixer.wq.weight
    weight.data = np.asfortranarray(weight.data)
    mt.save(model, tmp_path)
    assert np.array_equal(
        load_file(tmp_path / "model.safetensors")["blocks.0.mixer.wq.weight"], weight.data
    ), "a Fortran-ordered weight was written wrongly"


def test_the_files_are_plain(saved: Path) -> None:
    assert sorted(os.listdir(saved)) == ["config.json", "model.safetensors"], "save leaves exactly two files"
    assert json.loads((saved / "config.json").read_text())["config"]["dim"] == 8
    modes = {(saved / name).stat().st_mode & 0o777 for name in os.listdir(saved)}
    (saved / "other").write_text("")
    assert modes == {(saved / "other").stat().st_mode & 0o777}, (
        "files must have the permissions of any new file"
    )


def test_saving_again_replaces(saved: Path) -> None:
    other = LanguageModel(SMALL, seed=4)
    mt.save(other, saved)
    assert same_weights(mt.load(saved), other), "the second save must replace the first"


def test_a_foreign_safetensors_file_reads(tmp_path: Path) -> None:
    save_file({"a": np.arange(3.0)}, tmp_path / "x")
    arrays, metadata = read_arrays(tmp_path / "x")
    assert arrays["a"].tolist() == [0.0, 1.0, 2.0] and metadata == {}, "files without our checksum must read"


def test_other_modules_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"not Linear.*state_dict"):
        mt.save(mt.nn.Linear(2, 2), tmp_path)


# --------------------------------------------------------------------------------------- bad weights


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 16
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def broken_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[9:12] = b"\xff\xfe\xfd"
    path.write_bytes(data)


def huge_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def a_text(path: Path) -> None:
    path.write_text("Call me Ishmael. " * 100)


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap()))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def another_model(path: Path) -> None:
    save_file({"layer.weight": np.ones((2, 2), dtype=np.float32)}, path)


def rewrite(change):
    def damage(path: Path) -> None:
        arrays = load_file(path)
        change(arrays)
        save_file(arrays, path)

    damage.__name__ = change.__name__
    return damage


@rewrite
def wrong_shape(arrays) -> None:
    arrays["norm.weight"] = arrays["norm.weight"][:-1].copy()


@rewrite
def a_missing_weight(arrays) -> None:
    del arrays["blocks.1.ffn.wd.weight"]


@rewrite
def a_weight_too_many(arrays) -> None:
    arrays["head.weight"] = arrays["embedding.weight"].copy()


@rewrite
def mixed_precision(arrays) -> None:
    arrays["norm.weight"] = arrays["norm.weight"].astype(np.float64)


@rewrite
def integers(arrays) -> None:
    for name in arrays:
        arrays[name] = arrays[name].astype(np.int32)


@rewrite
def one_block_less(arrays) -> None:
    for name in [name for name in arrays if name.startswith("blocks.1.")]:
        del arrays[name]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, "damaged"),
        (cut, "not a whole safetensors file"),
        (cut_in_the_header, "not a whole safetensors file"),
        (broken_header, "not a whole safetensors file"),
        (huge_header, "not a whole safetensors file"),
        (empty, "not a whole safetensors file"),
        (a_text, "not a whole safetensors file"),
        (a_pickle, "not a whole safetensors file"),
        (a_folder, "is a folder"),
        (Path.unlink, "no such file"),
        (another_model, "does not fit config.json"),
        (wrong_shape, r"norm.weight has shape \(7,\), the module needs \(8,\)"),
        (a_missing_weight, "missing: blocks.1.ffn.wd.weight"),
        (a_weight_too_many, "unexpected: head.weight"),
        (mixed_precision, "one floating-point type"),
        (integers, "one floating-point type"),
        (one_block_less, "1 blocks"),
    ],
)
def test_bad_weights(saved: Path, damage, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    damage(saved / "model.safetensors")
    with pytest.raises(FileError, match=words) as caught:
        mt.load(saved)
    message = str(caught.value)
    assert "model.safetensors" in message and "\n" not in message, (
        f"one sentence that names the file, not: {message}"
    )
    assert isinstance(caught.value, mt.MinitfError) and isinstance(caught.value, OSError)
    assert not (saved / "unpickled").exists(), "a pickle must never be executed"


def test_bfloat16_says_so(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(FileError, match=r"bfloat16.*convert it to float32"):
        read_arrays(tmp_path / "x")


# ---------------------------------------------------------------------------------------- bad config


def config_with(**changes):
    def damage(path: Path) -> None:
        about = json.loads(path.read_text())
        about["config"] |= changes
        path.write_text(json.dumps(about))

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, "no such file"),
        (empty, "not JSON"),
        (cut, "not JSON"),
        (a_pickle, "not JSON"),
        (a_text, "not JSON"),
        (a_folder, "is a folder"),
        (lambda path: path.write_text("[1, 2]"), "a JSON object, not a list"),
        (lambda path: path.write_text("[" * 100_000), "nested too deeply"),
        (lambda path: path.write_text('{"model_type": "llama"}'), "does not describe a minitf model"),
        (lambda path: path.write_text('{"model": [], "config": {}}'), "does not describe a minitf model"),
        (
            lambda path: path.write_text('{"model": "language_model", "config": 3}'),
            "does not describe a minitf model",
        ),
        (lambda path: path.write_text('{"model": "language_model", "config": {}}'), "needs vocab"),
        (
            lambda path: path.write_text(path.read_text().replace('"model":', '"classes": 2, "model":')),
            "unknown keys: classes",
        ),
        (config_with(dept=3), "no field 'dept'; did you mean 'depth'"),
        (config_with(banana=3), "no field 'banana'; the fields are: vocab"),
        (config_with(attention="sofmax"), "the closest are: softmax"),
        (config_with(attention=["softmax"]), "name of a variant"),
        (config_with(dim="wide"), "dim must be a positive integer"),
        (config_with(dim=10**12), "does not fit config.json"),
        (config_with(vocab=10**12), "does not fit config.json"),
        (config_with(depth=10**12), "does not fit config.json"),
        (config_with(ffn_hidden=10**15), "does not fit config.json"),
        (config_with(heads=3), "heads=3 must divide dim=8"),
        (config_with(attention_options={"span": 3}), "does not take span"),
    ],
)
def test_bad_config(saved: Path, damage, words: str) -> None:
    damage(saved / "config.json")
    with pytest.raises(FileError, match=words) as caught:
        mt.load(saved)
    message = str(caught.value)
    assert "config.json" in message and "\n" not in message, (
        f"one sentence that names the file, not: {message}"
    )


def test_the_folder_itself(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="not a folder"):
        mt.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="not a folder"):
        mt.load(tmp_path / "file")
    with pytest.raises(FileError, match=r"cannot make the folder .*file"):
        mt.save(LanguageModel(SMALL), tmp_path / "file")


def test_integers_and_precise_buffers_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minitf.models import backbone

    class Drawn(backbone.Dropout):
        """A layer with buffers of its own types."""

        def __init__(self, rate: float):
            super().__init__(rate)
            self.order = mt.nn.Buffer(np.arange(5))
            self.table = mt.nn.Buffer(np.linspace(0.0, 1.0, 3))

    monkeypatch.setattr(backbone, "Dropout", Drawn)
    model = LanguageModel(SMALL, seed=3)
    model.dropout.order.data = model.dropout.order.data[::-1].copy()
    mt.save(model, tmp_path)
    assert same_weights(mt.load(tmp_path), model)
    mt.save(model.to("float16"), tmp_path)
    assert mt.load(tmp_path).dropout.table.data.tolist() == [0.0, 0.5, 1.0]
    arrays = load_file(tmp_path / "model.safetensors")
    save_file({**arrays, "dropout.order": arrays["dropout.order"] + 0.5}, tmp_path / "model.safetensors")
    with pytest.raises(FileError, match=r"dropout.order is float64 .* integers where the model has them"):
        mt.load(tmp_path)

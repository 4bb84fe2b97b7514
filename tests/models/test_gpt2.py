"""GPT-2 in its published layout: frozen logits from `transformers`, and files that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import minitf as mt
from minitf.models import FileError, load_gpt2

TINY = Path(__file__).parent / "data" / "gpt2_tiny"
EXPECTED = np.load(TINY / "expected.npz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, tmp_path)
    return tmp_path


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def check_logits(model, words: str) -> None:
    """In float64 to rounding; in float32 at most twice as far from that as the oracle itself."""
    tokens, exact = EXPECTED["tokens"], EXPECTED["exact"]
    allowed = 2 * np.max(np.abs(EXPECTED["logits"] - exact))
    error = np.max(np.abs(model(tokens).data - exact))
    assert error <= allowed, f"{words}: float32 logits are off by {error:.2g}, allowed {allowed:.2g}"
    error = np.max(np.abs(model.to("float64")(tokens).data - exact))
    assert error <= 1e-11, f"{words}: float64 logits are off by {error:.2g}"


def test_logits() -> None:
    check_logits(load_gpt2(TINY), "as published")
    check_logits(mt.load(TINY), "through mt.load")


def test_streaming() -> None:
    model = load_gpt2(TINY).to("float64")
    tokens, exact = EXPECTED["tokens"], EXPECTED["exact"]
    rows, state = model.prefill(tokens[:, :5], model.start(3))
    rows = [rows.data]
    for n in range(5, 12):
        row, state = model.step(tokens[:, n], state)
        rows.append(row.data[:, None])
    error = np.max(np.abs(np.concatenate(rows, axis=1) - exact))
    assert error <= 1e-11, f"the streamed logits differ from the oracle's by {error:.2g}"


def test_names_without_prefix_and_with_buffers(folder: Path) -> None:
    def change(arrays):
        plain = {name.removeprefix("transformer."): a for name, a in arrays.items()}
        plain["h.0.attn.bias"] = np.tril(np.ones((1, 1, 12, 12), dtype=np.float32))
        plain["h.1.attn.masked_bias"] = np.full((), -1e4, dtype=np.float32)
        return plain

    change_weights(folder, change)
    check_logits(load_gpt2(folder), "names without prefix")


def test_the_embedding_again_as_head_stays_tied(folder: Path) -> None:
    change_weights(folder, lambda a: a | {"lm_head.weight": a["transformer.wte.weight"].copy()})
    model = load_gpt2(folder)
    assert model.config.tied, "a head equal to the embedding is the same matrix"
    check_logits(model, "repeated head")


@pytest.mark.parametrize("said", [True, False])
def test_a_head_of_its_own(folder: Path, said: bool) -> None:
    change_weights(folder, lambda a: a | {"lm_head.weight": 2 * a["transformer.wte.weight"]})
    change_config(folder, tie_word_embeddings=said)
    model, tied = load_gpt2(folder), load_gpt2(TINY)
    tokens = EXPECTED["tokens"]
    assert not model.config.tied and model.head.weight.shape == (16, 23), "the head is transposed to (D, V)"
    # Doubling is exact in binary.
    assert np.array_equal(model(tokens).data, 2 * tied(tokens).data), "twice the head gives twice the logits"


def test_half_precision_becomes_single(folder: Path) -> None:
    change_weights(folder, lambda a: {name: v.astype(np.float16) for name, v in a.items()})
    model = load_gpt2(folder)
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float32)}
    error = np.max(np.abs(model(EXPECTED["tokens"]).data - EXPECTED["exact"]))
    assert error <= 0.1, (
        f"float16 weights change the logits by {error:.2g}, more than their rounding explains"
    )


def test_loaded_weights_are_a_copy_that_trains(folder: Path) -> None:
    model = load_gpt2(folder)
    tokens = EXPECTED["tokens"]
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    assert all(p.grad is not None and p.data.flags.writeable for p in model.parameters()), (
        "every weight must train"
    )


def test_saved_as_our_own(folder: Path, tmp_path: Path) -> None:
    mt.save(load_gpt2(folder), tmp_path / "ours")
    check_logits(mt.load(tmp_path / "ours"), "saved in our layout")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_function": "silu"}, "activation_function='silu' is not supported, only gelu_new"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06 is not supported"),
        ({"n_layer": 3}, "lacks h.2.ln_1.weight"),
        ({"n_layer": 1}, "no GPT-2 of 1 blocks has: h.1"),
        ({"n_embd": 12}, "must end in 36"),
        ({"vocab_size": 24}, r"embedding.weight \(23, 16\)"),
        ({"n_positions": 13}, "position.weight has shape"),
        ({"n_inner": 17}, "ffn.w1.weight has shape"),
        ({"n_head": 3}, "heads=3 must divide dim=16"),
        ({"n_head": "four"}, "heads must be a positive integer"),
        ({"n_layer": -1}, "depth must be a positive integer"),
        ({"tie_word_embeddings": False}, "lacks lm_head.weight"),
    ],
)
def test_settings_that_do_not_fit(folder: Path, changes: dict, words: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(FileError, match=words) as caught:
        load_gpt2(folder)
    assert str(folder) in str(caught.value), "the message must name the file"


def test_exact_gelu_and_relu_are_supported(folder: Path) -> None:
    change_config(folder, activation_function="gelu")
    assert load_gpt2(folder).config.ffn == "gelu"
    change_config(folder, activation_function="relu")
    assert load_gpt2(folder).config.ffn == "relu"


def test_the_old_name_of_the_context(folder: Path) -> None:
    path = folder / "config.json"
    about = json.loads(path.read_text())
    about["n_ctx"] = about.pop("n_positions")
    path.write_text(json.dumps(about))
    check_logits(load_gpt2(folder), "n_ctx")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {"x": np.ones(2, dtype=np.float32)}, "lacks wte.weight"),
        (
            lambda a: a | {"transformer.extra": np.ones(2, dtype=np.float32)},
            "no GPT-2 of 2 blocks has: extra",
        ),
        (lambda a: a | {"transformer.ln_f.bias": np.ones(3, dtype=np.float32)}, "norm.bias has shape"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, change, words: str) -> None:
    change_weights(folder, change)
    with pytest.raises(FileError, match=words):
        load_gpt2(folder)


def test_other_folders(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        load_gpt2(tmp_path / "nowhere")
    (folder / "config.json").write_text("{}")
    with pytest.raises(FileError, match="not a GPT-2 config: it lacks vocab_size"):
        load_gpt2(folder)

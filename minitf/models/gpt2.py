"""GPT-2 as published: its settings and weight names, turned into a LanguageModel.

    wte.weight (V, D)                embedding.weight
    wpe.weight (context, D)          position.weight
    h.{i}.ln_1.weight, .bias         blocks.{i}.norm1.weight, .bias
    h.{i}.attn.c_attn (D, 3D)        blocks.{i}.mixer.wq | wk | wv, side by side
    h.{i}.attn.c_proj (D, D)         blocks.{i}.mixer.wo
    h.{i}.ln_2                       blocks.{i}.norm2
    h.{i}.mlp.c_fc (D, 4D)           blocks.{i}.ffn.w1
    h.{i}.mlp.c_proj (4D, D)         blocks.{i}.ffn.w2
    ln_f                             norm
    lm_head.weight (V, D)            head.weight, transposed; the same as wte if left out

The published linear maps are stored (in, out), as ours are, so only the head is transposed. All names may
start with `transformer.`; the buffers `attn.bias` and `attn.masked_bias` hold the causal mask: left out.
Source: Language Models are Unsupervised Multitask Learners, 2019; names as in the public safetensors files.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .config import Config
from .files import CONFIG, WEIGHTS, FileError, fill, read_arrays, read_json
from .language import LanguageModel

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
# Settings that change the computation, with the only value that our model computes.
FIXED = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
# Inside block i: the published name, and ours.
BLOCK = {
    "ln_1": "norm1", "attn.c_proj": "mixer.wo", "ln_2": "norm2", "mlp.c_fc": "ffn.w1", "mlp.c_proj": "ffn.w2",
}  # fmt: skip


def load_gpt2(folder: str | os.PathLike[str]) -> LanguageModel:
    """The model in a folder with `config.json` and `model.safetensors`, as GPT-2 is published.

    The published dropout rates are not taken over: dropout is 0.

    Args:
        folder: where the two files are. 16-bit weights become float32.

    Raises:
        FileError: a file is missing or damaged, a setting that this model does not compute, or weights that
            do not fit the settings.
    """
    folder = Path(folder)
    published = read_json(folder / CONFIG)
    config = gpt2_config(published, folder / CONFIG)
    arrays, _ = read_arrays(folder / WEIGHTS)
    weights = gpt2_weights(arrays, config, published.get("tie_word_embeddings", True), folder / WEIGHTS)
    if "head.weight" in weights:
        config = replace(config, tied=False)
    model: LanguageModel = fill(LanguageModel, config, weights, folder)
    return model


def gpt2_config(published: dict[str, Any], path: Path) -> Config:
    """Our config for the published settings."""
    for name, only in FIXED.items():
        if published.get(name, only) != only:
            raise FileError(f"{path}: {name}={published[name]!r} is not supported, only {only!r} is")
    activation = published.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise FileError(
            f"{path}: activation_function={activation!r} is not supported, only {', '.join(ACTIVATIONS)} are"
        )
    missing = [name for name in ("vocab_size", "n_embd", "n_layer", "n_head") if name not in published]
    context: Any = published.get("n_positions", published.get("n_ctx"))
    if missing or context is None:
        raise FileError(f"{path} is not a GPT-2 config: it lacks {', '.join(missing or ['n_positions'])}")
    try:
        return Config(
            vocab=published["vocab_size"],
            context=context,
            dim=published["n_embd"],
            depth=published["n_layer"],
            heads=published["n_head"],
            ffn=ACTIVATIONS[activation],
            ffn_hidden=published.get("n_inner"),
            norm="layernorm",
            position="learned",
            block="pre",
        )
    except ValueError as error:
        raise FileError(f"{path} does not describe a GPT-2 that can be built: {error}") from error


def gpt2_weights(
    arrays: dict[str, np.ndarray[Any, Any]], config: Config, tied: bool, path: Path
) -> dict[str, np.ndarray[Any, Any]]:
    """Our names and layout for the published weights."""
    buffers = (".attn.bias", ".attn.masked_bias")
    left = {name.removeprefix("transformer."): a for name, a in arrays.items() if not name.endswith(buffers)}

    def take(name: str) -> np.ndarray[Any, Any]:
        if name not in left:
            raise FileError(f"{path} lacks {name}: it is no GPT-2, or has fewer blocks than {CONFIG} says")
        a = left.pop(name)
        return a.astype(np.float32) if a.dtype == np.float16 else a

    out = {"embedding.weight": take("wte.weight"), "position.weight": take("wpe.weight")}
    for kind in ("weight", "bias"):
        out[f"norm.{kind}"] = take(f"ln_f.{kind}")
        for i in range(config.depth):
            for theirs, ours in BLOCK.items():
                out[f"blocks.{i}.{ours}.{kind}"] = take(f"h.{i}.{theirs}.{kind}")
            qkv = take(f"h.{i}.attn.c_attn.{kind}")
            if qkv.shape[-1:] != (3 * config.dim,):
                raise FileError(f"{path}: h.{i}.attn.c_attn.{kind} {qkv.shape} must end in {3 * config.dim}")
            for ours, part in zip(("wq", "wk", "wv"), np.split(qkv, 3, axis=-1)):
                out[f"blocks.{i}.mixer.{ours}.{kind}"] = part
    if not tied or "lm_head.weight" in left:
        head = take("lm_head.weight")
        # Some files repeat the embedding as the head: still one matrix.
        if not tied or not np.array_equal(head, out["embedding.weight"]):
            out["head.weight"] = head.T
    if left:
        some = ", ".join(sorted(left)[:4])
        raise FileError(f"{path} has weights that no GPT-2 of {config.depth} blocks has: {some}")
    return out

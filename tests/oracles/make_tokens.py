"""Freeze what published code answers for token merging, adapters, quantisation, DiT and iTransformer.

Run in this folder with a Python that has requirements-tokens.txt. Three repositories are on no package index:
give the folder that holds their checkouts, named owner+name, as the argument; without it those are left
alone.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from oracle import StandIn, from_torch, save

TOME = "facebookresearch/ToMe af95e4b tome/merge.py"
DIT = "facebookresearch/DiT ed81ce2 models.py"
ITRANSFORMER = "thuml/iTransformer c2426e6 model/iTransformer.py"


def set_linear(layer: torch.nn.Module, weight: Any, bias: Any = None) -> None:
    """Put tensors in place of the parameters of a layer whose weight is (out, in), or (out, in, 1)."""
    shape = layer.weight.shape
    del layer.weight
    layer.weight = weight.T.reshape(shape)
    if bias is not None:
        del layer.bias
        layer.bias = bias


def lora() -> None:
    from peft import LoraConfig
    from peft.tuners.lora import Linear as PeftLinear

    rng = np.random.default_rng(0)

    def f(x: Any, weight: Any, bias: Any, a: Any, b: Any) -> Any:
        base = torch.nn.Linear(6, 5).double()
        layer = PeftLinear(
            base, "default", config=LoraConfig(r=3, lora_alpha=8.0, lora_dropout=0.0), r=3, lora_alpha=8.0
        ).double()
        set_linear(base, weight, bias)
        set_linear(layer.lora_A["default"], a)
        set_linear(layer.lora_B["default"], b)
        return layer(x)

    shapes = {"x": (2, 4, 6), "weight": (6, 5), "bias": (5,), "a": (6, 3), "b": (3, 5)}
    from_torch(
        "lora",
        f"peft {version('peft')} LoRA Linear",
        f,
        {k: rng.standard_normal(s) for k, s in shapes.items()},
    )


def llm_int8() -> None:
    import bitsandbytes  # noqa: F401  (registers the operations)

    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((7, 12)), rng.standard_normal((12, 5))
    x[:, 4] *= 30.0
    # The library computes in float16 and float32.
    x, w = x.astype(np.float16).astype(np.float32), w.astype(np.float16).astype(np.float32)
    run = torch.ops.bitsandbytes
    rows, weight = torch.tensor(x), torch.tensor(w.T.copy())
    codes, scale, outliers = run.int8_vectorwise_quant(rows, 6.0)
    wcodes, wscale, _ = run.int8_vectorwise_quant(weight, 0.0)
    y = run.int8_mixed_scaled_mm(rows, codes, wcodes, scale, wscale, outliers)[0]
    arrays = {
        "in.x": x, "in.w": w, "y": y.double().numpy(), "codes": codes.numpy(), "scale": scale.numpy(),
        "wcodes": wcodes.numpy().T,
    }  # fmt: skip
    save(
        "llm_int8",
        f"bitsandbytes {version('bitsandbytes')} default backend; torch {torch.__version__}",
        arrays,
    )


def tome(folder: Path) -> None:
    sys.path.insert(0, str(folder / "facebookresearch+ToMe" / "tome"))
    from merge import bipartite_soft_matching, kth_bipartite_soft_matching, merge_wavg

    rng = np.random.default_rng(2)
    metric = torch.tensor(rng.standard_normal((2, 11, 3)))

    special = {"class_token": True, "distill_token": True}
    ways = {
        "tome": lambda: bipartite_soft_matching(metric, 4),
        "tome_special": lambda: bipartite_soft_matching(metric, 4, **special),
        # It drops the tokens after the last k-th one, so let there be none.
        "tome_kth": lambda: kth_bipartite_soft_matching(metric[:, :9], 3),
    }
    for name, way in ways.items():

        def f(x: Any, size: Any, way: Any = way) -> Any:
            merge, unmerge = way()
            y, merged = merge_wavg(merge, x, size)
            return torch.cat([y, merged], dim=-1)

        n = 9 if name == "tome_kth" else 11
        inputs = {"x": rng.standard_normal((2, n, 5)), "size": rng.integers(1, 5, (2, n, 1)).astype(float)}
        from_torch(name, TOME, f, inputs)
        with np.load(f"{name}.npz") as file:
            arrays = {k: file[k] for k in file.files}
        source = str(arrays.pop("source"))
        save(name, source, arrays | {"metric": metric[:, :n].numpy()})


def dit(folder: Path) -> None:
    sys.path.insert(0, str(folder / "facebookresearch+DiT"))
    from models import DiTBlock

    rng, d = np.random.default_rng(3), 8

    def f(x: Any, c: Any, wc: Any, bc: Any, wqkv: Any, bqkv: Any, wo: Any, bo: Any, w1: Any, w2: Any) -> Any:
        block = DiTBlock(d, 2).double()
        set_linear(block.adaLN_modulation[1], wc, bc)
        set_linear(block.attn.qkv, wqkv, bqkv)
        set_linear(block.attn.proj, wo, bo)
        set_linear(block.mlp.fc1, w1)
        set_linear(block.mlp.fc2, w2)
        torch.nn.init.zeros_(block.mlp.fc1.bias)
        torch.nn.init.zeros_(block.mlp.fc2.bias)
        return block(x, c)

    shapes = {
        "x": (2, 5, d), "c": (2, d), "wc": (d, 6 * d), "bc": (6 * d,), "wqkv": (d, 3 * d), "bqkv": (3 * d,),
        "wo": (d, d), "bo": (d,), "w1": (d, 4 * d), "w2": (4 * d, d),
    }  # fmt: skip
    from_torch("dit_block", DIT, f, {k: rng.standard_normal(s) * 0.5 for k, s in shapes.items()})


def itransformer(folder: Path) -> None:
    for name in ("models", "utils", "layers", "model"):
        sys.modules.pop(name, None)
    sys.path.insert(0, str(folder / "thuml+iTransformer"))
    from model.iTransformer import Model

    rng, d = np.random.default_rng(4), 4
    config = SimpleNamespace(
        seq_len=10, pred_len=3, output_attention=False, use_norm=True, d_model=d, embed="timeF", freq="h",
        dropout=0.0, class_strategy="projection", factor=1, n_heads=2, d_ff=4 * d, activation="gelu",
        e_layers=1,
    )  # fmt: skip
    shapes = {
        "x": (2, 10, 3), "marks": (2, 10, 2), "embed": (10, d), "wq": (d, d), "wk": (d, d), "wv": (d, d),
        "wo": (d, d), "w1": (d, 4 * d), "w2": (4 * d, d), "project": (d, 3),
    }  # fmt: skip

    def f(
        x: Any, marks: Any, embed: Any, wq: Any, wk: Any, wv: Any, wo: Any, w1: Any, w2: Any, project: Any
    ) -> Any:
        model = Model(config).double()
        for parameter_name, p in model.named_parameters():
            if parameter_name.endswith("bias"):
                torch.nn.init.zeros_(p)
        layer = model.encoder.attn_layers[0]
        set_linear(model.enc_embedding.value_embedding, embed)
        for linear, w in (
            (layer.attention.query_projection, wq), (layer.attention.key_projection, wk),
            (layer.attention.value_projection, wv), (layer.attention.out_projection, wo),
            (layer.conv1, w1), (layer.conv2, w2), (model.projector, project),
        ):  # fmt: skip
            set_linear(linear, w)
        # It divides the past in place, so no gradient can reach that.
        return model(x.detach(), marks, None, None)

    from_torch("itransformer", ITRANSFORMER, f, {k: rng.standard_normal(s) * 0.7 for k, s in shapes.items()})


if __name__ == "__main__":
    StandIn.install("torchvision", "reformer_pytorch")
    lora()
    llm_int8()
    if len(sys.argv) > 1:
        for make in (tome, dit, itransformer):
            make(Path(sys.argv[1]))

"""Freeze what torch and published code answer for the standard parts: networks, norms, blocks, windows.

Run in this folder with a Python that has requirements-standard.txt. One repository is on no package index:
give the folder that holds its checkout, named owner+name, as the argument; without it that one is left alone.
Inputs have the names of minitf's parameters, and their layout: weights are (in, out).
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from oracle import Arrays, StandIn, from_torch
from torch.func import functional_call
from torch.nn import functional
from transformers import CLIPTextConfig, GPT2Config, LlamaConfig, LongformerConfig, NemotronConfig
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
from transformers.models.nemotron.modeling_nemotron import NemotronMLP
from transformers.models.speecht5.modeling_speecht5 import SpeechT5ScaledPositionalEncoding

TORCH, HF = "torch", f"transformers {version('transformers')}"
EVIT = "youweiliang/evit 5ca95a7 evit.py Block"


def inputs(seed: int, **shapes: tuple[int, ...]) -> Arrays:
    """Normal numbers of these shapes; matrices of weights are scaled down."""
    rng = np.random.default_rng([2025, seed])
    return {
        name: rng.standard_normal(shape) * (0.5 if name.endswith("weight") and len(shape) == 2 else 1.0)
        for name, shape in shapes.items()
    }


def linears(**shapes: tuple[int, int]) -> dict[str, Any]:
    """The shapes of the weights and biases of these linear maps."""
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[1:]}
    return found


def renamed(weights: dict[str, Any], **names: str) -> dict[str, Any]:
    """Weights and biases of minitf's linear maps under their names there, with weights (out, in)."""
    found = {}
    for ours, theirs in names.items():
        found |= {f"{theirs}.weight": weights[f"{ours}.weight"].T, f"{theirs}.bias": weights[f"{ours}.bias"]}
    return found


def clip_mlp(act: str) -> Any:
    config = CLIPTextConfig(hidden_size=5, intermediate_size=7, num_attention_heads=1, hidden_act=act)
    layer = CLIPMLP(config).double()
    return lambda x, **w: functional_call(layer, renamed(w, w1="fc1", w2="fc2"), (x,))


def gpt2_mlp(x: Any, **w: Any) -> Any:
    """The tanh form. There weights are (in, out) as well."""
    layer = GPT2MLP(7, GPT2Config(n_embd=5, n_head=1, resid_pdrop=0.0)).double()
    names = {"w1": "c_fc", "w2": "c_proj"}
    return functional_call(layer, {f"{names[k[:2]]}{k[2:]}": v for k, v in w.items()}, (x,))


def nemotron_mlp(x: Any, **w: Any) -> Any:
    config = NemotronConfig(hidden_size=5, intermediate_size=7, num_attention_heads=1, mlp_bias=True)
    layer = NemotronMLP(config).double()
    return functional_call(layer, renamed(w, w1="up_proj", w2="down_proj"), (x,))


def llama_mlp(x: Any, **w: Any) -> Any:
    config = LlamaConfig(hidden_size=4, intermediate_size=6, num_attention_heads=1, mlp_bias=True)
    layer = LlamaMLP(config).double()
    return functional_call(layer, renamed(w, wg="gate_proj", wu="up_proj", wd="down_proj"), (x,))


def sigmoid_glu(x: Any, **w: Any) -> Any:
    up, gate = (x @ w[f"{name}.weight"] + w[f"{name}.bias"] for name in ("wu", "wg"))
    return functional.glu(torch.cat([up, gate], dim=-1)) @ w["wd.weight"] + w["wd.bias"]


def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-5)


def rms_norm(x: Any, weight: Any) -> Any:
    return functional.rms_norm(x, x.shape[-1:], weight, eps=1e-6)


def block_inputs(seed: int, tokens: int, dim: int, hidden: int) -> Arrays:
    """Tokens, two norms, attention with biases, a network."""
    square = (dim, dim)
    maps = {f"mixer.{name}": square for name in ("wq", "wk", "wv", "wo")}
    maps |= {"ffn.w1": (dim, hidden), "ffn.w2": (hidden, dim)}
    norms = {f"norm{i}.{name}": (dim,) for i in (1, 2) for name in ("weight", "bias")}
    return inputs(seed, x=(2, tokens, dim), **norms, **linears(**maps))


def stacked(w: dict[str, Any], part: str) -> Any:
    """The weights or biases of queries, keys and values as one, (3 D, D) or (3 D,)."""
    return torch.cat([w[f"mixer.{name}.{part}"].T if part == "weight" else w[f"mixer.{name}.{part}"]
                      for name in ("wq", "wk", "wv")])  # fmt: skip


def encoder_layer(norm_first: bool) -> Any:
    """Two heads, causal."""
    layer = torch.nn.TransformerEncoderLayer(
        6, 2, 8, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    ).double()

    def f(x: Any, **w: Any) -> Any:
        weights = {
            **{name: value for name, value in w.items() if name.startswith("norm")},
            **renamed(w, **{"mixer.wo": "self_attn.out_proj", "ffn.w1": "linear1", "ffn.w2": "linear2"}),
            "self_attn.in_proj_weight": stacked(w, "weight"), "self_attn.in_proj_bias": stacked(w, "bias"),
        }  # fmt: skip
        hidden = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        return functional_call(layer, weights, (x,), {"src_mask": hidden, "is_causal": True})

    return f


def longformer(x: Any, **w: Any) -> Any:
    """Two heads, two neighbours on each side, no global tokens; that layer ends before the map of outputs."""
    config = LongformerConfig(
        hidden_size=6, num_attention_heads=2, attention_window=[4], attention_probs_dropout_prob=0.0
    )
    layer = LongformerSelfAttention(config, 0).double()
    nothing = torch.zeros(x.shape[:2], dtype=torch.bool)
    options = {
        "attention_mask": nothing.double(), "is_index_masked": nothing, "is_index_global_attn": nothing,
        "is_global_attn": False,
    }  # fmt: skip
    weights = renamed(w, wq="query", wk="key", wv="value")
    return functional_call(layer, weights, (x,), options)[0] @ w["wo.weight"] + w["wo.bias"]


def sinusoids(x: Any) -> Any:
    return SpeechT5ScaledPositionalEncoding(0.0, x.shape[-1], max_len=x.shape[1])(x)


def evit(checkout: Path) -> None:
    # Neither package does anything in a block.
    StandIn.install("timm", "torchprofile")
    sys.path.insert(0, str(checkout))
    published = importlib.import_module("evit").Block

    def f(x: Any, **w: Any) -> Any:
        """Two heads, half of the patches: the others fused, and then left out."""
        weights = {
            **{name: value for name, value in w.items() if name.startswith("norm")},
            **renamed(w, **{"mixer.wo": "attn.proj", "ffn.w1": "mlp.fc1", "ffn.w2": "mlp.fc2"}),
            "attn.qkv.weight": stacked(w, "weight"), "attn.qkv.bias": stacked(w, "bias"),
        }  # fmt: skip
        layers = [published(4, 2, qkv_bias=True, keep_rate=0.5, fuse_token=fuse) for fuse in (True, False)]
        return torch.cat([functional_call(layer.double(), weights, (x,))[0] for layer in layers], dim=1)

    from_torch("evit", EVIT, f, block_inputs(12, 8, 4, 16))


def main() -> None:
    plain = {"x": (2, 4, 5), **linears(w1=(5, 7), w2=(7, 5))}
    gated = {"x": (2, 4, 4), **linears(wg=(4, 6), wu=(4, 6), wd=(6, 4))}
    from_torch("relu_ffn", f"{HF} CLIPMLP with relu", clip_mlp("relu"), inputs(1, **plain))
    from_torch("gelu_ffn", f"{HF} CLIPMLP with gelu", clip_mlp("gelu"), inputs(2, **plain))
    from_torch("gelu_ffn_tanh", f"{HF} GPT2MLP", gpt2_mlp, inputs(3, **plain))
    from_torch("relu2_ffn", f"{HF} NemotronMLP", nemotron_mlp, inputs(4, **plain))
    from_torch("glu_ffn", f"{HF} LlamaMLP", llama_mlp, inputs(5, **gated))
    from_torch("glu_ffn_sigmoid", f"{TORCH} functional.glu", sigmoid_glu, inputs(6, **gated))
    from_torch(
        "layernorm", f"{TORCH} functional.layer_norm", layer_norm,
        inputs(7, x=(3, 4, 5), weight=(5,), bias=(5,)),
    )  # fmt: skip
    from_torch("rmsnorm", f"{TORCH} functional.rms_norm", rms_norm, inputs(8, x=(3, 4, 5), weight=(5,)))
    for name, first in (("pre_norm", True), ("post_norm", False)):
        source = f"{TORCH} nn.TransformerEncoderLayer(norm_first={first})"
        from_torch(name, source, encoder_layer(first), block_inputs(9, 5, 6, 8))
    window = {"x": (2, 12, 6), **linears(wq=(6, 6), wk=(6, 6), wv=(6, 6), wo=(6, 6))}
    from_torch("sliding_window", f"{HF} LongformerSelfAttention", longformer, inputs(10, **window))
    source = f"{HF} SpeechT5ScaledPositionalEncoding"
    from_torch("sinusoidal_pos", source, sinusoids, inputs(11, x=(1, 40, 8)))
    if len(sys.argv) > 1:
        evit(Path(sys.argv[1]) / "youweiliang+evit")


if __name__ == "__main__":
    main()

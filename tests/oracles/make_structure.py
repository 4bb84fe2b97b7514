"""Freeze what published code answers for the structure of attention: heads, maps, positions, spectral norms.

Run in this folder with a Python that has requirements-structure.txt. Two repositories are on no package
index: give the folder that holds their checkouts, named owner+name, as the argument; without it they are left
alone.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from oracle import from_torch
from torch.func import functional_call
from torch.nn.functional import scaled_dot_product_attention
from transformers import DeepseekV3Config, DiffLlamaConfig, LlamaConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
    apply_rotary_pos_emb_interleave,
)
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention, DiffLlamaRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from x_transformers.x_transformers import AlibiPositionalBias, CoPE, RotaryEmbedding
from x_transformers.x_transformers import apply_rotary_pos_emb as rotated

TORCH, HF, X = (
    "torch",
    f"transformers {version('transformers')}",
    f"x-transformers {version('x-transformers')}",
)
CLIPPED = "Qualcomm-AI-research/outlier-free-transformers 1e59744 transformers_language/models/softmax.py"
SIGMA = "apple/ml-sigma-reparam fea4e35 vision/layers.py"

rng = np.random.default_rng(2024)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * rng.standard_normal(shape)


def split(x: Any, heads: int) -> Any:
    """(B, N, H d) -> (B, H, N, d)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merged(x: Any) -> Any:
    return x.transpose(1, 2).flatten(2)


def file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def softmax_attention(q: Any, k: Any, v: Any, bias: Any, mask: Any) -> Any:
    bias = bias.masked_fill(~mask, -torch.inf)
    return scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)


def gqa(x: Any, wq: Any, wk: Any, wv: Any, wo: Any) -> Any:
    q, k, v = split(x @ wq, 4), split(x @ wk, 2), split(x @ wv, 2)
    return merged(scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)) @ wo


def mla(x: Any, **w: Any) -> Any:
    """Two heads; dn = 4, dr = 2, dv = 3, r = 5, rq = 6."""
    config = DeepseekV3Config(
        hidden_size=8, num_attention_heads=2, num_key_value_heads=2, qk_nope_head_dim=4, qk_rope_head_dim=2,
        v_head_dim=3, kv_lora_rank=5, q_lora_rank=6, attn_implementation="sdpa",
    )  # fmt: skip
    layer = DeepseekV3Attention(config, 0).double()
    places = DeepseekV3RotaryEmbedding(config)(x, torch.arange(x.shape[1])[None])
    weights = {
        "q_a_proj.weight": w["wqa"].T, "q_a_layernorm.weight": w["q_norm"], "q_b_proj.weight": w["wqb"].T,
        "kv_a_proj_with_mqa.weight": w["wkva"].T, "kv_a_layernorm.weight": w["kv_norm"],
        "kv_b_proj.weight": w["wkvb"].T, "o_proj.weight": w["wo"].T,
    }  # fmt: skip
    return functional_call(layer, weights, (x, places, None))[0]


def diff_attn(x: Any, **w: Any) -> Any:
    """Four heads in two groups, d = 2. There all first maps come before all second maps."""
    config = DiffLlamaConfig(
        hidden_size=16, num_attention_heads=8, num_key_value_heads=4, head_dim=2, rms_norm_eps=1e-5,
        attn_implementation="sdpa",
    )  # fmt: skip
    layer = DiffLlamaAttention(config, layer_idx=2).double()
    places = DiffLlamaRotaryEmbedding(config)(x, torch.arange(x.shape[1])[None])

    def halves(weight: Any, heads: int) -> Any:
        # Columns (head, half, d) to (half, head, d), and (in, out) to (out, in).
        return weight.reshape(-1, heads, 2, 2).transpose(1, 2).flatten(1).T

    weights = {
        "q_proj.weight": halves(w["wq"], 4), "k_proj.weight": halves(w["wk"], 2),
        "v_proj.weight": halves(w["wv"], 2), "o_proj.weight": w["wo"].T,
        **{name: value for name, value in w.items() if name.startswith("lambda")},
    }  # fmt: skip
    return functional_call(layer, weights, (x, places, None))[0]


def cope(q: Any, k: Any, v: Any, e: Any) -> Any:
    layer = CoPE(dim=q.shape[-1], heads=q.shape[1], max_pos=len(e))
    n = q.shape[2]
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    logits = logits.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.finfo(q.dtype).max)
    return (logits + functional_call(layer, {"pos_emb": e}, (q, logits))).softmax(-1) @ v


def alibi(scores: Any) -> Any:
    return scores + AlibiPositionalBias(heads=scores.shape[1])(*scores.shape[-2:])


def rope(q: Any) -> Any:
    """Interleaved pairs: all, linear by 4, NTK by 4, and the first 4 coordinates only; far out as well."""
    n = torch.arange(q.shape[2]) * 7
    ways = [
        RotaryEmbedding(8), RotaryEmbedding(8, interpolation_factor=4.0),
        RotaryEmbedding(8, base_rescale_factor=4.0), RotaryEmbedding(4),
    ]  # fmt: skip
    return torch.stack([rotated(q, layer(n)[0]) for layer in ways])


def rope_llama(q: Any) -> Any:
    """Half-split pairs: all, linear by 4, YaRN by 8 from 64 tokens."""
    n, found = torch.arange(q.shape[2])[None] * 7, []
    for parameters in (
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
    ):
        config = LlamaConfig(
            hidden_size=16, num_attention_heads=2, max_position_embeddings=512,
            rope_parameters={"rope_theta": 100.0, **parameters},
        )  # fmt: skip
        found.append(apply_rotary_pos_emb(q, q, *LlamaRotaryEmbedding(config)(q, n))[0])
    return torch.stack(found)


def rope_scores(q: Any, k: Any) -> Any:
    """Scores of interleaved pairs; that code also reorders the coordinates, which scores do not show."""
    config = DeepseekV3Config(hidden_size=8, num_attention_heads=1, qk_rope_head_dim=q.shape[-1])
    places = DeepseekV3RotaryEmbedding(config)(q, torch.arange(q.shape[2])[None])
    q, k = apply_rotary_pos_emb_interleave(q, k, *places)
    return q @ k.transpose(-1, -2)


def main() -> None:
    inputs: dict[str, np.ndarray] = {
        "q": normal(2, 4, 5, 3), "k": normal(2, 2, 6, 3), "v": normal(2, 2, 6, 2), "bias": normal(2, 4, 5, 6),
        "mask": (normal(2, 1, 5, 6) < 0.5) | np.eye(5, 6, dtype=bool),
    }  # fmt: skip
    from_torch("softmax_attention", f"{TORCH} scaled_dot_product_attention", softmax_attention, inputs)
    inputs = {
        "x": normal(2, 6, 8),
        "wq": normal(8, 8),
        "wk": normal(8, 4),
        "wv": normal(8, 4),
        "wo": normal(8, 8),
    }
    from_torch("gqa", f"{TORCH} scaled_dot_product_attention(enable_gqa=True)", gqa, inputs)
    inputs = {
        "x": normal(2, 6, 8), "wqa": normal(8, 6), "q_norm": normal(6), "wqb": normal(6, 12),
        "wkva": normal(8, 7), "kv_norm": normal(5), "wkvb": normal(5, 14), "wo": normal(6, 8),
    }  # fmt: skip
    from_torch("mla", f"{HF} DeepseekV3Attention", mla, inputs)
    inputs = {
        "x": normal(2, 6, 16), "wq": normal(16, 16), "wk": normal(16, 8), "wv": normal(16, 8),
        "wo": normal(16, 16),
        **{f"lambda_{name}": normal(2, scale=0.5) for name in ("q1", "k1", "q2", "k2")},
    }  # fmt: skip
    from_torch("diff_attn", f"{HF} DiffLlamaAttention", diff_attn, inputs)
    inputs = {**{name: normal(2, 2, 7, 4) for name in "qkv"}, "e": normal(3, 4)}
    from_torch("cope", f"{X} CoPE", cope, inputs)
    from_torch("alibi", f"{X} AlibiPositionalBias", alibi, {"scores": normal(1, 12, 3, 5)})
    from_torch("rope", f"{X} RotaryEmbedding, apply_rotary_pos_emb", rope, {"q": normal(1, 2, 5, 8)})
    from_torch("rope_llama", f"{HF} LlamaRotaryEmbedding", rope_llama, {"q": normal(1, 2, 5, 8)})
    inputs = {"q": normal(1, 2, 5, 8), "k": normal(1, 1, 5, 8)}
    from_torch("rope_scores", f"{HF} apply_rotary_pos_emb_interleave of DeepSeek-V3", rope_scores, inputs)
    if len(sys.argv) > 1:
        published(Path(sys.argv[1]))


def published(checkouts: Path) -> None:
    """What two repositories answer."""
    path = "Qualcomm-AI-research+outlier-free-transformers/transformers_language/models/softmax.py"
    clipped = file(checkouts / path).clipped_softmax

    def clipped_softmax(x: Any, wq: Any, wk: Any, wv: Any, wo: Any) -> Any:
        q, k, v = (split(x @ w, 2) for w in (wq, wk, wv))
        logits = (q @ k.transpose(-1, -2) / 2.0).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
        return merged(clipped(logits, dim=-1, eta=1.03, gamma=-0.1) @ v) @ wo

    inputs = {"x": normal(2, 6, 8), **{name: normal(8, 8, scale=0.5) for name in ("wq", "wk", "wv", "wo")}}
    from_torch("clipped_softmax", f"{CLIPPED} clipped_softmax", clipped_softmax, inputs)

    # timm is imported for a helper of convolutions only.
    for name in ("timm", "timm.models", "timm.models.layers"):
        sys.modules[name] = ModuleType(name)
    sys.modules["timm.models.layers"].to_2tuple = lambda size: (size, size)  # type: ignore[attr-defined]
    layers = file(checkouts / "apple+ml-sigma-reparam/vision/layers.py")

    def sigma_reparam(x: Any, weight: Any, bias: Any, gamma: Any, u: Any) -> Any:
        # Two passes in training mode, then one in eval mode, which uses the u of the second.
        layer = layers.SNLinear(5, 4).double()
        state = {
            "spectral_normed_weight.u": u.detach().clone(), "weight": weight.T, "bias": bias,
            "sigma": gamma[None],
        }  # fmt: skip
        ys = []
        for mode in (True, True, False):
            layer.train(mode)
            ys.append(functional_call(layer, state, (x,)))
        return torch.stack(ys)

    u = normal(5)
    inputs = {
        "x": normal(2, 3, 5), "weight": normal(5, 4), "bias": normal(4), "gamma": np.array(1.7),
        "u": u / np.linalg.norm(u),
    }  # fmt: skip
    from_torch("sigma_reparam", f"{SIGMA} SNLinear", sigma_reparam, inputs)


if __name__ == "__main__":
    main()

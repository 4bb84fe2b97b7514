"""Freeze what published code answers for channel mixers: experts, thresholds, memories, continued fractions.

Run in this folder with a Python that has requirements-ffn.txt. Five repositories are on no package index:
give the folder that holds their checkouts, named owner+name, as the argument; without it they are left alone.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from oracle import from_torch
from torch.func import functional_call
from transformers import DeepseekV3Config, Gemma3nTextConfig, MixtralConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

HF = f"transformers {version('transformers')}"
rng = np.random.default_rng(2025)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * rng.standard_normal(shape)


def stacked(router: Any, wg: Any, wu: Any, wd: Any) -> dict[str, Any]:
    """Router (D, E) and experts wg, wu (E, D, F), wd (E, F, D) under the names of transformers."""
    return {
        "gate.weight": router.T,
        "experts.gate_up_proj": torch.cat([wg, wu], dim=-1).transpose(1, 2),
        "experts.down_proj": wd.transpose(1, 2),
    }


def smoe_topk(x: Any, **weights: Any) -> Any:
    """D = 6, F = 5, E = 4, k = 2."""
    config = MixtralConfig(
        hidden_size=6, intermediate_size=5, num_local_experts=4, num_experts_per_tok=2,
        experts_implementation="eager",
    )  # fmt: skip
    return functional_call(MixtralSparseMoeBlock(config).double(), stacked(**weights), (x,))


def deepseek_moe(x: Any, bias: Any, sg: Any, su: Any, sd: Any, **weights: Any) -> Any:
    """D = 6, F = 3, E = 8, k = 3 of the 2 best of 4 groups, two shared experts."""
    config = DeepseekV3Config(
        hidden_size=6, moe_intermediate_size=3, n_routed_experts=8, num_experts_per_tok=3, n_group=4,
        topk_group=2, n_shared_experts=2, routed_scaling_factor=2.5, norm_topk_prob=True,
        experts_implementation="eager",
    )  # fmt: skip
    state = stacked(**weights) | {"gate.e_score_correction_bias": bias.detach()}
    for name, w in {"gate": sg, "up": su, "down": sd}.items():
        state[f"shared_experts.{name}_proj.weight"] = w.T
    return functional_call(DeepseekV3MoE(config).double(), state, (x,))


def gemma(hidden: int) -> Any:
    """D = 8, a quarter of the hidden units kept."""
    config = Gemma3nTextConfig(
        hidden_size=8, intermediate_size=[hidden], activation_sparsity_pattern=[0.75], num_hidden_layers=1
    )
    return Gemma3nTextMLP(config).double()


def spark_ffn(x: Any, k1: Any, k2: Any, v: Any) -> Any:
    """The gate reads 3 of 8 features, the other matrix the rest: zeros stand elsewhere. F = 16."""
    state = {
        "gate_proj.weight": torch.cat([k1, torch.zeros(5, 16)]).T,
        "up_proj.weight": torch.cat([torch.zeros(3, 16), k2]).T,
        "down_proj.weight": v.T,
    }
    return functional_call(gemma(16), state, (x,))


def main() -> None:
    def experts(e: int, f: int) -> dict[str, np.ndarray]:
        scale = 0.5
        return {
            "router": normal(6, e), "wg": normal(e, 6, f, scale=scale), "wu": normal(e, 6, f, scale=scale),
            "wd": normal(e, f, 6, scale=scale),
        }  # fmt: skip

    from_torch("smoe_topk", f"{HF} MixtralSparseMoeBlock", smoe_topk, {"x": normal(2, 7, 6)} | experts(4, 5))
    shared = {"sg": normal(6, 6), "su": normal(6, 6), "sd": normal(6, 6)}
    inputs = {"x": normal(2, 7, 6), "bias": normal(8, scale=0.2)} | shared | experts(8, 3)
    from_torch("deepseek_moe", f"{HF} DeepseekV3MoE", deepseek_moe, inputs)
    from_torch(
        "statistical_topk", f"{HF} Gemma3nTextMLP._gaussian_topk", lambda s: gemma(4)._gaussian_topk(s),
        {"s": normal(3, 5, 12)},
    )  # fmt: skip
    inputs = {"x": normal(2, 5, 8), "k1": normal(3, 16), "k2": normal(5, 16), "v": normal(16, 8)}
    from_torch("spark_ffn", f"{HF} Gemma3nTextMLP", spark_ffn, inputs)
    from_torch(
        "moe_aux_losses", f"{HF} load_balancing_loss_func of Mixtral, router_z_loss_func of Switch",
        lambda scores: torch.stack([
            load_balancing_loss_func((scores.flatten(0, 1),), 5, 2), router_z_loss_func(scores)
        ]),
        {"scores": normal(2, 7, 5)},
    )  # fmt: skip
    if len(sys.argv) > 1:
        for make in (losses, memory, tables, heads, fractions):
            make(Path(sys.argv[1]))


def package(name: str, path: Path) -> None:
    """A package whose own __init__ is not run."""
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [str(path)]


def stub(name: str, **contents: Any) -> None:
    """A module that is imported and not used, or only for `contents`."""
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(contents)


def losses(checkouts: Path) -> None:
    package("tutel", checkouts / "microsoft+tutel/tutel")
    package("tutel.impls", checkouts / "microsoft+tutel/tutel/impls")
    published = importlib.import_module("tutel.impls.losses")

    def load_and_importance(scores: Any, noise: Any) -> Any:
        # Five experts, two for each token; the noise has the deviation 1 / 5.
        p = torch.softmax(scores, dim=-1)
        noisy = p + noise / 5.0
        best = noisy.topk(2).values
        return published.load_importance_loss(p, best, 5, 1.0)

    from_torch(
        "moe_aux_losses_load", "microsoft/tutel 82af7aa tutel/impls/losses.py load_importance_loss",
        load_and_importance, {"scores": normal(9, 5), "noise": normal(9, 5)},
    )  # fmt: skip


def memory(checkouts: Path) -> None:
    folder = checkouts / "facebookresearch+XLM/xlm"
    package("xlm", folder)
    package("xlm.model", folder / "model")
    stub("xlm.utils", bool_flag=lambda s: s in (True, "true"))
    published = importlib.import_module("xlm.model.memory.memory").HashingMemory

    def pkm(batchnorm: bool) -> Any:
        parser = argparse.ArgumentParser()
        published.register_args(parser)
        params = parser.parse_args([])
        params.mem_k_dim, params.mem_heads, params.mem_knn, params.mem_n_keys = 4, 2, 3, 5
        params.mem_query_batchnorm, params.mem_input2d = batchnorm, False
        params.mem_implementation = "pq_fast"
        published.check_params(params)
        layer = published.build(6, 6, params).double().train(batchnorm)

        def run(x: Any, wq: Any, bq: Any, keys: Any, values: Any, **norm: Any) -> Any:
            state = {"keys": keys, "values.weight": values}
            state |= {"query_proj.query_mlps.0.weight": wq.T, "query_proj.query_mlps.0.bias": bq}
            state |= {f"query_proj.query_mlps.1.{name}": v for name, v in norm.items()}
            return functional_call(layer, state, (x,))

        return run

    inputs = {
        "x": normal(2, 5, 6), "wq": normal(6, 8), "bq": normal(8), "keys": normal(2, 2, 5, 2),
        "values": normal(25, 6),
    }  # fmt: skip
    source = "facebookresearch/XLM cd281d3 xlm/model/memory/memory.py HashingMemoryProductFast"
    from_torch("pkm", source, pkm(False), inputs)
    norm = {"weight": normal(8), "bias": normal(8)}
    from_torch("pkm_batchnorm", f"{source}, in training mode", pkm(True), inputs | norm)


def tables(checkouts: Path) -> None:
    # Extensions in C++ and CUDA would be compiled at import.
    folder = checkouts / "C0-Design+MemoryFormer/memory_module"
    package("memory_module", folder)
    stub("memory_module.gather")
    stub("memory_module.gather.kernel", gather=None)
    stub("ccs_cpu")
    stub("torch.utils.cpp_extension", load=lambda *_, **__: None)
    published = importlib.import_module("memory_module.memory").MemoryLayer
    config = {
        "projection_type": "dense", "block_size": 4, "hidden_size": 12, "output_size": 5, "ffn_num_table": 3,
        "code_length": 4, "remove_projection": True, "act_fn": "silu",
    }  # fmt: skip

    def memory_layer(x: Any, tables: Any, bias: Any) -> Any:
        layer = published(config, force_torch_op=True).double()
        return functional_call(layer, {"tables": tables.flatten(0, 1), "bias": bias}, (x,))

    inputs = {"x": normal(2, 5, 12), "tables": normal(3, 16, 5), "bias": normal(5)}
    source = "C0-Design/MemoryFormer 5968673 memory_module/memory.py MemoryLayer"
    from_torch("memory_layer", source, memory_layer, inputs)


def heads(checkouts: Path) -> None:
    unused = (
        "PatchEmbed",
        "Mlp",
        "DropPath",
        "AttentionPoolLatent",
        "RmsNorm",
        "PatchDropout",
        "SwiGLUPacked",
    )
    unused += (
        "trunc_normal_",
        "lecun_normal_",
        "resample_patch_embed",
        "resample_abs_pos_embed",
        "Attention",
    )
    for name in ("timm", "timm.models"):
        stub(name)
    for name in ("timm.models.vision_transformer", "timm.layers"):
        stub(name, use_fused_attn=lambda: False, **dict.fromkeys(unused))
    package("moh", checkouts / "SkyworkAI+MoH/MoH-DiT")
    published = importlib.import_module("moh.models").MoHAttention

    def moh(x: Any, router: Any, shared_gate: Any, kinds_gate: Any, **w: Any) -> Any:
        """The output, and after it the balance loss, which training mode appends to a list."""
        layer = published(12, num_heads=6, shared_head=2, routed_head=2).double().train()
        state = {"wg.weight": router.T, "wg_1.weight": shared_gate.T, "wg_0.weight": kinds_gate.T}
        state["qkv.weight"] = torch.cat([w[name].T for name in ("wq", "wk", "wv")])
        state |= {"proj.weight": w["wo"].T, "proj.bias": torch.zeros(12).double()}
        y = functional_call(layer, state, (x,))
        return torch.cat([y.flatten(), published.LOAD_BALANCING_LOSSES[-1][None]])

    inputs = {
        "x": normal(2, 5, 12), "router": normal(12, 4, scale=0.5), "shared_gate": normal(12, 2, scale=0.5),
        "kinds_gate": normal(12, 2, scale=0.5),
    } | {name: normal(12, 12, scale=0.5) for name in ("wq", "wk", "wv", "wo")}  # fmt: skip
    from_torch("moh", "SkyworkAI/MoH 2cefd57 MoH-DiT/models.py MoHAttention", moh, inputs)


def fractions(checkouts: Path) -> None:
    package("cofrgenet", checkouts / "cahlen+cofrgenet-f/src/cofrgenet")
    ladder = importlib.import_module("cofrgenet.continuant").continued_fraction
    published = importlib.import_module("cofrgenet.cffn").Cffn
    source = "cahlen/cofrgenet-f 032873d src/cofrgenet"
    # With eps = 0.5 about a third of these are clipped.
    from_torch(
        "cofr_ladder", f"{source}/continuant.py continued_fraction", lambda a: ladder(a, 0.5),
        {"a": normal(6, 4, 5)},
    )  # fmt: skip

    def cffn(x: Any, wu: Any, wg: Any, ladders: Any, v: Any) -> Any:
        layer = published(6, num_ladders=2, depth=3, epsilon=0.1).double()
        state = {"U.weight": wu.T, "gate_proj.weight": wg.T, "V": v.T}
        state |= {f"ladder_weights.{j}": ladders[j] for j in range(2)}
        return functional_call(layer, state, (x,))

    inputs = {
        "x": normal(2, 5, 6), "wu": normal(6, 6), "wg": normal(6, 6), "ladders": normal(2, 6, 3),
        "v": normal(2, 6),
    }  # fmt: skip
    from_torch("cffn", f"{source}/cffn.py Cffn", cffn, inputs)


if __name__ == "__main__":
    main()

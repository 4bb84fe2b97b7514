"""Freeze what published code answers for linear attention and recurrent mixers.

Run in this folder with a Python that has requirements-linear.txt. The naive references of
flash-linear-attention (package fla-core) are loaded file by file, for the package itself wants a GPU. They
compute in float32.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from oracle import from_torch
from transformers import Mamba2Config, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer, mamba_selective_scan
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

FLA, HF = f"fla-core {version('fla-core')}", f"transformers {version('transformers')}"


def naive(name: str) -> ModuleType:
    """fla/ops/NAME/naive.py, without importing the package."""
    package = importlib.util.find_spec("fla")
    assert package is not None and package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "ops" / name / "naive.py"
    spec = importlib.util.spec_from_file_location(f"naive_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def linear_attention(q: Any, k: Any, v: Any) -> Any:
    return naive("linear_attn").naive_recurrent_linear_attn(q, k, v, scale=1.0, normalize=True)[0]


def gla(q: Any, k: Any, v: Any, g: Any) -> Any:
    return naive("gla").naive_recurrent_gla(q, k, v, g)[0]


def delta_net(q: Any, k: Any, v: Any, beta: Any) -> Any:
    return naive("delta_rule").delta_rule_recurrence(q, k, v, beta)[0]


def gated_delta_rule(q: Any, k: Any, v: Any, beta: Any, g: Any) -> Any:
    return naive("gated_delta_rule").naive_recurrent_gated_delta_rule(q, k, v, beta, g)[0]


def gated_delta_net(x: Any, **weights: Any) -> Any:
    """The layer of Qwen3-Next. Its packed weights are made of ours, so that gradients reach ours."""
    config = SimpleNamespace(
        hidden_size=8, linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=3,
        linear_value_head_dim=6, linear_conv_kernel_dim=4, hidden_act="silu", rms_norm_eps=1e-6,
        layer_types=["linear_attention"],
    )  # fmt: skip
    layer = Qwen3NextGatedDeltaNet(config, 0).double()
    # For each head: q, k, v, and the output gate; then beta and the decay.
    heads = [weights[n].reshape(8, 2, -1) for n in ("wq", "wk", "wv", "wg", "wbeta", "wa")]
    state = {
        "in_proj_qkvz.weight": torch.cat(heads[:4], dim=-1).reshape(8, -1).T,
        "in_proj_ba.weight": torch.cat(heads[4:], dim=-1).reshape(8, -1).T,
        "conv1d.weight": torch.cat([weights[n] for n in ("conv_q", "conv_k", "conv_v")], dim=-1).permute(
            2, 1, 0
        ),
        "A_log": weights["a_log"],
        "dt_bias": weights["dt_bias"],
        "norm.weight": weights["norm"],
        "out_proj.weight": weights["wo"].T,
    }
    return torch.func.functional_call(layer, state, (x,))


def selective_scan(u: Any, delta: Any, a: Any, b: Any, c: Any, d: Any, z: Any, bias: Any) -> Any:
    # That function has (B, E, N), and (B, n, N).
    u, delta, b, c, z = (v.transpose(1, 2) for v in (u, delta, b, c, z))
    y = mamba_selective_scan(u, delta, a, b, c, d, z=z, delta_bias=bias, delta_softplus=True)
    return y.transpose(1, 2)


def mamba_block(h: Any, **weights: Any) -> Any:
    """The mixer of Mamba, without norm and sum."""
    layer = MambaMixer(MambaConfig(hidden_size=4, state_size=3, expand=2, time_step_rank=2), 0).double()
    state = {
        "in_proj.weight": weights["win"].T,
        "conv1d.weight": weights["conv"].permute(2, 1, 0),
        "conv1d.bias": weights["conv_bias"],
        "x_proj.weight": weights["wx"].T,
        "dt_proj.weight": weights["wdt"].T,
        "dt_proj.bias": weights["bias"],
        "A_log": weights["a_log"],
        "D": weights["d"],
        "out_proj.weight": weights["wo"].T,
    }
    return torch.func.functional_call(layer, state, (h,))


def mamba2_ssd(x: Any, **weights: Any) -> Any:
    """The mixer of Mamba-2."""
    config = Mamba2Config(
        hidden_size=4, state_size=3, expand=2, num_heads=4, head_dim=2, n_groups=1, chunk_size=16,
        layer_norm_epsilon=1e-5,
    )  # fmt: skip
    state = {
        "in_proj.weight": weights["win"].T,
        "conv1d.weight": weights["conv"].permute(2, 1, 0),
        "conv1d.bias": weights["conv_bias"],
        "A_log": weights["a_log"],
        "D": weights["d"],
        "dt_bias": weights["dt_bias"],
        "norm.weight": weights["norm"],
        "out_proj.weight": weights["wo"].T,
    }
    return torch.func.functional_call(Mamba2Mixer(config, 0).double(), state, (x,))


def normal(rng: np.random.Generator, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Weights of about unit gain."""
    return {n: rng.standard_normal(s) / np.sqrt(s[0] if len(s) > 1 else 1.0) for n, s in shapes.items()}


def main() -> None:
    rng = np.random.default_rng(0)
    # (B, N, H, d), as that package has it; 19 tokens are more than one chunk of 16.
    q, k = (rng.standard_normal((1, 19, 2, 4)) for _ in range(2))
    v = rng.standard_normal((1, 19, 2, 6))
    g = -rng.exponential(size=k.shape)
    positive = {"q": np.exp(q), "k": np.exp(k), "v": v}
    from_torch("linear_attention", f"{FLA} naive_recurrent_linear_attn", linear_attention, positive)
    unit = k / np.linalg.norm(k, axis=-1, keepdims=True)
    beta = rng.uniform(0.0, 1.0, (1, 19, 2))
    inner = {"q": q, "k": unit, "v": v}
    # Here this package has (B, H, N, d).
    swapped = {name: np.ascontiguousarray(a.swapaxes(1, 2)) for name, a in {**inner, "beta": beta}.items()}
    from_torch("delta_net", f"{FLA} delta_rule_recurrence", delta_net, swapped)
    from_torch(
        "gated_delta_rule",
        f"{FLA} naive_recurrent_gated_delta_rule",
        gated_delta_rule,
        {**inner, "beta": beta, "g": g[..., 0]},
    )
    from_torch("gated_delta_net", f"{HF} Qwen3NextGatedDeltaNet", gated_delta_net, {
        "x": rng.standard_normal((1, 19, 8)),
        **{n: rng.standard_normal((8, w)) / 3 for n, w in dict(wq=6, wk=6, wv=12, wg=12).items()},
        **{n: rng.standard_normal((8, 2)) / 3 for n in ("wbeta", "wa")},
        **{n: rng.standard_normal((4, 1, w)) / 2 for n, w in dict(conv_q=6, conv_k=6, conv_v=12).items()},
        "a_log": rng.standard_normal(2),
        "dt_bias": rng.standard_normal(2),
        "norm": rng.uniform(0.5, 2.0, 6),
        "wo": rng.standard_normal((12, 8)) / 3,
    })  # fmt: skip
    wide = {n: rng.standard_normal((1, 19, w)) for n, w in dict(u=5, delta=5, b=3, c=3, z=5).items()}
    from_torch("selective_scan", f"{HF} mamba_selective_scan", selective_scan, {
        **wide, "a": -rng.exponential(size=(5, 3)), **normal(rng, d=(5,), bias=(5,)),
    })  # fmt: skip
    h = rng.standard_normal((1, 19, 4))
    from_torch("mamba_block", f"{HF} MambaMixer", mamba_block, {"h": h, **normal(
        rng, win=(4, 16), conv=(4, 1, 8), conv_bias=(8,), wx=(8, 8), wdt=(2, 8), bias=(8,), a_log=(8, 3),
        d=(8,), wo=(8, 4),
    )})  # fmt: skip
    from_torch("mamba2_ssd", f"{HF} Mamba2Mixer", mamba2_ssd, {"x": h, **normal(
        rng, win=(4, 26), conv=(4, 1, 14), conv_bias=(14,), dt_bias=(4,), a_log=(4,), d=(4,), norm=(8,),
        wo=(8, 4),
    )})  # fmt: skip
    from_torch("gla", f"{FLA} naive_recurrent_gla", gla, {"q": q, "k": k, "v": v, "g": g})


if __name__ == "__main__":
    main()

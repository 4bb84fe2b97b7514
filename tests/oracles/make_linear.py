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
    """The layer of Qwen3-Next. Its packed weights are put together from ours, so that gradients reach ours."""
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
        **{n: rng.standard_normal((8, w)) / 3 for n, w in dict(wq=6, wk=6, wv=12, wg=12, wbeta=2, wa=2).items()},
        **{n: rng.standard_normal((4, 1, w)) / 2 for n, w in dict(conv_q=6, conv_k=6, conv_v=12).items()},
        "a_log": rng.standard_normal(2),
        "dt_bias": rng.standard_normal(2),
        "norm": rng.uniform(0.5, 2.0, 6),
        "wo": rng.standard_normal((12, 8)) / 3,
    })  # fmt: skip
    from_torch("gla", f"{FLA} naive_recurrent_gla", gla, {"q": q, "k": k, "v": v, "g": g})


if __name__ == "__main__":
    main()

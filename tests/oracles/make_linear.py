"""Freeze what published code answers for linear attention and recurrent mixers.

Run in this folder with a Python that has requirements-linear.txt. The naive references of
flash-linear-attention (package fla-core) are loaded file by file, for the package itself wants a GPU. They
compute in float32. Three repositories are on no package index: give the folder that holds their checkouts,
named owner+name, as the argument; without it they are left alone.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from oracle import from_torch, save
from transformers import Mamba2Config, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer, mamba_selective_scan
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

FLA, HF = f"fla-core {version('fla-core')}", f"transformers {version('transformers')}"


def naive(name: str) -> ModuleType:
    """fla/ops/NAME/naive.py, without importing the package."""
    package = importlib.util.find_spec("fla")
    assert package is not None and package.submodule_search_locations is not None
    return file(Path(package.submodule_search_locations[0]) / "ops" / name / "naive.py")


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


def file(path: Path) -> ModuleType:
    """The module in a file, whatever the folder around it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stub(name: str, **contents: Any) -> None:
    """A module that the code imports, and does not use here."""
    module = ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module


def s4d(folder: Path, rng: np.random.Generator) -> None:
    for name in ("src", "src.models", "src.models.nn"):
        stub(name, DropoutNd=None)
    code = file(folder / "models/s4/s4d.py")

    def run(u: Any, **weights: Any) -> Any:
        layer = code.S4D(3, d_state=6, transposed=False).double()
        state = {
            "D": weights["d"],
            "kernel.C": torch.stack([weights["c_real"], weights["c_imag"]], dim=-1),
            "kernel.log_dt": weights["log_dt"],
            "kernel.log_A_real": weights["log_a_real"],
            "kernel.A_imag": weights["a_imag"],
            "output_linear.0.weight": weights["wo"].T[..., None],
            "output_linear.0.bias": weights["wo_bias"],
        }
        return torch.func.functional_call(layer, state, (u,))[0]

    weights = normal(rng, d=(3,), c_real=(3, 3), c_imag=(3, 3), wo=(3, 6), wo_bias=(6,), log_a_real=(3, 3))
    weights |= {"a_imag": 3.0 * rng.standard_normal((3, 3)), "log_dt": rng.uniform(-6.0, 0.0, 3)}
    source = "state-spaces/s4 e757cef models/s4/s4d.py S4D"
    from_torch("s4d", source, run, {"u": rng.standard_normal((1, 19, 3)), **weights})


def lmu_memory(folder: Path, rng: np.random.Generator) -> None:
    stub("utilities", get_act=None)
    code = file(folder / "src/blocks/lmu_cell.py")

    def run(x: Any, **weights: Any) -> Any:
        layer = code.LMUFFTCell(4, 3, 5, 19, 7.0).double()
        state = {
            "W_u.weight": weights["wu"].T,
            "W_u.bias": weights["wu_bias"],
            "W_h.weight": weights["wh"].T,
            "W_h.bias": weights["wh_bias"],
        }
        return torch.func.functional_call(layer, state, (x,))[0]

    weights = normal(rng, wu=(4, 1), wu_bias=(1,), wh=(9, 3), wh_bias=(3,))
    source = "zeyuliu1037/LMUFormer 5debadd src/blocks/lmu_cell.py LMUFFTCell"
    from_torch("lmu_memory", source, run, {"x": rng.standard_normal((1, 19, 4)), **weights})


def ecoformer(folder: Path, rng: np.random.Generator) -> None:
    stub("logger", logger=None)
    sys.path.insert(0, str(folder / "pvt"))
    code = file(folder / "pvt/hashing/ksh.py")
    source = "ziplab/EcoFormer a277f9e pvt/hashing/ksh.py KernelSH"
    z = rng.standard_normal((2, 2, 24, 3))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    anchors, a = z[0][:, [3, 11, 0, 17, 20]], rng.standard_normal((2, 4, 5))

    def run(z: Any, anchors: Any, mu: Any, a: Any) -> Any:
        layer = code.KernelSH(2, 3, nbits=4, m=5)
        state = {"anchor": anchors[None], "mvec": mu[:, None][None], "A": a}
        return torch.func.functional_call(layer, state, (z,))

    inputs = {"z": z, "anchors": anchors, "mu": rng.uniform(0.4, 0.8, (2, 5)), "a": a}
    from_torch("ecoformer", f"{source}.forward", run, inputs)

    # Learning: +1 for the 10 most similar tokens of each row, -1 for the 10 least.
    layer = code.KernelSH(2, 3, nbits=4, m=5, learning_rate=0.5, iteration_n=20).double()
    layer.A.copy_(torch.tensor(a))
    order = np.argsort(z @ z.swapaxes(-1, -2), axis=-1)
    similar = np.zeros(order.shape)
    np.put_along_axis(similar, order[..., -10:], 1.0, axis=-1)
    np.put_along_axis(similar, order[..., :10], -1.0, axis=-1)
    # Its hard signs are of the default type.
    torch.set_default_dtype(torch.float64)
    layer.train_hashing_weight_woeig(torch.tensor(z), torch.tensor(anchors)[None], torch.tensor(similar))
    torch.set_default_dtype(torch.float32)
    save("ecoformer_learned", f"{source}.train_hashing_weight_woeig; torch {torch.__version__}", {
        "z": z, "anchors": anchors, "a": a, "mu": layer.mvec.numpy()[0, :, 0], "learned": layer.A.numpy(),
    })  # fmt: skip


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


def repositories(folder: Path) -> None:
    """What comes from checkouts, each with a generator of its own."""
    s4d(folder / "state-spaces+s4", np.random.default_rng(1))
    lmu_memory(folder / "zeyuliu1037+LMUFormer", np.random.default_rng(2))
    ecoformer(folder / "ziplab+EcoFormer", np.random.default_rng(3))


if __name__ == "__main__":
    main()
    if len(sys.argv) > 1:
        repositories(Path(sys.argv[1]))

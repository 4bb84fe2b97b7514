"""Freeze what published code answers for windows, patches, convolutional blocks and mixers of images.

Run in this folder with a Python that has requirements-vision.txt. timm imports torchvision, which wants the
torch that it was built for; nothing of it is used here, so a stand-in takes its place. Three repositories are
on no package index: give the folder that holds their checkouts, named owner+name, as the argument; without it
those are left alone.

Weights are named as in minitf; a map (in, out) is transposed for torch, a kernel (k, k, in, out) too.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from oracle import StandIn, from_torch
from torch import nn

TIMM, HF = f"timm {version('timm')}", f"transformers {version('transformers')}"
Shapes = dict[str, tuple[int, ...]]


def turned(weight: Any) -> Any:
    """(in, out) -> (out, in), and (k, k, in, out) -> (out, in, k, k)."""
    return weight.permute(*range(weight.ndim - 1, weight.ndim - 3, -1), *range(weight.ndim - 2))


def call(layer: Any, state: dict[str, Any], *inputs: Any, **options: Any) -> Any:
    """The layer's answer with these parameters and buffers, in eval mode and float64."""
    wanted = {name: t.shape for name, t in layer.state_dict().items() if name in state}
    state = {name: t.reshape(wanted[name]) for name, t in state.items()}
    return torch.func.functional_call(layer.double().eval(), state, inputs, options)


def linear(name: str, there: str, weights: dict[str, Any]) -> dict[str, Any]:
    """The weight of a map or kernel, and its bias if it has one, under their names in torch."""
    state = {f"{there}.weight": turned(weights[f"{name}.weight"])}
    return state | ({f"{there}.bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {})


def norm(name: str, there: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {f"{there}.{part}": weights[f"{name}.{part}"] for part in ("weight", "bias")}


def packed(there: str, weights: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """W_q, W_k and W_v as one map."""
    rows = [f"{prefix}{name}" for name in ("wq", "wk", "wv")]
    return {
        f"{there}.weight": torch.cat([weights[f"{r}.weight"].T for r in rows]),
        f"{there}.bias": torch.cat([weights[f"{r}.bias"] for r in rows]),
    }


def maps(sizes: Shapes, bias: bool = True) -> Shapes:
    """Shapes of weights (in, out), and of the biases."""
    shapes = {f"{name}.weight": size for name, size in sizes.items()}
    return shapes | ({f"{name}.bias": size[-1:] for name, size in sizes.items()} if bias else {})


def norms(width: int, *names: str) -> Shapes:
    return {f"{name}.{part}": (width,) for name in names for part in ("weight", "bias")}


def normal(seed: int, shapes: Shapes) -> dict[str, np.ndarray]:
    """Standard normal numbers, those of maps divided by the root of what they sum."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(size) / (np.sqrt(np.prod(size[:-1])) if name.endswith(".weight") else 1.0)
        for name, size in shapes.items()
    }


def swin() -> None:
    from timm.models.swin_transformer import SwinTransformerBlock

    def run(x: Any, **weights: Any) -> Any:
        found = []
        for shift in (0, 1):
            block = SwinTransformerBlock(4, (6, 6), num_heads=2, window_size=3, shift_size=shift)
            # Only attention is asked for: the norms do nothing, and x and the MLP are taken off.
            block.norm1, block.norm2, block.mlp = nn.Identity(), nn.Identity(), Nothing()
            state = {
                **packed("attn.qkv", weights),
                **linear("wo", "attn.proj", weights),
                "attn.relative_position_bias_table": weights["bias.table"],
            }
            found.append(call(block, state, x) - x)
        return torch.stack(found)

    shapes = {
        "x": (1, 6, 6, 4),
        **maps(dict.fromkeys(("wq", "wk", "wv", "wo"), (4, 4))),
        "bias.table": (25, 2),
    }
    from_torch("swin_attention", f"{TIMM} SwinTransformerBlock", run, normal(0, shapes))


class Nothing(nn.Module):
    """An MLP that adds nothing."""

    def forward(self, x: Any) -> Any:
        return x * 0.0


def pooling() -> None:
    from timm.models.metaformer import Pooling

    def run(x: Any) -> Any:
        x = x.permute(0, 3, 1, 2)
        return torch.cat([Pooling(size)(x) for size in (3, 5)]).permute(0, 2, 3, 1)

    from_torch("pool_mixer", f"{TIMM} Pooling", run, normal(1, {"x": (2, 4, 5, 3)}))


def mlp_mixer() -> None:
    from timm.models.mlp_mixer import MixerBlock

    def run(x: Any, **weights: Any) -> Any:
        state = {**norm("norm1", "norm1", weights), **norm("norm2", "norm2", weights)}
        for name, there in (
            ("t1", "tokens.fc1"),
            ("t2", "tokens.fc2"),
            ("w1", "channels.fc1"),
            ("w2", "channels.fc2"),
        ):
            state |= linear(name, f"mlp_{there}", weights)
        return call(MixerBlock(4, 5), state, x)

    sizes = {"t1": (5, 2), "t2": (2, 5), "w1": (4, 16), "w2": (16, 4)}
    shapes = {"x": (2, 5, 4), **norms(4, "norm1", "norm2"), **maps(sizes)}
    from_torch("mlp_mixer", f"{TIMM} MixerBlock", run, normal(2, shapes))


def convnext() -> None:
    from timm.models.convnext import ConvNeXtBlock

    def run(x: Any, **weights: Any) -> Any:
        state = {"gamma": weights["g"], **norm("norm", "norm", weights), **linear("conv", "conv_dw", weights)}
        state |= {**linear("w1", "mlp.fc1", weights), **linear("w2", "mlp.fc2", weights)}
        y = call(ConvNeXtBlock(3), state, x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)

    sizes = {"conv": (7, 7, 1, 3), "w1": (3, 12), "w2": (12, 3)}
    shapes = {"x": (1, 5, 6, 3), "g": (3,), **norms(3, "norm"), **maps(sizes)}
    from_torch("convnext_block", f"{TIMM} ConvNeXtBlock", run, normal(3, shapes))


def cascaded() -> None:
    from timm.models.efficientvit_msra import LocalWindowAttention

    def run(x: Any, **weights: Any) -> Any:
        layer = LocalWindowAttention(
            6, 2, num_heads=2, attn_ratio=1.5, resolution=5, window_resolution=3, kernels=(5, 3)
        )
        state = {"attn.attention_biases": weights["bias"], **batch_norm("norm", "attn.proj.1.bn", weights)}
        state |= linear("wo", "attn.proj.1.c", weights)
        state["attn.proj.1.conv.weight"] = state.pop("attn.proj.1.c.weight")
        for i in range(2):
            state[f"attn.qkvs.{i}.conv.weight"] = turned(weights[f"heads.{i}.wqkv.weight"])
            state[f"attn.dws.{i}.conv.weight"] = turned(weights[f"heads.{i}.conv.weight"])
            state |= batch_norm(f"heads.{i}.norm", f"attn.qkvs.{i}.bn", weights)
            state |= batch_norm(f"heads.{i}.conv_norm", f"attn.dws.{i}.bn", weights)
        return call(layer, state, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    sizes: Shapes = {"wo": (6, 6)}
    shapes: Shapes = {"x": (1, 5, 5, 6), "bias": (2, 3, 3)}
    widths = {"norm": 6}
    for i, k in enumerate((5, 3)):
        sizes |= {f"heads.{i}.wqkv": (3, 7), f"heads.{i}.conv": (k, k, 1, 2)}
        widths |= {f"heads.{i}.norm": 7, f"heads.{i}.conv_norm": 2}
    shapes |= maps(sizes, bias=False)
    for name, width in widths.items():
        shapes |= {f"{name}.{part}": (width,) for part in ("bias", "mean", "gain", "variance")}
    arrays = normal(4, shapes)
    for name in widths:
        # Gains are plain normal numbers, variances positive.
        arrays[f"{name}.weight"] = arrays.pop(f"{name}.gain")
        arrays[f"{name}.variance"] = np.exp(arrays[f"{name}.variance"])
    from_torch("cascaded_group_attention", f"{TIMM} LocalWindowAttention", run, arrays)


def batch_norm(name: str, there: str, weights: dict[str, Any]) -> dict[str, Any]:
    running = {"mean": "running_mean", "variance": "running_var"}
    state = {f"{there}.{theirs}": weights[f"{name}.{ours}"].detach() for ours, theirs in running.items()}
    return state | norm(name, there, weights)


def vit() -> None:
    from timm.layers import resample_abs_pos_embed
    from timm.models.vision_transformer import Block, VisionTransformer

    def block(x: Any, **weights: Any) -> Any:
        layer = Block(4, 2, qkv_bias=True, init_values=1.0, norm_layer=partial(nn.LayerNorm, eps=1e-6))
        state = {
            "ls1.gamma": weights["g1"],
            "ls2.gamma": weights["g2"],
            **packed("attn.qkv", weights, "mixer."),
        }
        state |= {**norm("norm1", "norm1", weights), **norm("norm2", "norm2", weights)}
        for name, there in (("mixer.wo", "attn.proj"), ("ffn.w1", "mlp.fc1"), ("ffn.w2", "mlp.fc2")):
            state |= linear(name, there, weights)
        return call(layer, state, x)

    sizes: Shapes = dict.fromkeys([f"mixer.{w}" for w in ("wq", "wk", "wv", "wo")], (4, 4))
    sizes = {**sizes, "ffn.w1": (4, 16), "ffn.w2": (16, 4)}
    shapes = {"x": (2, 5, 4), "g1": (4,), "g2": (4,), **norms(4, "norm1", "norm2"), **maps(sizes)}
    from_torch("vit_block", f"{TIMM} Block", block, normal(5, shapes))

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = VisionTransformer(img_size=(4, 6), patch_size=2, embed_dim=4, depth=1, num_heads=1)

        def forward(self, image: Any) -> Any:
            return self.inner._pos_embed(self.inner.patch_embed(image))

    def embed(image: Any, **weights: Any) -> Any:
        kernel = weights["patches.weight"].reshape(2, 2, 3, 4)
        state = {
            "inner.patch_embed.proj.weight": turned(kernel),
            "inner.patch_embed.proj.bias": weights["patches.bias"],
            "inner.cls_token": weights["cls"],
            "inner.pos_embed": weights["pos"],
        }
        return call(Embedding(), state, image.permute(0, 3, 1, 2))

    shapes = {"image": (2, 4, 6, 3), **maps({"patches": (12, 4)}), "cls": (4,), "pos": (7, 4)}
    from_torch("vit_patch_embed", f"{TIMM} VisionTransformer._pos_embed", embed, normal(6, shapes))

    def resize(pos: Any) -> Any:
        options: Any = {"num_prefix_tokens": 0, "interpolation": "bilinear", "antialias": False}
        sizes = ((3, 5), (2, 2), (7, 6))
        return torch.cat([resample_abs_pos_embed(pos[None], s, (3, 4), **options)[0] for s in sizes])

    source = f"{TIMM} resample_abs_pos_embed"
    from_torch("vit_patch_embed_resized", source, resize, normal(7, {"pos": (12, 3)}))


def deformable() -> None:
    from transformers.models.deformable_detr.modeling_deformable_detr import (
        DeformableDetrMultiscaleDeformableAttention,
    )

    sides = ((4, 5), (2, 3))
    config = SimpleNamespace(d_model=4, num_feature_levels=2, disable_custom_kernels=True)

    def run(
        query: Any, points: Any, boxes: Any, map0: Any, map1: Any, seen0: Any, seen1: Any, **weights: Any
    ) -> Any:
        layer = DeformableDetrMultiscaleDeformableAttention(config, num_heads=2, n_points=3)
        there = {"ws": "sampling_offsets", "wa": "attention_weights", "wv": "value_proj", "wo": "output_proj"}
        state: dict[str, Any] = {}
        for name, theirs in there.items():
            state |= linear(name, theirs, weights)
        options = dict(
            encoder_hidden_states=torch.cat([map0.flatten(1, 2), map1.flatten(1, 2)], dim=1),
            attention_mask=torch.cat([seen0.flatten(1), seen1.flatten(1)], dim=1),
            spatial_shapes=torch.tensor(sides),
            spatial_shapes_list=list(sides),
            level_start_index=torch.tensor([0, 20]),
        )
        found = [call(layer, state, query, reference_points=r, **options)[0] for r in (points, boxes)]
        return torch.cat(found)

    sizes: Shapes = {"ws": (4, 24), "wa": (4, 12), "wv": (4, 4), "wo": (4, 4)}
    arrays = normal(
        8, {"query": (1, 5, 4), **{f"map{i}": (1, *s, 4) for i, s in enumerate(sides)}, **maps(sizes)}
    )
    rng = np.random.default_rng(9)
    arrays |= {"points": rng.uniform(size=(1, 5, 2, 2)), "boxes": rng.uniform(size=(1, 5, 2, 4))}
    arrays |= {f"seen{i}": rng.uniform(size=(1, *s)) < 0.8 for i, s in enumerate(sides)}
    source = f"{HF} DeformableDetrMultiscaleDeformableAttention"
    from_torch("deformable_attention", source, run, arrays)


def file(path: Path) -> ModuleType:
    """The module in a file, whatever the folder around it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        # timm has moved what these files import, and says so.
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


def mdta(folder: Path) -> None:
    code = file(folder / "basicsr/models/archs/restormer_arch.py")

    def run(x: Any, **weights: Any) -> Any:
        state = {"temperature": weights["tau"], **linear("wqkv", "qkv", weights)}
        state |= {**linear("conv", "qkv_dwconv", weights), **linear("wo", "project_out", weights)}
        return call(code.Attention(4, 2, True), state, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    sizes = {"wqkv": (4, 12), "conv": (3, 3, 1, 12), "wo": (4, 4)}
    shapes = {"x": (2, 4, 3, 4), "tau": (2, 1, 1), **maps(sizes)}
    source = "swz30/Restormer df766d5 basicsr/models/archs/restormer_arch.py Attention"
    from_torch("mdta", source, run, normal(10, shapes))


def gfnet(folder: Path) -> None:
    sys.modules["numpy.lib.arraypad"] = ModuleType("numpy.lib.arraypad")
    vars(sys.modules["numpy.lib.arraypad"])["pad"] = None
    code = file(folder / "gfnet.py")

    def run(x: Any, real: Any, imaginary: Any) -> Any:
        b, rows, columns, d = x.shape
        layer = code.GlobalFilter(d, h=rows, w=columns // 2 + 1)
        state = {"complex_weight": torch.stack([real, imaginary], dim=-1).float()}
        return call(layer.float(), state, x.reshape(b, -1, d), (rows, columns)).reshape(x.shape)

    shapes = {"x": (2, 4, 5, 3), "real": (4, 3, 3), "imaginary": (4, 3, 3)}
    source = "raoyongming/GFNet 2de48b6 gfnet.py GlobalFilter"
    from_torch("gfnet_filter", source, run, normal(11, shapes))


def cswin(folder: Path) -> None:
    code = file(folder / "models/cswin.py")

    def run(x: Any, **weights: Any) -> Any:
        block = code.CSWinBlock(8, 4, 4, split_size=2, qkv_bias=True, norm_layer=lambda width: nn.Identity())
        block.mlp = Nothing()
        state = {**linear("wqkv", "qkv", weights), **linear("wo", "proj", weights)}
        state |= linear("vertical", "attns.0.get_v", weights)
        state |= linear("horizontal", "attns.1.get_v", weights)
        tokens = x.reshape(x.shape[0], -1, 8)
        return (call(block, state, tokens) - tokens).reshape(x.shape)

    sizes = {"wqkv": (8, 24), "wo": (8, 8), "vertical": (3, 3, 1, 4), "horizontal": (3, 3, 1, 4)}
    source = "microsoft/CSWin-Transformer f111ae2 models/cswin.py CSWinBlock"
    from_torch("cswin_attention", source, run, normal(12, {"x": (1, 4, 4, 8), **maps(sizes)}))


if __name__ == "__main__":
    StandIn.install("torchvision")
    for make in (swin, pooling, mlp_mixer, convnext, cascaded, vit, deformable):
        make()
    if len(sys.argv) > 1:
        checkouts = Path(sys.argv[1])
        mdta(checkouts / "swz30+Restormer")
        gfnet(checkouts / "raoyongming+GFNet")
        cswin(checkouts / "microsoft+CSWin-Transformer")

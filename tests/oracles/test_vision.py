"""Windows, patches, convolutional blocks and mixers of images against published code."""

from __future__ import annotations

from typing import Any

from minitf import Tensor, ops
from minitf.attention.cascaded_group_attention import CascadedGroupAttention
from minitf.attention.cswin_attention import CSWinAttention
from minitf.attention.deformable_attention import DeformableAttention
from minitf.attention.mdta import MDTA
from minitf.attention.swin_attention import SwinAttention
from minitf.blocks.convnext_block import ConvNeXtBlock
from minitf.blocks.vit_block import ViTBlock
from minitf.mixers.gfnet_filter import GFNetFilter
from minitf.mixers.mlp_mixer import MLPMixer
from minitf.mixers.pool_mixer import PoolMixer
from minitf.nn import Module
from minitf.tokens.vit_patch_embed import ViTPatchEmbed, resize
from tests.oracles.oracle import compare

# Both sides compute in float64.
EXACT = 1e-10
# This code computes in float32.
SINGLE = 1e-5


def with_weights(layer: Any, weights: dict[str, Tensor]) -> Any:
    """The layer in eval mode with other tensors for parameters and buffers, by their names."""
    for name, value in weights.items():
        *path, last = name.split(".")
        owner: Any = layer
        for part in path:
            owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
        assert hasattr(owner, last), f"{type(layer).__name__} has no {name}"
        setattr(owner, last, value)
    return layer.eval()


def compare_layer(name: str, layer: Module, tolerance: float = EXACT) -> None:
    """x and the weights of a layer, under their names."""
    compare(name, lambda x, **weights: with_weights(layer, weights)(x), tolerance)


def test_swin_attention() -> None:
    def run(x: Tensor, **weights: Tensor) -> Tensor:
        layers = [SwinAttention(4, heads=2, window=3, shift=s, dtype="float64") for s in (0, 1)]
        return ops.stack([with_weights(layer, weights)(x) for layer in layers])

    # Their mask is -100: e^-100 of what must not be seen remains.
    compare("swin_attention", run, EXACT)


def test_pool_mixer() -> None:
    def run(x: Tensor) -> Tensor:
        return ops.concat([PoolMixer(3, window=k, dtype="float64")(x) for k in (3, 5)])

    compare("pool_mixer", run, EXACT)


def test_mlp_mixer() -> None:
    compare_layer("mlp_mixer", MLPMixer(4, grid=5, dtype="float64"))


def test_convnext_block() -> None:
    compare_layer("convnext_block", ConvNeXtBlock(3, dtype="float64"))


def test_cascaded_group_attention() -> None:
    layer = CascadedGroupAttention(6, heads=2, key_dim=2, kernel=(5, 3), window=3, dtype="float64")
    # A grid of 5 x 5 in windows of 3 x 3: zeros fill the last ones.
    compare_layer("cascaded_group_attention", layer)


def test_vit_block() -> None:
    compare_layer("vit_block", ViTBlock(4, heads=2, layer_scale=1.0, dtype="float64"))


def test_vit_patch_embed() -> None:
    def run(image: Tensor, **weights: Tensor) -> Tensor:
        return with_weights(ViTPatchEmbed(4, patch=2, grid=(2, 3), dtype="float64"), weights)(image)

    compare("vit_patch_embed", run, EXACT)


def test_vit_positions_of_other_grids() -> None:
    def run(pos: Tensor) -> Tensor:
        return ops.concat([resize(pos, (3, 4), size) for size in ((3, 5), (2, 2), (7, 6))])

    # Positions are resized in float32 there.
    compare("vit_patch_embed_resized", run, SINGLE)


def test_deformable_attention() -> None:
    def run(query: Tensor, points: Tensor, boxes: Tensor, **rest: Any) -> Tensor:
        maps, masks = ([rest.pop(f"{name}{i}") for i in range(2)] for name in ("map", "seen"))
        layer = with_weights(DeformableAttention(4, heads=2, levels=2, points=3, dtype="float64"), rest)
        return ops.concat([layer(query, r, *maps, masks=masks) for r in (points, boxes)])

    compare("deformable_attention", run, EXACT)


def test_mdta() -> None:
    compare_layer("mdta", MDTA(4, heads=2, bias=True, dtype="float64"))


def test_gfnet_filter() -> None:
    compare_layer("gfnet_filter", GFNetFilter(3, grid=(4, 5), dtype="float64"), SINGLE)


def test_cswin_attention() -> None:
    compare_layer("cswin_attention", CSWinAttention(8, heads=4, stripe=2, dtype="float64"))

"""Patch embedding: an image becomes a row of tokens, with a class token first and learned positions.

    patch_rc = image[r p : (r+1) p, c p : (c+1) p]          flattened as (row, column, channel)
    t_rc     = patch_rc W + b
    z        = [cls, t_00, t_01, ..., t_10, ...] + pos

    image  (B, R p, C p, Cin)     patch  (B, R C, p^2 Cin)     t  (B, R C, D)     z, pos  (B, 1 + R C, D)

For an image with another number of patches than pos was made for, pos_0 stays and the others are resized
bilinearly as a grid: place i of O looks at (i + 1/2) L/O - 1/2 of L, at most at the border.

Around it: `ViTHead` reads the tokens that the last block gives. It norms them, takes the class token or the
mean of the patches, and maps it linearly to classes, with zeros at the start.

Cost: 2 N p^2 Cin D operations, N = R C.
Parameters: (p^2 Cin + 1) D, and (N + 2) D for cls and pos.
Source: An Image is Worth 16x16 Words, Dosovitskiy et al., arXiv:2010.11929, 2020, equation 1.
Differs from the paper: none known. Images that patches do not fill are errors.
Numerics: one product of matrices; the norm of `ViTHead` adds 1e-6 to the variance.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor
from minitf.nn import (
    Card,
    Case,
    LayerNorm,
    Linear,
    Module,
    Paper,
    Parameter,
    identity,
    init,
    partition,
    positive,
)

CARD = Card(
    name="vit_patch_embed",
    title="Patch embedding, class token, learned position table",
    kind="embedding",
    family="patches",
    papers=(
        Paper(
            "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", "2010.11929", 2020
        ),
    ),
    causal=False,
    streams=False,
    grid="2d",
    complexity="2 N p^2 C D + N D",
    properties=("batch_independent",),
    basis="published code: google-research/vision_transformer vit_jax/models_vit.py, "
    "huggingface/pytorch-image-models timm/layers/patch_embed.py",
    parity=("timm 1.0.31 VisionTransformer._pos_embed, resample_abs_pos_embed",),
)


def bilinear(size: int, out: int) -> Array:
    """The matrix (out, size) that resizes an axis of `size` cells to `out`; outer edges meet, not middles."""
    place = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0.0, size - 1.0)
    # Cell j counts as much as it is near: 1 at its middle, 0 from one cell away on.
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(size)))


def resize(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions (R C, D) of the grid `old` on the grid `new`: (R' C', D)."""
    rows, columns = (bilinear(a, b).astype(table.dtype) for a, b in zip(old, new))
    grid = table.reshape((*old, -1))
    return ops.einsum("ir,jc,rcd->ijd", rows, columns, grid).reshape((math.prod(new), -1))


class ViTPatchEmbed(Module):
    """image (B, R p, C p, Cin) -> tokens (B, 1 + R C, D), without the 1 if `class_token` is off.

    Parameters: patches (p^2 Cin, D) with bias; cls (D,), zero; pos (1 + R C, D), normal with std 0.02.

    Args:
        dim: D. channels: Cin. patch: p. grid: rows and columns of patches that pos is made for; one number
            for both.

    Raises:
        ValueError: channels, patch or grid below 1. ShapeError: an image with other channels, or that patches
            do not fill.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        channels: int = 3,
        patch: int = 16,
        grid: int | tuple[int, int] = 14,
        class_token: bool = True,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, channels=channels)
        self.grid: Any = (grid, grid) if isinstance(grid, int) else tuple(grid)
        if len(self.grid) != 2 or min(patch, *self.grid) < 1:
            raise ValueError(f"patch={patch} and both sides of grid={grid} must be at least 1")
        rng = init.generator(seed)
        self.patch = patch
        self.patches = Linear(patch * patch * channels, dim, True, rng, dtype=dtype)
        self.cls = Parameter(np.zeros(dim, dtype)) if class_token else None
        self.pos = Parameter(init.normal(rng, (class_token + math.prod(self.grid), dim), dtype=dtype))

    def forward(self, image: Tensor) -> Tensor:
        """The tokens of image (B, R p, C p, Cin)."""
        t = self.patch_tokens(image)
        special = self.pos.shape[0] - math.prod(self.grid)
        grid = (image.shape[1] // self.patch, image.shape[2] // self.patch)
        t = t + resize(self.pos[special:], self.grid, grid)
        if self.cls is None:
            return t
        first = ops.broadcast_to(self.cls + self.pos[0], (t.shape[0], 1, t.shape[2]))
        return ops.concat([first, t], axis=1)

    def patch_tokens(self, image: Tensor) -> Tensor:
        """t (B, R C, D)."""
        p, width = self.patch, self.patches.weight.shape[0]
        fits = image.ndim == 4 and not (image.shape[1] % p or image.shape[2] % p)
        if not fits or image.shape[3] * p * p != width:
            raise ShapeError(
                f"vit_patch_embed: an image must be (B, rows, columns, {width // p**2}) with sides that "
                f"patch={p} divides, not {image.shape}: crop, pad or resize it first"
            )
        # (B, R C, p^2, Cin) -> (B, R C, p^2 Cin)
        patches = partition(image, p, p)
        return self.patches(patches.reshape((*patches.shape[:2], width)))

    @staticmethod
    def example_inputs(case: Case) -> tuple[Tensor, ...]:
        """An image of t x w patches of the default size."""
        return (Tensor(case.rng().standard_normal((case.b, 16 * case.t, 16 * case.w, 3))),)


class ViTHead(Module):
    """tokens (B, N, D) of the last block -> logits (B, classes). Parameters: norm; wo (D, classes), zero.

    Args:
        dim: D. classes: how many. pool: "class" takes the first token, "mean" the mean of all (then there
            should be no class token among them).

    Raises:
        ValueError: another pool.
    """

    def __init__(self, dim: int, classes: int, *, pool: str = "class", dtype: Any = "float32"):
        if pool not in ("class", "mean"):
            raise ValueError(f"pool must be 'class' or 'mean', not {pool!r}")
        self.pool = pool
        self.norm = LayerNorm(dim, eps=1e-6, dtype=dtype)
        self.wo = Linear(dim, classes, values=np.zeros((dim, classes), dtype), dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.wo(x[:, 0] if self.pool == "class" else x.mean(axis=1))


def build(case: Case, **options: Any) -> Any:
    """A layer with patches of 2 x 2 and as many of them as the case has cells."""
    options = {"channels": 3, "patch": 2, "grid": (case.t, case.w), **options}
    layer = ViTPatchEmbed(case.dim, seed=case.seed, dtype="float64", **options)
    rng = case.rng()
    for p in layer.parameters():
        p.data = rng.standard_normal(p.shape)
    return layer


def image_of(case: Case, patch: int = 2) -> Tensor:
    return Tensor(case.rng().standard_normal((case.b, patch * case.t, patch * case.w, 3)))


@identity("the tokens are those of a loop over the patches, the class token first")
def loops(case: Case) -> tuple[Tensor, Any]:
    layer, image = build(case), image_of(case)
    expected = np.zeros((case.b, 1 + case.t * case.w, case.dim))
    expected[:, 0] = layer.cls.data
    for r, c in np.ndindex(case.t, case.w):
        patch = image.data[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2]
        flat = np.stack([patch[:, i, j, k] for i in range(2) for j in range(2) for k in range(3)], axis=-1)
        expected[:, 1 + r * case.w + c] = flat @ layer.patches.weight.data + layer.patches.bias.data
    return layer(image), expected + layer.pos.data


@identity("the patches' map is a convolution with stride p")
def convolution(case: Case) -> tuple[Tensor, Tensor]:
    layer, image = build(case, patch=3), image_of(case, 3)
    kernel = layer.patches.weight.reshape((3, 3, 3, case.dim))
    y = ops.conv2d(image, kernel, layer.patches.bias, stride=3)
    return layer.patch_tokens(image), y.reshape((case.b, -1, case.dim))


@identity("rolling the image by whole patches rolls the grid of tokens, before positions")
def rolls(case: Case) -> tuple[Tensor, Tensor]:
    layer, image = build(case), image_of(case)
    t = layer.patch_tokens(image).reshape((case.b, case.t, case.w, case.dim))
    moved = ops.roll(image, (2, 4), (1, 2))
    return layer.patch_tokens(moved), ops.roll(t, (1, 2), (1, 2)).reshape((case.b, -1, case.dim))


@identity("with D = p^2 Cin, W = I and b = 0 the tokens folded back are the image")
def folds_back(case: Case) -> tuple[Tensor, Tensor]:
    layer = ViTPatchEmbed(12, patch=2, grid=(case.t, case.w), dtype="float64")
    layer.patches.load_state_dict({"weight": np.eye(12), "bias": np.zeros(12)})
    image = image_of(case)
    t = layer.patch_tokens(image).reshape((case.b, case.t, case.w, 2, 2, 3))
    return t.permute_dims((0, 1, 3, 2, 4, 5)).reshape(image.shape), image


@identity("a patch as large as the image: one token, the whole image mapped")
def one_patch(case: Case) -> tuple[Tensor, Tensor]:
    layer = build(case, patch=3, grid=1, class_token=False)
    image = Tensor(case.rng().standard_normal((case.b, 3, 3, 3)))
    return layer(image), layer.patches(image.reshape((case.b, 1, 27))) + layer.pos


@identity("positions resized to their own grid are themselves")
def same_size(case: Case) -> tuple[Tensor, Tensor]:
    table, grid = build(case, class_token=False).pos, (case.t, case.w)
    return resize(table, grid, grid), table


@identity("on another grid positions are weighted means of the four around, the class token's own stays")
def other_size(case: Case) -> tuple[Tensor, Any]:
    layer = build(case)
    layer.patches.load_state_dict({"weight": np.zeros((12, case.dim)), "bias": np.zeros(case.dim)})
    new = (case.t + 2, 2 * case.w)
    image = Tensor(np.zeros((1, 2 * new[0], 2 * new[1], 3)))
    table = layer.pos.data[1:].reshape(case.t, case.w, case.dim)
    expected = [layer.pos.data[0] + layer.cls.data]
    for i, j in np.ndindex(new):
        r = min(max((i + 0.5) * case.t / new[0] - 0.5, 0.0), case.t - 1.0)
        c = min(max((j + 0.5) * case.w / new[1] - 0.5, 0.0), case.w - 1.0)
        top, left = int(r), int(c)
        below, right = min(top + 1, case.t - 1), min(left + 1, case.w - 1)
        a, b = r - top, c - left
        upper = (1.0 - b) * table[top, left] + b * table[top, right]
        lower = (1.0 - b) * table[below, left] + b * table[below, right]
        expected.append((1.0 - a) * upper + a * lower)
    return layer(image)[0], np.stack(expected)


@identity("the head sees the class token alone, or all tokens alike; at the start it gives zeros")
def heads(case: Case) -> tuple[Any, Any]:
    x, rng = case.tokens(), case.rng()
    first, mean = (ViTHead(case.dim, 3, pool=pool, dtype="float64") for pool in ("class", "mean"))
    start = first(x).data
    for head in (first, mean):
        head.wo.weight.data = rng.standard_normal((case.dim, 3))
    order = rng.permutation(case.t)
    alone = np.stack([mean(x[:, t : t + 1]).data for t in range(case.t)]).mean(axis=0)
    left = np.stack([first(x[:, :1]).data, mean(x[:, order]).data, start])
    return left, np.stack([first(x).data, alone, np.zeros((case.b, 3))])

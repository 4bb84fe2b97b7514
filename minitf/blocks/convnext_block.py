"""ConvNeXt block: a convolutional block in the shape of a transformer's, with one norm and one activation.

    y = x + g * (gelu(LN(DW7(x)) W_1 + b_1) W_2 + b_2)

    x, y  (B, R, C, D)        W_1  (D, 4 D), W_2  (4 D, D)        g  (D,), 1e-6 at the start
    DW7   each channel alone, 7 x 7, zeros outside                LN  over the channels of each cell

Around the blocks, the layout of the paper: `ConvNeXtStem` maps patches of 4 x 4 cells and norms them;
`ConvNeXtDown` norms and halves the sides between stages; `ConvNeXtHead` takes the mean over the cells, norms
it and maps it to classes. ConvNeXt-T has stages of 3, 3, 9, 3 blocks and widths 96, 192, 384, 768.

Cost: 98 N D + 16 N D^2 operations. Parameters: 8 D^2 + 58 D.
Source: A ConvNet for the 2020s, Liu et al., arXiv:2201.03545, 2022, section 2 and figure 4.
Differs from the paper: none known; no stochastic depth. Its truncated normal first values are cut at a
hundred standard deviations: they are plain normal here.
Numerics: the norms add 1e-6 to the variance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor
from minitf.nn import (
    Card,
    Case,
    Conv,
    LayerNorm,
    Linear,
    Module,
    Paper,
    Parameter,
    identity,
    init,
    not_negative,
    positive,
)

CARD = Card(
    name="convnext_block",
    title="ConvNeXt block",
    kind="block",
    family="convolution",
    papers=(Paper("A ConvNet for the 2020s", "2201.03545", 2022),),
    causal=False,
    streams=False,
    grid="2d",
    complexity="98 N D + 16 N D^2",
    properties=("batch_independent",),
    basis="published code: facebookresearch/ConvNeXt models/convnext.py",
    parity=("timm 1.0.31 ConvNeXtBlock",),
)


class ConvNeXtBlock(Module):
    """x (B, R, C, D) -> (B, R, C, D).

    Parameters: conv, weight (7, 7, 1, D), bias; norm; w1 (D, F), w2 (F, D), with biases; g (D,). Weights are
    normal with std 0.02, biases zero.

    Args:
        dim: D. hidden: F, default 4 D. kernel: side of the convolution, odd. layer_scale: first value of g;
            None leaves g out.

    Raises:
        ValueError: an even kernel, hidden below 1, layer_scale below 0.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        hidden: int | None = None,
        kernel: int = 7,
        layer_scale: float | None = 1e-6,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, hidden=hidden)
        not_negative(layer_scale=layer_scale)
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} must be odd, so that it has a middle")
        rng = init.generator(seed)
        hidden = 4 * dim if hidden is None else hidden
        self.conv = Conv(dim, dim, (kernel, kernel), True, rng, groups=dim, dtype=dtype)
        self.norm = LayerNorm(dim, eps=1e-6, dtype=dtype)
        self.w1 = Linear(dim, hidden, True, rng, dtype=dtype)
        self.w2 = Linear(hidden, dim, True, rng, dtype=dtype)
        self.g = None if layer_scale is None else Parameter(np.full(dim, layer_scale, dtype))
        small(self, rng)

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
        """One block on x (B, R, C, D)."""
        if x.ndim != 4:
            raise ShapeError(f"convnext_block: x must be (B, rows, columns, D), not {x.shape}")
        y = self.w2(ops.gelu(self.w1(self.norm(self.conv(x)))))
        return x + (y if self.g is None else self.g * y)


class ConvNeXtStem(Module):
    """image (B, p R, p C, channels) -> (B, R, C, D): each patch of p x p mapped, then normed."""

    def __init__(self, channels: int, dim: int, patch: int = 4, seed: init.Seed = 0, dtype: Any = "float32"):
        rng = init.generator(seed)
        self.conv = Conv(channels, dim, (patch, patch), True, rng, stride=patch, padding=0, dtype=dtype)
        self.norm = LayerNorm(dim, eps=1e-6, dtype=dtype)
        small(self, rng)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.conv(image))


class ConvNeXtDown(Module):
    """(B, 2 R, 2 C, D) -> (B, R, C, D'): normed, then each 2 x 2 cells mapped to one. An odd last row or
    column is left out."""

    def __init__(self, dim: int, out: int, seed: init.Seed = 0, dtype: Any = "float32"):
        rng = init.generator(seed)
        self.norm = LayerNorm(dim, eps=1e-6, dtype=dtype)
        self.conv = Conv(dim, out, (2, 2), True, rng, stride=2, padding=0, dtype=dtype)
        small(self, rng)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class ConvNeXtHead(Module):
    """(B, R, C, D) -> logits (B, classes): the mean over the cells, normed and mapped."""

    def __init__(self, dim: int, classes: int, seed: init.Seed = 0, dtype: Any = "float32"):
        rng = init.generator(seed)
        self.norm = LayerNorm(dim, eps=1e-6, dtype=dtype)
        self.wo = Linear(dim, classes, True, rng, dtype=dtype)
        small(self, rng)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(self.norm(x.mean(axis=(1, 2))))


def small(layer: Module, rng: np.random.Generator) -> None:
    """Give the weights of its maps the paper's first values."""
    for child in layer.modules():
        if isinstance(child, (Conv, Linear)):
            child.weight.data = init.normal(rng, child.weight.shape, dtype=child.weight.dtype)


def build(case: Case, **options: Any) -> Any:
    block, rng = ConvNeXtBlock(case.dim, seed=case.seed, dtype="float64", **options), case.rng()
    for p in block.parameters():
        p.data = p.data + 0.3 * rng.standard_normal(p.shape)
    return block


@identity("the equation in loops over cells and taps")
def loops(case: Case) -> tuple[Tensor, Any]:
    block, x = build(case, kernel=3), case.image()
    y = x.data.copy()
    for r, c in np.ndindex(case.t, case.w):
        a = np.zeros((case.b, case.dim))
        for i, j in np.ndindex(3, 3):
            if 0 <= r + i - 1 < case.t and 0 <= c + j - 1 < case.w:
                a += x.data[:, r + i - 1, c + j - 1] * block.conv.weight.data[i, j, 0]
        a += block.conv.bias.data
        a -= a.mean(axis=-1, keepdims=True)
        a = a / np.sqrt((a * a).mean(axis=-1, keepdims=True) + 1e-6)
        a = a * block.norm.weight.data + block.norm.bias.data
        hidden = ops.gelu(Tensor(a @ block.w1.weight.data + block.w1.bias.data)).data
        y[:, r, c] += block.g.data * (hidden @ block.w2.weight.data + block.w2.bias.data)
    return block(x), y


@identity("g = 0: the identity")
def silent(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.image()
    block.g.data = np.zeros(case.dim)
    return block(x), x


@identity("a convolution that does nothing: the MLP half of a transformer block, token by token")
def token_wise(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.image()
    block.conv.load_state_dict({"weight": np.zeros((7, 7, 1, case.dim)), "bias": np.zeros(case.dim)})
    block.conv.weight.data[3, 3] = 1.0
    tokens = x.reshape((-1, case.dim))
    y = tokens + block.g * block.w2(ops.gelu(block.w1(block.norm(tokens))))
    return block(x), y.reshape(x.shape)


@identity("on a map that continues around, rolling the input rolls the output")
def rolls(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.image()

    def circular(a: Tensor) -> Tensor:
        wide = ops.pad(a, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="wrap")
        return block(wide)[:, 3:-3, 3:-3]

    return circular(ops.roll(x, (1, 2), (1, 2))), ops.roll(circular(x), (1, 2), (1, 2))


@identity("the maps as 1 x 1 convolutions")
def pointwise(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.image()
    h = block.norm(block.conv(x))
    for w, act in ((block.w1, ops.gelu), (block.w2, lambda a: a)):
        h = act(ops.conv2d(h, w.weight[None, None], w.bias))
    return block(x), x + block.g * h


@identity("a cell depends on the 7 x 7 cells around it only")
def local(case: Case) -> tuple[Tensor, Tensor]:
    block = build(case)
    x = case.rng().standard_normal((case.b, case.t + 8, case.w + 8, case.dim))
    other = x.copy()
    other[:, 4 : 4 + case.t, 4 : 4 + case.w] = 9.0
    # The first row and the first column: cells 4 away from what changed.
    left, right = block(Tensor(other)), block(Tensor(x))
    return ops.concat([left[:, 0], left[:, :, 0]], axis=1), ops.concat([right[:, 0], right[:, :, 0]], axis=1)

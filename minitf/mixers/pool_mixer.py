"""Pooling mixer (PoolFormer): every cell gets the mean around it, less itself.

    y_n = mean of x_m over the cells m of the grid within (k - 1) / 2 of n on every axis  -  x_n

    x, y  (B, *grid, D)        k  window, odd

Nothing is learned, and no channel meets another. At the border the mean is over the cells that exist, so a
constant map gives 0 everywhere. The input is taken away because a block's skip path adds it back.

Cost: k a N D operations on a grid of `a` axes, one axis after the other; the window at once would take
k^a N D. No parameters.
Source: MetaFormer Is Actually What You Need for Vision, Yu et al., arXiv:2111.11418, 2021, equation 4.
Differs from the paper: none known; grids of any number of axes.
Numerics: sums first, one division after.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor
from minitf.nn import Card, Case, Module, Paper, identity, positive

CARD = Card(
    name="pool_mixer",
    title="PoolFormer average-pooling mixer",
    kind="mixer",
    family="pooling",
    papers=(Paper("MetaFormer Is Actually What You Need for Vision", "2111.11418", 2021),),
    causal=False,
    streams=False,
    grid="nd",
    complexity="2 k N D",
    properties=("batch_independent",),
    basis="published code: sail-sg/poolformer models/poolformer.py",
    parity=("timm 1.0.31 Pooling",),
)


def box_mean(x: Tensor, size: int) -> Tensor:
    """The mean of the cells of (B, *grid, D) in a window of `size` on each axis, as far as they exist."""
    axes = range(1, x.ndim - 1)
    count = np.ones((1, *x.shape[1:-1], 1), x.dtype)
    for axis in axes:
        fill = [(size // 2, size // 2) if a == axis else (0, 0) for a in range(x.ndim)]
        # Sums of `size` neighbours along this axis, zeros outside.
        x = ops.unfold(ops.pad(x, fill), size, axis).sum(axis=-1)
        near = np.arange(x.shape[axis])
        along = np.minimum(near, size // 2) + 1 + np.minimum(near[::-1], size // 2)
        count = count * along.reshape([-1 if a == axis else 1 for a in range(x.ndim)]).astype(x.dtype)
    return x / count


class PoolMixer(Module):
    """x (B, *grid, D) -> (B, *grid, D). No parameters; `dim` and `dtype` are those of x.

    Args:
        window: k.

    Raises:
        ValueError: a window that is even or below 1.
    """

    card = CARD

    def __init__(self, dim: int, *, window: int = 3, dtype: Any = "float32"):
        positive(dim=dim)
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window={window} must be odd, so that it has a middle, and at least 1")
        self.dim, self.window = dim, window

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
        """Pool over x (B, *grid, D)."""
        if x.ndim < 3 or x.shape[-1] != self.dim:
            raise ShapeError(f"pool_mixer: x must be (B, *grid, {self.dim}), not {x.shape}")
        return box_mean(x, self.window) - x


def build(case: Case, window: int = 3) -> PoolMixer:
    return PoolMixer(case.dim, window=window, dtype="float64")


@identity("the mean over a loop of neighbours, for windows of 3 and 5, and 0 for a window of 1")
def loops(case: Case) -> tuple[Tensor, Any]:
    x, found = case.image(), []
    for half in (1, 2, 0):
        means = np.zeros(x.shape)
        for r, c in np.ndindex(case.t, case.w):
            near = x.data[:, max(0, r - half) : r + half + 1, max(0, c - half) : c + half + 1]
            means[:, r, c] = near.mean(axis=(1, 2))
        found.append(means - x.data)
    found[2] = np.zeros(x.shape)
    return ops.stack([build(case, k)(x) for k in (3, 5, 1)]), np.stack(found)


@identity("a constant map gives 0, at the border too")
def constant(case: Case) -> tuple[Tensor, Any]:
    x = case.image()[:, :1, :1] + np.zeros((case.t, case.w, 1))
    return build(case, 5)(x), np.zeros(x.shape)


@identity("inside the grid, a depthwise convolution with the kernel 1/9 - delta")
def convolution(case: Case) -> tuple[Tensor, Tensor]:
    x = Tensor(case.rng().standard_normal((case.b, case.t + 2, case.w + 2, case.dim)))
    kernel = np.full((3, 3, 1, case.dim), 1.0 / 9.0)
    kernel[1, 1] -= 1.0
    inside = build(case)(x)[:, 1:-1, 1:-1]
    return inside, ops.conv2d(x, Tensor(kernel), groups=case.dim)


@identity("with the input added back, plain average pooling")
def residual(case: Case) -> tuple[Tensor, Tensor]:
    x = Tensor(case.rng().standard_normal((case.b, case.t + 2, case.w + 2, case.dim)))
    return (x + build(case)(x))[:, 1:-1, 1:-1], ops.avg_pool(x, 3, 1)


@identity("linear, and each channel on its own")
def channels(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, one = build(case), case.image(), PoolMixer(1, dtype="float64")
    z, gains = ops.flip(x, axis=1), case.rng().standard_normal(case.dim)
    apart = ops.concat([one(x[..., i : i + 1]) for i in range(case.dim)], axis=-1)
    return layer(x * gains - 3.0 * z), apart * gains - 3.0 * layer(z)

"""Transposed attention (MDTA): channels attend to channels, so that the cost is linear in the pixels.

    [q, k, v] = DW3(x W_qkv)                    DW3: depthwise 3 x 3 convolution
    q, k      <- q / |q|, k / |k|               lengths along the pixels
    A         = softmax(tau q^T k)              c x c for each head, rows sum to 1
    y         = (v A^T) W_o

    x, y  (B, R, C, D)      q, k, v  (B, H, N, c), N = R C, c = D / H      A  (B, H, c, c)      tau  (H, 1, 1)

Cost: 8 N D^2 + 4 N c D for the maps and for A, 54 N D for the convolution: linear in N.
Source: Restormer: Efficient Transformer for High-Resolution Image Restoration, Zamir et al.,
arXiv:2111.09881, 2021, equation 1.
Differs from the paper: none known; tokens are rows here, so the map stands transposed.
Numerics: a length below 1e-12 counts as 1e-12.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor
from minitf.nn import Card, Case, Conv, Linear, Module, Paper, Parameter, identity, init, positive

CARD = Card(
    name="mdta",
    title="Multi-Dconv head transposed attention",
    kind="attention",
    family="channel",
    papers=(
        Paper("Restormer: Efficient Transformer for High-Resolution Image Restoration", "2111.09881", 2021),
    ),
    causal=False,
    streams=False,
    grid="2d",
    complexity="8 N D^2 + 4 N c D + 54 N D",
    properties=("batch_independent",),
    basis="published code: swz30/Restormer basicsr/models/archs/restormer_arch.py",
    parity=("swz30/Restormer df766d5 basicsr/models/archs/restormer_arch.py Attention",),
)


def channel_weights(q: Tensor, k: Tensor, tau: Any) -> Tensor:
    """A (B, H, c, c) from q, k (B, H, N, c): row i says how channel i of the output mixes those of v."""
    # The limit stands inside the root, where a length of 0 has a gradient.
    q, k = (a / ops.sqrt(ops.maximum((a * a).sum(axis=2, keepdims=True), 1e-24)) for a in (q, k))
    return ops.softmax(tau * (q.mT @ k))


class MDTA(Module):
    """x (B, R, C, D) -> (B, R, C, D).

    Parameters: wqkv (D, 3 D), conv.weight (3, 3, 1, 3 D), tau (H, 1, 1) of ones, wo (D, D); biases if `bias`.

    Args:
        dim: D. heads: H. bias: whether the three maps have one.

    Raises:
        ValueError: heads that do not divide dim.
    """

    card = CARD

    def __init__(
        self, dim: int, *, heads: int = 4, bias: bool = False, seed: init.Seed = 0, dtype: Any = "float32"
    ):
        positive(dim=dim, heads=heads)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        rng = init.generator(seed)
        self.heads = heads
        self.wqkv = Linear(dim, 3 * dim, bias, rng, dtype=dtype)
        self.conv = Conv(3 * dim, 3 * dim, (3, 3), bias, rng, groups=3 * dim, dtype=dtype)
        self.tau = Parameter(np.ones((heads, 1, 1), dtype))
        self.wo = Linear(dim, dim, bias, rng, dtype=dtype)

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
        """Mix the channels of x (B, R, C, D) by what all pixels say."""
        q, k, v = self.heads_of(x)
        # v A^T: (B, H, N, c)
        y = v @ channel_weights(q, k, self.tau).mT
        return self.wo(ops.merge_heads(y)).reshape(x.shape)

    def heads_of(self, x: Tensor) -> list[Tensor]:
        """q, k, v (B, H, N, c)."""
        if x.ndim != 4:
            raise ShapeError(f"mdta: x must be (B, rows, columns, D), not {x.shape}")
        qkv = self.conv(self.wqkv(x)).reshape((x.shape[0], -1, 3 * x.shape[3]))
        return [ops.split_heads(a, self.heads) for a in ops.split(qkv, 3, axis=-1)]


def build(case: Case, heads: int | None = None, still: bool = False) -> MDTA:
    """A layer; `still`: its convolution is the identity."""
    layer = MDTA(case.dim, heads=heads or case.h, seed=case.seed, dtype="float64")
    layer.tau.data = case.rng().uniform(0.5, 3.0, layer.tau.shape)
    if still:
        layer.conv.weight.data = np.zeros(layer.conv.weight.shape)
        layer.conv.weight.data[1, 1] = 1.0
    return layer


@identity("the equations in loops over heads and channels")
def loops(case: Case) -> tuple[Tensor, Any]:
    layer, x = build(case), case.image()
    q, k, v = (a.data for a in layer.heads_of(x))
    out = np.zeros(v.shape)
    for b, h in np.ndindex(case.b, case.h):
        for i in range(case.d):
            s = [
                q[b, h, :, i] @ k[b, h, :, j] / np.linalg.norm(q[b, h, :, i]) / np.linalg.norm(k[b, h, :, j])
                for j in range(case.d)
            ]
            e = np.exp(layer.tau.data[h].item() * np.array(s))
            out[b, h, :, i] = v[b, h] @ (e / e.sum())
    return layer(x), layer.wo(ops.merge_heads(Tensor(out))).reshape(x.shape)


@identity("rows of A sum to 1, and scores are at most |tau|")
def rows(case: Case) -> tuple[Any, Any]:
    layer, x = build(case), case.image()
    q, k, _ = layer.heads_of(x)
    a = channel_weights(q, k, layer.tau).data
    # The largest and smallest weight of a row are at most exp(2 tau) apart.
    within = a.max(axis=-1) / a.min(axis=-1) <= np.exp(2.0 * layer.tau.data[..., 0]) * (1.0 + 1e-9)
    return np.stack([a.sum(axis=-1), within.astype(float)]), np.ones((2, *a.shape[:-1]))


@identity("with a convolution that does nothing, permuting pixels permutes outputs")
def pixels_are_a_set(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, still=True), case.image()
    order = case.rng().permutation(case.t * case.w)

    def moved(a: Tensor) -> Tensor:
        return a.reshape((case.b, -1, case.dim))[:, order].reshape(x.shape)

    return layer(moved(x)), moved(layer(x))


@identity("one channel for each head: y = DW3(x W_v) W_o")
def one_channel(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, heads=case.dim), case.image()
    return layer(x), layer.wo(layer.conv(layer.wqkv(x))[..., 2 * case.dim :])


@identity("the size of the weights of q and k does not matter")
def scale_free(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.image()
    y, factor = layer(x), np.repeat([3.0, 0.5, 1.0], case.dim)
    layer.wqkv.weight.data = layer.wqkv.weight.data * factor
    return layer(x), y


@identity("tau = 0: before W_o every channel is the mean of its head")
def uniform(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.image()
    layer.tau.data = np.zeros(layer.tau.shape)
    v = layer.heads_of(x)[2]
    means = v.mean(axis=-1, keepdims=True) + v * 0.0
    return layer(x), layer.wo(ops.merge_heads(means)).reshape(x.shape)

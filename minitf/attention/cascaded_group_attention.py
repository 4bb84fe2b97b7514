"""Cascaded group attention (EfficientViT): a head reads its own channels and what the head before it found.

    X_0, ..., X_{H-1}  = the channels of x in H parts
    f_0 = X_0,   f_i   = X_i + Y_{i-1}
    [q_i, k_i, v_i]    = BN(f_i W_i)
    Y_i = softmax(BN(DW_i(q_i)) k_i^T / sqrt(dk) + bias_i) v_i
    y   = BN(relu([Y_0, ..., Y_{H-1}]) W_o)

    x, y  (B, R, C, D)        X, f, v, Y  (B M, w^2, d), d = D / H        q, k  (B M, w^2, dk)
    bias  (H, w^2, w^2), one number for each head and distance (|rows|, |columns|) between two cells

A grid longer than w is cut into M windows of w x w cells; on a shorter side the window is that side. DW_i is
a depthwise convolution inside the window. The heads come one after the other. BN: batch normalisation, a
fixed map in eval mode, which folds into the map before it. The gain of the last is 0 at the start, so y = 0.

Cost: 2 N D (2 dk + d) + 2 N w^2 H (dk + d) + 2 N H dk k^2 + 2 N D^2 operations.
Parameters: D (2 dk + d) + H dk k^2 + D^2 + H w^2, and those of the norms.
Source: EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention, Liu et al.,
arXiv:2305.07027, 2023, equations 2 and 3.
Differs from the paper: none known. As in the published code, zeros that fill the last windows are seen like
cells; a side no longer than w is not filled up.
Numerics: those of softmax attention; batch normalisation adds 1e-5 to the variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor
from minitf.nn import (
    BatchNorm,
    Card,
    Case,
    Conv,
    Linear,
    Module,
    Paper,
    Parameter,
    identity,
    init,
    offsets,
    partition,
    positive,
    unpartition,
)

CARD = Card(
    name="cascaded_group_attention",
    title="Cascaded group attention",
    kind="attention",
    family="window",
    papers=(
        Paper(
            "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention",
            "2305.07027",
            2023,
        ),
    ),
    causal=False,
    streams=False,
    grid="2d",
    complexity="2 N D^2 + 4 N D dk + 2 N D d + 2 N w^2 H dk + 2 N w^2 D + 2 N H dk k^2",
    properties=("batch_independent",),
    basis="published code: microsoft/Cream EfficientViT/classification/model/efficientvit.py",
    parity=("timm 1.0.31 LocalWindowAttention",),
)


class Head(Module):
    """f (B M, r, c, d) -> Y (B M, r, c, d). Parameters: wqkv (d, 2 dk + d), norm, conv, conv_norm."""

    def __init__(self, d: int, key_dim: int, kernel: int, rng: np.random.Generator, dtype: Any):
        self.key_dim = key_dim
        self.wqkv = Linear(d, 2 * key_dim + d, False, rng, dtype=dtype)
        self.norm = BatchNorm(2 * key_dim + d, dtype=dtype)
        self.conv = Conv(key_dim, key_dim, (kernel, kernel), False, rng, groups=key_dim, dtype=dtype)
        self.conv_norm = BatchNorm(key_dim, dtype=dtype)

    def forward(self, f: Tensor, bias: Tensor) -> Tensor:
        """Attend inside each window; bias (r c, r c)."""
        n, dk = f.shape[1] * f.shape[2], self.key_dim
        q, k, v = ops.split(self.norm(self.wqkv(f)), (dk, dk, f.shape[3]), axis=-1)
        q = self.conv_norm(self.conv(q))
        # (B M, 1, r c, width)
        q, k, v = (a.reshape((-1, 1, n, a.shape[3])) for a in (q, k, v))
        return ops.softmax_attention(q, k, v, bias=bias).reshape(f.shape)


class CascadedGroupAttention(Module):
    """x (B, R, C, D) -> (B, R, C, D).

    Parameters: heads.i, each a `Head`; bias (H, w, w), zero; wo (D, D); norm, with gain 0.

    Args:
        dim: D. heads: H. key_dim: dk. kernel: side of DW, odd, one for all heads or one for each (the paper
            has 5, 5, 5, 5 or 7, 5, 3, 3). window: w. cascade: whether a head adds what the one before found.

    Raises:
        ValueError: heads that do not divide dim; kernels that are even or not one for each head; a key_dim or
            window below 1.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        key_dim: int = 16,
        kernel: int | Sequence[int] = 5,
        window: int = 7,
        cascade: bool = True,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads)
        kernels = (kernel,) * heads if isinstance(kernel, int) else tuple(kernel)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        if len(kernels) != heads or any(k < 1 or k % 2 == 0 for k in kernels):
            raise ValueError(f"kernel={kernel} must be odd, one number or one for each of {heads} heads")
        if min(key_dim, window) < 1:
            raise ValueError(f"key_dim={key_dim} and window={window} must be at least 1")
        rng = init.generator(seed)
        self.window, self.cascade = window, cascade
        self.heads = [Head(dim // heads, key_dim, k, rng, dtype) for k in kernels]
        self.bias = Parameter(np.zeros((heads, window, window), dtype))
        self.wo = Linear(dim, dim, False, rng, dtype=dtype)
        self.norm = BatchNorm(dim, gain=0.0, dtype=dtype)

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
        """Attend inside the windows of x (B, R, C, D)."""
        if x.ndim != 4:
            raise ShapeError(f"cascaded_group_attention: x must be (B, rows, columns, D), not {x.shape}")
        b, rows, columns, d = x.shape
        r, c = min(self.window, rows), min(self.window, columns)
        x = ops.pad(x, ((0, 0), (0, -rows % r), (0, -columns % c), (0, 0)))
        grid = (x.shape[1], x.shape[2])
        found = ops.concat(self.outputs(partition(x, r, c).reshape((-1, r, c, d))), axis=-1)
        y = self.norm(self.wo(ops.relu(found)))
        return unpartition(y.reshape((b, -1, r * c, d)), grid, r, c)[:, :rows, :columns]

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Y_0 .. Y_{H-1}, each (B M, r, c, d), from windows (B M, r, c, D)."""
        dr, dc = offsets(x.shape[1], x.shape[2])
        found: list[Tensor] = []
        for i, f in enumerate(ops.split(x, len(self.heads), axis=-1)):
            f = f + found[-1] if found and self.cascade else f
            found.append(self.heads[i](f, self.bias[i, np.abs(dr), np.abs(dc)]))
        return found


def build(case: Case, **options: Any) -> CascadedGroupAttention:
    """A layer in eval mode with biases, norms and running statistics that are not those of the start."""
    options = {"heads": case.h, "key_dim": 3, "kernel": 3, "window": 2, **options}
    layer, rng = CascadedGroupAttention(case.dim, seed=case.seed, dtype="float64", **options), case.rng()
    layer.bias.data = rng.standard_normal(layer.bias.shape)
    for norm in layer.modules():
        if isinstance(norm, BatchNorm):
            for t in (norm.weight, norm.bias, norm.mean):
                t.data = rng.standard_normal(t.shape)
            norm.variance.data = rng.uniform(0.5, 2.0, norm.variance.shape)
    layer.eval()
    return layer


def affine(norm: BatchNorm) -> tuple[Any, Any]:
    """a and c of BN(x) = a x + c in eval mode."""
    a = norm.weight.data / np.sqrt(norm.variance.data + norm.eps)
    return a, norm.bias.data - a * norm.mean.data


@identity("the equations in loops over windows, heads and taps, with sides that the window does not divide")
def loops(case: Case) -> tuple[Tensor, Any]:
    layer, x = build(case), case.image()
    r, c = min(2, case.t), min(2, case.w)
    full = np.zeros((case.b, case.t + -case.t % r, case.w + -case.w % c, case.dim))
    full[:, : case.t, : case.w] = x.data
    y, cells = np.zeros(full.shape), list(np.ndindex(r, c))
    for top in range(0, full.shape[1], r):
        for left in range(0, full.shape[2], c):
            window = full[:, top : top + r, left : left + c]
            parts: list[Any] = []
            for i, head in enumerate(layer.heads):
                f = window[..., i * case.d : (i + 1) * case.d] + (parts[-1] if parts else 0.0)
                a, shift = affine(head.norm)
                q, k, v = np.split(f @ head.wqkv.weight.data * a + shift, [3, 6], axis=-1)
                wide = np.pad(q, ((0, 0), (1, 1), (1, 1), (0, 0)))
                taps = head.conv.weight.data[:, :, 0]
                q = sum(wide[:, m : m + r, n : n + c] * taps[m, n] for m, n in np.ndindex(3, 3))
                a, shift = affine(head.conv_norm)
                q, out = q * a + shift, np.zeros(f.shape)
                for m, n in cells:
                    s = [
                        (q[:, m, n] * k[:, i2, j2]).sum(-1) / 3**0.5
                        + layer.bias.data[i, abs(m - i2), abs(n - j2)]
                        for i2, j2 in cells
                    ]
                    e = np.exp(np.array(s))
                    p = (e / e.sum(axis=0))[..., None]
                    out[:, m, n] = sum(p[j] * v[:, i2, j2] for j, (i2, j2) in enumerate(cells))
                parts.append(out)
            y[:, top : top + r, left : left + c] = np.concatenate(parts, axis=-1)
    a, shift = affine(layer.norm)
    y = np.maximum(y, 0.0) @ layer.wo.weight.data * a + shift
    return layer(x), y[:, : case.t, : case.w]


@identity("one head: attention with a convolved query, relu, and a map")
def one_head(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, heads=1, window=max(case.t, case.w)), case.image()
    head, n = layer.heads[0], case.t * case.w
    q, k, v = ops.split(head.norm(head.wqkv(x)), (3, 3, case.dim), axis=-1)
    q = head.conv_norm(head.conv(q)).reshape((case.b, n, 3))
    dr, dc = (np.abs(a) for a in offsets(case.t, case.w))
    s = q @ k.reshape((case.b, n, 3)).mT / 3**0.5 + layer.bias[0][dr, dc]
    o = ops.softmax(s) @ v.reshape((case.b, n, case.dim))
    return layer(x), layer.norm(layer.wo(ops.relu(o))).reshape(x.shape)


@identity("changing the channels of one head leaves the heads before it as they are")
def channels_are_causal(case: Case) -> tuple[Any, Any]:
    layer, x, i = build(case, window=max(case.t, case.w)), case.image(), case.h // 2
    other = x.data.copy()
    other[..., i * case.d : (i + 1) * case.d] = 9.0

    def before(a: Tensor) -> Any:
        return ops.concat([a[..., :0], *layer.outputs(a)[:i]], axis=-1)

    return before(Tensor(other)), before(x)


@identity("without the cascade, heads that know nothing of each other")
def groups(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, apart = build(case, cascade=False), case.image(), []
    state = layer.state_dict()
    for i in range(case.h):
        one = build(Case(case.b, case.t, 1, case.d, case.seed))
        head = {k: v for k, v in state.items() if k.startswith(f"heads.{i}.")}
        one.load_state_dict({k.replace(f"heads.{i}.", "heads.0."): v for k, v in head.items()}, strict=False)
        one.bias.data = layer.bias.data[i : i + 1]
        own = x[..., i * case.d : (i + 1) * case.d]
        apart += one.outputs(own[:, :2, :2])
    return ops.concat(layer.outputs(x[:, :2, :2]), axis=-1), ops.concat(apart, axis=-1)


@identity("norms folded into the maps before them: W diag(a) and c, with nothing left to norm")
def folded(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.image()
    y = layer(x)
    owner: dict[Any, Any] = {}
    for head in layer.heads:
        owner |= {head.norm: head.wqkv, head.conv_norm: head.conv}
    for norm, linear in (owner | {layer.norm: layer.wo}).items():
        a, c = affine(norm)
        linear.weight.data, linear.bias = linear.weight.data * a, Parameter(c)
        norm.load_state_dict(
            {"weight": a * 0.0 + 1.0, "bias": a * 0.0, "mean": a * 0.0, "variance": a * 0.0 + 1.0}
        )
        norm.eps = 0.0
    return layer(x), y


@identity("without bias, and with a convolution that does nothing, heads are plain attention")
def plain_heads(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, window=max(case.t, case.w)), case.image()
    layer.bias.data = np.zeros(layer.bias.shape)
    for head in layer.heads:
        head.conv.weight.data = np.zeros(head.conv.weight.shape)
        head.conv.weight.data[1, 1] = 1.0
        head.conv_norm = BatchNorm(3, eps=0.0, dtype="float64").eval()
    found, f = [], 0.0 * x[..., : case.d]
    for i, head in enumerate(layer.heads):
        f = f + x[..., i * case.d : (i + 1) * case.d]
        flat = head.norm(head.wqkv(f)).reshape((case.b, 1, -1, 6 + case.d))
        f = ops.softmax_attention(flat[..., :3], flat[..., 3:6], flat[..., 6:]).reshape(f.shape)
        found.append(f)
    return ops.concat(layer.outputs(x), axis=-1), ops.concat(found, axis=-1)


@identity("at the start it gives zeros")
def starts_silent(case: Case) -> tuple[Tensor, Any]:
    x = case.image()
    return CascadedGroupAttention(case.dim, heads=case.h, dtype="float64")(x), np.zeros(x.shape)

"""Swin window attention: inside windows, and in every other block inside windows shifted by half.

    W(r, c) = (floor((r - s) / w), floor((c - s) / w))       the window of a cell; s = 0: W-MSA, s > 0: SW-MSA
    o_i     = sum_j P_ij v_j,    P_ij = softmax over the cells j of the window of i of
                                        q_i . k_j / sqrt(d) + bias_{p(i) p(j)}
    y       = merge(o) W_o

    x, y  (B, R, C, D)        q, k, v, o  (B, H, R, C, d)        bias  (H, w^2, w^2)

bias is a learned number for each head and each offset between two places p of a window. The grid is cut
before rows and columns s, s + w, s + 2w, ...; windows at its borders may be smaller. On a grid no larger than
a window, w is the shorter side and s = 0.

The paper computes shifted windows by a cyclic shift, so that they are as many as regular ones: the grid is
filled to multiples of w and rolled by -s, and inside a window, cells that met only through the roll do not
see each other. An identity below does it that way.

Cost: 8 N D^2 + 4 N w^2 D operations, linear in N = R C.
Source: Swin Transformer, Liu et al., arXiv:2103.14030, 2021, section 3.2, equation 4.
Differs from the paper: what must not be seen is hidden by -inf; the published code adds -100, which leaks
where scores differ by more. Cells that only fill a window are hidden too; there they can be seen. The cuts
are the same on every grid, as in the authors' code for detection, which fills before it rolls. timm fills
after rolling, with labels made for the filled grid: where w does not divide a side, cells of opposite borders
can then see each other.
Numerics: those of softmax attention.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor
from minitf.nn import (
    Card,
    Case,
    Linear,
    Module,
    Paper,
    RelativeBias2D,
    identity,
    init,
    partition,
    positive,
    unpartition,
)

CARD = Card(
    name="swin_attention",
    title="Swin window attention, regular and shifted",
    kind="attention",
    family="window",
    papers=(
        Paper("Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", "2103.14030", 2021),
    ),
    causal=False,
    streams=False,
    grid="2d",
    complexity="8 N D^2 + 4 N w^2 D",
    properties=("batch_independent",),
    basis="published code: huggingface/pytorch-image-models timm/models/swin_transformer.py",
    aliases={"w_msa": {}, "sw_msa": {"shift": 3}},
    parity=("timm 1.0.31 SwinTransformerBlock",),
)


class SwinAttention(Module):
    """x (B, R, C, D) -> (B, R, C, D).

    Parameters: wq, wk, wv, wo (D, D) with biases; bias.table ((2w-1)^2, H).

    Args:
        dim: D. heads: H. window: w. shift: s; 0 in even blocks and w // 2 in odd ones is the paper's layout.

    Raises:
        ValueError: heads that do not divide dim, or a shift outside 0..w-1.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        window: int = 7,
        shift: int = 0,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        if window < 1 or not 0 <= shift < window:
            raise ValueError(f"shift={shift} must be from 0 to window - 1, and window={window} at least 1")
        rng = init.generator(seed)
        self.heads, self.window, self.shift = heads, window, shift
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, dim, True, rng, dtype=dtype) for _ in range(4))
        self.bias = RelativeBias2D(window, window, heads, rng, dtype)

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
        """Attend inside the windows of x (B, R, C, D)."""
        if x.ndim != 4:
            raise ShapeError(f"swin_attention: x must be (B, rows, columns, D), not {x.shape}")
        b, rows, columns, d = x.shape
        w, s = self.sizes(rows, columns)
        # (B, H, R, C, d)
        shape = (b, self.heads, rows, columns, d // self.heads)
        t = x.reshape((b, rows * columns, d))
        q, k, v = (
            ops.split_heads(linear(t), self.heads).reshape(shape) for linear in (self.wq, self.wk, self.wv)
        )
        o = ops.window_attention(q, k, v, w, bias=self.bias(w, w), shift=s)
        return self.wo(ops.merge_heads(o.reshape((*shape[:2], rows * columns, -1)))).reshape(x.shape)

    def sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """w and s on this grid."""
        shorter = min(rows, columns)
        return (shorter, 0) if shorter <= self.window else (self.window, self.shift)


def build(case: Case, window: int = 2, shift: int = 0) -> SwinAttention:
    layer = SwinAttention(case.dim, heads=case.h, window=window, shift=shift, seed=case.seed, dtype="float64")
    layer.bias.table.data = case.rng().standard_normal(layer.bias.table.shape)
    return layer


def regions(side: int, window: int, shift: int) -> Array:
    """0, 1 or 2 for each row of a rolled grid. Rows of one window with different numbers did not touch."""
    return (
        np.searchsorted([side - window, side - shift], np.arange(side), side="right")
        if shift
        else np.zeros(side, int)
    )


def visible(rows: int, columns: int, window: int, shift: int) -> Array:
    """Which keys each query of a window sees: (M, w^2, w^2), for a grid of real cells (rows, columns)."""
    padded = tuple(side + -side % window for side in (rows, columns))
    r, c = (regions(side, window, shift) for side in padded)
    label = Tensor((3 * r[:, None] + c)[None, ..., None])
    real = np.zeros((1, *padded, 1), dtype=bool)
    real[:, :rows, :columns] = True
    label = partition(label, window, window).data[0, :, :, 0]
    exists = partition(Tensor(np.roll(real, (-shift, -shift), (1, 2))), window, window).data[0, :, :, 0]
    return (label[:, :, None] == label[:, None, :]) & exists[:, None, :]


def rolled(layer: SwinAttention, x: Tensor) -> Tensor:
    """The paper's form: fill, roll by -s, attend inside regular windows under a mask, roll back, cut off."""
    b, rows, columns, d = x.shape
    w, s = layer.sizes(rows, columns)
    x = ops.pad(x, ((0, 0), (0, -rows % w), (0, -columns % w), (0, 0)))
    # (B M, w^2, D)
    t = partition(ops.roll(x, (-s, -s), (1, 2)), w, w).reshape((-1, w * w, d))
    q, k, v = (ops.split_heads(linear(t), layer.heads) for linear in (layer.wq, layer.wk, layer.wv))
    # (M, w^2, w^2) for each image: (B M, 1, w^2, w^2)
    mask = np.tile(visible(rows, columns, w, s), (b, 1, 1))[:, None]
    y = layer.wo(ops.merge_heads(ops.softmax_attention(q, k, v, mask=mask, bias=layer.bias(w, w))))
    y = unpartition(y.reshape((b, -1, w * w, d)), (x.shape[1], x.shape[2]), w, w)
    return ops.roll(y, (s, s), (1, 2))[:, :rows, :columns]


def by_pairs(layer: SwinAttention, x: Tensor) -> Tensor:
    """Attention over all cells, each seeing those between the same cuts s, s + w, s + 2w, ... of the grid."""
    b, rows, columns, d = x.shape
    w, s = layer.sizes(rows, columns)
    r, c = np.divmod(np.arange(rows * columns), columns)
    same = ((r[:, None] - s) // w == (r - s) // w) & ((c[:, None] - s) // w == (c - s) // w)
    dr, dc = (np.where(same, a[:, None] - a, 0) for a in (r, c))
    tokens = x.reshape((b, rows * columns, d))
    q, k, v = (ops.split_heads(linear(tokens), layer.heads) for linear in (layer.wq, layer.wk, layer.wv))
    o = ops.softmax_attention(q, k, v, mask=same, bias=layer.bias.lookup(dr, dc))
    return layer.wo(ops.merge_heads(o)).reshape(x.shape)


@identity("regular and shifted windows, with sides that they do not divide, equal attention between the cuts")
def cuts(case: Case) -> tuple[Tensor, Tensor]:
    x = case.image()
    layers = [build(case, w, s) for w, s in ((2, 0), (2, 1), (3, 0), (3, 1), (3, 2))]
    return ops.stack([layer(x) for layer in layers]), ops.stack([by_pairs(layer, x) for layer in layers])


@identity("windows between the cuts equal the paper's cyclic shift with a mask")
def cyclic_shift(case: Case) -> tuple[Tensor, Tensor]:
    x = case.image()
    layers = [build(case, w, s) for w, s in ((2, 0), (2, 1), (3, 0), (3, 1), (3, 2))]
    return ops.stack([layer(x) for layer in layers]), ops.stack([rolled(layer, x) for layer in layers])


@identity("on a square grid no larger than the window, full attention with the relative bias")
def one_window(case: Case) -> tuple[Tensor, Tensor]:
    side = min(case.t, case.w)
    layer, x = build(case, side + 1, 1), case.image()[:, :side, :side]
    t = x.reshape((case.b, side * side, case.dim))
    q, k, v = (ops.split_heads(linear(t), case.h) for linear in (layer.wq, layer.wk, layer.wv))
    s = q @ k.mT / case.d**0.5 + layer.bias(side, side)
    return layer(x), layer.wo(ops.merge_heads(ops.softmax(s) @ v)).reshape(x.shape)


@identity("without shift, permuting whole windows permutes the outputs")
def windows_are_alike(case: Case) -> tuple[Tensor, Tensor]:
    layer = build(case)
    x = Tensor(case.rng().standard_normal((case.b, 4, 6, case.dim)))
    order = case.rng().permutation(6)
    moved = unpartition(partition(x, 2, 2)[:, order], (4, 6), 2, 2)
    return layer(moved), unpartition(partition(layer(x), 2, 2)[:, order], (4, 6), 2, 2)


@identity("without shift and bias, permuting the tokens of every window permutes the outputs")
def tokens_are_alike(case: Case) -> tuple[Tensor, Tensor]:
    layer = build(case)
    layer.bias.table.data = np.zeros_like(layer.bias.table.data)
    x = Tensor(case.rng().standard_normal((case.b, 4, 6, case.dim)))
    order = case.rng().permutation(4)
    moved = unpartition(partition(x, 2, 2)[:, :, order], (4, 6), 2, 2)
    return layer(moved), unpartition(partition(layer(x), 2, 2)[:, :, order], (4, 6), 2, 2)


@identity("without shift, what one window holds changes no other window")
def windows_are_alone(case: Case) -> tuple[Tensor, Tensor]:
    layer = build(case)
    x = case.rng().standard_normal((case.b, 4, 6, case.dim))
    other = x.copy()
    other[:, :2, :2] = 9.0 - other[:, :2, :2]
    return layer(Tensor(other))[:, 2:], layer(Tensor(x))[:, 2:]

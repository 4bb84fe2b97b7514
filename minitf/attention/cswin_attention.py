"""CSWin attention: half of the heads attend in vertical stripes, the other half in horizontal ones.

    [q, k, v] = x W_qkv + b                            the first D/2 channels go up and down, the last across
    y_i       = sum_j P_ij v_j + DW3(v)_i,    P_ij = softmax over the stripe of  q_i . k_j / sqrt(d)
    y         = [y_vertical, y_horizontal] W_o + b_o

    x, y  (B, R, C, D)        q, k, v  (B M, H/2, cells, d) for each half, d = D / H, M stripes
    stripes: (R, s) cells each for the vertical half, (s, C) for the horizontal one

DW3, a depthwise 3 x 3 convolution called LePE, tells places apart: it runs inside each stripe, with zeros
around it. Where s does not divide a side, the last stripe is narrower. Where s is at least the longer side,
all heads see the whole map. The paper takes s = 1, 2, 7, 7 in its four stages.

Cost: 8 N D^2 + 2 N s (R + C) D operations, on a square 4 N^1.5 s D, and 18 N D for DW3.
Parameters: 4 D^2 + 4 D + 10 D.
Source: CSWin Transformer, Dong et al., arXiv:2107.00652, 2021, section 3.2.
Differs from the paper: grids that are not square or that s does not divide; one head stands for two of half
the width.
Numerics: those of softmax attention.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor, grad
from minitf.nn import (
    Card,
    Case,
    Conv,
    Linear,
    Module,
    Paper,
    identity,
    init,
    partition,
    positive,
    unpartition,
)

CARD = Card(
    name="cswin_attention",
    title="Cross-shaped window attention with LePE",
    kind="attention",
    family="window",
    papers=(
        Paper(
            "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows",
            "2107.00652",
            2021,
        ),
    ),
    causal=False,
    streams=False,
    grid="2d",
    complexity="8 N D^2 + 4 N^1.5 s D + 18 N D",
    properties=("batch_independent",),
    basis="published code: microsoft/CSWin-Transformer models/cswin.py",
    parity=("microsoft/CSWin-Transformer f111ae2 models/cswin.py CSWinBlock",),
)


class CSWinAttention(Module):
    """x (B, R, C, D) -> (B, R, C, D).

    Parameters: wqkv (D, 3 D) and wo (D, D) with biases; vertical, horizontal: DW3, weight (3, 3, 1, D/2) and
    bias (D/2,).

    Args:
        dim: D. heads: H, even, or 1, which counts as 2. stripe: s.

    Raises:
        ValueError: an odd number of heads above 1, heads that do not divide dim, a stripe below 1.
    """

    card = CARD

    def __init__(
        self, dim: int, *, heads: int = 4, stripe: int = 7, seed: init.Seed = 0, dtype: Any = "float32"
    ):
        positive(dim=dim, heads=heads)
        heads = max(heads, 2)
        if heads % 2 or dim % heads:
            raise ValueError(f"heads={heads} must be even (or 1, for 2) and divide dim={dim}")
        if stripe < 1:
            raise ValueError(f"stripe={stripe} must be at least 1")
        rng = init.generator(seed)
        self.heads, self.stripe = heads, stripe
        self.wqkv = Linear(dim, 3 * dim, True, rng, dtype=dtype)
        self.vertical, self.horizontal = (
            Conv(dim // 2, dim // 2, (3, 3), True, rng, groups=dim // 2, dtype=dtype) for _ in range(2)
        )
        self.wo = Linear(dim, dim, True, rng, dtype=dtype)

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
        """Attend along the stripes of x (B, R, C, D)."""
        if x.ndim != 4:
            raise ShapeError(f"cswin_attention: x must be (B, rows, columns, D), not {x.shape}")
        _, rows, columns, d = x.shape
        # q, k, v: (B, R, C, 3, D)
        qkv = self.wqkv(x).reshape((*x.shape[:3], 3, d))
        up = self.attend(qkv[..., : d // 2], rows, min(self.stripe, columns), self.vertical)
        across = self.attend(qkv[..., d // 2 :], min(self.stripe, rows), columns, self.horizontal)
        return self.wo(ops.concat([up, across], axis=-1))

    def attend(self, qkv: Tensor, height: int, width: int, lepe: Conv) -> Tensor:
        """One half of the heads in stripes (height, width): qkv (B, R, C, 3, D/2) -> (B, R, C, D/2)."""
        b, rows, columns, _, d = qkv.shape
        # Empty cells fill the last stripe: (B, R', C', 3 D/2)
        fill = ((0, 0), (0, -rows % height), (0, -columns % width), (0, 0))
        qkv = ops.pad(qkv.reshape((b, rows, columns, 3 * d)), fill)
        grid = (qkv.shape[1], qkv.shape[2])
        # (B M, cells, 3 D/2)
        stripes = partition(qkv, height, width).reshape((-1, height * width, 3 * d))
        q, k, v = (ops.split_heads(a, self.heads // 2) for a in ops.split(stripes, 3, axis=-1))
        real = np.pad(np.ones((1, rows, columns, 1), bool), fill)
        # No query sees an empty cell: (B M, 1, 1, cells)
        mask = np.tile(partition(Tensor(real), height, width).data[0, :, None, None, :, 0], (b, 1, 1, 1))
        y = ops.merge_heads(ops.softmax_attention(q, k, v, mask=None if mask.all() else mask))
        # DW3(v) on each stripe as a small map: (B M, height, width, D/2)
        y = y + lepe(ops.merge_heads(v).reshape((-1, height, width, d))).reshape(y.shape)
        return unpartition(y.reshape((b, -1, height * width, d)), grid, height, width)[:, :rows, :columns]


def build(case: Case, stripe: int = 2, lepe: bool = True) -> CSWinAttention:
    layer = CSWinAttention(case.dim, heads=case.h, stripe=stripe, seed=case.seed, dtype="float64")
    rng = case.rng()
    for p in (*layer.vertical.parameters(), *layer.horizontal.parameters()):
        p.data = rng.standard_normal(p.shape) * lepe
    return layer


def plain(layer: CSWinAttention, x: Tensor, half: int) -> Tensor:
    """What one half of the heads makes of one stripe x (B, r, c, D): (B, r, c, D/2)."""
    b, r, c, d = x.shape
    lepe = (layer.vertical, layer.horizontal)[half]
    own = [a[..., half * d // 2 : (half + 1) * d // 2] for a in ops.split(layer.wqkv(x), 3, axis=-1)]
    q, k, v = (ops.split_heads(a.reshape((b, r * c, d // 2)), layer.heads // 2) for a in own)
    o = ops.softmax(q @ k.mT / q.shape[-1] ** 0.5) @ v
    # DW3 as a sum of shifted maps.
    padded = ops.pad(own[2], ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [padded[:, i : i + r, j : j + c] * lepe.weight[i, j, 0] for i in range(3) for j in range(3)]
    near = ops.stack(taps).sum(axis=0) + lepe.bias
    return ops.merge_heads(o).reshape((b, r, c, d // 2)) + near


def by_stripes(layer: CSWinAttention, x: Tensor, s: int) -> Tensor:
    """The layer, stripe by stripe, the last one as wide as the grid leaves it."""
    up = [plain(layer, x[:, :, j : j + s], 0) for j in range(0, x.shape[2], s)]
    across = [plain(layer, x[:, i : i + s], 1) for i in range(0, x.shape[1], s)]
    return layer.wo(ops.concat([ops.concat(up, axis=2), ops.concat(across, axis=1)], axis=-1))


@identity("stripes of any width equal attention and DW3 in a loop over stripes, the last one narrower")
def stripes(case: Case) -> tuple[Tensor, Tensor]:
    x, widths = case.image(), (1, 2, 3)
    left = [build(case, s)(x) for s in widths]
    return ops.stack(left), ops.stack([by_stripes(build(case, s), x, s) for s in widths])


@identity("a stripe as wide as the grid: full attention with all heads, and one DW3 over the map")
def whole_map(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, max(case.t, case.w)), case.image()
    tokens = x.reshape((case.b, -1, case.dim))
    q, k, v = (ops.split_heads(a, layer.heads) for a in ops.split(layer.wqkv(tokens), 3, axis=-1))
    kernel = ops.concat([layer.vertical.weight, layer.horizontal.weight], axis=-1)
    bias = np.concatenate([p.bias.data for p in (layer.vertical, layer.horizontal) if p.bias is not None])
    v_map = ops.merge_heads(v).reshape(x.shape)
    near = ops.conv2d(v_map, kernel, padding="same", groups=case.dim) + bias
    return layer(x), layer.wo(ops.merge_heads(ops.softmax_attention(q, k, v)).reshape(x.shape) + near)


@identity("stripes of one cell without DW3: columns for half of the heads, rows for the other half")
def axial(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, 1, lepe=False), case.image()
    halves = []
    for half, line in enumerate((x.permute_dims((0, 2, 1, 3)), x)):
        # Each column, or row, is a sequence: (B lines, cells, D)
        tokens = line.reshape((-1, line.shape[2], case.dim))
        q, k, v = (ops.split_heads(a, layer.heads) for a in ops.split(layer.wqkv(tokens), 3, axis=-1))
        own = slice(half * layer.heads // 2, (half + 1) * layer.heads // 2)
        o = ops.softmax_attention(q[:, own], k[:, own], v[:, own])
        halves.append(ops.merge_heads(o).reshape((*line.shape[:3], -1)))
    both = [halves[0].permute_dims((0, 2, 1, 3)), halves[1]]
    return layer(x), layer.wo(ops.concat(both, axis=-1))


@identity("on the transposed grid, with the halves swapped and DW3 transposed, the transposed output")
def transposed(case: Case) -> tuple[Tensor, Tensor]:
    layer, other, x = build(case), build(case), case.image()
    state, d = layer.state_dict(), case.dim
    swap = np.roll(np.arange(d), d // 2)
    thrice = np.concatenate([swap, swap + d, swap + 2 * d])
    flip = {
        "wqkv.weight": state["wqkv.weight"][:, thrice],
        "wqkv.bias": state["wqkv.bias"][thrice],
        "wo.weight": state["wo.weight"][swap],
    }
    for one, two in (("vertical", "horizontal"), ("horizontal", "vertical")):
        flip[f"{one}.weight"] = state[f"{two}.weight"].swapaxes(0, 1)
        flip[f"{one}.bias"] = state[f"{two}.bias"]
    other.load_state_dict({**state, **flip})
    return other(x.permute_dims((0, 2, 1, 3))).permute_dims((0, 2, 1, 3)), layer(x)


@identity("stripes of one cell: a cell depends on its row and column, after two blocks on all cells")
def reach(case: Case) -> tuple[Any, Any]:
    one, two, x = build(case, 1), build(case, 1), case.image()
    r, c = case.t // 2, case.w - 1

    def seen(f: Any) -> Any:
        return (np.abs(grad(lambda v: (f(v)[0, r, c] ** 2).sum())(x).data[0]) > 0.0).any(axis=-1)

    cross = (np.arange(case.t) == r)[:, None] | (np.arange(case.w) == c)
    found = np.stack([seen(one), seen(lambda v: two(one(v)))])
    return found * 1.0, np.stack([cross, np.ones_like(cross)]) * 1.0

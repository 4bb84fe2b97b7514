"""Multi-scale deformable attention: every query looks at a few places that it names, on several maps.

    V_l  = maps_l W_v + b_v                                    zero where padded
    o    = query W_s + b_s                                     offsets, in cells
    A    = softmax(query W_a + b_a)                            over all L P places of a head
    loc  = r_l + o / (C_l, R_l)                                r a point, or
    loc  = r_xy + o / P * r_wh / 2                             r a box (centre, size)
    y    = merge(sum over l, p of A_lp * bilinear(V_l, loc_lp)) W_o

    query, y  (B, Q, D)     maps_l  (B, R_l, C_l, D)     r  (B, Q, L, 2 or 4) in [0, 1], as (x, y)
    o  (B, Q, H, L, P, 2)   A  (B, Q, H, L, P)           V_l by heads  (B, H, R_l C_l, d)

In an encoder the queries are the cells of the maps themselves: `encoder_references` makes their r.

bilinear reads a map at the cell coordinates loc * (C, R) - 1/2, which are whole numbers in the middle of a
cell; outside the map there are zeros. A comes from the query alone: no query meets a key. At the start head j
looks along the angle 2 pi j / H, point p at p + 1 cells.

Cost: 4 (Q + S) D^2 + 8 Q H L P d operations, S cells in all maps; no product Q S.
Source: Deformable DETR, Zhu et al., arXiv:2010.04159, 2020, equations 2 and 3.
Differs from the paper: none known; the maps come as grids, not flattened.
Numerics: not differentiable where a place lies exactly in the middle of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor
from minitf.nn import Card, Case, Linear, Module, Paper, identity, init, positive

CARD = Card(
    name="deformable_attention",
    title="Multi-scale deformable attention",
    kind="attention",
    family="sampled",
    papers=(
        Paper("Deformable DETR: Deformable Transformers for End-to-End Object Detection", "2010.04159", 2020),
    ),
    causal=False,
    streams=False,
    grid="1d",
    complexity="4 Q D^2 + 4 S D^2 + 8 Q L P D, Q queries, S cells",
    properties=("batch_independent",),
    basis="published code: fundamentalvision/Deformable-DETR models/ops/modules/ms_deform_attn.py",
    parity=("transformers 5.23.0 DeformableDetrMultiscaleDeformableAttention",),
)


def bilinear(v: Tensor, grid: tuple[int, int], loc: Tensor) -> Tensor:
    """Read maps v (B, H, R C, d) of a grid (R, C) at loc (B, H, M, 2), as (x, y) in [0, 1]: (B, H, M, d)."""
    rows, columns = grid
    x, y = loc[..., 0] * columns - 0.5, loc[..., 1] * rows - 0.5
    left, top = np.floor(x.data), np.floor(y.data)
    total: Any = 0.0
    for r in (top, top + 1):
        for c in (left, left + 1):
            # The weight falls from 1 at the cell to 0 at its neighbours.
            weight = (1.0 - ops.abs(x - c)) * (1.0 - ops.abs(y - r))
            inside = (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
            cell = np.where(inside, r * columns + c, 0).astype(int)
            found = ops.take_along_axis(v, cell[..., None], axis=2)
            total = total + ops.where(inside, weight, 0.0)[..., None] * found
    return total


class DeformableAttention(Module):
    """query (B, Q, D), references (B, Q, L, 2 or 4), L maps (B, R_l, C_l, D) -> (B, Q, D).

    Parameters: ws (D, H L P 2), weight 0, bias the directions above; wa (D, H L P), zero; wv, wo (D, D),
    Xavier uniform, zero bias.

    Args:
        dim: D. heads: H. levels: L. points: P.

    Raises:
        ValueError: heads that do not divide dim; levels or points below 1. ShapeError: references or maps
            that do not fit the query.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        levels: int = 4,
        points: int = 4,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads, levels=levels, points=points)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        rng = init.generator(seed)
        self.heads, self.levels, self.points = heads, levels, points
        count = heads * levels * points
        self.ws = Linear(dim, 2 * count, values=np.zeros((dim, 2 * count), dtype), dtype=dtype)
        self.ws.load_state_dict({"bias": directions(heads, levels, points).astype(dtype)}, strict=False)
        self.wa = Linear(dim, count, values=np.zeros((dim, count), dtype), dtype=dtype)
        self.wv, self.wo = (
            Linear(dim, dim, values=init.xavier_uniform(rng, (dim, dim), dtype=dtype), dtype=dtype)
            for _ in range(2)
        )

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        *maps: Tensor,
        masks: Sequence[Any] | None = None,
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        """Look at the maps. masks: for each map boolean (B, R_l, C_l), True = a real cell."""
        b, n, d = query.shape
        if references.shape[:3] != (b, n, self.levels) or references.shape[3:] not in ((2,), (4,)):
            raise ShapeError(
                f"deformable_attention: references must be (B, Q, L, 2 or 4) with L={self.levels} for a "
                f"query {query.shape}, not {references.shape}"
            )
        if len(maps) != self.levels or any(m.ndim != 4 or m.shape[::3] != (b, d) for m in maps):
            shapes = [m.shape for m in maps]
            raise ShapeError(f"deformable_attention: {self.levels} maps (B, R, C, D), not {shapes}")
        shape = (b, n, self.heads, self.levels, self.points)
        offsets = self.ws(query).reshape((*shape, 2))
        # A: (B, Q, H, L, P)
        weights = ops.softmax(self.wa(query).reshape((*shape[:3], -1))).reshape(shape)
        total: Any = 0.0
        for level, cells in enumerate(maps):
            rows, columns = cells.shape[1:3]
            v = self.wv(cells)
            if masks is not None:
                v = ops.where(np.asarray(masks[level])[..., None], v, 0.0)
            r, o = references[:, :, None, level, None], offsets[:, :, :, level]
            if r.shape[-1] == 2:
                loc = r + o / np.array([columns, rows], query.dtype)
            else:
                loc = r[..., :2] + o / self.points * r[..., 2:] * 0.5
            # All places of a head in one row: (B, H, Q P, 2) -> (B, H, Q, P, d)
            places = loc.permute_dims((0, 2, 1, 3, 4)).reshape((b, self.heads, -1, 2))
            seen = bilinear(ops.split_heads(v.reshape((b, -1, d)), self.heads), (rows, columns), places)
            seen = seen.reshape((b, self.heads, n, self.points, -1))
            total = total + (weights[:, :, :, level].permute_dims((0, 2, 1, 3))[..., None] * seen).sum(axis=3)
        return self.wo(ops.merge_heads(total))

    @staticmethod
    def example_inputs(case: Case) -> tuple[Tensor, ...]:
        """t queries, points, and four maps that shrink from t x w to 1 x 1."""
        rng = case.rng()
        sides = [(max(1, case.t >> i), max(1, case.w >> i)) for i in range(4)]
        maps = [rng.standard_normal((case.b, *side, case.dim)) for side in sides]
        references = rng.uniform(0.0, 1.0, (case.b, case.t, 4, 2))
        return tuple(map(Tensor, (rng.standard_normal((case.b, case.t, case.dim)), references, *maps)))


def directions(heads: int, levels: int, points: int) -> Array:
    """The first offsets (H L P 2,): head j along the angle 2 pi j / H, its longer side p + 1 cells."""
    angle = 2.0 * math.pi * np.arange(heads) / heads
    way = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    way /= np.abs(way).max(axis=-1, keepdims=True)
    steps = np.arange(1, points + 1)[None, None, :, None]
    return np.broadcast_to(way[:, None, None] * steps, (heads, levels, points, 2)).reshape(-1)


def centres(rows: int, columns: int) -> Array:
    """The middle of every cell as (x, y): (R C, 2)."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    return np.stack([(x + 0.5) / columns, (y + 0.5) / rows], axis=-1)


def encoder_references(grids: Sequence[tuple[int, int]], valid: Any) -> Array:
    """References (B, S, L, 2) where the queries are the cells of the maps themselves, map after map.

    Args:
        grids: (R, C) of each map. valid: (B, L, 2), the shares (x, y) of a map's sides that are image.

    A cell stands at the share of the image at which its centre lies, and points there on every map.
    """
    valid = np.asarray(valid, dtype=float)
    own = [centres(*grid) / valid[:, None, level] for level, grid in enumerate(grids)]
    # Shares of the image (B, S, 1, 2) times those that it has of each map (B, 1, L, 2).
    return np.concatenate(own, axis=1)[:, :, None] * valid[:, None]


def build(case: Case, **options: Any) -> DeformableAttention:
    layer = DeformableAttention(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)
    layer.wa.weight.data = case.rng().standard_normal(layer.wa.weight.shape)
    return layer


def still(layer: DeformableAttention, offsets: Any = 0.0) -> DeformableAttention:
    """The layer with these offsets (H, L, P, 2) for every query."""
    shape = (layer.heads, layer.levels, layer.points, 2)
    zero = np.zeros(layer.ws.weight.shape)
    layer.ws.load_state_dict({"weight": zero, "bias": (np.zeros(shape) + offsets).reshape(-1)})
    return layer


@identity("the equations in loops over queries, heads, maps, points and corners, with padding and boxes")
def loops(case: Case) -> tuple[Tensor, Any]:
    rng, left, right = case.rng(), [], []
    for sides in (2, 4):
        layer: Any = build(case, levels=2, points=3)
        query = case.tokens()
        for p in (layer.ws.weight, layer.wa.bias, layer.wv.bias, layer.wo.bias):
            p.data = rng.standard_normal(p.shape)
        grids = ((case.t, case.w), (2, 3))
        maps = [rng.standard_normal((case.b, *grid, case.dim)) for grid in grids]
        masks = [rng.random((case.b, *grid)) < 0.8 for grid in grids]
        r, y = rng.uniform(0.0, 1.0, (case.b, case.t, 2, sides)), np.zeros(query.shape)
        offsets = (query.data @ layer.ws.weight.data + layer.ws.bias.data).reshape(
            (case.b, case.t, case.h, 2, 3, 2)
        )
        scores = query.data @ layer.wa.weight.data + layer.wa.bias.data
        e = np.exp(scores.reshape(case.b, case.t, case.h, 6))
        a = (e / e.sum(axis=-1, keepdims=True)).reshape(case.b, case.t, case.h, 2, 3)
        for level, (rows, columns) in enumerate(grids):
            v = (maps[level] @ layer.wv.weight.data + layer.wv.bias.data) * masks[level][..., None]
            for b, n, h, p in np.ndindex(case.b, case.t, case.h, 3):
                place, o, own = (
                    r[b, n, level],
                    offsets[b, n, h, level, p],
                    slice(h * case.d, (h + 1) * case.d),
                )
                if sides == 2:
                    x, z = place[0] + o[0] / columns, place[1] + o[1] / rows
                else:
                    x, z = place[:2] + o / 3.0 * place[2:] / 2.0
                x, z = x * columns - 0.5, z * rows - 0.5
                for i, j in np.ndindex(rows, columns):
                    near = max(0.0, 1.0 - abs(z - i)) * max(0.0, 1.0 - abs(x - j))
                    y[b, n, own] += a[b, n, h, level, p] * near * v[b, i, j, own]
        left.append(layer(query, Tensor(r), *map(Tensor, maps), masks=masks))
        right.append(y @ layer.wo.weight.data + layer.wo.bias.data)
    return ops.stack(left), np.stack(right)


@identity("references of an encoder: cells of one share of the image point to it on every map")
def references_of_cells(case: Case) -> tuple[Any, Any]:
    valid, grids = case.rng().uniform(0.3, 1.0, (case.b, 2, 2)), ((case.t, case.w), (2, 3))
    expected = []
    for own in valid:
        for (rows, columns), (across, down) in zip(grids, own):
            for i, j in np.ndindex(rows, columns):
                x, y = (j + 0.5) / (across * columns), (i + 0.5) / (down * rows)
                expected.append([[x * share[0], y * share[1]] for share in own])
    return encoder_references(grids, valid), np.reshape(expected, (case.b, -1, 2, 2))


@identity("on constant maps, looking inside them: the constant, wherever the places are")
def constant(case: Case) -> tuple[Tensor, Tensor]:
    rng = case.rng()
    layer = still(build(case, levels=2, points=3), rng.uniform(-1.0, 1.0, (case.h, 2, 3, 2)))
    query, c = case.tokens(), Tensor(rng.standard_normal((case.b, 1, 1, case.dim)))
    maps = [c + np.zeros((case.b, 8, 8, case.dim)), c + np.zeros((case.b, 6, 9, case.dim))]
    references = Tensor(rng.uniform(0.4, 0.6, (case.b, case.t, 2, 2)))
    return layer(query, references, *maps), layer.wo(layer.wv(c[:, 0])) + query * 0.0


@identity("one point without offset in the middle of a cell reads that cell")
def gathers(case: Case) -> tuple[Tensor, Tensor]:
    layer, cells = still(build(case, levels=1, points=1)), case.image()
    count = case.t * case.w
    query = Tensor(case.rng().standard_normal((case.b, count, case.dim)))
    references = Tensor(np.broadcast_to(centres(case.t, case.w)[:, None], (case.b, count, 1, 2)).copy())
    return layer(query, references, cells), layer.wo(layer.wv(cells.reshape((case.b, count, case.dim))))


@identity("with a point on every cell and the weights q k^T / sqrt(d), full softmax attention")
def full(case: Case) -> tuple[Tensor, Tensor]:
    rng, rows, columns = case.rng(), min(case.t, 4), min(case.w, 3)
    count = rows * columns
    way = (centres(rows, columns) - 0.5) * np.array([columns, rows])
    layer = still(build(case, levels=1, points=count), way[None, None])
    cells = Tensor(rng.standard_normal((case.b, rows, columns, case.dim)))
    query, v = case.tokens(), ops.split_heads(layer.wv(cells.reshape((case.b, count, case.dim))), case.h)
    # Scores linear in the query: keys that the batch shares, W_a = k_h^T / sqrt(d) on the part of head h.
    k = rng.standard_normal((case.h, count, case.d))
    wa = np.zeros((case.h, case.d, case.h, count))
    for h in range(case.h):
        wa[h, :, h] = k[h].T / math.sqrt(case.d)
    layer.wa.weight.data = wa.reshape(case.dim, case.h * count)
    keys = Tensor(np.broadcast_to(k, (case.b, *k.shape)).copy())
    o = ops.softmax_attention(ops.split_heads(query, case.h), keys, v)
    references = Tensor(np.full((case.b, case.t, 1, 2), 0.5))
    return layer(query, references, cells), layer.wo(ops.merge_heads(o))


@identity("moving map and references by whole cells changes nothing, while all places stay inside")
def translation(case: Case) -> tuple[Tensor, Tensor]:
    rng = case.rng()
    layer = still(build(case, levels=1, points=2), rng.uniform(-1.0, 1.0, (case.h, 1, 2, 2)))
    query, cells = case.tokens(), rng.standard_normal((case.b, 10, 10, case.dim))
    references = rng.uniform(0.3, 0.6, (case.b, case.t, 1, 2))
    moved = Tensor(np.roll(cells, (1, 2), axis=(1, 2)))
    by = np.array([0.2, 0.1])
    return layer(query, Tensor(references + by), moved), layer(query, Tensor(references), Tensor(cells))


@identity("a box of twice P cells on each side is a point: offsets are counted in shares of the box")
def boxes(case: Case) -> tuple[Tensor, Tensor]:
    rng = case.rng()
    layer = still(build(case, levels=1, points=2), rng.uniform(-1.0, 1.0, (case.h, 1, 2, 2)))
    query, cells = case.tokens(), Tensor(rng.standard_normal((case.b, 6, 5, case.dim)))
    points = rng.uniform(0.0, 1.0, (case.b, case.t, 1, 2))
    size = np.broadcast_to([4.0 / 5.0, 4.0 / 6.0], points.shape)
    box = Tensor(np.concatenate([points, size], axis=-1))
    return layer(query, box, cells), layer(query, Tensor(points), cells)

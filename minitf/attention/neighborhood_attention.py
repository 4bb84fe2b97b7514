"""Neighbourhood attention: every cell attends to the K cells nearest to it on each axis, at linear cost.

    start(i) = clip(i - K // 2, 0, L - K)               keys start .. start + K - 1 of an axis of L cells
    A_ij = softmax over the window of i  of  q_i . k_j / sqrt(d) + table[j - i + K - 1]
    y    = merge(sum_j A_ij v_j) W_o

    x, y  (B, *grid, D)        q  (B, H, N, d)        A  (B, H, N, K^a) for a grid of `a` axes
    table  ((2K - 1)^a, H), learned, if asked for; j - i on each axis

The window of a cell is the product of those of its axes. At the border it is pushed inside: it never shrinks,
and nothing is filled up. An even K reaches one cell further to the left.

    dilation t:  cells i, i + t, i + 2t, ... of an axis are an axis of their own, on which i, j and L count
    causal:      start(i) = max(i - K + 1, 0), and the window ends at i
    stride S:    S cells share the start of their leader, cell g + S // 2 (causal: g + S - 1), g = S (i // S),
                 or the last cell where the axis ends before. S = K cuts windows like Swin's.

On an axis shorter than K, K is its length; t and S shrink until t K <= L and S <= K.

Cost: 8 N D^2 + 4 N K^a D operations, linear in N; only keys of the window are ever multiplied.
Source: Neighborhood Attention Transformer, Hassani et al., arXiv:2204.07143, 2022, section 3.1. Dilation:
Dilated Neighborhood Attention Transformer, Hassani and Shi, arXiv:2209.15001, 2022. Strides: Generalized
Neighborhood Attention, Hassani et al., arXiv:2504.16922, 2025.
Differs from the paper: none known; the papers require t K <= L.
Numerics: those of softmax attention.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor
from minitf.nn import (
    Card,
    Case,
    Linear,
    Module,
    Paper,
    Parameter,
    identity,
    init,
    not_negative,
    partition,
    positive,
    unpartition,
)

CARD = Card(
    name="neighborhood_attention",
    title="Neighbourhood attention, also dilated, strided and causal",
    kind="attention",
    family="local",
    papers=(
        Paper("Neighborhood Attention Transformer", "2204.07143", 2022),
        Paper("Dilated Neighborhood Attention Transformer", "2209.15001", 2022),
        Paper(
            "Generalized Neighborhood Attention: Multi-dimensional Sparse Attention at the Speed of Light",
            "2504.16922",
            2025,
        ),
    ),
    causal=False,
    streams=False,
    grid="nd",
    complexity="8 N D^2 + 4 N K^2 D",
    properties=("batch_independent", "row_stochastic"),
    basis="published code: SHI-Labs/NATTEN csrc/include/natten/cuda/reference/mask.hpp, "
    "src/natten/modules.py; SHI-Labs/Neighborhood-Attention-Transformer classification/nat.py",
)


class Window(NamedTuple):
    """Which keys every cell sees: keys, visible, offset (N, M). offset is the row of the table."""

    keys: Array
    visible: Array
    offset: Array


def along(length: int, size: int, dilation: int, stride: int, causal: bool) -> Window:
    """The windows of one axis: M = K, and offset = j - i + K - 1."""
    k = min(size, length)
    t, s = max(1, min(dilation, length // k)), min(stride, k)
    cell = np.arange(length)
    # Cell i is place p = i // t among the n cells with its remainder.
    p, n = cell // t, (length - cell % t + t - 1) // t
    leader = np.minimum(p // s * s + (s - 1 if causal else s // 2), n - 1)
    start = np.maximum(leader - k + 1, 0) if causal else np.clip(leader - k // 2, 0, n - k)
    place = start[:, None] + np.arange(k)
    visible = place <= (p if causal else start + k - 1)[:, None]
    return Window(cell[:, None] % t + t * place, visible, place - p[:, None] + size - 1)


def product(a: Window, b: Window, length: int, size: int) -> Window:
    """The windows of a grid whose last axis, of `length` cells and with K = `size`, has the windows b."""
    first, second = (slice(None), None, slice(None), None), (None, slice(None), None, slice(None))
    n, m = len(a.keys) * len(b.keys), a.keys.shape[1] * b.keys.shape[1]
    parts = (
        a.keys[first] * length + b.keys[second],
        a.visible[first] & b.visible[second],
        a.offset[first] * (2 * size - 1) + b.offset[second],
    )
    return Window(*(part.reshape(n, m) for part in parts))


class NeighborhoodAttention(Module):
    """x (B, *grid, D) -> (B, *grid, D).

    Parameters: wq, wk, wv, wo (D, D) with biases; table ((2K - 1)^a, H), normal with std 0.02, with
    `bias_axes`.

    Args:
        dim: D. heads: H. window, dilation, stride: K, t and S, one number or one for each axis of the grid.
        causal: whether later cells of an axis are hidden, for all axes or for each.
        bias_axes: a, the axes of the grid that the table is for; 0 leaves the table out.

    Raises:
        ValueError: heads that do not divide dim; a window or dilation below 1; a stride outside 1..K; options
            for different numbers of axes; bias_axes below 0. ShapeError: a grid with other axes than the
            options.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        window: int | tuple[int, ...] = 7,
        dilation: int | tuple[int, ...] = 1,
        stride: int | tuple[int, ...] = 1,
        causal: bool | tuple[bool, ...] = False,
        bias_axes: int = 0,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads)
        not_negative(bias_axes=bias_axes)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        self.heads, self.options, self.bias_axes = heads, (window, dilation, stride, causal), bias_axes
        # How many axes the options name; any number if they name none.
        self.axes = {len(option) for option in self.options if isinstance(option, tuple)}
        self.axes |= {bias_axes} if bias_axes else set()
        if len(self.axes) > 1:
            raise ValueError(f"options name different numbers of axes: {sorted(self.axes)}")
        for k, t, s, _ in self.per_axis(max(self.axes, default=1)):
            if min(k, t) < 1 or not 1 <= s <= k:
                raise ValueError(
                    f"window={window} and dilation={dilation} must be at least 1, and stride={stride} from 1 "
                    "to window"
                )
        rng = init.generator(seed)
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, dim, True, rng, dtype=dtype) for _ in range(4))
        rows = math.prod(2 * k - 1 for k, *_ in self.per_axis(bias_axes))
        self.table = Parameter(init.normal(rng, (rows, heads), dtype=dtype)) if bias_axes else None

    def per_axis(self, axes: int) -> list[Any]:
        """(K, t, S, causal) of each axis."""
        return list(zip(*(o if isinstance(o, tuple) else (o,) * axes for o in self.options)))

    def windows(self, grid: tuple[int, ...]) -> Window:
        """The windows of all N cells of a grid."""
        if self.axes - {len(grid)}:
            raise ShapeError(
                f"neighborhood_attention: a grid {grid} of {len(grid)} axes, but options for {self.axes}"
            )
        found = Window(np.zeros((1, 1), int), np.ones((1, 1), bool), np.zeros((1, 1), int))
        for length, options in zip(grid, self.per_axis(len(grid))):
            found = product(found, along(length, *options), length, options[0])
        return found

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
        """Attend to the neighbours on the grid of x (B, *grid, D)."""
        q, k, v, window = self.heads_of(x)
        b, h, n, d = q.shape
        # The keys and values of every window: (B, H, N, M, d). Each cell is a row of its own.
        k, v = (a[:, :, window.keys].reshape((b, h * n, -1, d)) for a in (k, v))
        bias = None if self.table is None else self.bias(window).reshape((h * n, 1, -1))
        mask = None if window.visible.all() else np.tile(window.visible, (h, 1))[:, None]
        o = ops.softmax_attention(q.reshape((b, h * n, 1, d)), k, v, mask=mask, bias=bias)
        return self.wo(ops.merge_heads(o.reshape(q.shape))).reshape(x.shape)

    def weights(self, x: Tensor) -> Tensor:
        """A (B, H, N, N), zero outside the windows, for pictures: its size is not linear in N."""
        q, k, _, window = self.heads_of(x)
        s = (q[..., None, :] * k[:, :, window.keys]).sum(axis=-1) / math.sqrt(q.shape[-1])
        s = s if self.table is None else s + self.bias(window)
        p = ops.softmax(ops.where(window.visible, s, -math.inf))
        index = np.broadcast_to(window.keys, p.shape)
        return ops.put_along_axis(ops.zeros((*q.shape[:3], q.shape[2]), like=x), index, p)

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Window]:
        """q, k, v (B, H, N, d) and the windows."""
        if x.ndim < 3:
            raise ShapeError(f"neighborhood_attention: x must be (B, *grid, D), not {x.shape}")
        tokens = x.reshape((x.shape[0], -1, x.shape[-1]))
        q, k, v = (ops.split_heads(w(tokens), self.heads) for w in (self.wq, self.wk, self.wv))
        return q, k, v, self.windows(x.shape[1:-1])

    def bias(self, window: Window) -> Tensor:
        """What the table adds to the scores: (H, N, M)."""
        return ops.moveaxis(ops.take(self.table, window.offset, axis=0), -1, 0)


def build(case: Case, window: Any = 3, bias_axes: int = 2, **options: Any) -> Any:
    layer = NeighborhoodAttention(
        case.dim, heads=case.h, window=window, bias_axes=bias_axes, seed=case.seed, dtype="float64", **options
    )
    if layer.table is not None:
        layer.table.data = case.rng().standard_normal(layer.table.shape)
    return layer


def keys_of(i: int, length: int, k: int, t: int, s: int, causal: bool) -> list[tuple[int, int]]:
    """(j, offset) of the keys of cell i on one axis, as the equations say it."""
    size = k
    k = min(k, length)
    while t * k > length and t > 1:
        t -= 1
    own = [j for j in range(length) if j % t == i % t]
    at, s = own.index(i), min(s, k)
    first = at - at % s
    leader = min(first + (s - 1 if causal else s // 2), len(own) - 1)
    if causal:
        window = range(max(leader - k + 1, 0), at + 1)
    else:
        start = min(max(leader - k // 2, 0), len(own) - k)
        window = range(start, start + k)
    return [(own[j], j - at + size - 1) for j in window]


def plain(layer: Any, x: Tensor) -> Tensor:
    """The layer on an image, in a loop over cells."""
    rows, columns = x.shape[1:3]
    (k1, *one), (k2, *two) = layer.per_axis(2)
    q, k, v = (
        ops.split_heads(w(x.reshape((x.shape[0], -1, x.shape[3]))), layer.heads)
        for w in (layer.wq, layer.wk, layer.wv)
    )
    found = []
    for r, c in np.ndindex(rows, columns):
        window = [(a, b) for a in keys_of(r, rows, k1, *one) for b in keys_of(c, columns, k2, *two)]
        keys = np.array([a[0] * columns + b[0] for a, b in window])
        bias = layer.table[np.array([a[1] * (2 * k2 - 1) + b[1] for a, b in window])].mT
        at = r * columns + c
        s = q[:, :, at : at + 1] @ k[:, :, keys].mT / q.shape[-1] ** 0.5 + bias[:, None]
        found.append(ops.softmax(s) @ v[:, :, keys])
    return layer.wo(ops.merge_heads(ops.concat(found, axis=2))).reshape(x.shape)


TRIES: tuple[dict[str, Any], ...] = (
    {"window": 3},
    {"window": 2},
    {"window": (4, 3), "stride": (3, 1)},
    {"window": 2, "dilation": (2, 3)},
    {"window": 3, "causal": True, "stride": 3},
    {"window": (2, 3), "causal": (True, False), "dilation": 2, "stride": 2},
)


@identity(
    "windows, even and odd, dilated, strided and causal, are those of a loop over cells, with the table"
)
def loops(case: Case) -> tuple[Tensor, Tensor]:
    x, layers = case.image(), [build(case, **options) for options in TRIES]
    return ops.stack([layer(x) for layer in layers]), ops.stack([plain(layer, x) for layer in layers])


@identity("a window as large as the grid: full attention")
def covers_all(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, (case.t, case.w), bias_axes=0), case.image()
    q, k, v, _ = layer.heads_of(x)
    return layer(x), layer.wo(ops.merge_heads(ops.softmax_attention(q, k, v))).reshape(x.shape)


@identity("K = 1: y = x W_v W_o")
def alone(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, 1), case.image()
    return layer(x), layer.wo(layer.wv(x))


def blocks(layer: Any, x: Tensor, rows: int, columns: int) -> Tensor:
    """Full attention inside each window of `partition`."""
    t = partition(x, rows, columns)
    shape = t.shape
    t = t.reshape((-1, *shape[2:]))
    q, k, v = (ops.split_heads(w(t), layer.heads) for w in (layer.wq, layer.wk, layer.wv))
    y = layer.wo(ops.merge_heads(ops.softmax_attention(q, k, v)))
    return unpartition(y.reshape(shape), (x.shape[1], x.shape[2]), rows, columns)


@identity("stride S = K on sides that K divides: attention inside windows of K cells")
def strided(case: Case) -> tuple[Any, Any]:
    left, right = [], []
    for k in (2, 3):
        layer = build(case, k, bias_axes=0, stride=k)
        x = Tensor(case.rng().standard_normal((case.b, 2 * k, k * (1 + case.w % 3), case.dim)))
        left.append(layer(x).data.reshape(-1))
        right.append(blocks(layer, x, k, k).data.reshape(-1))
    return np.concatenate(left), np.concatenate(right)


@identity("dilation t with t K cells on a side: attention inside grids of every t-th cell")
def dilated(case: Case) -> tuple[Tensor, Tensor]:
    layer = build(case, (2, 3), bias_axes=0, dilation=(3, 2))
    x = Tensor(case.rng().standard_normal((case.b, 6, 6, case.dim)))
    # Cells 0, 3 | 1, 4 | 2, 5 next to each other, and columns 0, 2, 4 | 1, 3, 5.
    rows, columns = np.arange(6).reshape(2, 3).T.reshape(-1), np.arange(6).reshape(3, 2).T.reshape(-1)
    y = blocks(layer, x[:, rows][:, :, columns], 2, 3)
    return layer(x)[:, rows][:, :, columns], y


@identity("away from the border, rolling the input rolls the output")
def translation(case: Case) -> tuple[Tensor, Tensor]:
    layer = build(case)
    x = Tensor(case.rng().standard_normal((case.b, case.t + 5, case.w + 5, case.dim)))
    moved = layer(ops.roll(x, (1, 2), (1, 2)))
    return moved[:, 2:-1, 3:-1], layer(x)[:, 1:-2, 1:-3]


@identity("rows of A sum to 1 over exactly K^2 keys, at the border too, and A v is the output")
def weights_are_used(case: Case) -> tuple[Any, Any]:
    layer = build(case, dilation=2)
    x = Tensor(case.rng().standard_normal((case.b, case.t + 2, case.w + 2, case.dim)))
    p = layer.weights(x)
    y = layer.wo(ops.merge_heads(p @ layer.heads_of(x)[2]))
    left = [p.data.sum(axis=-1), (p.data > 0.0).sum(axis=-1), y.data]
    right = [np.ones(p.shape[:-1]), np.full(p.shape[:-1], 9.0), layer(x).data]
    return np.concatenate([a.ravel() for a in left]), np.concatenate([a.ravel() for a in right])


@identity("causal axes: cells after a cell do not change it, on any of them")
def causal(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, causal=True, stride=2), case.image().data
    r, c = case.t // 2, case.w // 2
    other = np.where((np.arange(case.t) > r)[:, None, None] | (np.arange(case.w) > c)[:, None], 9.0, x)
    return layer(Tensor(other))[:, : r + 1, : c + 1], layer(Tensor(x))[:, : r + 1, : c + 1]

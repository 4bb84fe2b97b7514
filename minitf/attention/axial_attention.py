"""Axial attention: softmax attention along one axis of a grid at a time, every other axis being batch.

    A_a(x):  q = x W_q,  k = x W_k,  v = x W_v            weights of axis a; split into heads
             S_ij = q_i . k_j / sqrt(d)                   i, j on one line along axis a; j <= i if causal
             o_i  = sum_j softmax(S)_ij v_j
             A_a(x) = merge(o) W_o
    sum:         y = sum_a A_a(x)
    sequential:  x_1 = x,  x_{a+1} = x_a + A_a(x_a),  y = sum_a A_a(x_a)

    x, y  (B, n_1, ..., n_m, D)        o  (B N / n_a, H, n_a, d)        N = n_1 ... n_m

One axis sees rows (or columns) only; after two axes of an image every output depends on every input. In
"sequential" each axis is a residual layer of its own, as in the paper; y leaves out x itself, which the block
around the mixer adds. Causal: strict along each of the axes, which does not order the cells of a grid.

Positions: E_i = sum_a T_a[i_a], one learned table for each grid axis, added to x before the first layer.

Cost: for each axis 8 N D^2 for the maps and 4 N n_a D, which is 4 N^1.5 D on a square image; 4 D^2 + 4 D
parameters.
Source: Axial Attention in Multidimensional Transformers, Ho et al., arXiv:1912.12180, 2019.
Differs from the paper: attention alone; norms, feed-forward networks and the shifts that order the cells of
an image belong to the blocks around it. The sum of axes is that of published code, not of the paper.
Numerics: those of softmax attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor
from minitf.nn import Card, Case, Linear, Module, Paper, Parameter, identity, init, positive, visible_keys

from .softmax import SoftmaxAttention

CARD = Card(
    name="axial_attention",
    title="Attention along one axis of a grid at a time",
    kind="attention",
    family="axial",
    papers=(Paper("Axial Attention in Multidimensional Transformers", "1912.12180", 2019),),
    causal=False,
    streams=False,
    grid="nd",
    complexity="16 N D^2 + 8 N^1.5 D",
    properties=("batch_independent", "key_masks"),
    basis="published code: google-research/google-research axial/nn.py; lucidrains/axial-attention",
    aliases={"row_attention": {"axes": 1}, "column_attention": {"axes": 0}},
    parity=("axial-attention 0.6.1 AxialAttention",),
)


class AxisAttention(Module):
    """x (..., n, D) -> (..., n, D), every line of n tokens on its own: A_a of an axis that stands last.

    Parameters: wq, wk, wv, wo (D, D), with biases if `bias`.
    """

    def __init__(self, dim: int, heads: int, causal: bool, bias: bool, rng: init.Seed, dtype: Any):
        self.heads, self.causal = heads, causal
        self.wq, self.wk, self.wv, self.wo = (Linear(dim, dim, bias, rng, dtype=dtype) for _ in range(4))

    def forward(self, x: Tensor, visible: Array | None) -> Tensor:
        """visible: boolean (..., n), or None for all."""
        lines = x.reshape((-1, *x.shape[-2:]))
        q, k, v = (ops.split_heads(w(lines), self.heads) for w in (self.wq, self.wk, self.wv))
        mask = None if visible is None else visible.reshape((-1, 1, 1, x.shape[-2]))
        o = ops.softmax_attention(q, k, v, mask=mask, causal=self.causal)
        return self.wo(ops.merge_heads(o)).reshape(x.shape)


class AxialPositions(Module):
    """E: adds to x (B, n_1, ..., n_m, D) the sum of one learned table for each axis.

    Parameters: tables.a (sides[a], D), normal with standard deviation std / sqrt(D). Smaller grids use the
    first rows.
    """

    def __init__(
        self, dim: int, sides: Sequence[int], std: float = 5.0, seed: init.Seed = 0, dtype: Any = "float32"
    ):
        rng = init.generator(seed)
        self.sides = tuple(sides)
        self.tables = [AxisTable(n, dim, std / math.sqrt(dim), rng, dtype) for n in self.sides]

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1:-1]
        if len(grid) != len(self.sides) or any(n > most for n, most in zip(grid, self.sides)):
            raise ShapeError(f"axial positions were made for grids up to {self.sides}, not {grid}")
        for a, table in enumerate(self.tables):
            # (n_a, 1, ..., 1, D)
            x = x + table.weight[: grid[a]].reshape((grid[a],) + (1,) * (len(grid) - a - 1) + (x.shape[-1],))
        return x


class AxisTable(Module):
    """Parameter: weight (n, D)."""

    def __init__(self, n: int, dim: int, std: float, rng: init.Seed, dtype: Any):
        self.weight = Parameter(init.normal(rng, (n, dim), std, dtype))


class AxialAttention(Module):
    """x (B, n_1, ..., n_m, D) -> the same. Parameters: layers.a.wq, wk, wv, wo for each of `axes`.

    Args:
        dim: D. heads: H. axes: the grid axes that are attended along, in this order; 0 is the first, whose
            lines are the columns of an image.
        combine: "sum" or "sequential".
        causal: j <= i along the axis. bias: biases on the four maps.

    Raises:
        ValueError: heads that do not divide dim, no axes, one twice or below 0, another way to combine.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        axes: int | Sequence[int] = (0, 1),
        combine: str = "sum",
        causal: bool = False,
        bias: bool = True,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        self.axes = (axes,) if isinstance(axes, int) else tuple(axes)
        if not self.axes or min(self.axes) < 0 or len(set(self.axes)) < len(self.axes):
            raise ValueError(f"axes={axes} must be one grid axis or several different ones, from 0 on")
        if combine not in ("sum", "sequential"):
            raise ValueError(f"combine must be 'sum' or 'sequential', not {combine!r}")
        rng = init.generator(seed)
        self.combine = combine
        self.layers = [AxisAttention(dim, heads, causal, bias, rng, dtype) for _ in self.axes]

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, n_1, ..., n_m, D). mask: boolean (B, 1, 1, N), True = visible."""
        if x.ndim < max(self.axes) + 3:
            raise ShapeError(
                f"axial_attention: x must be (B, *grid, D) with a grid axis {max(self.axes)}, not {x.shape}"
            )
        keys = visible_keys(mask, x.shape[0], math.prod(x.shape[1:-1]))
        visible = None if keys is None else keys.reshape(x.shape[:-1])
        y = ops.zeros_like(x)
        for axis, layer in zip(self.axes, self.layers):
            source = x + y if self.combine == "sequential" else x
            # Axis a next to the features and back.
            lines = ops.moveaxis(source, axis + 1, -2)
            seen = None if visible is None else np.moveaxis(visible, axis + 1, -1)
            y = y + ops.moveaxis(layer(lines, seen), -2, axis + 1)
        return y


def build(case: Case, **options: Any) -> AxialAttention:
    layer = AxialAttention(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)
    rng = case.rng()
    for p in layer.parameters():
        p.data = p.data + 0.1 * rng.standard_normal(p.shape)
    return layer


def flat(layer: AxisAttention, x: Tensor, allow: Array) -> Tensor:
    """Attention over all cells of x (B, *grid, D) at once, under `allow` (N, N)."""
    tokens = x.reshape((x.shape[0], -1, x.shape[-1]))
    q, k, v = (ops.split_heads(w(tokens), layer.heads) for w in (layer.wq, layer.wk, layer.wv))
    return layer.wo(ops.merge_heads(ops.softmax_attention(q, k, v, mask=allow))).reshape(x.shape)


def places(shape: tuple[int, ...]) -> list[Array]:
    """The coordinate of each of the N cells along every axis."""
    return [c.ravel() for c in np.indices(shape)]


def video(case: Case) -> Tensor:
    """(b, t, w, 2, dim)."""
    return Tensor(case.rng().standard_normal((case.b, case.t, case.w, 2, case.dim)))


@identity("each axis of a video equals attention over all cells that hides those on other lines, causal too")
def lines(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = video(case), [], []
    at = places(x.shape[1:-1])
    for axis in range(3):
        for causal in (False, True):
            layer = build(case, axes=axis, causal=causal)
            allow = np.all([c[:, None] == c for a, c in enumerate(at) if a != axis], axis=0)
            allow &= (at[axis][:, None] >= at[axis]) | (not causal)
            left.append(layer(x))
            right.append(flat(layer.layers[0], x, allow))
    return ops.stack(left), ops.stack(right)


@identity("sum: the axes one by one, added; sequential: each a residual layer, and x left out at the end")
def combined(case: Case) -> tuple[Tensor, Tensor]:
    x, layers = case.image(), [build(case), build(case, combine="sequential")]
    one_by_one = []
    for layer in layers:
        parts = [build(case, axes=axis) for axis in (0, 1)]
        for part, own in zip(parts, layer.layers):
            part.layers[0].load_state_dict(own.state_dict())
        one_by_one.append(parts)
    (a, b), (c, d) = one_by_one
    h = x + c(x)
    return ops.stack([layer(x) for layer in layers]), ops.stack([a(x) + b(x), h + d(h) - x])


@identity("with one line only: plain attention over a sequence")
def one_line(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for causal in (False, True):
        layer = build(case, axes=1, causal=causal, bias=False)
        plain = SoftmaxAttention(case.dim, heads=case.h, causal=causal, dtype="float64")
        plain.load_state_dict(layer.layers[0].state_dict())
        left.append(layer(x[:, None])[:, 0])
        right.append(plain(x))
    return ops.stack(left), ops.stack(right)


@identity("transposing the image swaps the axes")
def transposed(case: Case) -> tuple[Tensor, Tensor]:
    x, rows, columns = case.image(), build(case, axes=1), build(case, axes=0)
    return rows(x.permute_dims((0, 2, 1, 3))), columns(x).permute_dims((0, 2, 1, 3))


@identity("permuting lines, and permuting the cells of every line, permutes the outputs")
def equivariant(case: Case) -> tuple[Tensor, Tensor]:
    x, layer, rng = case.image(), build(case, axes=1), case.rng()
    rows, cells = rng.permutation(case.t), rng.permutation(case.w)
    return layer(x[:, rows][:, :, cells]), layer(x)[:, rows][:, :, cells]


@identity("a hidden cell is missing from its line")
def hidden_cell(case: Case) -> tuple[Tensor, Tensor]:
    x, layer = video(case), build(case, axes=1)
    visible = np.ones(x.shape[1:-1], dtype=bool)
    visible[:, -1] = case.w == 1
    short = max(1, case.w - 1)
    return layer(x, mask=visible.reshape(1, 1, 1, -1))[:, :, :short], layer(x[:, :, :short])


@identity("positions are the sum of one row of every table, by loops; a smaller grid uses the first rows")
def positions(case: Case) -> tuple[Tensor, Array]:
    x = video(case)
    layer = AxialPositions(case.dim, (case.t + 2, case.w, 3), seed=case.seed, dtype="float64")
    expected = x.data.copy()
    for i, j, k in np.ndindex(x.shape[1:-1]):
        for table, row in zip(layer.tables, (i, j, k)):
            expected[:, i, j, k] += table.weight.data[row]
    return layer(x), expected

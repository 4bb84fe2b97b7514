"""GFNet filter: multiply the Fourier transform of the grid by learned numbers, one for each wave and channel.

    X = rfft2(x)                                over rows and columns
    y = irfft2(X * K)

    x, y  (B, R, C, D)  real        X  (B, R, C', D), K  (R, C', D)  complex, C' = C // 2 + 1

The same as a circular depthwise convolution with the kernel k = irfft2(K), as large as the grid. In columns 0
and C/2 of X irfft2 uses only the part of K that is conjugate-symmetric along the rows; the rest has no effect
and no gradient. K belongs to one grid; `resized` makes a layer for another.

The paper's block has one skip path: x + FFN(LN2(filter(LN1(x)))).

Cost: about 10 D N log2 N operations for the two transforms, 6 N D for the product.
Parameters: 2 R (C // 2 + 1) D.
Source: Global Filter Networks for Image Classification, Rao et al., arXiv:2107.00645, 2021, section 3.2.
Differs from the paper: none; the factors 1/sqrt(N) of its transforms cancel each other and are left out.
`resized` interpolates linearly, the published code with cubic curves.
Numerics: transforms run in the precision of x, at least float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor
from minitf.nn import Card, Case, Module, Paper, Parameter, identity, init, positive

CARD = Card(
    name="gfnet_filter",
    title="GFNet global filter layer",
    kind="mixer",
    family="fourier",
    papers=(Paper("Global Filter Networks for Image Classification", "2107.00645", 2021),),
    causal=False,
    streams=False,
    grid="2d",
    complexity="10 D N log N + 6 N D",
    properties=("batch_independent", "fixed_grid", "translation_equivariant"),
    basis="published code: raoyongming/GFNet gfnet.py",
    parity=("raoyongming/GFNet 2de48b6 gfnet.py GlobalFilter",),
)


def rfft2(x: Tensor) -> Tensor:
    """(B, R, C, D) -> (B, R, C // 2 + 1, D), complex."""
    return ops.fft(ops.rfft(x, axis=2), axis=1)


def irfft2(y: Tensor, columns: int) -> Tensor:
    """(B, R, C // 2 + 1, D) -> (B, R, C, D), real. C is not to be seen from y where it may be odd."""
    return ops.irfft(ops.ifft(y, axis=1), columns, axis=2)


class GFNetFilter(Module):
    """x (B, R, C, D) -> (B, R, C, D), for one grid (R, C).

    Parameters: real, imaginary (R, C // 2 + 1, D): the parts of K, normal with std 0.02.

    Args:
        dim: D. grid: (R, C), or one number for both.

    Raises:
        ValueError: a grid below 1. ShapeError: x on another grid.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        grid: int | tuple[int, int] = 14,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim)
        self.rows, self.columns = (grid, grid) if isinstance(grid, int) else grid
        if min(self.rows, self.columns) < 1:
            raise ValueError(f"both sides of grid={grid} must be at least 1")
        rng, shape = init.generator(seed), (self.rows, self.columns // 2 + 1, dim)
        self.real, self.imaginary = (Parameter(init.normal(rng, shape, dtype=dtype)) for _ in range(2))

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
        """Filter x (B, R, C, D)."""
        if x.ndim != 4 or x.shape[1:3] != (self.rows, self.columns):
            raise ShapeError(
                f"gfnet_filter: x must be (B, {self.rows}, {self.columns}, D), the grid that it was built "
                f"for, not {x.shape}; `resized` gives a layer for another grid"
            )
        k = ops.complex(self.real, self.imaginary)
        return ops.astype(irfft2(rfft2(x) * k, self.columns), x.dtype)

    def resized(self, rows: int, columns: int) -> GFNetFilter:
        """A new layer for the grid (rows, columns), with K interpolated between its corners."""
        layer = GFNetFilter(self.real.shape[2], grid=(rows, columns), dtype=self.real.dtype)
        down, across = between(self.rows, rows), between(self.real.shape[1], columns // 2 + 1)
        for new, old in ((layer.real, self.real), (layer.imaginary, self.imaginary)):
            new.data = np.einsum("ir,jc,rcd->ijd", down, across, old.numpy()).astype(old.dtype)
        return layer


def between(size: int, out: int) -> Array:
    """The matrix (out, size) that reads `size` numbers at `out` even places from the first to the last."""
    place = np.linspace(0.0, size - 1.0, out)
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(size)))


def build(case: Case, rows: int = 0, columns: int = 0) -> GFNetFilter:
    grid = (rows or case.t, columns or case.w)
    layer, rng = GFNetFilter(case.dim, grid=grid, dtype="float64"), case.rng()
    for p in layer.parameters():
        p.data = rng.standard_normal(p.shape)
    return layer


@identity("K = 1 is the identity")
def identity_filter(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.image()
    layer.real.data, layer.imaginary.data = np.ones(layer.real.shape), np.zeros(layer.real.shape)
    return layer(x), x


@identity("a circular depthwise convolution with k = irfft2(K), on even, odd and oblong grids, for every K")
def convolution(case: Case) -> tuple[Any, Any]:
    rng, left, right = case.rng(), [], []
    for rows, columns in ((case.t, case.w), (2, 4), (3, 5), (4, 3), (5, 2)):
        layer = build(case, rows, columns)
        x = rng.standard_normal((case.b, rows, columns, case.dim))
        y = np.zeros(x.shape)
        spectrum = layer.real.data + 1j * layer.imaginary.data
        k = np.fft.irfft2(spectrum, s=(rows, columns), axes=(0, 1))
        for i, j in np.ndindex(rows, columns):
            y += k[i, j] * np.roll(x, (i, j), axis=(1, 2))
        left.append(layer(Tensor(x)).data.reshape(-1))
        right.append(y.reshape(-1))
    return np.concatenate(left), np.concatenate(right)


@identity("the definition with transforms that keep lengths, as sums over waves")
def definition(case: Case) -> tuple[Tensor, Any]:
    layer, x = build(case), case.image()
    # F_jk = exp(-2 pi i jk / n) / sqrt(n) along rows and columns.
    f, g = (
        np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) / np.sqrt(n) for n in (case.t, case.w)
    )
    half = case.w // 2 + 1
    product = np.einsum("ir,jc,brcd->bijd", f, g[:half], x.data) * (
        layer.real.data + 1j * layer.imaginary.data
    )
    lines = np.einsum("ir,bijd->brjd", f.conj(), product)
    # Columns 0 and C/2 are their own conjugates; the others stand for two.
    weight = np.array([1.0 if 2 * j in (0, case.w) else 2.0 for j in range(half)])
    return layer(x), np.einsum("jc,j,brjd->brcd", g[:half].conj(), weight, lines).real


@identity("K zero but for 1 at the constant wave: every cell becomes the mean of its channel")
def mean(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.image()
    layer.real.data, layer.imaginary.data = np.zeros(layer.real.shape), np.zeros(layer.real.shape)
    layer.real.data[0, 0] = 1.0
    return layer(x), x.mean(axis=(1, 2), keepdims=True) + 0.0 * x


@identity("gradients: x gets dy times conj(K) in waves; K the waves of x and dy, halved where self-conjugate")
def gradients(case: Case) -> tuple[Any, Any]:
    layer, x, rng = build(case), case.image(), case.rng()
    dy = rng.standard_normal(x.shape)
    v = Tensor(x.data, requires_grad=True)
    layer(v).backward(dy)
    axes, s = (1, 2), (case.t, case.w)
    k = np.fft.irfft2(layer.real.data + 1j * layer.imaginary.data, s=s, axes=(0, 1))
    waves = np.fft.rfft2(dy, axes=axes)
    dx = np.fft.irfft2(waves * np.conj(np.fft.rfft2(k, axes=(0, 1))), s=s, axes=axes)
    dk = np.fft.irfft2(waves * np.conj(np.fft.rfft2(x.data, axes=axes)), s=s, axes=axes).sum(axis=0)
    weight = np.array([1.0 if 2 * j in (0, case.w) else 2.0 for j in range(case.w // 2 + 1)])
    dk = np.fft.rfft2(dk, axes=(0, 1)) * weight[:, None] / (case.t * case.w)
    grads = [g.data for g in (v.grad, layer.real.grad, layer.imaginary.grad) if g is not None]
    found = np.concatenate([g.reshape(-1) for g in grads])
    return found, np.concatenate([a.reshape(-1) for a in (dx, dk.real, dk.imag)])


@identity("resized to its own grid a layer stays as it is; a filter of one number for all waves does on any")
def resizing(case: Case) -> tuple[Any, Any]:
    layer, x = build(case), case.image()
    same = layer.resized(case.t, case.w)(x).data
    layer.real.data, layer.imaginary.data = np.full(layer.real.shape, 3.0), np.zeros(layer.real.shape)
    larger = Tensor(case.rng().standard_normal((case.b, case.t + 1, 2 * case.w, case.dim)))
    y = layer.resized(case.t + 1, 2 * case.w)(larger).data
    left = np.concatenate([same.reshape(-1), y.reshape(-1)])
    return left, np.concatenate([build(case)(x).data.reshape(-1), 3.0 * larger.data.reshape(-1)])

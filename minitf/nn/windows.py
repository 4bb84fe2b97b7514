"""Windows of a grid of tokens, and the relative positions inside them: what window attentions share."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor

from . import init
from .module import Module, Parameter


def partition(x: Tensor, rows: int, columns: int) -> Tensor:
    """Cut (B, R, C, D) into windows (B, R/rows * C/columns, rows * columns, D), row by row inside and out."""
    b, r, c, d = x.shape
    x = ops.reshape(x, (b, r // rows, rows, c // columns, columns, d))
    return ops.reshape(ops.permute_dims(x, (0, 1, 3, 2, 4, 5)), (b, -1, rows * columns, d))


def unpartition(windows: Tensor, shape: tuple[int, int], rows: int, columns: int) -> Tensor:
    """Put windows (B, M, rows * columns, D) back on a grid (B, *shape, D): undoes `partition`."""
    b, _, _, d = windows.shape
    r, c = shape
    x = windows.reshape((b, r // rows, c // columns, rows, columns, d))
    return x.permute_dims((0, 1, 3, 2, 4, 5)).reshape((b, r, c, d))


def offsets(rows: int, columns: int) -> tuple[Array, Array]:
    """Rows and columns between every two cells of a window, query less key: two arrays (n, n)."""
    r, c = np.divmod(np.arange(rows * columns), columns)
    return r[:, None] - r, c[:, None] - c


class RelativeBias2D(Module):
    """One learned number for each head and each offset (query less key) inside a window.

    Parameter: table ((2 rows - 1)(2 columns - 1), H), normal with std 0.02.
    """

    def __init__(self, rows: int, columns: int, heads: int, seed: init.Seed = 0, dtype: Any = "float32"):
        self.rows, self.columns = rows, columns
        shape = ((2 * rows - 1) * (2 * columns - 1), heads)
        self.table = Parameter(init.normal(seed, shape, 0.02, dtype))

    def forward(self, rows: int | None = None, columns: int | None = None) -> Tensor:
        """The bias (H, n, n) of a window of these sides, at most those of the table; n = rows * columns."""
        dr, dc = offsets(rows or self.rows, columns or self.columns)
        return self.lookup(dr, dc)

    def lookup(self, dr: Array, dc: Array) -> Tensor:
        """The bias (H, ...) of offsets (...)."""
        index = (dr + self.rows - 1) * (2 * self.columns - 1) + dc + self.columns - 1
        return ops.moveaxis(self.table[index], -1, 0)

"""Embedding and the ordered sum of experts: launchers of rows.cu, whose head explains the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel, Unfit

from .cross_entropy import INTEGERS
from .module import blocks, launch, refusal


def summed(y: Any, weights: Any, names: Any, count: int) -> Any:
    """(count, F): row m is the sum of the rows of y that name m, times their weights where given."""
    import cupy

    # Equal names keep their order.
    places = cupy.argsort(names, kind="stable").astype("int64")
    starts = cupy.searchsorted(names[places], cupy.arange(count + 1)).astype("int64")
    out = cupy.empty((count, y.shape[1]), y.dtype)
    grid = (count, blocks(y.shape[1], 128))
    launch("rows", "sum_rows", y.dtype, grid, 128, y, weights, places, starts, out, y.shape[1])
    return out


def supports_embedding(ids: Any, table: Any) -> str | None:
    if why := refusal("ids", ids, INTEGERS) or refusal("table", table):
        return why
    if table.ndim != 2 or not table.size:
        return f"the table is {table.shape}; the kernel takes two axes, none of them empty"
    return None if ids.size * table.shape[1] < 2**31 else "the result has more than 2^31 - 1 elements"


def forward_embedding(ids: Any, table: Any) -> tuple[Any, Any]:
    import cupy

    names, rows = cupy.ascontiguousarray(ids).reshape(-1).astype("int64"), cupy.ascontiguousarray(table)
    y, wrong = cupy.empty((len(names), rows.shape[1]), rows.dtype), cupy.zeros(1, "int32")
    grid = min(blocks(y.size, 256), 65535)
    launch("rows", "gather", rows.dtype, grid, 256, names, rows, y, len(names), *rows.shape, wrong)
    # The only wait for the card: a wrong id must be an error, not a number.
    if int(wrong[0]):
        raise Unfit("an id is out of range")
    return y.reshape(*ids.shape, rows.shape[1]), (names, table.shape)


def vjp_embedding(residuals: Any, g: Any) -> tuple[None, Any]:
    import cupy

    names, (height, width) = residuals
    return None, summed(cupy.ascontiguousarray(g).reshape(-1, width), None, names, height)


def supports_combine(y: Any, rows: Any, weights: Any, n: Any) -> str | None:
    if (
        why := refusal("y", y)
        or refusal("rows", rows, INTEGERS)
        or refusal("weights", weights, (str(y.dtype),))
    ):
        return why
    if y.ndim != 2 or not y.size or rows.shape != y.shape[:1] or weights.shape != y.shape[:1]:
        return f"y {y.shape}, rows {rows.shape} and weights {weights.shape} must be (P, F), (P,) and (P,)"
    if not isinstance(n, int | np.integer) or not 0 < n * y.shape[1] < 2**31:
        return "n is no integer above 0, or the result has more than 2^31 - 1 elements"
    return None if int(rows.min()) >= 0 and int(rows.max()) < n else f"rows must lie in 0..{n - 1}"


def forward_combine(y: Any, rows: Any, weights: Any, n: int) -> tuple[Any, Any]:
    import cupy

    y, weights = cupy.ascontiguousarray(y), cupy.ascontiguousarray(weights)
    names = cupy.ascontiguousarray(rows).astype("int64")
    return summed(y, weights, names, int(n)), (y, names, weights)


def vjp_combine(residuals: Any, g: Any) -> tuple[Any, None, Any, None]:
    import cupy

    y, names, weights = residuals
    dy, dweights, g = cupy.empty_like(y), cupy.empty_like(weights), cupy.ascontiguousarray(g)
    launch("rows", "spread", y.dtype, blocks(len(y), 4), 128, g, names, y, weights, dy, dweights, *y.shape)
    return dy, None, dweights, None


KERNELS = {
    "embedding": Kernel(forward_embedding, vjp_embedding, supports_embedding),
    "combine_rows": Kernel(forward_combine, vjp_combine, supports_combine),
}

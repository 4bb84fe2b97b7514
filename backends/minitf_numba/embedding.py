"""Rows of a table, and the sum of the gradients that arrive at each row.

    forward      y[i] = table[ids[i]]                          by blocks of rows of y
    backward     dtable = 0,  dtable[ids[i]] += g[i]           by blocks of columns, i in order in each

Blocks of columns share no element, and every row receives its gradients in the order of the ids: the result
does not depend on the number of threads. The zeros are memory that the system hands out untouched, so rows
that no id names cost nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel, Unfit

from .runtime import CORES, contiguous, inner, jit, parts, share_out


@inner
def gather(p, cut, ids, table, y, wrongs):  # type: ignore[no-untyped-def]
    """y[i] = table[ids[i]]; how many ids are out of range."""
    n, wrong = len(ids), 0
    for i in range(n * p // cut, n * (p + 1) // cut):
        if ids[i] < 0 or ids[i] >= len(table):
            wrong += 1
            continue
        row, out = table[ids[i]], y[i]
        for j in range(len(out)):
            out[j] = row[j]
    wrongs[p] = wrong


@inner
def scatter(p, cut, ids, g, dtable):  # type: ignore[no-untyped-def]
    """dtable[ids[i]] += g[i] in some of the columns, cut at whole cache lines."""
    width = g.shape[1]
    lo = width * p // cut // 16 * 16
    hi = width if p == cut - 1 else width * (p + 1) // cut // 16 * 16
    for i in range(len(ids)):
        row, out = g[i, lo:hi], dtable[ids[i], lo:hi]
        for j in range(len(row)):
            out[j] += row[j]


@jit
def forward_all(cut, ids, table, y, wrongs):  # type: ignore[no-untyped-def]
    share_out(gather, cut, ids, table, y, wrongs)


@jit
def backward_all(cut, ids, g, dtable):  # type: ignore[no-untyped-def]
    share_out(scatter, cut, ids, g, dtable)


def supports(ids: Any, table: Any) -> str | None:
    if type(ids) is not np.ndarray or type(table) is not np.ndarray:
        return "the ids or the table are not a NumPy array"
    if table.dtype not in (np.float32, np.float64):
        return f"the table is {table.dtype}; the kernel takes float32 and float64"
    if ids.dtype.kind not in "iu":
        return f"the ids are {ids.dtype}, not integers"
    if table.ndim != 2:
        return f"the table is {table.shape}; the kernel takes two axes"
    return None


def forward(ids: Any, table: Any) -> tuple[Any, Any]:
    flat = contiguous(ids).reshape(-1).astype(np.int64, copy=False)
    rows = contiguous(table)
    y = np.empty((len(flat), rows.shape[1]), rows.dtype)
    cut = parts(len(flat), y.size)
    wrongs = np.empty(cut, np.int64)
    forward_all(cut, flat, rows, y, wrongs)
    if wrongs.any():
        raise Unfit("an id is out of range")
    return y.reshape(*ids.shape, rows.shape[1]), (flat, table.shape)


def vjp(residuals: Any, g: Any) -> tuple[None, Any]:
    ids, shape = residuals
    rows = contiguous(g).reshape(len(ids), shape[1])
    dtable = np.zeros(shape, g.dtype)
    backward_all(parts(shape[1] // 16, 2 * rows.size, CORES), ids, rows, dtable)
    return None, dtable


KERNELS = {"embedding": Kernel(forward, vjp, supports)}

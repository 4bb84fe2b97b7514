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

from .runtime import CORES, contiguous, jit, parallel_jit, parts, prange


@jit
def gather(lo, hi, ids, table, y):  # type: ignore[no-untyped-def]
    """y[i] = table[ids[i]]; how many ids are out of range."""
    wrong = 0
    for i in range(lo, hi):
        if ids[i] < 0 or ids[i] >= len(table):
            wrong += 1
            continue
        row, out = table[ids[i]], y[i]
        for j in range(len(out)):
            out[j] = row[j]
    return wrong


@jit
def scatter(lo, hi, ids, g, dtable):  # type: ignore[no-untyped-def]
    """dtable[ids[i]] += g[i] in the columns from lo to hi."""
    for i in range(len(ids)):
        row, out = g[i, lo:hi], dtable[ids[i], lo:hi]
        for j in range(len(row)):
            out[j] += row[j]


@parallel_jit
def forward_all(cut, ids, table, y, wrongs):  # type: ignore[no-untyped-def]
    n = len(ids)
    if cut == 1:
        wrongs[0] = gather(np.int64(0), n, ids, table, y)
    else:
        for part in prange(cut):
            p = np.int64(part)
            wrongs[p] = gather(n * p // cut, n * (p + 1) // cut, ids, table, y)


@parallel_jit
def backward_all(cut, ids, g, dtable):  # type: ignore[no-untyped-def]
    width = g.shape[1]
    if cut == 1:
        scatter(np.int64(0), width, ids, g, dtable)
    else:
        # Cuts at whole cache lines.
        for part in prange(cut):
            p = np.int64(part)
            lo = width * p // cut // 16 * 16
            hi = width if p == cut - 1 else width * (p + 1) // cut // 16 * 16
            scatter(lo, hi, ids, g, dtable)


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

"""The loss of a classifier without its probabilities: one pass over the logits forward, one backward.

    for each row:                               forward, in pieces that fit the first cache
        top, total = max(z), sum exp(z - top)   a larger top rescales the total so far by exp(old - new)
        loss += log(total) + top - z[target]    by blocks of rows, then in their order
    for each row:                               backward
        dz = exp(z - top) / total * g / count,  dz[target] -= g / count

Kept are two numbers a row, top and total: z - top is exact for the largest logits, unlike z - log-sum-exp. A
target out of range is found on the way, and the definition says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel, Unfit

from .runtime import contiguous, inner, jit, parts, share_out
from .vector import exp

PIECE = 2048


# A NaN may be lost here; the sum of the exponentials finds it.
@inner(fastmath={"nnan", "nsz"})
def largest(x):  # type: ignore[no-untyped-def]
    top = x[0]
    for i in range(1, len(x)):
        top = x[i] if x[i] > top else top
    return top


@inner(fastmath={"reassoc", "contract"})
def exponentials(x, top):  # type: ignore[no-untyped-def]
    """The sum of exp(x - top)."""
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += exp(x[i] - top)
    return total


@inner
def forward_rows(p, cut, z, target, ignore, skip, tops, totals, losses, wrongs):  # type: ignore[no-untyped-def]
    """The sum of the losses of these rows, and how many targets are out of range."""
    (n, width), c = z.shape, z.dtype.type
    loss, wrong = 0.0, 0
    for i in range(n * p // cut, n * (p + 1) // cut):
        t = target[i]
        if skip and t == ignore:
            tops[i], totals[i] = 0, 0
            continue
        if t < 0 or t >= width:
            wrong += 1
            continue
        top, total = c(-np.inf), 0.0
        for start in range(0, width, PIECE):
            piece = z[i, start : min(start + PIECE, width)]
            new = max(top, largest(piece))
            # Rows without a finite largest logit are summed as they are.
            shift = new if np.isfinite(new) else c(0)
            total = total * exp(top - shift) + exponentials(piece, shift)
            top = new
        tops[i] = top if np.isfinite(top) else c(0)
        totals[i] = total
        loss += np.log(total) + (float(tops[i]) - float(z[i, t]))
    losses[p], wrongs[p] = loss, wrong


@inner(fastmath={"contract"})
def backward_rows(p, cut, scale, z, target, ignore, skip, tops, totals, dz):  # type: ignore[no-untyped-def]
    n = len(z)
    for i in range(n * p // cut, n * (p + 1) // cut):
        row, out, top = z[i], dz[i], tops[i]
        if skip and target[i] == ignore:
            out[:] = 0
            continue
        share = z.dtype.type(scale / totals[i] if totals[i] != 0.0 else 0.0)
        for j in range(len(row)):
            out[j] = exp(row[j] - top) * share
        out[target[i]] -= z.dtype.type(scale)


@jit
def forward_all(cut, z, target, ignore, skip, tops, totals, losses, wrongs):  # type: ignore[no-untyped-def]
    share_out(forward_rows, cut, z, target, ignore, skip, tops, totals, losses, wrongs)


@jit
def backward_all(cut, scale, z, target, ignore, skip, tops, totals, dz):  # type: ignore[no-untyped-def]
    share_out(backward_rows, cut, scale, z, target, ignore, skip, tops, totals, dz)


def supports(logits: Any, targets: Any, ignore: Any) -> str | None:
    if type(logits) is not np.ndarray or type(targets) is not np.ndarray:
        return "the logits or the targets are not a NumPy array"
    if logits.dtype not in (np.float32, np.float64):
        return f"the logits are {logits.dtype}; the kernel takes float32 and float64"
    if targets.dtype.kind not in "iu" or targets.shape != logits.shape[:-1] or not logits.ndim:
        return f"targets {targets.dtype} {targets.shape} do not fit logits {logits.shape}"
    if ignore is not None and not isinstance(ignore, int | np.integer):
        return "ignore is not an integer"
    return None if logits.size else "an axis is empty"


def forward(logits: Any, targets: Any, ignore: int | None) -> tuple[Any, Any]:
    z = contiguous(logits).reshape(-1, logits.shape[-1])
    target = contiguous(targets).reshape(-1).astype(np.int64, copy=False)
    skip, gap = ignore is not None, -1 if ignore is None else int(ignore)
    cut = parts(len(z), 4 * z.size)
    tops, totals = np.empty(len(z), z.dtype), np.empty(len(z))
    losses, wrongs = np.empty(cut), np.empty(cut, np.int64)
    forward_all(cut, z, target, gap, skip, tops, totals, losses, wrongs)
    if wrongs.any():
        raise Unfit("a target is out of range")
    count = max(len(z) if not skip else np.count_nonzero(target != gap), 1)
    loss = np.asarray(losses.sum() / count, z.dtype)
    return loss, (z, target, gap, skip, tops, totals, count, logits.shape)


def vjp(residuals: Any, g: Any) -> tuple[Any, None, None]:
    z, target, gap, skip, tops, totals, count, shape = residuals
    dz = np.empty_like(z)
    cut = parts(len(z), 4 * z.size)
    backward_all(cut, float(g) / count, z, target, gap, skip, tops, totals, dz)
    return dz.reshape(shape), None, None


KERNELS = {"cross_entropy": Kernel(forward, vjp, supports)}

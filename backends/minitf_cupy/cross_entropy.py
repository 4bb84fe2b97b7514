"""The loss of a classifier: launchers of cross_entropy.cu, whose head explains the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel, Unfit

from .module import launch, refusal, summed_in


def supports(logits: Any, targets: Any, ignore: Any) -> str | None:
    if why := refusal("logits", logits) or refusal("targets", targets, INTEGERS):
        return why
    if not logits.ndim or targets.shape != logits.shape[:-1]:
        return f"targets {targets.shape} do not fit logits {logits.shape}"
    if ignore is not None and not isinstance(ignore, int | np.integer):
        return "ignore is not an integer"
    return None if logits.size else "an axis is empty"


INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")


def forward(logits: Any, targets: Any, ignore: int | None) -> tuple[Any, Any]:
    import cupy

    z = cupy.ascontiguousarray(logits).reshape(-1, logits.shape[-1])
    goal = cupy.ascontiguousarray(targets).reshape(-1).astype("int64")
    skip, gap = ignore is not None, np.int64(0 if ignore is None else ignore)
    tops, totals, losses = (cupy.empty(len(z), summed_in(z.dtype)) for _ in range(3))
    wrong = cupy.zeros(1, "int32")
    args = (z, goal, z.shape[1], skip, gap, tops, totals, losses, wrong)
    launch("cross_entropy", "cross_entropy", z.dtype, len(z), 256, *args)
    # The only wait for the card: a wrong target must be an error, not a number.
    if int(wrong[0]):
        raise Unfit("a target is out of range")
    count = cupy.maximum((goal != gap).sum(), 1) if skip else cupy.asarray(len(z))
    loss = (losses.sum() / count).astype(z.dtype)
    return loss, (z, goal, skip, gap, tops, totals, count, logits.shape)


def vjp(residuals: Any, g: Any) -> tuple[Any, None, None]:
    import cupy

    z, goal, skip, gap, tops, totals, count, shape = residuals
    scale, dz = (g.astype(tops.dtype) / count).astype(tops.dtype), cupy.empty_like(z)
    args = (scale, z, goal, z.shape[1], skip, gap, tops, totals, dz)
    launch("cross_entropy", "cross_entropy_backward", z.dtype, len(z), 256, *args)
    return dz.reshape(shape), None, None


KERNELS = {"cross_entropy": Kernel(forward, vjp, supports)}

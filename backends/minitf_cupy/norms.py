"""Layer and RMS normalisation: launchers of norms.cu, whose head explains the kernels."""

from __future__ import annotations

from typing import Any

from minitf.ops.kernels import Kernel

from .module import blocks, launch, refusal, summed_in


def reasons(x: Any, weight: Any, bias: Any = None) -> str | None:
    """None, or why the kernel cannot take these arrays."""
    if why := refusal("x", x):
        return why
    if x.ndim == 0 or x.shape[-1] == 0:
        return "the last axis is empty"
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and (why := refusal(name, part, (str(x.dtype),))):
            return why
        if part is not None and part.shape != x.shape[-1:]:
            return f"{name} must be {x.shape[-1:]}"
    return None


def run(x: Any, weight: Any, bias: Any, eps: float, centre: bool) -> tuple[Any, Any]:
    import cupy

    width = x.shape[-1]
    rows = cupy.ascontiguousarray(x).reshape(-1, width)
    w, b = (None if part is None else cupy.ascontiguousarray(part) for part in (weight, bias))
    n, y = len(rows), cupy.empty_like(rows)
    mean, rstd = (cupy.empty(n, summed_in(x.dtype)) for _ in range(2))
    args = (rows, w, b, y, mean, rstd, n, width, float(eps), centre)
    launch("norms", "norm_forward", x.dtype, blocks(n, 4), 128, *args)
    return y.reshape(x.shape), (rows, w, mean, rstd, centre)


def back(residuals: Any, g: Any) -> tuple[Any, Any, Any]:
    import cupy

    rows, w, mean, rstd, centre = residuals
    n, width = rows.shape
    grad, dx = cupy.ascontiguousarray(g), cupy.empty_like(rows)
    launch("norms", "norm_backward", rows.dtype, blocks(n, 4), 128, grad, rows, w, mean, rstd, dx, n, width, centre)
    # At most 256 shares, of at least 64 rows.
    share = max(64, blocks(n, 256))
    grid = (blocks(width, 32), blocks(n, share))
    dw, db = (cupy.empty((grid[1], width), mean.dtype) for _ in range(2))
    launch("norms", "norm_backward_params", rows.dtype, grid, 256, grad, rows, mean, rstd, dw, db, n, width, share)
    return dx.reshape(g.shape), dw.sum(axis=0).astype(rows.dtype), db.sum(axis=0).astype(rows.dtype)


KERNELS = {
    "layer_norm": Kernel(
        forward=lambda x, weight, bias, eps: run(x, weight, bias, eps, True),
        vjp=lambda residuals, g: (*back(residuals, g), None),
        supports=lambda x, weight, bias, eps: reasons(x, weight, bias),
    ),
    "rms_norm": Kernel(
        forward=lambda x, weight, eps: run(x, weight, None, eps, False),
        vjp=lambda residuals, g: (*back(residuals, g)[:2], None),
        supports=lambda x, weight, eps: reasons(x, weight),
    ),
}

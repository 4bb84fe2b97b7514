"""Layer and RMS normalisation: launchers of norms.cu, whose head explains the kernels."""

from __future__ import annotations

from typing import Any

from minitf.ops.kernels import Kernel

from .module import blocks, launch, refusal, summed_in


def reasons(x: Any, r: Any, weight: Any, bias: Any = None) -> str | None:
    """None, or why the kernel cannot take these arrays."""
    if why := refusal("x", x):
        return why
    if x.ndim == 0 or x.shape[-1] == 0:
        return "the last axis is empty"
    for name, part, shape in (
        ("r", r, x.shape),
        ("weight", weight, x.shape[-1:]),
        ("bias", bias, x.shape[-1:]),
    ):
        if part is not None and (why := refusal(name, part, (str(x.dtype),))):
            return why
        if part is not None and part.shape != shape:
            return f"{name} {part.shape} must be {shape}"
    return None


def run(x: Any, r: Any, weight: Any, bias: Any, eps: float, centre: bool) -> tuple[Any, Any, Any]:
    """y, s and what the backward needs."""
    import cupy

    x, r, weight, bias = (None if a is None else cupy.ascontiguousarray(a) for a in (x, r, weight, bias))
    y, s = cupy.empty_like(x), x if r is None else cupy.empty_like(x)
    width = x.shape[-1]
    n = x.size // width
    mean, rstd = (cupy.empty(n, summed_in(x.dtype)) for _ in range(2))
    args = (x, r, weight, bias, None if r is None else s, y, mean, rstd, n, width, float(eps), centre)
    launch("norms", "norm_forward", x.dtype, blocks(n, 4), 128, *args)
    return y, s, (s, weight, mean, rstd, centre)


def run_one(x: Any, weight: Any, bias: Any, eps: float, centre: bool) -> tuple[Any, Any]:
    y, _, residuals = run(x, None, weight, bias, eps, centre)
    return y, residuals


def run_sum(x: Any, r: Any, weight: Any, bias: Any, eps: float, centre: bool) -> tuple[Any, Any]:
    y, s, residuals = run(x, r, weight, bias, eps, centre)
    return (y, s), residuals


def back(residuals: Any, g: Any, gs: Any = None) -> tuple[Any, Any, Any]:
    """The gradients of x, weight and bias, for the gradients of y and, where given, of s."""
    import cupy

    s, w, mean, rstd, centre = residuals
    n, width = len(mean), s.shape[-1]
    g, dx = cupy.ascontiguousarray(g), cupy.empty_like(s)
    gs = None if gs is None else cupy.ascontiguousarray(gs)
    args = (g, gs, s, w, mean, rstd, dx, n, width, centre)
    launch("norms", "norm_backward", s.dtype, blocks(n, 4), 128, *args)
    # At most 256 shares, of at least 64 rows.
    share = max(64, blocks(n, 256))
    grid = (blocks(width, 32), blocks(n, share))
    dw, db = (cupy.empty((grid[1], width), mean.dtype) for _ in range(2))
    launch("norms", "norm_backward_params", s.dtype, grid, 256, g, s, mean, rstd, dw, db, n, width, share)
    return dx, dw.sum(axis=0).astype(s.dtype), db.sum(axis=0).astype(s.dtype)


def back_sum(residuals: Any, g: Any) -> tuple[Any, Any, Any, Any]:
    """As `back`, for [gradient of y, gradient of s], either None."""
    import cupy

    gy, gs = g
    if gy is None:
        zeros = cupy.zeros(gs.shape[-1:], gs.dtype)
        return gs, gs, zeros, zeros
    dx, dweight, dbias = back(residuals, gy, gs)
    return dx, dx, dweight, dbias


KERNELS = {
    "layer_norm": Kernel(
        forward=lambda x, weight, bias, eps: run_one(x, weight, bias, eps, True),
        vjp=lambda residuals, g: (*back(residuals, g), None),
        supports=lambda x, weight, bias, eps: reasons(x, None, weight, bias),
    ),
    "rms_norm": Kernel(
        forward=lambda x, weight, eps: run_one(x, weight, None, eps, False),
        vjp=lambda residuals, g: (*back(residuals, g)[:2], None),
        supports=lambda x, weight, eps: reasons(x, None, weight),
    ),
    "add_layer_norm": Kernel(
        forward=lambda x, r, weight, bias, eps: run_sum(x, r, weight, bias, eps, True),
        vjp=lambda residuals, g: (*back_sum(residuals, g), None),
        supports=lambda x, r, weight, bias, eps: "r is None" if r is None else reasons(x, r, weight, bias),
    ),
    "add_rms_norm": Kernel(
        forward=lambda x, r, weight, eps: run_sum(x, r, weight, None, eps, False),
        vjp=lambda residuals, g: (*back_sum(residuals, g)[:3], None),
        supports=lambda x, r, weight, eps: "r is None" if r is None else reasons(x, r, weight),
    ),
}

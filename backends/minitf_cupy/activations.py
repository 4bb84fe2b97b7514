"""Activations: launchers of activations.cu, whose head explains the kernels."""

from __future__ import annotations

from typing import Any

from minitf.ops.kernels import Kernel

from .module import blocks, launch, refusal, summed_in

# In the order of activations.cu.
KINDS = ("identity", "relu", "relu2", "gelu", "gelu_tanh", "silu", "sigmoid")
FORMS = {"none": "gelu", "tanh": "gelu_tanh"}
THREADS = 256


def reasons(x: Any, bias: Any = None, gate: Any = None, kind: Any = "silu") -> str | None:
    """None, or why the kernel cannot take these arguments."""
    if why := refusal("x", x):
        return why
    if kind not in KINDS:
        return f"kind {kind!r} is none of {', '.join(KINDS)}"
    for name, part, shape in (("bias", bias, x.shape[-1:]), ("b", gate, x.shape)):
        if part is not None and (why := refusal(name, part, (str(x.dtype),))):
            return why
        if part is not None and (part.shape != shape or not shape):
            return f"{name} {part.shape} must be {shape}"
    return None


def run(x: Any, bias: Any, gate: Any, kind: str) -> tuple[Any, Any]:
    import cupy

    shape = x.shape
    x, bias, gate = (None if a is None else cupy.ascontiguousarray(a) for a in (x, bias, gate))
    y, width, number = cupy.empty_like(x), x.shape[-1] if x.ndim else 1, KINDS.index(kind)
    grid = min(blocks(x.size, THREADS), 65535)
    launch("activations", "activate", x.dtype, grid, THREADS, x, bias, gate, y, x.size, width, number)
    return y.reshape(shape), (x, bias, gate, grid, width, number)


def back(residuals: Any, g: Any) -> tuple[Any, Any]:
    """The gradients of x and of what it gates."""
    import cupy

    x, bias, gate, grid, width, number = residuals
    shape = g.shape
    g, dx, dgate = cupy.ascontiguousarray(g), cupy.empty_like(x), None if gate is None else cupy.empty_like(x)
    args = (g, x, bias, gate, dx, dgate, x.size, width, number)
    launch("activations", "activate_backward", x.dtype, grid, THREADS, *args)
    return dx.reshape(shape), None if dgate is None else dgate.reshape(shape)


def back_with_bias(residuals: Any, g: Any) -> tuple[Any, Any, None]:
    dx: Any = back(residuals, g)[0]
    bias = residuals[1]
    if bias is None:
        return dx, None, None
    total = dx.reshape(-1, len(bias)).sum(axis=0, dtype=summed_in(dx.dtype)) if dx.size else 0 * bias
    return dx, total.astype(dx.dtype), None


KERNELS = {
    "gelu": Kernel(
        forward=lambda x, approximate: run(x, None, None, FORMS[approximate]),
        vjp=lambda residuals, g: (back(residuals, g)[0], None),
        supports=lambda x, approximate: reasons(x, kind=FORMS.get(approximate, approximate)),
    ),
    "silu": Kernel(
        forward=lambda x: run(x, None, None, "silu"),
        vjp=lambda residuals, g: (back(residuals, g)[0],),
        supports=reasons,
    ),
    "bias_activation": Kernel(
        forward=lambda x, bias, kind: run(x, bias, None, kind),
        vjp=back_with_bias,
        supports=lambda x, bias, kind: reasons(x, bias, kind=kind),
    ),
    "gated_activation": Kernel(
        forward=lambda a, b, kind: run(a, None, b, kind),
        vjp=lambda residuals, g: (*back(residuals, g), None),
        supports=lambda a, b, kind: reasons(a, gate=b, kind=kind) or ("b is None" if b is None else None),
    ),
}

"""Activations of feed-forward networks, alone or after a bias, in one pass over memory.

    for each piece of a row that fits the first cache:
        forward      s = x + b,  y = act(s)
        backward     ds = g act'(s),  db += ds       by blocks of rows, then in their order

Nothing but the inputs is kept: act and act' are computed again from them, which costs less than reading a
stored array. Each activation has one plain loop for its values and one for its slopes; LLVM makes vector code
of them. gelu_tanh: 1 + tanh(u) = 2 sigmoid(2u), so it is x sigmoid(2u) and loses no digits far below zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .runtime import contiguous, inner, jit, parts, share_out
from .vector import erf, exp, sigmoid

# Elements of a piece: three of them in float64 fit the first cache.
PIECE = 1024
# The numbers under which compiled code knows the activations.
KINDS = {
    name: i for i, name in enumerate(("identity", "relu", "relu2", "gelu", "gelu_tanh", "silu", "sigmoid"))
}
RELU, RELU2, GELU, GELU_TANH, SILU, SIGMOID = range(1, 7)
# Elementary operations of one element.
COST = 8


@inner(fastmath={"contract"})
def values(kind, x, y):  # type: ignore[no-untyped-def]
    """y = act(x)."""
    c = x.dtype.type
    n = len(x)
    if kind == RELU:
        for i in range(n):
            y[i] = c(0) if x[i] <= c(0) else x[i]
    elif kind == RELU2:
        for i in range(n):
            r = c(0) if x[i] <= c(0) else x[i]
            y[i] = r * r
    elif kind == GELU:
        for i in range(n):
            y[i] = c(0.5) * x[i] * (c(1) + erf(x[i] * c(0.7071067811865476)))
    elif kind == GELU_TANH:
        for i in range(n):
            u = c(1.5957691216057308) * (x[i] + c(0.044715) * (x[i] * x[i] * x[i]))
            y[i] = x[i] * sigmoid(u)
    elif kind == SILU:
        for i in range(n):
            y[i] = x[i] * sigmoid(x[i])
    elif kind == SIGMOID:
        for i in range(n):
            y[i] = sigmoid(x[i])
    else:
        for i in range(n):
            y[i] = x[i]


@inner(fastmath={"contract"})
def slopes(kind, x, y):  # type: ignore[no-untyped-def]
    """y = act'(x)."""
    c = x.dtype.type
    n = len(x)
    if kind == RELU:
        for i in range(n):
            y[i] = c(1) if x[i] > c(0) else c(0)
    elif kind == RELU2:
        for i in range(n):
            y[i] = c(2) * x[i] if x[i] > c(0) else c(0)
    elif kind == GELU:
        for i in range(n):
            density = c(0.3989422804014327) * exp(c(-0.5) * x[i] * x[i])
            y[i] = c(0.5) * (c(1) + erf(x[i] * c(0.7071067811865476))) + x[i] * density
    elif kind == GELU_TANH:
        for i in range(n):
            square = x[i] * x[i]
            s = sigmoid(c(1.5957691216057308) * (x[i] + c(0.044715) * (square * x[i])))
            # The slope of u is limited where s (1 - s) is 0, so that it cannot overflow.
            square = c(1e6) if square > c(1e6) else square
            y[i] = s + x[i] * (s * (c(1) - s)) * (c(1.5957691216057308) * (c(1) + c(0.134145) * square))
    elif kind == SILU:
        for i in range(n):
            s = sigmoid(x[i])
            y[i] = s + x[i] * (s * (c(1) - s))
    elif kind == SIGMOID:
        for i in range(n):
            s = sigmoid(x[i])
            y[i] = s * (c(1) - s)
    else:
        for i in range(n):
            y[i] = c(1)


@inner
def forward_rows(p, cut, kind, x, bias, y, buffers):  # type: ignore[no-untyped-def]
    n, width = x.shape
    buffer = buffers[p]
    for i in range(n * p // cut, n * (p + 1) // cut):
        for start in range(0, width, PIECE):
            stop = min(start + PIECE, width)
            if len(bias):
                s, b, r = buffer[: stop - start], bias[start:stop], x[i, start:stop]
                for j in range(len(s)):
                    s[j] = r[j] + b[j]
                values(kind, s, y[i, start:stop])
            else:
                values(kind, x[i, start:stop], y[i, start:stop])


@inner
def backward_rows(p, cut, kind, g, x, bias, dx, dbiases, buffers):  # type: ignore[no-untyped-def]
    n, width = x.shape
    dbias, buffer = dbiases[p], buffers[p]
    dbias[:] = 0
    for i in range(n * p // cut, n * (p + 1) // cut):
        for start in range(0, width, PIECE):
            stop = min(start + PIECE, width)
            d, h, r = buffer[1, : stop - start], g[i, start:stop], x[i, start:stop]
            out = dx[i, start:stop]
            if len(bias):
                s, b, total = buffer[0, : stop - start], bias[start:stop], dbias[start:stop]
                for j in range(len(s)):
                    s[j] = r[j] + b[j]
                slopes(kind, s, d)
                for j in range(len(d)):
                    out[j] = h[j] * d[j]
                    total[j] += out[j]
            else:
                slopes(kind, r, d)
                for j in range(len(d)):
                    out[j] = h[j] * d[j]


@jit
def forward_all(cut, kind, x, bias, y, buffers):  # type: ignore[no-untyped-def]
    share_out(forward_rows, cut, kind, x, bias, y, buffers)


@jit
def backward_all(cut, kind, g, x, bias, dx, dbiases, buffers):  # type: ignore[no-untyped-def]
    share_out(backward_rows, cut, kind, g, x, bias, dx, dbiases, buffers)


def array_reasons(x: Any) -> str | None:
    """None, or why no kernel takes this array."""
    if type(x) is not np.ndarray:
        return "x is not a NumPy array"
    if x.dtype not in (np.float32, np.float64):
        return f"x is {x.dtype}; the kernel takes float32 and float64"
    return None


def reasons(x: Any, bias: Any, kind: Any) -> str | None:
    """None, or why the kernel of `bias_activation` cannot take these arguments."""
    if why := array_reasons(x):
        return why
    if kind not in KINDS:
        return f"the kernel does not know the activation {kind!r}"
    if bias is None:
        return None
    if type(bias) is not np.ndarray or bias.dtype != x.dtype or not x.ndim or bias.shape != x.shape[-1:]:
        return f"the bias must be {x.shape[-1:]} of {x.dtype}"
    return None


def run(x: Any, bias: Any, kind: str) -> tuple[Any, Any]:
    if bias is None:
        # Pieces of one long row are rows: they can be shared out.
        flat = contiguous(x).reshape(-1)
        width = PIECE if flat.size % PIECE == 0 else x.shape[-1] if x.ndim else 1
        rows, b = flat.reshape(-1, width or 1), np.empty(0, x.dtype)
    else:
        rows, b = contiguous(x).reshape(-1, len(bias) or 1), contiguous(bias)
    y = np.empty_like(rows)
    cut = parts(len(rows), COST * rows.size)
    forward_all(cut, KINDS[kind], rows, b, y, np.empty((cut, PIECE), x.dtype))
    return y.reshape(x.shape), (rows, b, KINDS[kind])


def back(residuals: Any, g: Any) -> tuple[Any, Any]:
    rows, b, kind = residuals
    h = contiguous(g).reshape(rows.shape)
    dx = np.empty_like(rows)
    cut = parts(len(rows), 2 * COST * rows.size)
    dbias = np.empty((cut, len(b)))
    backward_all(cut, kind, h, rows, b, dx, dbias, np.empty((cut, 2, PIECE), g.dtype))
    return dx.reshape(g.shape), dbias.sum(0).astype(b.dtype)


FORMS = {"none": "gelu", "tanh": "gelu_tanh"}

KERNELS = {
    "gelu": Kernel(
        forward=lambda x, approximate: run(x, None, FORMS[approximate]),
        vjp=lambda residuals, g: (back(residuals, g)[0], None),
        supports=lambda x, approximate: reasons(x, None, FORMS.get(approximate, approximate)),
    ),
    "silu": Kernel(
        forward=lambda x: run(x, None, "silu"),
        vjp=lambda residuals, g: back(residuals, g)[:1],
        supports=lambda x: array_reasons(x),
    ),
    "bias_activation": Kernel(
        forward=run,
        vjp=lambda residuals, g: (*back(residuals, g), None),
        supports=reasons,
    ),
}

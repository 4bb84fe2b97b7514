"""Gated activations, y = act(a) b, in one pass over memory.

    for each piece that fits the first cache:
        forward      y = act(a) b
        backward     da = g b act'(a),  db = g act(a)        act and act' from a again

The loops of `activations` give act and act' of a piece.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel

from .activations import COST, KINDS, PIECE, array_reasons, slopes, values
from .runtime import contiguous, inner, jit, parts, share_out


@inner
def forward_gate(p, cut, kind, a, b, y):  # type: ignore[no-untyped-def]
    lo, hi = len(a) * p // cut, len(a) * (p + 1) // cut
    for start in range(lo, hi, PIECE):
        stop = min(start + PIECE, hi)
        up, out = b[start:stop], y[start:stop]
        values(kind, a[start:stop], out)
        for j in range(len(out)):
            out[j] *= up[j]


@inner
def backward_gate(p, cut, kind, g, a, b, da, db):  # type: ignore[no-untyped-def]
    lo, hi = len(a) * p // cut, len(a) * (p + 1) // cut
    for start in range(lo, hi, PIECE):
        stop = min(start + PIECE, hi)
        h, up, first, second = g[start:stop], b[start:stop], da[start:stop], db[start:stop]
        values(kind, a[start:stop], second)
        slopes(kind, a[start:stop], first)
        for j in range(len(h)):
            second[j] *= h[j]
            first[j] *= h[j] * up[j]


@jit
def forward_gates(cut, kind, a, b, y):  # type: ignore[no-untyped-def]
    share_out(forward_gate, cut, kind, a, b, y)


@jit
def backward_gates(cut, kind, g, a, b, da, db):  # type: ignore[no-untyped-def]
    share_out(backward_gate, cut, kind, g, a, b, da, db)


def gate_reasons(a: Any, b: Any, kind: Any) -> str | None:
    """None, or why the kernel of `gated_activation` cannot take these arguments."""
    if why := array_reasons(a) or array_reasons(b):
        return why
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"a is {a.dtype} {a.shape} and b {b.dtype} {b.shape}; the kernel takes two alike"
    return None if kind in KINDS else f"the kernel does not know the activation {kind!r}"


def gated(a: Any, b: Any, kind: str) -> tuple[Any, Any]:
    gate, up = contiguous(a).reshape(-1), contiguous(b).reshape(-1)
    y = np.empty_like(gate)
    forward_gates(parts(len(gate), COST * len(gate)), KINDS[kind], gate, up, y)
    return y.reshape(a.shape), (gate, up, KINDS[kind])


def gated_back(residuals: Any, g: Any) -> tuple[Any, Any, None]:
    gate, up, kind = residuals
    da, db = np.empty_like(gate), np.empty_like(gate)
    h = contiguous(g).reshape(-1)
    backward_gates(parts(len(gate), 3 * COST * len(gate)), kind, h, gate, up, da, db)
    return da.reshape(g.shape), db.reshape(g.shape), None


KERNELS = {"gated_activation": Kernel(gated, gated_back, gate_reasons)}

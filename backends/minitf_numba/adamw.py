"""AdamW in one pass over each parameter instead of twelve.

    for each element:   p, m, v and g are read once; p, m and v written once

The operations, their order and their precision are those of the definition (`minitf.train.AdamW.update`), and
no two of them are contracted into one: the bits are the same. Scalars are rounded to the array's precision
first, as NumPy does. An array above the serial limit is cut into parts by its size.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .runtime import inner, jit, parts, share_out

SINGLE, DOUBLE = np.dtype("float32"), np.dtype("float64")


@inner
def update_span(part, cut, p, g, m, v, scalars):  # type: ignore[no-untyped-def]
    c = p.dtype.type
    keep, new1, b2, new2 = c(scalars[0]), c(scalars[1]), c(scalars[2]), c(scalars[3])
    root, eps, rate = c(scalars[4]), c(scalars[5]), c(scalars[6])
    lo, hi = len(p) * part // cut, len(p) * (part + 1) // cut
    # Counted from 0: with an unknown first index Numba allows for negative ones, and LLVM does not vectorise.
    p, g, m, v = p[lo:hi], g[lo:hi], m[lo:hi], v[lo:hi]
    for i in range(len(p)):
        mi = m[i] + (g[i] - m[i]) * new1
        vi = v[i] * b2 + g[i] * g[i] * new2
        m[i], v[i] = mi, vi
        p[i] = p[i] * keep - mi / (np.sqrt(vi) * root + eps) * rate


@jit
def update_all(cut, p, g, m, v, scalars):  # type: ignore[no-untyped-def]
    share_out(update_span, cut, p, g, m, v, scalars)


def adamw(moving: list[tuple[Any, Any, dict[str, Any]]], options: dict[str, Any]) -> list[Any]:
    """Update what fits in place, each (parameter, gradient, state); return the rest."""
    (b1, b2), lr, eps = options["betas"], options["lr"], options["eps"]
    keep, rest, before = 1.0 - lr * options["weight_decay"], [], None
    for item in moving:
        p, g, state = item
        m, v, t = state["m"], state["v"], state["step"]
        kind = p.dtype
        if not (
            kind in (SINGLE, DOUBLE)
            and type(p) is type(g) is np.ndarray
            and g.dtype == kind
            and p.flags.carray
            and m.flags.carray
            and v.flags.carray
        ):
            rest.append(item)
            continue
        if t != before:
            before = t
            scalars = np.array(
                [keep, 1.0 - b1, b2, 1.0 - b2, 1.0 / math.sqrt(1.0 - b2**t), eps, lr / (1.0 - b1**t)]
            )
        n = p.size
        update_all(parts(n, 8 * n), p.reshape(-1), g.reshape(-1), m.reshape(-1), v.reshape(-1), scalars)
    return rest

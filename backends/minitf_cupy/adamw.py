"""AdamW: launcher of adamw.cu, whose head explains the kernel."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from .module import launch, refusal

SHARE = 4096
Item = tuple[Any, Any, dict[str, Any]]


def fits(p: Any, g: Any, state: dict[str, Any]) -> bool:
    """Whether the kernel takes this parameter: all four arrays on the card, of one type, in C order."""
    arrays = (p, g, state["m"], state["v"])
    if refusal("p", p, ("float32", "float64")) or any(refusal("", a, (str(p.dtype),)) for a in arrays):
        return False
    return p.size > 0 and all(a.flags.c_contiguous and a.shape == p.shape for a in arrays)


def adamw(moving: list[Item], options: dict[str, Any]) -> list[Item]:
    """Update what fits in place, each (parameter, gradient, state); return the rest."""
    rest: list[Item] = []
    together: dict[tuple[str, int], list[Item]] = {}
    for item in moving:
        if fits(*item):
            together.setdefault((str(item[0].dtype), item[2]["step"]), []).append(item)
        else:
            rest.append(item)
    for (dtype, t), items in together.items():
        move(items, dtype, t, options)
    return rest


def move(items: list[Item], dtype: str, t: int, options: dict[str, Any]) -> None:
    import cupy

    rows = [(*(a.data.ptr for a in (p, g, state["m"], state["v"])), p.size) for p, g, state in items]
    shares = shares_of(cupy.cuda.Device().id, tuple(p.size for p, _, _ in items))
    (b1, b2), lr = options["betas"], options["lr"]
    keep, root = 1.0 - lr * options["weight_decay"], 1.0 / math.sqrt(1.0 - b2**t)
    scalars = (keep, 1.0 - b1, b2, 1.0 - b2, root, options["eps"], lr / (1.0 - b1**t))
    launch(
        "adamw", "adamw", dtype, len(shares), 256,
        cupy.asarray(np.array(rows, np.uint64)), shares, *map(float, scalars),
    )  # fmt: skip


@lru_cache(maxsize=16)
def shares_of(device: int, sizes: tuple[int, ...]) -> Any:
    """(blocks, 2): the parameter and the first element of every block, on the card."""
    import cupy

    found = [(i, start) for i, size in enumerate(sizes) for start in range(0, size, SHARE)]
    return cupy.asarray(np.array(found, np.int32))

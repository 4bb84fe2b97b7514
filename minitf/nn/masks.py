"""Masks for mixers that can hide keys, but not single pairs of query and key."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.engine import Array, ShapeError, Tensor, array_module


def visible_keys(mask: Any, batch: int, n: int) -> Array | None:
    """A mask of keys as (B, 1, N, 1), True = visible, to multiply heads (B, H, N, d) with; None stays None.

    Args:
        mask: boolean, broadcastable to (B, 1, 1, N).

    Raises:
        ShapeError: a mask that differs between queries or heads. TypeError: not boolean.
    """
    if mask is None:
        return None
    visible = mask.data if isinstance(mask, Tensor) else array_module(mask).asarray(mask)
    if visible.dtype != bool:
        raise TypeError(f"the mask must be boolean, True = visible, not {visible.dtype}")
    if visible.ndim < 1 or visible.ndim > 4 or any(size != 1 for size in visible.shape[-3:-1]):
        raise ShapeError(f"this mixer hides keys only: the mask must be (B, 1, 1, N), not {visible.shape}")
    return np.broadcast_to(visible, (batch, 1, 1, n)).swapaxes(-1, -2)

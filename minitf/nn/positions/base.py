"""The three places where a position scheme can act. Each scheme overrides one and leaves the others alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.engine import Array, Tensor, to_device

from ..module import Module


class Position(Module):
    """No positions: what the schemes start from."""

    def embed(self, x: Tensor, positions: Any) -> Tensor:
        """Change the token embeddings (B, N, D), at positions (N,) or (B, N)."""
        return x

    def rotate(self, x: Tensor, positions: Any) -> Tensor:
        """Change queries or keys (B, H, N, d), at positions (N,) or (B, N)."""
        return x

    def bias(self, queries: Any, keys: Any) -> Any:
        """What is added to the scores, (H, Nq, Nk) or (B, H, Nq, Nk), for two lists of positions; or None."""
        return None


def as_positions(positions: Any) -> Array:
    """Positions as an integer or floating-point array of NumPy: angles and distances are made on the CPU."""
    return np.asarray(to_device(positions.data if isinstance(positions, Tensor) else positions, "cpu"))

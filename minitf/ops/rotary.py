"""Rotary positions: the rotation itself, which queries and keys share."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from minitf.engine import Array, ShapeError, Tensor, array_module, to_device

from .elementwise import Like
from .kernels import kernelized
from .shape import concat, stack


@kernelized("rope")
def rope(x: Like, positions: Any, base: float = 10000.0, interleaved: bool = True) -> Tensor:
    """Rotate pairs of coordinates by angles that grow with the position (Su et al., 2021, equation 34).

        angle = n * base^(-2j/d),   (a, b) -> (a cos - b sin, a sin + b cos)   for pair j of d/2

    Args:
        x: queries or keys (B, H, N, d), d even.
        positions: numbers (N,) or (B, N).
        base: the longest wavelength is 2 pi base^((d-2)/d).
        interleaved: pair (2j, 2j+1) as in the paper; False pairs (j, j + d/2).

    Returns:
        (B, H, N, d). Dot products of two rotated vectors depend on the difference of their positions only.

    Raises:
        ShapeError: d is odd, or there is not one position for each of the N vectors.
    """
    d = x.shape[-1]
    places = np.asarray(to_device(positions.data if isinstance(positions, Tensor) else positions, "cpu"))
    if d % 2 or places.shape[-1:] != x.shape[-2:-1]:
        raise ShapeError(
            f"rope: x {x.shape} needs an even last axis and positions {places.shape} one number for each row"
        )
    cos, sin = rotation(places.tobytes(), places.shape, places.dtype.str, d, base, x.dtype.str)
    xp = array_module(x.data if isinstance(x, Tensor) else x)
    cos, sin = xp.asarray(cos), xp.asarray(sin)
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : d // 2], x[..., d // 2 :])
    first, second = a * cos - b * sin, a * sin + b * cos
    if interleaved:
        return stack([first, second], axis=-1).reshape(x.shape)
    return concat([first, second], axis=-1)


@functools.lru_cache(maxsize=64)
def rotation(
    positions: bytes, shape: tuple[int, ...], kind: str, d: int, base: float, dtype: str
) -> tuple[Array, Array]:
    """cos and sin of every angle: (N, d/2), or (B, 1, N, d/2) for positions (B, N)."""
    n = np.frombuffer(positions, dtype=kind).reshape(shape).astype(np.float64)
    # Angles in float64: in float32 they lose whole turns at long range.
    angles = n[..., None] * base ** (-np.arange(0, d, 2) / d)
    angles = angles if len(shape) == 1 else angles[:, None]
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)

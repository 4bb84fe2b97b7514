"""Normalisation layers, one file each."""

from collections.abc import Callable
from typing import Any

from ..module import Module
from .layernorm import LayerNorm
from .rmsnorm import RMSNorm

NORMS: dict[str, Callable[..., Module]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


def as_norm(norm: str, dim: int, **options: Any) -> Any:
    """A new norm of that name over `dim` features.

    Raises:
        ValueError: unknown name; the message lists what there is.
    """
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; choose one of: {', '.join(NORMS)}")
    return NORMS[norm](dim, **options)


__all__ = ["NORMS", "LayerNorm", "RMSNorm", "as_norm"]

"""Numba kernels for the CPU. Importing compiles nothing: a file is imported when its kernel is needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from minitf.ops.kernels import LazyKernels

# Operation -> the file here that has its kernel.
FILES = {
    "add_layer_norm": "norms",
    "add_rms_norm": "norms",
    "attention_with_logsumexp": "attention",
    "bias_activation": "activations",
    "block_sparse_attention": "block_sparse_attention",
    "combine_rows": "experts",
    "conv": "convolution",
    "cross_entropy": "cross_entropy",
    "delta_rule": "delta_rule",
    "diagonal_scan": "diagonal_scan",
    "embedding": "embedding",
    "gated_activation": "gates",
    "gated_scan": "gated_scan",
    "gelu": "activations",
    "grouped_matmul": "experts",
    "keyed_dropout": "dropout",
    "layer_norm": "norms",
    "linear": "linear",
    "rms_norm": "norms",
    "rope": "rope",
    "selective_scan": "selective_scan",
    "silu": "activations",
    "softmax_attention": "attention",
    "topk": "topk",
    "window_attention": "window_attention",
}


KERNELS = LazyKernels(__name__, FILES)


@cache
def unavailable() -> str | None:
    """None, or a sentence saying why no kernel can run here."""
    try:
        import numba  # noqa: F401
    except Exception as error:
        return (
            f"Numba cannot be imported ({type(error).__name__}: {error}); install it with `pip install numba`"
        )
    return None


def update(optimiser: str) -> Callable[..., Any] | None:
    """The update of an optimiser in one pass, by the name of its class, or None."""
    if optimiser != "AdamW":
        return None
    from .adamw import adamw

    return adamw


def enter() -> None:
    """The backend is in use from here on."""
    from .memory import keep
    from .threads import enter

    keep()
    enter()


def leave() -> None:
    """The backend is no longer in use."""
    from .threads import leave

    leave()

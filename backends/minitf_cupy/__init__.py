"""CUDA kernels for CuPy arrays. Importing compiles nothing and does not import CuPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from minitf.ops.kernels import LazyKernels

# Operation -> the file here that has its launcher.
FILES = {
    "add_layer_norm": "norms",
    "add_rms_norm": "norms",
    "attention_with_logsumexp": "attention",
    "bias_activation": "activations",
    "block_sparse_attention": "sparse_attention",
    "combine_rows": "rows",
    "conv": "convolution",
    "cross_entropy": "cross_entropy",
    "delta_rule": "matrix_scan",
    "diagonal_scan": "diagonal_scan",
    "embedding": "rows",
    "gated_activation": "activations",
    "gated_scan": "matrix_scan",
    "gelu": "activations",
    "keyed_dropout": "dropout",
    "layer_norm": "norms",
    "rms_norm": "norms",
    "rope": "rope",
    "selective_scan": "selective_scan",
    "silu": "activations",
    "softmax_attention": "attention",
    "topk": "topk",
    "window_attention": "sparse_attention",
}


KERNELS = LazyKernels(__name__, FILES)


@cache
def unavailable() -> str | None:
    """None, or a sentence saying why no kernel can run here."""
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return f"CuPy cannot be used ({type(error).__name__}: {error}); `minitf doctor` says how to mend it"
    return None


def update(optimiser: str) -> Callable[..., Any] | None:
    """The update of an optimiser in one pass, by the name of its class, or None."""
    if optimiser != "AdamW":
        return None
    from .adamw import adamw

    return adamw

"""Numba kernels for the CPU. Importing compiles nothing: a file is imported when its kernel is needed."""

from __future__ import annotations

from functools import cache

from minitf.ops.kernels import LazyKernels

# Operation -> the file here that has its kernel.
FILES = {
    "attention_with_logsumexp": "attention",
    "bias_activation": "activations",
    "block_sparse_attention": "block_sparse_attention",
    "combine_rows": "experts",
    "conv": "convolution",
    "cross_entropy": "cross_entropy",
    "diagonal_scan": "diagonal_scan",
    "embedding": "embedding",
    "gated_activation": "activations",
    "gated_scan": "gated_scan",
    "gelu": "activations",
    "grouped_matmul": "experts",
    "layer_norm": "norms",
    "linear": "linear",
    "rms_norm": "norms",
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


def enter() -> None:
    """The backend is in use from here on."""
    from .threads import enter

    enter()


def leave() -> None:
    """The backend is no longer in use."""
    from .threads import leave

    leave()

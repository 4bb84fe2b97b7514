"""CUDA kernels for CuPy arrays. Importing compiles nothing and does not import CuPy."""

from __future__ import annotations

from functools import cache

from minitf.ops.kernels import LazyKernels

# Operation -> the file here that has its launcher.
FILES = {
    "attention_with_logsumexp": "attention",
    "bias_activation": "activations",
    "combine_rows": "rows",
    "cross_entropy": "cross_entropy",
    "embedding": "rows",
    "gated_activation": "activations",
    "gelu": "activations",
    "layer_norm": "norms",
    "rms_norm": "norms",
    "rope": "rope",
    "silu": "activations",
    "softmax_attention": "attention",
    "topk": "topk",
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

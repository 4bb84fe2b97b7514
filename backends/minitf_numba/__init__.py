"""Numba kernels for the CPU. Importing compiles nothing: a kernel compiles on first use and is cached."""

from .norms import LAYER_NORM, RMS_NORM

KERNELS = {"layer_norm": LAYER_NORM, "rms_norm": RMS_NORM}


def unavailable() -> str | None:
    """None, or a sentence saying why no kernel can run here."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"Numba cannot be imported ({error}); install it with `pip install numba`"
    return None

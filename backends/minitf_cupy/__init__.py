"""The CuPy backend. It has no kernels of its own: CuPy arrays run the plain definitions."""

from functools import cache
from typing import Any

KERNELS: dict[str, Any] = {}


@cache
def unavailable() -> str | None:
    """None, or a sentence saying why no kernel can run here."""
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return f"CuPy cannot be used ({type(error).__name__}: {error}); `minitf doctor` says how to mend it"
    return None

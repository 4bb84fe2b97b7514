"""Memory that is used again.

The system zeroes every page of fresh memory at its first touch, which costs a training step about as much as
its elementwise work. glibc gives large arrays back to the system when they are freed; told not to, it hands
the same pages to the next array. Other C libraries are left alone.
"""

from __future__ import annotations

import ctypes
from functools import cache

# Names of mallopt's parameters in glibc, and the largest sizes that it takes.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT = 2**31 - 1
SIZES = (2**30, 2**25)


@cache
def keep() -> bool:
    """Tell glibc, once and for this process, to keep freed memory; False where that is not possible."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return any(mallopt(MMAP_THRESHOLD, size) for size in SIZES) and bool(mallopt(TRIM_THRESHOLD, KEPT))

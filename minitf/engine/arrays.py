"""Which library owns an array: NumPy, or CuPy if the caller has already imported it."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
from numpy import ndarray

from .errors import DeviceError

# Bytes up to which a fingerprint is the whole contents.
SMALL = 2048

# An array is a numpy.ndarray or a cupy.ndarray. They answer to the same names.
Array = Any


def array_module(a: Array) -> ModuleType:
    """Return the library that owns `a`: `cupy` for a CuPy array, else `numpy`."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(a, cupy.ndarray):
        return cupy
    return np


def device_of(a: Array) -> str:
    """Return where the array lives: "cpu" or "cuda"."""
    return "cpu" if array_module(a) is np else "cuda"


def to_device(a: Array, device: str) -> Array:
    """Return `a` on `device` ("cpu" or "cuda"), without a copy if it is there already.

    Raises:
        DeviceError: an unknown device, or "cuda" where CuPy cannot be used.
    """
    if device not in ("cpu", "cuda"):
        raise DeviceError(f"unknown device {device!r}; write 'cpu' or 'cuda'")
    if device == device_of(a):
        return a
    if device == "cpu":
        return a.get()
    try:
        import cupy

        return cupy.asarray(a)
    except Exception as error:
        raise DeviceError(
            f"cannot move to 'cuda': {error}. Install CuPy for your CUDA version, "
            "for example `pip install minitf[cuda12]`, and run `minitf doctor`"
        ) from error


def fingerprint(a: Array) -> bytes | None:
    """Return bytes that change when the array's contents change.

    Up to 2 KiB the contents themselves; above that about 64 samples, spread evenly and including the first
    element, so that noticing a change costs next to nothing. Arrays outside NumPy are not watched: None.
    """
    if type(a) is not ndarray:
        return None
    if a.nbytes <= SMALL:
        return a.tobytes()
    flat = a.reshape(-1) if a.flags.c_contiguous else a.flat
    return flat[:: a.size // 64].tobytes()

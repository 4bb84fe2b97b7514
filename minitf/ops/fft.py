"""Discrete Fourier transforms along one axis: y_k = sum_n x_n exp(-2 pi i k n / N)."""

# Bodies work on plain arrays; `primitive` makes of them operations on tensors, which is what the types say.
# mypy: disable-error-code="empty-body, return-value"

from __future__ import annotations

import numpy as np

from minitf.engine import Tensor, primitive

from .elementwise import Like


@primitive
def fft(x: Like, axis: int = -1) -> Tensor:
    """The discrete Fourier transform of a real or complex x; complex, same shape."""
    return np.fft.fft(x, axis=axis)


@primitive
def ifft(x: Like, axis: int = -1) -> Tensor:
    """The inverse of `fft`, with the factor 1/N."""
    return np.fft.ifft(x, axis=axis)


@primitive
def rfft(x: Like, axis: int = -1) -> Tensor:
    """The first N // 2 + 1 bins of the transform of a real x; the others are their conjugates."""
    return np.fft.rfft(x, axis=axis)


@primitive
def irfft(x: Like, n: int, axis: int = -1) -> Tensor:
    """The inverse of `rfft`: a real array with `n` elements along `axis`, from n // 2 + 1 bins."""
    if x.shape[axis] != n // 2 + 1:
        raise ValueError(f"{n} elements need {n // 2 + 1} bins, axis {axis} has {x.shape[axis]}")
    return np.fft.irfft(x, n=n, axis=axis)

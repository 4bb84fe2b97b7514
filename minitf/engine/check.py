"""Compares derivatives with central differences, in a random direction under a random cotangent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import MinitfError
from .state import F
from .tape import Tensor
from .transforms import vjp


class GradientError(MinitfError, AssertionError):
    """A derivative that differs from the central difference."""


def check_grad(
    f: Callable[..., Any],
    *args: Any,
    order: int = 2,
    seed: int = 0,
    step: float = 1e-6,
    tolerance: float = 1e-6,
) -> float:
    """Check the derivatives of `f` at `args` against central differences.

    For each order, the gradient of <c, f(x)> along a random direction v is compared with
    (<c, f(x + h v)> - <c, f(x - h v)>) / 2h. The gradient itself is the function checked for the next order.

    Args:
        f: gives a tensor, or a tuple of them, from tensors.
        args: float64 or complex128 arrays, all of them differentiated.
        order: how many times to differentiate.
        seed: for directions and cotangents.
        step: h, the distance of the difference.
        tolerance: the largest error, relative to max(1, |derivative|).

    Returns:
        The largest relative error seen.

    Raises:
        GradientError: an error above the tolerance, or a NaN.
    """
    rng = np.random.default_rng(seed)
    args = tuple(np.asarray(a.data if isinstance(a, Tensor) else a) for a in args)
    for i, a in enumerate(args):
        if a.dtype not in (np.float64, np.complex128):
            raise TypeError(f"check_grad: argument {i} is {a.dtype}; differences need float64 or complex128")
    worst = 0.0
    for level in range(1, order + 1):
        f = _flat(f)
        y = f(*map(Tensor, args))
        c = _random(rng, y)
        v = [_random(rng, a) for a in args]

        def along(h: float, f: Any = f, c: Any = c, v: Any = v) -> float:
            moved = [Tensor(np.asarray(a + h * d)) for a, d in zip(args, v, strict=True)]
            return _dot(c, f(*moved).data)

        numeric = (along(step) - along(-step)) / (2 * step)
        slope = _gradient(f, c)
        exact = sum(_dot(d, g.data) for d, g in zip(v, slope(*map(Tensor, args)), strict=True))
        error = abs(exact - numeric) / max(1.0, abs(numeric))
        if not error <= tolerance:
            raise GradientError(
                f"order {level}: derivative {exact:.12g}, central difference {numeric:.12g}, relative error "
                f"{error:.2g} above {tolerance:.0e}; shapes {[a.shape for a in args]}, seed={seed}"
            )
        worst = max(worst, error)
        f = slope
    return worst


def _flat(f: Callable[..., Any]) -> Callable[..., Tensor]:
    """`f` with several outputs joined into one vector."""

    def run(*args: Any) -> Tensor:
        y = f(*args)
        if not isinstance(y, tuple | list):
            return y
        return F.concat_parts(*[F.reshape(part, (-1,)) for part in y])

    return run


def _gradient(f: Callable[..., Tensor], c: Any) -> Callable[..., tuple[Tensor, ...]]:
    def run(*args: Any) -> tuple[Tensor, ...]:
        fresh = [a if a.requires_grad else Tensor(a.data, requires_grad=True) for a in args]
        # Passing tensors that need a gradient makes the result differentiable again.
        _, pull = vjp(f, *fresh)
        return pull(c)

    return run


def _random(rng: np.random.Generator, like: Any) -> Any:
    out = rng.standard_normal(like.shape)
    return np.asarray(out + 1j * rng.standard_normal(like.shape) if like.dtype.kind == "c" else out)


def _dot(a: Any, b: Any) -> float:
    """The real inner product: Re(conj(a) b), summed."""
    return float(np.real(np.sum(np.conj(a) * b)))

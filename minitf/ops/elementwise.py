"""Elementwise operations. Arguments broadcast as in NumPy; the result has the broadcast shape.

Tensors must agree in floating-point precision; plain arrays and Python numbers follow the tensors.
"""

# Bodies work on plain arrays; `primitive` makes of them operations on tensors, which is what the types say.
# mypy: disable-error-code="empty-body, return-value"

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf.engine import Array, Tensor, array_module, primitive, ufunc_operation

from .kernels import kernelized

# What an operation accepts: a tensor, an array, or a number.
Like = Any


@ufunc_operation(np.add)
def add(a: Like, b: Like) -> Tensor:
    """a + b."""


@ufunc_operation(np.subtract)
def subtract(a: Like, b: Like) -> Tensor:
    """a - b."""


@ufunc_operation(np.multiply)
def multiply(a: Like, b: Like) -> Tensor:
    """a * b."""


@ufunc_operation(np.true_divide)
def divide(a: Like, b: Like) -> Tensor:
    """a / b."""


@ufunc_operation(np.negative)
def negative(x: Like) -> Tensor:
    """-x."""


@ufunc_operation(np.power)
def pow(a: Like, b: Like) -> Tensor:
    """a to the power b. The slope at b = 0 is 0."""


@ufunc_operation(lambda x: 1.0 / x)
def reciprocal(x: Like) -> Tensor:
    """1 / x."""


@ufunc_operation(np.square)
def square(x: Like) -> Tensor:
    """x * x."""


@ufunc_operation(np.sqrt)
def sqrt(x: Like) -> Tensor:
    """The square root of x."""


@primitive
def rsqrt(x: Like) -> Tensor:
    """1 / sqrt(x)."""
    return np.reciprocal(np.sqrt(x))


@ufunc_operation(np.abs)
def abs(x: Like) -> Tensor:
    """The absolute value; for complex x, the modulus. The slope at 0 is 0 for real x."""


@ufunc_operation(np.sign)
def sign(x: Like) -> Tensor:
    """-1, 0 or 1. A constant to differentiation."""


@ufunc_operation(np.floor)
def floor(x: Like) -> Tensor:
    """The largest integer not above x. A constant to differentiation."""


@ufunc_operation(np.ceil)
def ceil(x: Like) -> Tensor:
    """The smallest integer not below x. A constant to differentiation."""


@primitive
def round(x: Like) -> Tensor:
    """The nearest integer, halves to even. A constant to differentiation."""
    return np.round(x)


@ufunc_operation(np.floor_divide)
def floor_divide(a: Like, b: Like) -> Tensor:
    """floor(a / b). A constant to differentiation."""


@ufunc_operation(np.remainder)
def remainder(a: Like, b: Like) -> Tensor:
    """a - b * floor(a / b). A constant to differentiation."""


@ufunc_operation(np.maximum)
def maximum(a: Like, b: Like) -> Tensor:
    """The larger of a and b. Where they are equal, each gets half of the gradient."""


@ufunc_operation(np.minimum)
def minimum(a: Like, b: Like) -> Tensor:
    """The smaller of a and b. Where they are equal, each gets half of the gradient."""


def clip(x: Like, min: float | None = None, max: float | None = None) -> Tensor:
    """x limited to [min, max] (numbers; None: no limit). The gradient passes on the closed interval.

    Raises:
        ValueError: min > max.
    """
    if min is not None and max is not None and min > max:
        raise ValueError(f"clip: min={min} is above max={max}")
    if min is not None:
        x = where(x < min, min, x)
    if max is not None:
        x = where(x > max, max, x)
    return x


@primitive
def where(condition: Like, a: Like, b: Like) -> Tensor:
    """a where the boolean `condition` is true, else b."""
    if isinstance(condition, bool):
        # CuPy wants an array.
        condition = array_module(b if isinstance(a, float | int) else a).asarray(condition)
    return np.where(condition, a, b)


@ufunc_operation(np.exp)
def exp(x: Like) -> Tensor:
    """e to the power x."""


@ufunc_operation(np.expm1)
def expm1(x: Like) -> Tensor:
    """exp(x) - 1, accurate near 0."""


@ufunc_operation(np.log)
def log(x: Like) -> Tensor:
    """The natural logarithm."""


@ufunc_operation(np.log1p)
def log1p(x: Like) -> Tensor:
    """log(1 + x), accurate near 0."""


@ufunc_operation(np.log2)
def log2(x: Like) -> Tensor:
    """The logarithm to base 2."""


@ufunc_operation(np.logaddexp)
def logaddexp(a: Like, b: Like) -> Tensor:
    """log(exp(a) + exp(b)) without overflow."""


@ufunc_operation(np.sin)
def sin(x: Like) -> Tensor:
    """The sine of x in radians."""


@ufunc_operation(np.cos)
def cos(x: Like) -> Tensor:
    """The cosine of x in radians."""


@ufunc_operation(np.tan)
def tan(x: Like) -> Tensor:
    """The tangent of x in radians."""


@ufunc_operation(np.arcsin)
def asin(x: Like) -> Tensor:
    """The inverse sine, in radians, for x in [-1, 1]."""


@ufunc_operation(np.arccos)
def acos(x: Like) -> Tensor:
    """The inverse cosine, in radians, for x in [-1, 1]."""


@ufunc_operation(np.arctan)
def atan(x: Like) -> Tensor:
    """The inverse tangent, in radians."""


@ufunc_operation(np.arctan2)
def atan2(a: Like, b: Like) -> Tensor:
    """The angle of the point (b, a), in radians in [-pi, pi]."""


@ufunc_operation(np.sinh)
def sinh(x: Like) -> Tensor:
    """The hyperbolic sine."""


@ufunc_operation(np.cosh)
def cosh(x: Like) -> Tensor:
    """The hyperbolic cosine."""


@ufunc_operation(np.tanh)
def tanh(x: Like) -> Tensor:
    """The hyperbolic tangent."""


@primitive
def sigmoid(x: Like) -> Tensor:
    """1 / (1 + exp(-x)). Keeps its relative precision far below zero."""
    # exp(-x) overflows to infinity exactly where the result is 0 to the last bit.
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-x))


@primitive
def softplus(x: Like) -> Tensor:
    """log(1 + exp(x)), without overflow."""
    return np.logaddexp(x, 0.0)


@primitive
def relu(x: Like) -> Tensor:
    """max(x, 0). The slope at 0 is 0."""
    return np.maximum(x, 0)


@primitive
def real(x: Like) -> Tensor:
    """The real part."""
    return np.real(x)


@primitive
def imag(x: Like) -> Tensor:
    """The imaginary part of a complex x."""
    return np.imag(x)


@ufunc_operation(np.conj)
def conj(x: Like) -> Tensor:
    """The complex conjugate."""


@primitive
def complex(re: Like, im: Like) -> Tensor:
    """re + i im, from two real arrays."""
    return re + 1j * im


@ufunc_operation(np.equal)
def equal(a: Like, b: Like) -> Tensor:
    """a == b, boolean."""


@ufunc_operation(np.not_equal)
def not_equal(a: Like, b: Like) -> Tensor:
    """a != b, boolean."""


@ufunc_operation(np.less)
def less(a: Like, b: Like) -> Tensor:
    """a < b, boolean."""


@ufunc_operation(np.less_equal)
def less_equal(a: Like, b: Like) -> Tensor:
    """a <= b, boolean."""


@ufunc_operation(np.greater)
def greater(a: Like, b: Like) -> Tensor:
    """a > b, boolean."""


@ufunc_operation(np.greater_equal)
def greater_equal(a: Like, b: Like) -> Tensor:
    """a >= b, boolean."""


@ufunc_operation(np.logical_and)
def logical_and(a: Like, b: Like) -> Tensor:
    """a and b, for booleans."""


@ufunc_operation(np.logical_or)
def logical_or(a: Like, b: Like) -> Tensor:
    """a or b, for booleans."""


@ufunc_operation(np.logical_xor)
def logical_xor(a: Like, b: Like) -> Tensor:
    """a or b but not both, for booleans."""


@ufunc_operation(np.logical_not)
def logical_not(x: Like) -> Tensor:
    """not x, for booleans."""


@ufunc_operation(np.bitwise_and)
def bitwise_and(a: Like, b: Like) -> Tensor:
    """a & b, bit by bit for integers, logical for booleans."""


@ufunc_operation(np.bitwise_or)
def bitwise_or(a: Like, b: Like) -> Tensor:
    """a | b, bit by bit for integers, logical for booleans."""


@ufunc_operation(np.bitwise_xor)
def bitwise_xor(a: Like, b: Like) -> Tensor:
    """a ^ b, bit by bit for integers, logical for booleans."""


@ufunc_operation(np.invert)
def bitwise_invert(x: Like) -> Tensor:
    """~x, bit by bit for integers, logical for booleans."""


@ufunc_operation(np.isfinite)
def isfinite(x: Like) -> Tensor:
    """True where x is neither infinite nor NaN."""


@ufunc_operation(np.isnan)
def isnan(x: Like) -> Tensor:
    """True where x is NaN."""


# Rational approximations of erf and erfc: W. J. Cody, Math. Comp. 23 (1969), 631-637. Coefficients from the
# highest power down. Below 0.46875: x P(x^2) / Q(x^2). Above: 1 - exp(-x^2) P(x) / Q(x).
ERF_P = (
    1.85777706184603153e-1, 3.16112374387056560, 113.864154151050156, 377.485237685302021,
    3209.37758913846947,
)  # fmt: skip
ERF_Q = (1.0, 23.6012909523441209, 244.024637934444173, 1282.61652607737228, 2844.23683343917062)
ERFC_P = (
    2.15311535474403846e-8, 0.564188496988670089, 8.88314979438837594, 66.1191906371416295,
    298.635138197400131, 881.952221241769090, 1712.04761263407058, 2051.07837782607147, 1230.33935479799725,
)  # fmt: skip
ERFC_Q = (
    1.0, 15.7449261107098347, 117.693950891312499, 537.181101862009858, 1621.38957456669019,
    3290.79923573345963, 4362.61909014324716, 3439.36767414372164, 1230.33935480374942,
)  # fmt: skip


def horner(coefficients: tuple[float, ...], x: Array) -> Array:
    y = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        y *= x
        y += c
    return y


@primitive
def erf(x: Like) -> Tensor:
    """The error function 2 / sqrt(pi) * integral of exp(-t^2) from 0 to x, to 4 units in the last place."""
    size = np.abs(x) * 1.0
    z = np.minimum(size, 0.46875)
    z *= z
    near = x * horner(ERF_P, z) / horner(ERF_Q, z)
    # Beyond 6 the error function is 1 to the last bit.
    t = np.minimum(size, 6.0)
    far = 1.0 - np.exp(-t * t) * horner(ERFC_P, t) / horner(ERFC_Q, t)
    return np.where(size <= 0.46875, near, np.copysign(far, x))


@kernelized("gelu")
def gelu(x: Like, approximate: str = "none") -> Tensor:
    """The Gaussian error linear unit x * Phi(x) (Hendrycks and Gimpel, 2016).

    Args:
        x: any shape.
        approximate: "none" for the exact normal distribution function Phi, "tanh" for the form
            0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) that GPT-2 was trained with.

    Raises:
        ValueError: another `approximate`.
    """
    if approximate == "none":
        return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))
    if approximate == "tanh":
        return 0.5 * x * (1.0 + tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))
    raise ValueError(f"gelu: approximate must be 'none' or 'tanh', not {approximate!r}")


@kernelized("silu")
def silu(x: Like) -> Tensor:
    """x * sigmoid(x), also called swish (Elfwing et al., 2017)."""
    return x * sigmoid(x)

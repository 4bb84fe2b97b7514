"""Functions that LLVM turns into vector code: it calls the scalar library function for `np.exp` otherwise.

    exp(x):  n = round(x / ln 2),  r = x - n ln 2 in [-ln 2 / 2, ln 2 / 2],  exp(x) = p(r) 2^n

ln 2 is subtracted in two pieces, the first with few digits, so that n ln 2 is exact. p is the Taylor
polynomial, long enough for the precision; 2^n is made by writing n into the exponent bits. Error: about one
unit in the last place. Below the smallest normal number the result is 0; exp(-inf) = 0, NaN stays NaN, and
above the largest exponent the result is inf.

    erf(x):  x P(x^2) / Q(x^2)                           float32: P and Q of degree 5, fitted on |x| < 3.93
             that below 0.46875, else 1 - exp(-x^2) P(x) / Q(x)             float64: Cody (`ops.erf`)

Error in float32: 3e-7, six units in the last place at worst, one on average.

    sigmoid(x) = 1 / (1 + exp(-x))
    tanh(x) = (exp(2|x|) - 1) / (exp(2|x|) + 1) with the sign of x
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from minitf.ops.elementwise import ERF_P, ERF_Q, ERFC_P, ERFC_Q

from .runtime import LINKED, inner

LOG2E = 1.4426950408889634


f, i = np.float32, np.int32


@inner(fastmath={"contract"})
def reduced32(x):  # type: ignore[no-untyped-def]
    """n, r and (p(r) - 1) / r."""
    n = np.floor(x * f(LOG2E) + f(0.5))
    r = x - n * f(0.693359375)
    r = r - n * f(-2.12194440e-4)
    p = f(1.0 / 5040.0)
    p = p * r + f(1.0 / 720.0)
    p = p * r + f(1.0 / 120.0)
    p = p * r + f(1.0 / 24.0)
    p = p * r + f(1.0 / 6.0)
    p = p * r + f(0.5)
    p = p * r + f(1.0)
    return n, r, p


@inner(fastmath={"contract"})
def exp32(x):  # type: ignore[no-untyped-def]
    y = f(-87.0) if x < f(-87.0) else x
    y = f(89.0) if y > f(89.0) else y
    n, r, p = reduced32(y)
    p = p * r + f(1.0)
    # Two factors, because 2^128 alone is not a float32.
    half = i(i(n) >> i(1))
    rest = i(i(n) - half)
    p = p * i((half + i(127)) << i(23)).view(f)
    p = p * i((rest + i(127)) << i(23)).view(f)
    return f(0.0) if x < f(-87.0) else p


d, j = np.float64, np.int64


@inner(fastmath={"contract"})
def reduced64(x):  # type: ignore[no-untyped-def]
    """n, r and (p(r) - 1) / r."""
    n = np.floor(x * LOG2E + 0.5)
    r = x - n * 0.6931471803691238
    r = r - n * 1.9082149292705877e-10
    p = 1.0 / 87178291200.0
    p = p * r + 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    return n, r, p


@inner(fastmath={"contract"})
def exp64(x):  # type: ignore[no-untyped-def]
    y = -708.0 if x < -708.0 else x
    y = 710.0 if y > 710.0 else y
    n, r, p = reduced64(y)
    p = p * r + 1.0
    half = j(i(n) >> i(1))
    rest = j(i(n)) - half
    p = p * j((half + j(1023)) << j(52)).view(d)
    p = p * j((rest + j(1023)) << j(52)).view(d)
    return 0.0 if x < -708.0 else p


def exp(x):  # type: ignore[no-untyped-def]
    raise NotImplementedError("only in compiled code")


@overload(exp, jit_options=LINKED)  # type: ignore[untyped-decorator]
def exp_of(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return lambda x: exp32(x)
    return lambda x: exp64(x)


@inner(fastmath={"contract"})
def erf32(x):  # type: ignore[no-untyped-def]
    y = f(4.0) if x > f(4.0) else x
    y = f(-4.0) if y < f(-4.0) else y
    z = y * y
    p = f(2.042176220129477e-06)
    p = p * z + f(0.00028479238972067833)
    p = p * z + f(0.0037787144538015127)
    p = p * z + f(0.05278749763965607)
    p = p * z + f(0.19076240062713623)
    p = p * z + f(1.1283791065216064)
    q = f(3.800538252107799e-05)
    q = q * z + f(0.0011650040978565812)
    q = q * z + f(0.014995627105236053)
    q = q * z + f(0.11424870789051056)
    q = q * z + f(0.502391517162323)
    q = q * z + f(1.0)
    r = y * p / q
    # Beyond 3.92 the error function is 1 to the last bit.
    r = f(1.0) if y > f(3.92) else r
    return f(-1.0) if y < f(-3.92) else r


@inner(fastmath={"contract"})
def erf64(x):  # type: ignore[no-untyped-def]
    size = abs(x)
    z = min(size, 0.46875)
    z = z * z
    p, q = ERF_P[0], ERF_Q[0]
    for i in range(1, 5):
        p = p * z + ERF_P[i]
        q = q * z + ERF_Q[i]
    near = x * p / q
    t = 6.0 if size > 6.0 else size
    p, q = ERFC_P[0], ERFC_Q[0]
    for i in range(1, 9):
        p = p * t + ERFC_P[i]
        q = q * t + ERFC_Q[i]
    far = 1.0 - exp64(-t * t) * p / q
    far = -far if x < 0.0 else far
    return near if size <= 0.46875 else far


def erf(x):  # type: ignore[no-untyped-def]
    raise NotImplementedError("only in compiled code")


@overload(erf, jit_options=LINKED)  # type: ignore[untyped-decorator]
def erf_of(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return lambda x: erf32(x)
    return lambda x: erf64(x)


@inner(fastmath={"contract"})
def sigmoid32(x):  # type: ignore[no-untyped-def]
    return f(1.0) / (f(1.0) + exp32(-x))


@inner(fastmath={"contract"})
def sigmoid64(x):  # type: ignore[no-untyped-def]
    return 1.0 / (1.0 + exp64(-x))


def sigmoid(x):  # type: ignore[no-untyped-def]
    raise NotImplementedError("only in compiled code")


@overload(sigmoid, jit_options=LINKED)  # type: ignore[untyped-decorator]
def sigmoid_of(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return lambda x: sigmoid32(x)
    return lambda x: sigmoid64(x)


@inner(fastmath={"contract"})
def expm1_32(x):  # type: ignore[no-untyped-def]
    n, r, p = reduced32(x)
    two = i((i(n) + i(127)) << i(23)).view(f)
    return two * (p * r) + (two - f(1.0))


@inner(fastmath={"contract"})
def expm1_64(x):  # type: ignore[no-untyped-def]
    n, r, p = reduced64(x)
    two = j((j(i(n)) + j(1023)) << j(52)).view(d)
    return two * (p * r) + (two - 1.0)


@inner(fastmath={"contract"})
def tanh32(x):  # type: ignore[no-untyped-def]
    y = abs(x)
    y = f(10.0) if y > f(10.0) else y
    e = expm1_32(y + y)
    t = e / (e + f(2.0))
    return -t if x < f(0.0) else t


@inner(fastmath={"contract"})
def tanh64(x):  # type: ignore[no-untyped-def]
    y = abs(x)
    y = 20.0 if y > 20.0 else y
    e = expm1_64(y + y)
    t = e / (e + 2.0)
    return -t if x < 0.0 else t


def tanh(x):  # type: ignore[no-untyped-def]
    """(exp(2|x|) - 1) / (exp(2|x|) + 1) with the sign of x; exp(y) - 1 keeps its digits near y = 0."""
    raise NotImplementedError("only in compiled code")


@overload(tanh, jit_options=LINKED)  # type: ignore[untyped-decorator]
def tanh_of(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return lambda x: tanh32(x)
    return lambda x: tanh64(x)

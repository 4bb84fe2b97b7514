"""The table of derivatives.

Each entry lists, for every argument of an operation, how the gradient `g` of the output becomes the gradient
of that argument:

    lambda g, y, *arguments: ...      g and y have the output's shape; None: the argument is a constant

Rules use operators and our own operations only (`F`), on arrays in an ordinary backward and on tensors when
the backward itself is to be differentiated. They never mention broadcasting: the walk sums a gradient down to
the shape of its argument. `Each` is one rule for any number of arguments; `Together` gives all gradients at
once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .arrays import Array, device_of, to_device
from .state import Each, F, Together
from .tape import Tensor

Rule = Any


def home(x: Any) -> str:
    """The device that `x` lives on."""
    return device_of(x.data if isinstance(x, Tensor) else x)


def beside(x: Any, constant: Array) -> Array:
    """A constant made with NumPy, moved to where `x` lives."""
    return to_device(constant, home(x))


def ones_at(axis: Any, x: Any) -> tuple[int, ...]:
    """The shape of `x` with size 1 on the reduced axes: what `keepdims=True` would have given."""
    if axis is None:
        return (1,) * x.ndim
    axes = (axis,) if isinstance(axis, int) else axis
    axes = {a % x.ndim for a in axes}
    return tuple(1 if i in axes else n for i, n in enumerate(x.shape))


def spread(g: Any, axis: Any, x: Any) -> Any:
    """Broadcast the gradient of a reduction back over the reduced axes of `x`."""
    return F.broadcast_to(g.reshape(ones_at(axis, x)), x.shape)


def inverse(axes: Any) -> tuple[int, ...]:
    """The permutation that undoes `axes`."""
    n = len(axes)
    back = [0] * n
    for i, a in enumerate(axes):
        back[a % n] = i
    return tuple(back)


def pow_base(g: Any, y: Any, a: Any, b: Any) -> Any:
    if isinstance(b, (int, float)):
        return g * b * F.pow(a, b - 1) if b != 0 else g * 0.0
    # At b = 0 the slope is 0, also where a = 0.
    return g * F.where(b == 0, 0.0, b * F.pow(a, F.where(b == 0, 1.0, b - 1)))


def pow_exponent(g: Any, y: Any, a: Any, b: Any) -> Any:
    # Real bases at or below 0 have no slope in the exponent; it is taken as 0.
    return g * y * F.log(F.where(a != 0 if y.dtype.kind == "c" else a > 0, a, 1.0))


def abs_rule(g: Any, y: Any, x: Any) -> Any:
    return g * F.conj(x) / F.where(y == 0, 1.0, y) if x.dtype.kind == "c" else g * F.sign(x)


def share_of_extremes(g: Any, y: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    # Tied entries share the gradient evenly.
    hit = F.astype(x == y.reshape(ones_at(axis, x)), x.dtype)
    return g.reshape(ones_at(axis, x)) * hit / F.sum(hit, axis=axis, keepdims=True)


def all_but_one(x: Any) -> Any:
    """x (..., n) -> (..., n, n): row i is x with entry i replaced by 1. Products of rows need no division."""
    return F.where(beside(x, np.eye(x.shape[-1], dtype=bool)), 1.0, F.expand_dims(x, -2))


def prod_rule(g: Any, y: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    last = F.reshape(x, (-1,)) if axis is None else F.moveaxis(x, axis, -1)
    others = F.prod(all_but_one(last), axis=-1)
    others = others.reshape(x.shape) if axis is None else F.moveaxis(others, -1, axis)
    return g.reshape(ones_at(axis, x)) * others


def cumprod_rule(g: Any, y: Any, x: Any, axis: int = -1) -> Any:
    # dy_j/dx_i = prod_{k<=j, k!=i} x_k for j >= i, else 0.
    rows = F.cumprod(all_but_one(F.moveaxis(x, axis, -1)), axis=-1)
    upper = beside(x, np.tri(x.shape[axis], dtype=bool).T)
    slope = F.where(upper, rows, 0.0)
    return F.moveaxis(F.sum(slope * F.expand_dims(F.moveaxis(g, axis, -1), -2), axis=-1), -1, axis)


def transposed(a: Any) -> Any:
    return F.matrix_transpose(a)


def rows(a: Any) -> Any:
    return a if a.ndim == 2 else a.reshape((math.prod(a.shape[:-1]), a.shape[-1]))


def matmul_left(g: Any, y: Any, a: Any, b: Any) -> Any:
    if b.ndim == 1:
        return F.expand_dims(g, -1) * b
    if a.ndim == 1:
        return F.matmul(b, F.expand_dims(g, -1))[..., 0]
    return F.matmul(g, transposed(b))


def matmul_right(g: Any, y: Any, a: Any, b: Any) -> Any:
    if a.ndim == 1:
        return a * g if b.ndim == 1 else F.expand_dims(a, -1) * F.expand_dims(g, -2)
    if b.ndim == 1:
        return F.matmul(F.expand_dims(g, -2), a)[..., 0, :]
    if b.ndim == 2:
        # One large product instead of a batch of products that would then be summed.
        return F.matmul(transposed(rows(a)), rows(g))
    return F.matmul(transposed(a), g)


def einsum_rule(i: int, g: Any, y: Any, *operands: Any, subscripts: str) -> Any:
    inputs, output = subscripts.split("->")
    labels = inputs.split(",")
    terms = [(output, g), *((s, x) for j, (s, x) in enumerate(zip(labels, operands, strict=True)) if j != i)]
    longest: dict[str, int] = {}
    for s, x in terms:
        longest.update({c: n for c, n in zip(s, x.shape, strict=True) if n != 1 or c not in longest})
    # A label along which only operand i is long was summed over, or the others were stretched along it: a
    # vector of ones does the same to the gradient.
    for c, n in zip(labels[i], operands[i].shape, strict=True):
        if c not in longest or longest[c] == 1 != n:
            terms.append((c, beside(g, np.ones(n, dtype=operands[i].dtype))))
    return F.einsum_pairs(*(x for _, x in terms), subscripts=",".join(s for s, _ in terms) + "->" + labels[i])


def concat_rule(i: int, g: Any, y: Any, *parts: Any, axis: int = 0) -> Any:
    start = sum(p.shape[axis] for p in parts[:i])
    index = [slice(None)] * g.ndim
    index[axis] = slice(start, start + parts[i].shape[axis])
    return g[tuple(index)]


def stack_rule(i: int, g: Any, y: Any, *parts: Any, axis: int = 0) -> Any:
    index: list[Any] = [slice(None)] * g.ndim
    index[axis] = i
    return g[tuple(index)]


def pad_rule(g: Any, y: Any, x: Any, pad_width: Any, value: float = 0.0) -> Any:
    return g[tuple(slice(before, before + n) for (before, _), n in zip(pad_width, x.shape, strict=True))]


def rfft_rule(g: Any, y: Any, x: Any, axis: int = -1) -> Any:
    width = [(0, 0)] * g.ndim
    width[axis] = (0, x.shape[axis] - g.shape[axis])
    return F.real(F.fft(F.pad_constant(g, tuple(width)), axis=axis))


def irfft_rule(g: Any, y: Any, x: Any, n: int, axis: int = -1) -> Any:
    # Every bin but the first (and the last, for even n) stands for a conjugate pair.
    weight = np.full(x.shape[axis], 2.0)
    weight[0] = 1.0
    if n % 2 == 0:
        weight[n // 2] = 1.0
    shape = [1] * g.ndim
    shape[axis] = -1
    return F.conj(F.rfft(g, axis=axis)) * beside(g, (weight.reshape(shape) / n).astype(g.dtype))


def solve_left(g: Any, y: Any, a: Any, b: Any) -> Any:
    gb = solve_right(g, y, a, b)
    if b.ndim == 1:
        return -F.expand_dims(gb, -1) * F.expand_dims(y, -2)
    return -F.matmul(gb, transposed(y))


def solve_right(g: Any, y: Any, a: Any, b: Any) -> Any:
    if b.ndim == 1:
        return F.solve(transposed(a), F.expand_dims(g, -1))[..., 0]
    return F.solve(transposed(a), g)


def cholesky_rule(g: Any, y: Any, a: Any) -> Any:
    # S = L^-T Phi(L^T g) L^-1, made symmetric. Phi keeps the lower triangle and half the diagonal.
    n = y.shape[-1]
    half = beside(y, (np.tri(n) - 0.5 * np.eye(n)).astype(y.dtype))
    inner = F.matmul(transposed(y), g) * half
    s = transposed(F.solve(transposed(y), transposed(F.solve(transposed(y), inner))))
    return (s + transposed(s)) * 0.5


def split_rule(needed: Any, g: Any, y: Any, x: Any, sizes: Any, axis: int = 0) -> tuple[Any, ...]:
    return (F.concat([F.zeros_like(part) if gi is None else gi for gi, part in zip(g, y)], axis=axis),)


def qr_rule(needed: Any, g: Any, y: Any, a: Any) -> tuple[Any, ...]:
    # ga = (gQ + Q sym(M)) R^-T, M = R gR^T - gQ^T Q, sym copies the lower triangle to the upper one.
    q, r = y
    gq = g[0] if g[0] is not None else q * 0.0
    gr = g[1] if g[1] is not None else r * 0.0
    m = F.matmul(r, transposed(gr)) - F.matmul(transposed(gq), q)
    n = m.shape[-1]
    lower = beside(m, np.tri(n, dtype=m.dtype))
    strict = beside(m, np.tri(n, k=-1, dtype=m.dtype))
    m = m * lower + transposed(m * strict)
    return (transposed(F.solve(r, transposed(gq + F.matmul(q, m)))),)


def svd_rule(needed: Any, g: Any, y: Any, a: Any) -> tuple[Any, ...]:
    # With E_ij = 1 / (s_j^2 - s_i^2) off the diagonal; `rest` is what leaves the span of the k columns.
    u, s, vh = y
    gu, gs, gv = g
    k = s.shape[-1]
    eye = beside(s, np.eye(k, dtype=bool))
    square = F.square(s)
    gap = F.expand_dims(square, -2) - F.expand_dims(square, -1)
    e = F.where(eye, 0.0, 1.0) / F.where(eye, 1.0, gap)
    row, column = F.expand_dims(s, -2), F.expand_dims(s, -1)
    core = F.where(eye, column, 0.0) * 0.0
    if gs is not None:
        core = core + F.where(eye, F.expand_dims(gs, -2), 0.0)
    if gu is not None:
        j = e * F.matmul(transposed(u), gu)
        core = core + (j + transposed(j)) * row
    if gv is not None:
        j = e * F.matmul(vh, transposed(gv))
        core = core + (j + transposed(j)) * column
    ga = F.matmul(F.matmul(u, core), vh)
    if gu is not None and u.shape[-2] > k:
        rest = gu - F.matmul(u, F.matmul(transposed(u), gu))
        ga = ga + F.matmul(rest / row, vh)
    if gv is not None and vh.shape[-1] > k:
        rest = gv - F.matmul(F.matmul(gv, transposed(vh)), vh)
        ga = ga + F.matmul(u, rest / column)
    return (ga,)


def softmax_rule(g: Any, y: Any, x: Any, axis: int = -1) -> Any:
    gy = g * y
    return gy - y * F.sum(gy, axis=axis, keepdims=True)


def logsumexp_rule(g: Any, y: Any, x: Any, axis: Any = -1, keepdims: bool = False) -> Any:
    # exp(x - y) = softmax(x); a row of -inf only has y = -inf and passes nothing.
    shape = ones_at(axis, x)
    y = y.reshape(shape)
    return g.reshape(shape) * F.exp(x - F.where(y == -math.inf, 0.0, y))


def times(g: Any, mask: Any) -> Any:
    """g where the mask is true, else 0."""
    return F.where(mask, g, 0.0)


RULES: dict[str, Rule] = {
    # --- arithmetic
    "add": (lambda g, y, a, b: g, lambda g, y, a, b: g),
    "subtract": (lambda g, y, a, b: g, lambda g, y, a, b: -g),
    "multiply": (lambda g, y, a, b: g * b, lambda g, y, a, b: g * a),
    "divide": (lambda g, y, a, b: g / b, lambda g, y, a, b: -g * y / b),
    "negative": (lambda g, y, x: -g,),
    "pow": (pow_base, pow_exponent),
    "reciprocal": (lambda g, y, x: -g * y * y,),
    "square": (lambda g, y, x: 2.0 * g * x,),
    "sqrt": (lambda g, y, x: 0.5 * g / y,),
    "rsqrt": (lambda g, y, x: -0.5 * g * y * y * y,),
    "abs": (abs_rule,),
    "maximum": (
        lambda g, y, a, b: times(g, a > b) + times(0.5 * g, a == b),
        lambda g, y, a, b: times(g, b > a) + times(0.5 * g, a == b),
    ),
    "minimum": (
        lambda g, y, a, b: times(g, a < b) + times(0.5 * g, a == b),
        lambda g, y, a, b: times(g, b < a) + times(0.5 * g, a == b),
    ),
    "where": (None, lambda g, y, c, a, b: times(g, c), lambda g, y, c, a, b: F.where(c, 0.0, g)),
    # --- exponentials and trigonometry
    "exp": (lambda g, y, x: g * y,),
    "expm1": (lambda g, y, x: g * F.exp(x),),
    "log": (lambda g, y, x: g / x,),
    "log1p": (lambda g, y, x: g / (x + 1.0),),
    "log2": (lambda g, y, x: g / (x * math.log(2.0)),),
    "logaddexp": (lambda g, y, a, b: g * F.exp(a - y), lambda g, y, a, b: g * F.exp(b - y)),
    "sin": (lambda g, y, x: g * F.cos(x),),
    "cos": (lambda g, y, x: -g * F.sin(x),),
    "tan": (lambda g, y, x: g * (1.0 + y * y),),
    "asin": (lambda g, y, x: g * F.rsqrt(1.0 - x * x),),
    "acos": (lambda g, y, x: -g * F.rsqrt(1.0 - x * x),),
    "atan": (lambda g, y, x: g / (1.0 + x * x),),
    "atan2": (
        lambda g, y, a, b: g * b / (a * a + b * b),
        lambda g, y, a, b: -g * a / (a * a + b * b),
    ),
    "sinh": (lambda g, y, x: g * F.cosh(x),),
    "cosh": (lambda g, y, x: g * F.sinh(x),),
    "tanh": (lambda g, y, x: g * (1.0 - y * y),),
    "erf": (lambda g, y, x: g * (2.0 / math.sqrt(math.pi)) * F.exp(-x * x),),
    "sigmoid": (lambda g, y, x: g * y * (1.0 - y),),
    "softplus": (lambda g, y, x: g * F.sigmoid(x),),
    "relu": (lambda g, y, x: times(g, x > 0),),
    # --- complex numbers: g is dL/dRe - i dL/dIm
    "real": (lambda g, y, x: g + 0.0j if x.dtype.kind == "c" else g,),
    "imag": (lambda g, y, x: g * -1.0j,),
    "conj": (lambda g, y, x: F.conj(g),),
    "complex": (lambda g, y, re, im: F.real(g), lambda g, y, re, im: -F.imag(g)),
    # --- reductions and scans
    "sum": (lambda g, y, x, axis=None, keepdims=False: spread(g, axis, x),),
    "mean": (lambda g, y, x, axis=None, keepdims=False: spread(g * (y.size / max(x.size, 1)), axis, x),),
    "prod": (prod_rule,),
    "max": (share_of_extremes,),
    "min": (share_of_extremes,),
    "logsumexp": (logsumexp_rule,),
    "softmax_rows": (softmax_rule,),
    "log_softmax": (lambda g, y, x, axis=-1: g - F.exp(y) * F.sum(g, axis=axis, keepdims=True),),
    "cumsum": (lambda g, y, x, axis=-1: F.flip(F.cumsum(F.flip(g, axis=axis), axis=axis), axis=axis),),
    "cumprod": (cumprod_rule,),
    # --- shape
    "copy": (lambda g, y, x: g,),
    "reshape": (lambda g, y, x, shape: g.reshape(x.shape),),
    "permute_dims": (lambda g, y, x, axes: F.permute_dims(g, inverse(axes)),),
    "matrix_transpose": (lambda g, y, x: transposed(g),),
    "broadcast_to": (lambda g, y, x, shape: g,),
    "flip": (lambda g, y, x, axis=None: F.flip(g, axis=axis),),
    "roll": (
        lambda g, y, x, shift, axis=None: F.roll(
            g, -shift if isinstance(shift, int) else tuple(-s for s in shift), axis=axis
        ),
    ),
    "concat_parts": Each(concat_rule),
    "stack_parts": Each(stack_rule),
    "split_parts": Together(split_rule),
    "pad_constant": (pad_rule,),
    "unfold": (lambda g, y, x, size, axis=-1, step=1, dilation=1: F.fold(g, x.shape, axis, step, dilation),),
    "fold": (
        lambda g, y, x, shape, axis=-1, step=1, dilation=1: F.unfold(g, x.shape[-1], axis, step, dilation),
    ),
    # The walk returns every gradient in the type of its argument.
    "astype_to": (lambda g, y, x, dtype: g,),
    "to_device": (lambda g, y, x, device: F.to_device(g, home(x)),),
    # --- gathering and scattering
    "getitem": (lambda g, y, x, index: F.scatter(g, index, x.shape),),
    "scatter": (lambda g, y, x, index, shape: g[index],),
    "take_along_axis": (lambda g, y, x, indices, axis=-1: F.scatter_add(F.zeros_like(x), indices, g, axis),),
    "put_along_axis": (
        lambda g, y, x, indices, values, axis=-1: F.put_along_axis(g, indices, 0.0, axis),
        None,
        lambda g, y, x, indices, values, axis=-1: F.take_along_axis(g, indices, axis),
    ),
    "scatter_add": (
        lambda g, y, x, indices, values, axis=-1: g,
        None,
        lambda g, y, x, indices, values, axis=-1: F.take_along_axis(g, indices, axis),
    ),
    "straight_through": (None, lambda g, y, hard, soft: g),
    # --- linear algebra
    "matmul": (matmul_left, matmul_right),
    "einsum_pairs": Each(einsum_rule),
    "inv": (lambda g, y, a: -F.matmul(F.matmul(transposed(y), g), transposed(y)),),
    "solve": (solve_left, solve_right),
    "cholesky": (cholesky_rule,),
    "qr": Together(qr_rule),
    "svd": Together(svd_rule),
    # --- Fourier transforms: the DFT matrix is symmetric, so it is its own transpose
    "fft": (lambda g, y, x, axis=-1: F.fft(g, axis=axis),),
    "ifft": (lambda g, y, x, axis=-1: F.ifft(g, axis=axis),),
    "rfft": (rfft_rule,),
    "irfft": (irfft_rule,),
}

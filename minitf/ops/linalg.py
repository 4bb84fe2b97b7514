"""Matrix products, einsum and decompositions. Leading axes are batch axes."""

# Bodies work on plain arrays; `primitive` makes of them operations on tensors, which is what the types say.
# mypy: disable-error-code="empty-body, return-value"

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitf.engine import Array, ShapeError, Tensor, primitive, ufunc_operation

from .elementwise import Like
from .shape import diagonal, moveaxis


def product(a: Array, b: Array) -> Array:
    if a.ndim > 2 and b.ndim == 2 and a.flags.c_contiguous:
        # One large product is faster than a batch of small ones.
        rows = math.prod(a.shape[:-1])
        return np.matmul(a.reshape(rows, a.shape[-1]), b).reshape(*a.shape[:-1], b.shape[-1])
    return np.matmul(a, b)


@ufunc_operation(product)
def matmul(a: Like, b: Like) -> Tensor:
    """Matrix product (..., n, k) (..., k, m) -> (..., n, m); batch axes broadcast; vectors as in NumPy."""


@primitive
def einsum_pairs(*operands: Like, subscripts: str) -> Tensor:
    return np.einsum(subscripts, *operands, optimize=len(operands) > 1)


def einsum(subscripts: str, *operands: Like) -> Tensor:
    """Sum of products in Einstein's notation, for example einsum("bnd,dm->bnm", x, w).

    Letters are axes; `...` stands for batch axes, which broadcast. Without "->" the result has the letters
    that occur once, in alphabetical order. A letter repeated in one operand takes the diagonal.

    Raises:
        ShapeError: an operand has not as many axes as letters.
    """
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    labels = inputs.split(",")
    if len(labels) != len(operands):
        raise ShapeError(f"einsum {subscripts!r}: {len(labels)} terms for {len(operands)} operands")
    # Write `...` out as letters that are not in use.
    free = [c for c in string.ascii_letters if c not in subscripts]
    most = max((x.ndim - len(s) + 3 for s, x in zip(labels, operands, strict=True) if "..." in s), default=0)
    batch = "".join(free[:most])
    for i, (s, x) in enumerate(zip(labels, operands, strict=True)):
        count = x.ndim - len(s) + 3 if "..." in s else 0
        labels[i] = s.replace("...", batch[most - count :])
        if len(labels[i]) != x.ndim:
            raise ShapeError(f"einsum {subscripts!r}: term {s!r} does not fit an operand of shape {x.shape}")
    every = "".join(labels)
    if arrow:
        output = output.replace("...", batch)
    else:
        output = batch + "".join(sorted(c for c in set(every) - set(batch) if every.count(c) == 1))
    # Take diagonals first, and let size-1 batch axes broadcast by dropping them.
    arrays = list(operands)
    for i, s in enumerate(labels):
        for c in sorted(set(s)):
            while s.count(c) > 1:
                first, second = s.index(c), s.rindex(c)
                x = moveaxis(moveaxis(arrays[i], second, -1), first, -1)
                arrays[i] = diagonal(x)
                s = s[:first] + s[first + 1 : second] + s[second + 1 :] + c
        for c in batch:
            if c in s and arrays[i].shape[s.index(c)] == 1 and (every.count(c) > 1):
                arrays[i] = arrays[i].reshape(
                    tuple(n for d, n in zip(s, arrays[i].shape, strict=True) if d != c)
                )
                s = s.replace(c, "")
        labels[i] = s
    # A batch axis of size 1 everywhere may have been dropped from every operand: give it back to the first.
    for c in batch:
        if c in output and not any(c in s for s in labels):
            arrays[0] = arrays[0].reshape((1, *arrays[0].shape))
            labels[0] = c + labels[0]
    return einsum_pairs(*arrays, subscripts=",".join(labels) + "->" + output)


def tensordot(a: Like, b: Like, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Tensor:
    """Sum of products over pairs of axes; the other axes of a come first, then those of b.

    Args:
        a, b: any shapes.
        axes: the number of last axes of a and first axes of b, or two lists of axes that belong together.
    """
    of_a, of_b = (range(a.ndim - axes, a.ndim), range(axes)) if isinstance(axes, int) else axes
    left = list(string.ascii_lowercase[: a.ndim])
    right = list(string.ascii_uppercase[: b.ndim])
    for i, j in zip(of_a, of_b, strict=True):
        right[j] = left[i]
    kept = [c for c in left if c not in right] + [c for c in right if c not in left]
    return einsum(f"{''.join(left)},{''.join(right)}->{''.join(kept)}", a, b)


@primitive
def inv(a: Like) -> Tensor:
    """The inverse of square matrices (..., n, n)."""
    return np.linalg.inv(a)


@primitive
def solve(a: Like, b: Like) -> Tensor:
    """x with a x = b, for a (..., n, n) and b (..., n, k) or (n,)."""
    return np.linalg.solve(a, b)


@primitive
def cholesky(a: Like) -> Tensor:
    """The lower triangular L with L L^T = a, for symmetric positive definite a (..., n, n)."""
    return np.linalg.cholesky(a)


@primitive
def qr(a: Like) -> Any:
    """q (..., n, k) with orthonormal columns and upper triangular r (..., k, k), with q r = a and n >= k.

    Raises:
        ShapeError: n < k, for which the factors have no gradient rule here.
    """
    if a.shape[-2] < a.shape[-1]:
        raise ShapeError(f"qr: {a.shape} must have at least as many rows as columns")
    return tuple(np.linalg.qr(a))


@primitive
def svd(a: Like) -> Any:
    """u (..., n, k), s (..., k) descending, vh (..., k, m) with u diag(s) vh = a (..., n, m), k = min(n, m).

    The gradient needs distinct singular values, and is only meaningful for functions that do not depend on
    the signs of the singular vectors.
    """
    return tuple(np.linalg.svd(a, full_matrices=False))

"""What a mixture of experts needs: tokens sorted by expert, one product for all experts, an ordered sum.

    order, counts = sort_by_expert(chosen, E)      (token, slot) pairs, those of expert 0 first
    tokens = order // k                            the token of each pair, for chosen (n, k)
    h = grouped_matmul(x, w, counts, tokens)       row i is x[tokens[i]] w[e], e the expert of pair i
    y = combine_rows(h, tokens, gates, n)          back to one row for each token

Nothing here costs more than the pairs that were chosen.
"""

from __future__ import annotations

import numpy as np

from minitf.engine import Array, ShapeError, Tensor, array_module

from .elementwise import Like
from .indexing import scatter
from .kernels import kernelized
from .layers import integers
from .shape import concat, split, take, unstack


def sort_by_expert(chosen: Like, experts: int) -> tuple[Array, Array]:
    """The order that brings pairs with one expert together, and how many each expert has.

    Args:
        chosen: integers in 0..E-1 of any shape, counted as one row of P. experts: E.

    Returns:
        order (P,): positions in that row, those that chose expert 0 first; equal ones keep their order.
        counts (E,). Both are constants to differentiation.

    Raises:
        TypeError: chosen are not integers. ValueError: one is outside 0..E-1.
    """
    flat = integers(chosen, experts, "experts").reshape(-1)
    xp = array_module(flat)
    # NumPy sorts integers of one or two bytes by counting, which is ten times as fast.
    order = xp.argsort(flat.astype(np.min_scalar_type(experts)), kind="stable")
    return order, xp.bincount(flat, minlength=experts)


@kernelized("grouped_matmul")
def grouped_matmul(x: Like, w: Like, counts: Like, rows: Like = None) -> Tensor:
    """y_i = x_i w_e, e the group of row i: the first counts[0] rows are group 0, the next counts[1] group 1.

    Args:
        x: (P, D), or (N, D) with `rows`.
        w: (E, D, F). counts: integers (E,) that add up to P.
        rows: integers (P,) in 0..N-1 or None; with them, x_i is x[rows[i]]. Rows may repeat.

    Returns:
        (P, F).

    Raises:
        ShapeError: x, w and counts do not fit each other. TypeError: counts or rows are not integers.
        ValueError: a count or a row is out of range.
    """
    if w.ndim != 3 or x.ndim != 2 or x.shape[1] != w.shape[1] or not len(w):
        raise ShapeError(f"grouped_matmul: x {x.shape} and w {w.shape} must be (P, D) and (E, D, F), E >= 1")
    if rows is not None:
        x = take(x, integers(rows, x.shape[0], "rows"), axis=0)
    sizes = integers(counts, x.shape[0] + 1, "counts")
    if sizes.shape != w.shape[:1]:
        raise ShapeError(f"grouped_matmul: counts {sizes.shape} must be {w.shape[:1]}, one for each group")
    return concat([part @ one for part, one in zip(split(x, sizes.tolist()), unstack(w), strict=True)])


@kernelized("combine_rows")
def combine_rows(y: Like, rows: Like, weights: Like, n: int) -> Tensor:
    """out_m = sum over i with rows[i] = m of weights_i y_i, in the order of i; 0 where no row is named m.

    Args:
        y: (P, F). rows: integers (P,) in 0..n-1. weights: (P,). n: rows of the result.

    Returns:
        (n, F).

    Raises:
        ShapeError: rows or weights are not (P,). TypeError: rows are not integers.
        ValueError: a row is outside 0..n-1.
    """
    to = integers(rows, n, "rows")
    if y.ndim != 2 or to.shape != y.shape[:1] or weights.shape != y.shape[:1]:
        raise ShapeError(
            f"combine_rows: y {y.shape}, rows {to.shape}, weights {weights.shape} must be (P, F), (P,), (P,)"
        )
    return scatter(y * weights[:, None], (to,), (n, y.shape[1]))

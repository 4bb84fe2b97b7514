"""What a layer does to its tokens, measured: who influences whom, and what that costs as N grows.

m = mt.viz.mixing_matrix(layer, x)                  # (N, N), exact, from the Jacobian
cost = mt.viz.cost_against_length(lambda n: (layer, (mt.zeros((1, n, 32)),)), [16, 32, 64])
cost.flops, cost.peak_bytes, cost.slopes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitf.engine import Array, ShapeError, Tensor, no_grad, vjp
from minitf.profile import profile

# Called with the share that is done, from 0 to 1.
Progress = Callable[[float], Any]
# So many copies of the input go through the layer together: one backward pass gives as many rows.
COPIES = 64


def mixing_matrix(
    layer: Callable[[Tensor], Tensor], x: Any, *, copies: int = COPIES, progress: Progress | None = None
) -> Array:
    """How strongly each output token depends on each input token: what attention weights are to attention.

        M[i, j] = || d y_i / d x_j ||_F          the Frobenius norm over D x D channels

    Exact: every row of the Jacobian is formed by a vector-Jacobian product; no direction is drawn at random.
    This takes N D backward passes, or N D / copies where the layer treats examples of a batch apart, which
    is tested first.

    Args:
        layer: x (1, *grid, D) -> y (1, *grid', D'). In eval mode; of a layer with more inputs, give
            `lambda x: layer(x, mask=mask)`.
        x: where the Jacobian is taken, (1, N, D) or (1, rows, columns, D). Tokens of a grid count row by row.
        copies: how many rows to compute together; 1 for a function that takes a batch of one only.
        progress: called with the share that is done.

    Returns:
        (M, N), for M tokens of y and N tokens of x.

    Raises:
        ShapeError: x has no token axis, or more than one example.
    """
    x = x if isinstance(x, Tensor) else Tensor(np.asarray(x))
    if x.ndim < 3 or x.shape[0] != 1:
        raise ShapeError(f"mixing_matrix: x must be (1, N, D) or (1, rows, columns, D), not {x.shape}")
    with no_grad():
        shape = layer(x).shape
    m, n = math.prod(shape[1:-1]), math.prod(x.shape[1:-1])
    # One row for each element of y: (M D', N), the norm over the channels of x
    rows = [
        np.sqrt(np.square(part.reshape(len(part), n, -1)).sum(axis=-1))
        for part in jacobian_rows(layer, x, range(math.prod(shape)), copies, progress)
    ]
    return np.sqrt(np.square(np.concatenate(rows).reshape(m, -1, n)).sum(axis=1))


def channel_matrix(layer: Callable[[Tensor], Tensor], x: Any) -> Array:
    """The Jacobian d y / d x of the first token alone, with its signs: (D', D). For layers that mix channels.

    Raises:
        ShapeError: as `mixing_matrix`.
    """
    x = x if isinstance(x, Tensor) else Tensor(np.asarray(x))
    if x.ndim < 3 or x.shape[0] != 1:
        raise ShapeError(f"channel_matrix: x must be (1, N, D), not {x.shape}")
    with no_grad():
        width = layer(x).shape[-1]
    rows = np.concatenate(list(jacobian_rows(layer, x, range(width))))
    return rows.reshape(width, -1, x.shape[-1])[:, 0]


def jacobian_rows(
    layer: Callable[[Tensor], Tensor],
    x: Tensor,
    elements: Sequence[int],
    copies: int = COPIES,
    progress: Progress | None = None,
) -> Any:
    """Rows of the Jacobian, several at a time: arrays (k, *x.shape[1:]), for these elements of y in order."""
    k = min(copies, len(elements))
    y, pull = vjp(layer, Tensor(np.repeat(x.data, k, axis=0)))
    if k > 1 and not apart(y, pull, layer, x):
        k = 1
        y, pull = vjp(layer, x)
    for start in range(0, len(elements), k):
        chosen = elements[start : start + k]
        # Example e of the batch is asked for the element `chosen[e]` of its output.
        g = np.zeros((k, y.size // k), dtype=y.dtype)
        g[np.arange(len(chosen)), chosen] = 1.0
        yield pull(g.reshape(y.shape))[0].numpy()[: len(chosen)]
        if progress is not None:
            progress((start + len(chosen)) / len(elements))


def apart(y: Tensor, pull: Any, layer: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether copies in one batch give what one alone gives, and the output of one depends on itself only."""
    with no_grad():
        alone = layer(x)
    if y.shape != (len(y), *alone.shape[1:]) or not np.allclose(y.numpy(), alone.numpy(), equal_nan=True):
        return False
    g = np.zeros(y.shape, dtype=y.dtype)
    g[0] = np.random.default_rng(0).standard_normal(y.shape[1:])
    return not pull(g)[0].numpy()[1:].any()


@dataclass(frozen=True)
class Cost:
    """What a forward pass costs at several numbers of tokens, as `mt.profile` counts it.

    Attributes:
        lengths: N. flops: floating-point operations. peak_bytes: the most memory that results took at once.
    """

    lengths: tuple[int, ...]
    flops: tuple[int, ...]
    peak_bytes: tuple[int, ...]

    @property
    def slopes(self) -> tuple[float, float]:
        """The powers of N with which operations and memory grow between the two largest N; NaN if unknown."""
        return slope(self.lengths, self.flops), slope(self.lengths, self.peak_bytes)


def slope(lengths: Sequence[int], values: Sequence[int]) -> float:
    """The power p of N in values ~ N^p, from the last two of them."""
    if len(lengths) < 2 or min(values[-2:]) <= 0:
        return math.nan
    return math.log(values[-1] / values[-2]) / math.log(lengths[-1] / lengths[-2])


def cost_against_length(
    build: Callable[[int], tuple[Any, Sequence[Any]]],
    lengths: Sequence[int],
    *,
    progress: Progress | None = None,
) -> Cost:
    """Count one forward pass at every number of tokens. Nothing is timed, so the numbers are always the same.

    Args:
        build: N -> (layer, its inputs). What it computes itself does not count.
        lengths: the numbers of tokens, ascending.
        progress: called with the share that is done.

    Raises:
        PriceError: an operation whose price `mt.profile` does not know.
    """
    flops, peaks = [], []
    for n in lengths:
        layer, inputs = build(n)
        with no_grad(), profile() as p:
            layer(*inputs)
        flops.append(p.flops)
        peaks.append(p.peak_bytes)
        if progress is not None:
            progress(sum(lengths[: len(flops)]) / sum(lengths))
    return Cost(tuple(lengths), tuple(flops), tuple(peaks))

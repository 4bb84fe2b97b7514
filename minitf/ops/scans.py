"""Recurrences with a matrix as state, computed in chunks: what linear attention and state spaces stand on."""

from __future__ import annotations

import math

import numpy as np

from minitf.engine import ShapeError, Tensor

from .creation import zeros
from .elementwise import Like, exp, where
from .kernels import kernelized
from .linalg import matmul
from .reductions import cumsum, sum
from .shape import expand_dims, pad, reshape, stack


def in_chunks(x: Like, chunk: int) -> Tensor:
    """(B, H, N, d) -> (B, H, M, C, d) with M = ceil(N / C): zeros fill the last chunk."""
    batch, heads, n, d = x.shape
    missing = -n % chunk
    if missing:
        x = pad(x, ((0, 0), (0, 0), (0, missing), (0, 0)))
    return reshape(x, (batch, heads, (n + missing) // chunk, chunk, d))


def carry(decay: Tensor, write: Tensor, state: Like) -> tuple[Tensor, Tensor]:
    """The state before every chunk, and after the last: S <- decay * S + write, once for each chunk.

    Args:
        decay: (B, H, M, dk, 1) or (B, H, M, 1, 1). write: (B, H, M, dk, dv). state: (B, H, dk, dv).

    Returns:
        (B, H, M, dk, dv) and (B, H, dk, dv).
    """
    before = []
    for m in range(write.shape[2]):
        before.append(state)
        state = decay[:, :, m] * state + write[:, :, m]
    return stack(before, axis=2), state


@kernelized("gated_scan")
def gated_scan(
    q: Like, k: Like, v: Like, g: Like, state: Like = None, chunk: int = 16
) -> tuple[Tensor, Tensor]:
    """A matrix of memory that decays, is written to and is read, token by token (Yang et al., 2023).

        S_t = diag(exp(g_t)) S_{t-1} + k_t^T v_t        o_t = q_t S_t

    In chunks of C tokens, with G_i the sum of g from the start of the chunk to i:

        A_ij = sum_c q_ic k_jc exp(G_ic - G_jc)          j <= i, else 0
        O    = A V + (Q * exp(G)) S                      S: the state before the chunk
        S   <- diag(exp(G_C)) S + (K * exp(G_C - G))^T V

    All exponents are at most 0, so nothing overflows: exp(G) and exp(-G) are never formed apart.

    Args:
        q, k: (B, H, N, dk). v: (B, H, N, dv).
        g: logarithm of the decay, at most 0: (B, H, N, dk), or (B, H, N, 1) for one decay per head.
        state: S before the first token (B, H, dk, dv), default 0.
        chunk: C; any size gives the same result.

    Returns:
        o (B, H, N, dv), and S after the last token (B, H, dk, dv).

    Raises:
        ShapeError: shapes that do not fit each other. ValueError: chunk below 1.
    """
    batch, heads, n, dk = q.shape
    if k.shape != q.shape or v.shape[:3] != q.shape[:3] or g.shape not in (q.shape, (batch, heads, n, 1)):
        raise ShapeError(
            f"gated_scan: q {q.shape} and k {k.shape} must be (B, H, N, dk), v {v.shape} (B, H, N, dv) and "
            f"g {g.shape} (B, H, N, dk) or (B, H, N, 1)"
        )
    if chunk < 1:
        raise ValueError(f"gated_scan: chunk must be at least 1, not {chunk}")
    state = zeros((batch, heads, dk, v.shape[-1]), dtype=v.dtype) if state is None else state
    q, k, v, g = (in_chunks(x, min(chunk, n)) for x in (q, k, v, g))
    size = q.shape[3]
    # G, inclusive: (B, H, M, C, dk or 1)
    total = cumsum(g, axis=-2)
    last = total[..., -1:, :]
    past = np.tri(size, dtype=bool)
    # G_i - G_j where j <= i, else -inf: (B, H, M, C, C, dk or 1)
    gap = where(past[..., None], expand_dims(total, -2) - expand_dims(total, -3), -math.inf)
    if g.shape[-1] == 1:
        scores = matmul(q, k.mT) * exp(gap[..., 0])
    else:
        scores = sum(expand_dims(q, -2) * expand_dims(k, -3) * exp(gap), axis=-1)
    # What a chunk leaves behind: (B, H, M, dk, dv)
    write = matmul((k * exp(last - total)).mT, v)
    before, state = carry(exp(last).mT, write, state)
    o = matmul(scores, v) + matmul(q * exp(total), before)
    return reshape(o, (batch, heads, -1, o.shape[-1]))[:, :, :n], state

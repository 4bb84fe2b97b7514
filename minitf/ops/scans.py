"""Linear recurrences without a loop over the tokens: what linear attention and state spaces stand on."""

from __future__ import annotations

import math

import numpy as np

from minitf.engine import ShapeError, Tensor

from .creation import eye, zeros
from .elementwise import Like, exp, where
from .kernels import kernelized
from .linalg import matmul
from .reductions import cumsum, sum
from .shape import broadcast_to, concat, expand_dims, pad, reshape, stack, tril, unstack


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
    for decay_m, write_m in zip(unstack(decay, axis=2), unstack(write, axis=2), strict=True):
        before.append(state)
        state = decay_m * state + write_m
    return stack(before, axis=2), state


def decayed_products(q: Like, k: Like, total: Tensor) -> Tensor:
    """A_ij = sum_c q_ic k_jc exp(G_ic - G_jc) where j <= i, else 0: (..., C, C).

    Args:
        q, k: (..., C, d). total: G, the decay summed up from the start of the chunk, (..., C, d or 1).
    """
    past = np.tri(q.shape[-2], dtype=bool)
    # G_i - G_j where j <= i, else -inf: (..., C, C, d or 1)
    gap = where(past[..., None], expand_dims(total, -2) - expand_dims(total, -3), -math.inf)
    if total.shape[-1] == 1:
        return matmul(q, k.mT) * exp(gap[..., 0])
    return sum(expand_dims(q, -2) * expand_dims(k, -3) * exp(gap), axis=-1)


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
    state = zeros((batch, heads, dk, v.shape[-1]), like=v) if state is None else state
    q, k, v, g = (in_chunks(x, min(chunk, n)) for x in (q, k, v, g))
    # G, inclusive: (B, H, M, C, dk or 1)
    total = cumsum(g, axis=-2)
    last = total[..., -1:, :]
    # What a chunk leaves behind: (B, H, M, dk, dv)
    write = matmul((k * exp(last - total)).mT, v)
    before, state = carry(exp(last).mT, write, state)
    o = matmul(decayed_products(q, k, total), v) + matmul(q * exp(total), before)
    return reshape(o, (batch, heads, -1, o.shape[-1]))[:, :, :n], state


def inverse_of_unit_lower(a: Tensor) -> Tensor:
    """(I + A)^-1 for strictly lower triangular A (..., C, C): forward substitution by blocks that double.

        [[P, 0], [A', R]]^-1 = [[P^-1, 0], [-R^-1 A' P^-1, R^-1]]        A': the block of A below the diagonal

    Row i reads rows up to i only, as causality asks. A solver that exchanges rows would not.
    """
    size, block = a.shape[-1], 1
    i = np.arange(size)
    inverse = eye(size, like=a)
    while block < size:
        # The blocks A' of this size: odd block rows, and the block to the left of the diagonal.
        row, column = i[:, None] // block, i // block
        below = where((row % 2 == 1) & (column == row - 1), a, 0.0)
        inverse = inverse - matmul(matmul(inverse, below), inverse)
        block *= 2
    return inverse


@kernelized("delta_rule")
def delta_rule(
    q: Like, k: Like, v: Like, beta: Like, g: Like = None, state: Like = None, chunk: int = 16
) -> tuple[Tensor, Tensor]:
    """A matrix of memory that is corrected at the key of each token, and may decay (Yang et al., 2024).

        S'  = diag(exp(g_t)) S_{t-1}        u_t = beta_t (v_t - k_t S')
        S_t = S' + k_t^T u_t                o_t = q_t S_t

    In chunks of C tokens, with G_i the sum of g from the start of the chunk to i (the compact WY form):

        A_ij = beta_i sum_c k_ic k_jc exp(G_ic - G_jc)      j < i, else 0
        T    = (I + A)^-1 diag(beta)
        U    = T V - T (K * exp(G)) S                       S: the state before the chunk; row t is u_t
        O    = P U + (Q * exp(G)) S                         P_ij = sum_c q_ic k_jc exp(G_ic - G_jc), j <= i
        S   <- diag(exp(G_C)) S + (K * exp(G_C - G))^T U

    All exponents are at most 0. The memory stays bounded while beta_t |k_t|^2 <= 2.

    Args:
        q, k: (B, H, N, dk). v: (B, H, N, dv).
        beta: how far the value at k_t moves towards v_t, (B, H, N, 1).
        g: logarithm of the decay, at most 0, default 0: (B, H, N, dk), or (B, H, N, 1) for one per head.
        state: S before the first token (B, H, dk, dv), default 0.
        chunk: C; any size gives the same result.

    Returns:
        o (B, H, N, dv), and S after the last token (B, H, dk, dv).

    Raises:
        ShapeError: shapes that do not fit each other. ValueError: chunk below 1.
    """
    batch, heads, n, dk = q.shape
    one = (batch, heads, n, 1)
    fits = k.shape == q.shape and v.shape[:3] == q.shape[:3] and beta.shape == one
    if not fits or not (g is None or g.shape in (q.shape, one)):
        raise ShapeError(
            f"delta_rule: q {q.shape} and k {k.shape} must be (B, H, N, dk), v {v.shape} (B, H, N, dv), beta "
            f"{beta.shape} (B, H, N, 1) and g {None if g is None else g.shape} (B, H, N, dk) or (B, H, N, 1)"
        )
    if chunk < 1:
        raise ValueError(f"delta_rule: chunk must be at least 1, not {chunk}")
    g = zeros(one, like=v) if g is None else g
    state = zeros((batch, heads, dk, v.shape[-1]), like=v) if state is None else state
    q, k, v, beta, g = (in_chunks(x, min(chunk, n)) for x in (q, k, v, beta, g))
    # G, inclusive: (B, H, M, C, dk or 1)
    total = cumsum(g, axis=-2)
    last = total[..., -1:, :]
    # T: (B, H, M, C, C)
    t = inverse_of_unit_lower(tril(beta * decayed_products(k, k, total), -1)) * beta.mT
    from_values, from_state = matmul(t, v), matmul(t, k * exp(total))
    decay, write = exp(last).mT, (k * exp(last - total)).mT
    before, written = [], []
    for values_m, state_m, decay_m, write_m in zip(
        *(unstack(a, axis=2) for a in (from_values, from_state, decay, write)), strict=True
    ):
        before.append(state)
        # U: (B, H, C, dv)
        written.append(values_m - matmul(state_m, state))
        state = decay_m * state + matmul(write_m, written[-1])
    reads = matmul(decayed_products(q, k, total), stack(written, axis=2))
    o = reads + matmul(q * exp(total), stack(before, axis=2))
    return reshape(o, (batch, heads, -1, o.shape[-1]))[:, :, :n], state


@kernelized("diagonal_scan")
def diagonal_scan(a: Like, b: Like, state: Like = None) -> Tensor:
    """Many first-order recurrences side by side, real or complex.

        h_t = a_t * h_{t-1} + b_t

    Two steps are one step of the same kind:

        h_{t+1} = (a_{t+1} a_t) * h_{t-1} + (a_{t+1} b_t + b_{t+1})

    So every second h comes from a recurrence of half the length, and the others from their neighbour:
    2 log2(N) rounds, 5 N products and sums in all, and no division.

    Args:
        a: (B, N, ...), or what broadcasts to the shape of b. b: (B, N, ...).
        state: h before the first token (B, ...), default 0.

    Returns:
        h (B, N, ...); the last row is the state after the last token.

    Raises:
        ShapeError: shapes that do not fit each other.
    """
    if len(a.shape) != len(b.shape) or any(i not in (1, j) for i, j in zip(a.shape, b.shape, strict=True)):
        raise ShapeError(f"diagonal_scan: a {a.shape} must broadcast to b {b.shape}, which is (B, N, ...)")
    if state is not None and state.shape != (b.shape[0], *b.shape[2:]):
        raise ShapeError(
            f"diagonal_scan: the state {state.shape} must be b {b.shape} without its second axis"
        )
    a = broadcast_to(a, b.shape)
    if state is not None:
        b = concat([a[:, :1] * expand_dims(state, 1) + b[:, :1], b[:, 1:]], axis=1)
    return halved(a, b)


def halved(a: Like, b: Like) -> Tensor:
    """h_t = a_t * h_{t-1} + b_t along axis 1, h_{-1} = 0, from the same for every second step."""
    n = b.shape[1]
    if n == 1:
        return b
    a_even, a_odd, b_even, b_odd = a[:, 0::2], a[:, 1::2], b[:, 0::2], b[:, 1::2]
    pairs = n // 2
    # h_1, h_3, ...: (B, N // 2, ...)
    odd = halved(a_odd * a_even[:, :pairs], a_odd * b_even[:, :pairs] + b_odd)
    # h_2, h_4, ... after h_1, h_3, ...
    even = concat([b_even[:, :1], a_even[:, 1:] * odd[:, : (n - 1) // 2] + b_even[:, 1:]], axis=1)
    both = stack([even[:, :pairs], odd], axis=2)
    both = reshape(both, (b.shape[0], 2 * pairs, *b.shape[2:]))
    return both if n == 2 * pairs else concat([both, even[:, pairs:]], axis=1)


@kernelized("selective_scan")
def selective_scan(
    u: Like, dt: Like, a: Like, b: Like, c: Like, state: Like = None, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """A diagonal state space whose step, input map and output map depend on the token (Gu and Dao, 2023).

        x_t[e, :] = exp(dt_t[e] a[e, :]) * x_{t-1}[e, :] + dt_t[e] u_t[e] b_t        y_t[e] = x_t[e, :] . c_t

    C tokens at a time, so that only (B, C, E, n) states exist at once where no gradient is asked for.

    Args:
        u: (B, N, E). dt: step sizes, at least 0, (B, N, E).
        a: at most 0, (E, n). b, c: (B, N, n).
        state: x before the first token (B, E, n), default 0.
        chunk: C; any size gives the same result.

    Returns:
        y (B, N, E), and x after the last token (B, E, n).

    Raises:
        ShapeError: shapes that do not fit each other. ValueError: chunk below 1.
    """
    batch, tokens, width = u.shape
    fits = dt.shape == u.shape and a.shape[0] == width and b.shape == c.shape == (batch, tokens, a.shape[1])
    if not fits:
        raise ShapeError(
            f"selective_scan: u {u.shape} and dt {dt.shape} must be (B, N, E), a {a.shape} (E, n), "
            f"b {b.shape} and c {c.shape} (B, N, n)"
        )
    if chunk < 1:
        raise ValueError(f"selective_scan: chunk must be at least 1, not {chunk}")
    state = zeros((batch, *a.shape), like=u) if state is None else state
    rows = []
    for t in range(0, tokens, chunk):
        step = dt[:, t : t + chunk, :, None]
        # (B, C, E, n)
        write = step * u[:, t : t + chunk, :, None] * b[:, t : t + chunk, None, :]
        x = diagonal_scan(exp(step * a), write, state)
        # (B, C, E, n) (B, C, n, 1) -> (B, C, E)
        rows.append(matmul(x, c[:, t : t + chunk, :, None])[..., 0])
        state = x[:, -1]
    return concat(rows, axis=1), state

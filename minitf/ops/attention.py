"""Scaled dot-product attention on heads: the operation that most variants and kernels stand on."""

from __future__ import annotations

import functools
import math

import numpy as np

from minitf.engine import Array, ShapeError, Tensor, array_module, to_device

from .elementwise import Like, logical_and, tanh, where
from .kernels import kernelized
from .linalg import matmul
from .reductions import logsumexp, softmax
from .shape import matrix_transpose, reshape


@functools.lru_cache(maxsize=64)
def causal_mask(n_queries: int, n_keys: int) -> Array:
    """Boolean (Nq, Nk): query i sees key j where j <= i + (Nk - Nq), so the last query sees every key."""
    mask = np.tri(n_queries, n_keys, n_keys - n_queries, dtype=bool)
    mask.setflags(write=False)
    return mask


def key_distance(n_queries: int, n_keys: int) -> Array:
    """|i + (Nk - Nq) - j| for query i and key j: (Nq, Nk)."""
    return np.abs(np.arange(n_queries)[:, None] + (n_keys - n_queries) - np.arange(n_keys))


def segments(cu_seqlens: Like, n_queries: int, n_keys: int) -> Array:
    """Which sequence every token belongs to, of sequences packed one after the other: (N,).

    cu_seqlens: (S+1,) integers, where sequence s begins; the last one is N.

    Raises:
        ShapeError: queries and keys that are not the same tokens.
        ValueError: anything but integers from 0 to N that never fall.
    """
    cuts = np.asarray(to_device(cu_seqlens.data if isinstance(cu_seqlens, Tensor) else cu_seqlens, "cpu"))
    if n_queries != n_keys:
        raise ShapeError(f"cu_seqlens needs as many queries as keys, not {n_queries} and {n_keys}")
    fits = cuts.ndim == 1 and len(cuts) > 1 and cuts.dtype.kind in "iu"
    if not fits or cuts[0] != 0 or cuts[-1] != n_keys or np.any(cuts[1:] < cuts[:-1]):
        raise ValueError(f"cu_seqlens must be integers that rise from 0 to N = {n_keys}, not {cuts}")
    return np.searchsorted(cuts, np.arange(n_keys), side="right")


def visible_pairs(
    n_queries: int, n_keys: int, causal: bool = False, window: int | None = None, cu_seqlens: Like = None
) -> Array | None:
    """Boolean (Nq, Nk), True where query i sees key j; None if everything is seen. As in `softmax_attention`.

    Raises:
        ValueError: a window below 1, or wrong cu_seqlens.
    """
    rules = [causal_mask(n_queries, n_keys)] if causal else []
    if window is not None:
        if window < 1:
            raise ValueError(f"window={window} must be at least 1: a token sees itself")
        rules.append(key_distance(n_queries, n_keys) < window)
    if cu_seqlens is not None:
        mine = segments(cu_seqlens, n_queries, n_keys)
        rules.append(mine[:, None] == mine)
    return functools.reduce(np.logical_and, rules) if rules else None


def joint_mask(mask: Like, rule: Array | None) -> Array | None:
    """Boolean, True where `mask` and `rule` both are, on the device of the mask; None stands for all True."""
    mask = mask.data if isinstance(mask, Tensor) else mask
    if mask is None or rule is None:
        return rule if mask is None else mask
    return logical_and(mask, array_module(mask).asarray(rule))


def attention_scores(
    q: Like,
    k: Like,
    mask: Like = None,
    causal: bool = False,
    scale: float | None = None,
    bias: Like = None,
    window: int | None = None,
    softcap: float | None = None,
    slopes: Like = None,
    cu_seqlens: Like = None,
) -> Tensor:
    """S of `softmax_attention`, and -inf where a pair is hidden. Arguments as there.

    Returns:
        (B, H, Nq, Nk).
    """
    if q.ndim != 4 or k.ndim != 4 or q.shape[-1] != k.shape[-1] or q.shape[1] % k.shape[1]:
        raise ShapeError(
            f"softmax_attention: q {q.shape} must be (B, H, Nq, d) and k {k.shape} (B, Hkv, Nk, d), with the "
            "same B and d, and Hkv dividing H"
        )
    batch, heads, n_queries, d = q.shape
    kv_heads, n_keys = k.shape[1:3]
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap} must be above 0")
    if slopes is not None and slopes.shape != (heads,):
        raise ShapeError(f"softmax_attention: slopes {slopes.shape} must be one for each head, ({heads},)")
    q = q * (1.0 / math.sqrt(d) if scale is None else scale)
    if kv_heads == heads:
        scores = matmul(q, matrix_transpose(k))
    else:
        # Query head h uses key head h // (H / Hkv): the heads of a group are rows of one product.
        grouped = reshape(q, (batch, kv_heads, heads // kv_heads * n_queries, d))
        scores = reshape(matmul(grouped, matrix_transpose(k)), (batch, heads, n_queries, n_keys))
    if softcap is not None:
        scores = softcap * tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    xp = array_module(scores.data if isinstance(scores, Tensor) else scores)
    if slopes is not None:
        distance = xp.asarray(key_distance(n_queries, n_keys).astype(scores.dtype))
        scores = scores - reshape(slopes, (heads, 1, 1)) * distance
    visible = joint_mask(mask, visible_pairs(n_queries, n_keys, causal, window, cu_seqlens))
    return scores if visible is None else where(xp.asarray(visible), scores, -math.inf)


def attention_weights(
    q: Like,
    k: Like,
    mask: Like = None,
    causal: bool = False,
    scale: float | None = None,
    bias: Like = None,
    window: int | None = None,
    softcap: float | None = None,
    slopes: Like = None,
    cu_seqlens: Like = None,
) -> Tensor:
    """P = softmax over keys of `attention_scores`: (B, H, Nq, Nk). A row that sees nothing is zero."""
    scores = attention_scores(q, k, mask, causal, scale, bias, window, softcap, slopes, cu_seqlens)
    return softmax(scores, axis=-1)


def attention_logsumexp(
    q: Like,
    k: Like,
    mask: Like = None,
    causal: bool = False,
    scale: float | None = None,
    bias: Like = None,
    window: int | None = None,
    softcap: float | None = None,
    slopes: Like = None,
    cu_seqlens: Like = None,
) -> Tensor:
    """log of the softmax denominator of every query: (B, H, Nq). -inf where a query sees nothing."""
    scores = attention_scores(q, k, mask, causal, scale, bias, window, softcap, slopes, cu_seqlens)
    return logsumexp(scores, axis=-1)


def apply_weights(weights: Like, v: Like) -> Tensor:
    """o = P v with grouped heads: (B, H, Nq, Nk), (B, Hkv, Nk, dv) -> (B, H, Nq, dv)."""
    batch, heads, n_queries, n_keys = weights.shape
    kv_heads = v.shape[1]
    if kv_heads == heads:
        return matmul(weights, v)
    grouped = reshape(weights, (batch, kv_heads, heads // kv_heads * n_queries, n_keys))
    return reshape(matmul(grouped, v), (batch, heads, n_queries, v.shape[-1]))


@kernelized("softmax_attention")
def softmax_attention(
    q: Like,
    k: Like,
    v: Like,
    mask: Like = None,
    causal: bool = False,
    scale: float | None = None,
    bias: Like = None,
    window: int | None = None,
    softcap: float | None = None,
    slopes: Like = None,
    cu_seqlens: Like = None,
) -> Tensor:
    """Multi-head scaled dot-product attention (Vaswani et al., 2017, equation 1).

        S = c tanh(scale q k^T / c) + bias - slope_h |i + (Nk - Nq) - j|
        P = softmax(S over visible keys),   o = P v

    Query i stands at position i + (Nk - Nq) among the keys: the last query beside the last key.

    Args:
        q: queries (B, H, Nq, d).
        k: keys (B, Hkv, Nk, d); Hkv divides H, and query head h uses key head h // (H / Hkv).
        v: values (B, Hkv, Nk, dv).
        mask: boolean, broadcastable to (B, H, Nq, Nk); True = visible. A query that sees nothing gives zeros.
        causal: hide key j from query i unless j <= i + (Nk - Nq).
        scale: factor on q k^T, default 1 / sqrt(d).
        bias: added to the scores, broadcastable to (B, H, Nq, Nk).
        window: w hides key j from query i unless |i + (Nk - Nq) - j| < w; with causal, the last w keys stay.
        softcap: c, the bound of the scores before bias and slopes (Gemma 2, arXiv:2408.00118); None: no cap.
        slopes: (H,), how fast scores fall with distance (ALiBi, arXiv:2108.12409), and not stored for each
            pair. A tensor gets a gradient; a plain array is a constant.
        cu_seqlens: (S+1,) integers from 0 to N that never fall. S sequences are packed along N, the s-th in
            cu_seqlens[s] .. cu_seqlens[s+1] - 1, and tokens see tokens of their own sequence only.

    Returns:
        (B, H, Nq, dv).

    Raises:
        ShapeError: shapes that do not fit each other.
        ValueError: a window below 1, a softcap of 0 or below, or cu_seqlens that are not as said.
    """
    check_values(k, v)
    weights = attention_weights(q, k, mask, causal, scale, bias, window, softcap, slopes, cu_seqlens)
    return apply_weights(weights, v)


@kernelized("attention_with_logsumexp")
def attention_with_logsumexp(
    q: Like,
    k: Like,
    v: Like,
    mask: Like = None,
    causal: bool = False,
    scale: float | None = None,
    bias: Like = None,
    window: int | None = None,
    softcap: float | None = None,
    slopes: Like = None,
    cu_seqlens: Like = None,
) -> tuple[Tensor, Tensor]:
    """`softmax_attention`, and the log of its denominator, by which parts of the keys can be put together.

        o = P v,   lse_i = log sum over visible j of exp(S_ij)

    Args: as in `softmax_attention`.

    Returns:
        o (B, H, Nq, dv), and lse (B, H, Nq): -inf for a query that sees nothing, where no gradient passes.

    Raises:
        ShapeError, ValueError: as in `softmax_attention`.
    """
    check_values(k, v)
    scores = attention_scores(q, k, mask, causal, scale, bias, window, softcap, slopes, cu_seqlens)
    return apply_weights(softmax(scores, axis=-1), v), logsumexp(scores, axis=-1)


def check_values(k: Like, v: Like) -> None:
    if v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        raise ShapeError(f"softmax_attention: v {v.shape} must have the B, Hkv and Nk of k {k.shape}")


def split_heads(x: Like, heads: int) -> Tensor:
    """(B, N, H d) -> (B, H, N, d)."""
    batch, n, width = x.shape
    return x.reshape((batch, n, heads, width // heads)).permute_dims((0, 2, 1, 3))


def merge_heads(x: Like) -> Tensor:
    """(B, H, N, d) -> (B, N, H d)."""
    batch, heads, n, d = x.shape
    return x.permute_dims((0, 2, 1, 3)).reshape((batch, n, heads * d))

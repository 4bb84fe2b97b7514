"""Scaled dot-product attention on heads: the operation that most variants and kernels stand on."""

from __future__ import annotations

import functools
import math

import numpy as np

from minitf.engine import Array, ShapeError, Tensor

from .elementwise import Like, logical_and, where
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


def attention_scores(
    q: Like, k: Like, mask: Like = None, causal: bool = False, scale: float | None = None, bias: Like = None
) -> Tensor:
    """S = scale * q k^T + bias, and -inf where a pair is hidden. Arguments as in `softmax_attention`.

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
    q = q * (1.0 / math.sqrt(d) if scale is None else scale)
    if kv_heads == heads:
        scores = matmul(q, matrix_transpose(k))
    else:
        # Query head h uses key head h // (H / Hkv): the heads of a group are rows of one product.
        grouped = reshape(q, (batch, kv_heads, heads // kv_heads * n_queries, d))
        scores = reshape(matmul(grouped, matrix_transpose(k)), (batch, heads, n_queries, n_keys))
    if bias is not None:
        scores = scores + bias
    visible = mask
    if causal:
        triangle = causal_mask(n_queries, n_keys)
        visible = triangle if mask is None else logical_and(mask, triangle)
    return scores if visible is None else where(visible, scores, -math.inf)


def attention_weights(
    q: Like, k: Like, mask: Like = None, causal: bool = False, scale: float | None = None, bias: Like = None
) -> Tensor:
    """P = softmax over keys of `attention_scores`: (B, H, Nq, Nk). A row that sees nothing is zero."""
    return softmax(attention_scores(q, k, mask, causal, scale, bias), axis=-1)


def attention_logsumexp(
    q: Like, k: Like, mask: Like = None, causal: bool = False, scale: float | None = None, bias: Like = None
) -> Tensor:
    """log of the softmax denominator of every query: (B, H, Nq). -inf where a query sees nothing."""
    return logsumexp(attention_scores(q, k, mask, causal, scale, bias), axis=-1)


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
) -> Tensor:
    """Multi-head scaled dot-product attention (Vaswani et al., 2017, equation 1).

        S = scale * q k^T + bias,   P = softmax(S over visible keys),   o = P v

    Args:
        q: queries (B, H, Nq, d).
        k: keys (B, Hkv, Nk, d); Hkv divides H, and query head h uses key head h // (H / Hkv).
        v: values (B, Hkv, Nk, dv).
        mask: boolean, broadcastable to (B, H, Nq, Nk); True = visible. A query that sees nothing gives zeros.
        causal: hide key j from query i unless j <= i + (Nk - Nq).
        scale: factor on q k^T, default 1 / sqrt(d).
        bias: added to the scores, broadcastable to (B, H, Nq, Nk).

    Returns:
        (B, H, Nq, dv).

    Raises:
        ShapeError: shapes that do not fit each other.
    """
    if v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        raise ShapeError(f"softmax_attention: v {v.shape} must have the B, Hkv and Nk of k {k.shape}")
    return apply_weights(attention_weights(q, k, mask, causal, scale, bias), v)


def split_heads(x: Like, heads: int) -> Tensor:
    """(B, N, H d) -> (B, H, N, d)."""
    batch, n, width = x.shape
    return x.reshape((batch, n, heads, width // heads)).permute_dims((0, 2, 1, 3))


def merge_heads(x: Like) -> Tensor:
    """(B, H, N, d) -> (B, N, H d)."""
    batch, heads, n, d = x.shape
    return x.permute_dims((0, 2, 1, 3)).reshape((batch, n, heads * d))

"""Wrong attention functions f(q, k, v, mask=None), each wrong in one way, and a false identity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.attention.softmax import SoftmaxAttention
from minitf.engine import Tensor
from minitf.nn import Case, identity


def right(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Softmax attention as it should be: what the others are compared with."""
    return ops.softmax_attention(q, k, v, mask)


def forgets_the_scale(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    return ops.softmax_attention(q, k, v, mask, scale=1.0)


def scales_twice(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    return ops.softmax_attention(q / math.sqrt(q.shape[-1]), k, v, mask)


def softmax_over_queries(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    s = q @ k.mT / math.sqrt(q.shape[-1])
    s = s if mask is None else ops.where(mask, s, -math.inf)
    return ops.softmax(s, axis=-2) @ v


def masks_after_softmax(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    p = ops.attention_weights(q, k)
    return (p if mask is None else ops.where(mask, p, 0.0)) @ v


def large_negative_number(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    s = q @ k.mT / math.sqrt(q.shape[-1])
    return ops.softmax(s if mask is None else ops.where(mask, s, -1e9), axis=-1) @ v


def swaps_heads(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    return ops.softmax_attention(q, k[:, ::-1], v, mask)


def overflows(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Does not subtract the row maximum."""
    s = q @ k.mT / math.sqrt(q.shape[-1])
    e = ops.exp(s if mask is None else ops.where(mask, s, -math.inf))
    z = e.sum(axis=-1, keepdims=True)
    return e / ops.where(z == 0.0, 1.0, z) @ v


def drops_the_tail_tile(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Leaves out the keys behind the last whole tile of 4."""
    n = k.shape[2] - k.shape[2] % 4 if k.shape[2] > 4 else k.shape[2]
    return ops.softmax_attention(q, k[:, :, :n], v[:, :, :n], None if mask is None else mask[..., :n])


def leaks_the_future(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Causal, but for one token too many."""
    visible = np.tri(q.shape[2], k.shape[2], 1, dtype=bool)
    return ops.softmax_attention(q, k, v, visible if mask is None else visible & mask)


class FalseIdentity(SoftmaxAttention):
    """Right itself; what its file says of it is not."""


@identity("attention is linear in x")
def linear(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = SoftmaxAttention(case.dim, heads=case.h, seed=case.seed, dtype="float64"), case.tokens()
    return layer(2.0 * x), 2.0 * layer(x)

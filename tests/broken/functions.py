"""Wrong attention functions f(q, k, v, mask=None), each wrong in one way, and a false identity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.attention.softmax import SoftmaxAttention
from minitf.engine import Tensor, stop_gradient
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


def leaks_at_a_tile_edge(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Causal, but query 63 sees key 64."""
    visible = np.tri(q.shape[2], k.shape[2], dtype=bool)
    visible[63:64, 64:65] = True
    return ops.softmax_attention(q, k, v, visible if mask is None else visible & mask)


def first_heads_mask_for_all(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Where each head has a mask, all use that of the first."""
    return ops.softmax_attention(q, k, v, mask[:, :1] if np.ndim(mask) == 4 else mask)


def first_examples_mask_for_all(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    return ops.softmax_attention(q, k, v, mask[:1] if np.ndim(mask) == 4 else mask)


def turns_the_mask(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Takes rows of the mask for columns."""
    return ops.softmax_attention(q, k, v, None if mask is None else np.swapaxes(mask, -1, -2))


def sees_what_any_query_sees(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Hides a key only where no query sees it; rows that see nothing are zeros."""
    if mask is None or mask.shape[-2] == 1:
        return ops.softmax_attention(q, k, v, mask)
    o = ops.softmax_attention(q, k, v, np.any(mask, axis=-2, keepdims=True))
    return ops.where(np.any(mask, axis=-1, keepdims=True), o, 0.0)


def refuses_flat_masks(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Fails for a mask (N, N), which broadcasts like any other."""
    return ops.softmax_attention(q, k, v, None if mask is None else mask[:, :, : q.shape[2]])


def adds_the_mask(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Hides by -1e4, which large scores overcome."""
    bias = None if mask is None else np.where(mask, 0.0, -1e4)
    o = ops.softmax_attention(q, k, v, bias=bias)
    return o if mask is None else ops.where(np.any(mask, axis=-1, keepdims=True), o, 0.0)


def hides_a_little(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Causal by -1e4 instead of -inf, which large scores overcome."""
    bias = np.where(np.tri(q.shape[2], dtype=bool), 0.0, -1e4)
    return ops.softmax_attention(q, k, v, mask=mask, bias=bias)


def drops_the_third_tile(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Leaves out what stands behind two tiles of 32 keys."""
    return ops.softmax_attention(q, k[:, :, :64], v[:, :, :64], None if mask is None else mask[..., :64])


def drops_wide_features(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Sums over the first 16 features only."""
    return ops.softmax_attention(q[..., :16], k[..., :16], v, mask, scale=q.shape[-1] ** -0.5)


def softmax_in_float16(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Half precision inside a float32 path."""
    p = ops.attention_weights(q, k, mask)
    return (p.astype("float16").astype(p.dtype) if p.dtype == "float32" else p) @ v


def promotes_under_a_mask(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """A float64 constant makes the result float64 wherever there is a mask."""
    o = ops.softmax_attention(q, k, v, mask)
    return o if mask is None else o.astype("float64")


def empty_rows_see_all(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """A row that sees nothing gives the mean of what it must not see."""
    if mask is not None:
        mask = np.asarray(mask) | ~np.any(mask, axis=-1, keepdims=True)
    return ops.softmax_attention(q, k, v, mask)


def value_gradient_off(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """The gradient of the values is 0.1 % too large."""
    return ops.softmax_attention(q, k, 1.001 * v - stop_gradient(0.001 * v), mask)


def writes_into_the_mask(q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
    """Lets every query see itself, in the caller's own mask."""
    o = ops.softmax_attention(q, k, v, mask)
    if isinstance(mask, np.ndarray) and mask.flags.writeable and mask.shape[-1] == mask.shape[-2]:
        mask |= np.eye(mask.shape[-1], dtype=bool)
    return o


class FalseIdentity(SoftmaxAttention):
    """Right itself; what its file says of it is not."""


@identity("attention is linear in x")
def linear(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = SoftmaxAttention(case.dim, heads=case.h, seed=case.seed, dtype="float64"), case.tokens()
    return layer(2.0 * x), 2.0 * layer(x)

"""Wrong mixers and networks, each wrong in one way. tests/testing/test_broken.py says which check sees it."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.attention.softmax import SoftmaxAttention
from minitf.engine import Tensor, stop_gradient
from minitf.ffn.gelu_ffn import GELUFFN
from minitf.nn import KVCache, Parameter
from minitf.nn.positions import RoPE


class LeaksOneToken(SoftmaxAttention):
    """Lets every token see its successor."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        ahead = ops.concat([x[:, 1:], x[:, -1:]], axis=1)
        return super().forward(x, **options) + 1e-6 * ahead


class LeaksInGradientOnly(SoftmaxAttention):
    """The values are causal; the gradient of a term that is worth zero is not."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        total = x.sum(axis=1, keepdims=True)
        return super().forward(x, **options) + (total - stop_gradient(total))


class SoftmaxOverQueries(SoftmaxAttention):
    """Normalises the columns of the attention map instead of its rows."""

    def weights(self, x: Tensor, **options: Any) -> Tensor:
        q, k, _, _ = self._heads(x, None, None)
        scores = ops.where(np.tri(x.shape[1], dtype=bool), q @ k.mT / self.head_dim**0.5, -np.inf)
        return ops.softmax(scores, axis=-2)


class MixesHeads(SoftmaxAttention):
    """Joins the heads without moving their axis back, so that tokens and heads trade places."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        q, k, v, _ = self._heads(x, None, None)
        o = ops.softmax_attention(q, k, v, causal=True)
        return self.wo(o.reshape((x.shape[0], x.shape[1], self.heads * self.head_dim)))


class ChangesItsInput(SoftmaxAttention):
    """Centres the tokens in place."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        y = super().forward(x, **options)
        x.data[...] -= x.data.mean(axis=-1, keepdims=True)
        return y.detach()


class RemembersTheLastBatch(SoftmaxAttention):
    """Adds a running mean of what it saw in earlier calls."""

    seen: Any = 0.0

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        y = super().forward(x, **options) + self.seen
        self.seen = 0.9 * self.seen + 0.1 * float(x.data.mean())
        return y


class DrawsWithoutASeed(SoftmaxAttention):
    """Adds noise that no seed controls."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options) + 1e-9 * np.random.default_rng().standard_normal(x.shape)


class NormalisesOverTheBatch(SoftmaxAttention):
    """Centres with the mean of the batch."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x - 0.01 * x.mean(axis=0, keepdims=True), **options)


class LeaksGradientsInTheBatch(SoftmaxAttention):
    """The values of the examples are their own; the gradient of a term that is worth zero is not."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        total = x.sum(axis=0, keepdims=True)
        return super().forward(x, **options) + (total - stop_gradient(total))


class KeepsOldWeights(SoftmaxAttention):
    """Multiplies W_v and W_o once, and goes on with that product when they have changed."""

    product: Any = None

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        if self.product is None:
            self.product = self.wv.weight.data @ self.wo.weight.data
        return super().forward(x, **options) + 0.1 * (x @ self.product)


class DrawsInTraining(SoftmaxAttention):
    """In training mode it adds noise that no seed controls."""

    def forward(self, x: Tensor, *, mask: Any = None) -> Tensor:
        y = super().forward(x, mask=mask)
        return y + 1e-6 * np.random.default_rng().standard_normal(x.shape) if self.training else y


class GradientSlightlyOff(SoftmaxAttention):
    """The value is right; the gradient is 0.1 % too large."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        y = super().forward(x, **options)
        return 1.001 * y - stop_gradient(0.001 * y)


class ParameterWithoutGradient(SoftmaxAttention):
    """Cuts the output projection out of the graph."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        q, k, v, bias = self._heads(x, None, None)
        return ops.merge_heads(ops.softmax_attention(q, k, v, causal=True)) @ self.wo.weight.detach()


class ComputesInFloat32(SoftmaxAttention):
    """Rounds to float32 inside a float64 path, and hides it again."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x.astype("float32").astype("float64"), **options)


class AnswersInFloat32(SoftmaxAttention):
    """Gives float32 whatever comes in."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options).astype("float32")


class FirstTokenIsSpecial(SoftmaxAttention):
    """Treats the first token in a way of its own."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(ops.concat([x[:, :1] * 1.01, x[:, 1:]], axis=1), **options)


class AttendsToPadding(SoftmaxAttention):
    """Drops a mask of padding that is the same for all queries."""

    def forward(self, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
        if mask is not None and mask.shape[-2] == 1:
            mask = None
        return super().forward(x, mask=mask, **options)


class NaNOnEqualRows(SoftmaxAttention):
    """Divides by the spread of the tokens."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        spread = ((x - x[:, :1]) ** 2).sum(axis=(1, 2), keepdims=True)
        return super().forward(x, **options) * (spread / spread)


class StaleCache(SoftmaxAttention):
    """Writes a step into the state it was given, so that a second continuation finds the first."""

    def step(self, x: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        y, after = super().step(x, state)
        state.keys[:, :, : state.length] += 1e-3 * after.k[:, :, -1:]
        return y, after


class ForgetsTheOffset(SoftmaxAttention):
    """The whole counts one position too many from the fourth token on; streaming does not."""

    def __init__(self, dim: int, *, heads: int = 1, seed: Any = 0, dtype: Any = "float32"):
        super().__init__(dim, heads=heads, position=RoPE(), seed=seed, dtype=dtype)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        positions = np.arange(x.shape[1])
        return super().forward(x, positions=positions + (positions > 2))


class HiddenWeight(SoftmaxAttention):
    """Draws a factor from its seed and does not keep it in the state."""

    def __init__(self, dim: int, *, heads: int = 1, seed: Any = 0, dtype: Any = "float32"):
        super().__init__(dim, heads=heads, seed=seed, dtype=dtype)
        self.factor = np.random.default_rng(seed).standard_normal(dim).astype(dtype)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options) * self.factor


class ScaledTwice(SoftmaxAttention):
    """Divides the scores by d instead of sqrt(d)."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        q, k, v, _ = self._heads(x, None, None)
        return self.wo(ops.merge_heads(ops.softmax_attention(q, k, v, causal=True, scale=1 / self.head_dim)))


class LooksLeft(GELUFFN):
    """A network for single tokens that sees the mean of all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * x.mean(axis=-2, keepdims=True)


class LooksLeftInGradientOnly(GELUFFN):
    """The value of a token is its own; its gradient goes to all."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum(axis=-2, keepdims=True)
        return super().forward(x) + (total - stop_gradient(total))


class StretchingRoPE(RoPE):
    """Turns queries and keys, and makes them 0.1 % longer."""

    def rotate(self, x: Tensor, positions: Any) -> Tensor:
        return super().rotate(x, positions) * 1.001


class UnseededParameter(SoftmaxAttention):
    """Initial values that its seed does not control."""

    def __init__(self, dim: int, *, heads: int = 1, seed: Any = 0, dtype: Any = "float32"):
        super().__init__(dim, heads=heads, seed=seed, dtype=dtype)
        self.shift = Parameter(np.random.default_rng().standard_normal(dim).astype(dtype))

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options) + self.shift


class OneDerivativeOff(SoftmaxAttention):
    """One entry of the Jacobian is off: the last feature of the second output by the first input."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        y, n = super().forward(x, **options), x.shape[1]
        if n < 2:
            return y
        zero = 0.02 * (x[:, :1, :1] - stop_gradient(x[:, :1, :1]))
        last = ops.concat([y[:, 1:2, :-1], y[:, 1:2, -1:] + zero], axis=2)
        return ops.concat([y[:, :1], last, y[:, 2:]], axis=1)


class RightRotary(SoftmaxAttention):
    """Rotary positions as they should be: what the next is compared with."""

    def __init__(self, dim: int, *, heads: int = 1, seed: Any = 0, dtype: Any = "float32"):
        super().__init__(dim, heads=heads, position=RoPE(), seed=seed, dtype=dtype)


class RotatesTheWrongPairs(SoftmaxAttention):
    """Pairs features j and j + d/2 in a layer whose weights were made for 2j and 2j + 1."""

    right = RightRotary

    def __init__(self, dim: int, *, heads: int = 1, seed: Any = 0, dtype: Any = "float32"):
        super().__init__(dim, heads=heads, position=RoPE(interleaved=False), seed=seed, dtype=dtype)


class SharesAWeight(SoftmaxAttention):
    """Keys are made by the weight of the queries."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        self.wk = self.wq
        return super().forward(x, **options)


class RightGroups(SoftmaxAttention):
    """Two query heads for each key head, as they should be."""

    def __init__(self, dim: int, *, heads: int = 1, seed: Any = 0, dtype: Any = "float32"):
        super().__init__(dim, heads=heads, kv_heads=max(1, heads // 2), seed=seed, dtype=dtype)


class GroupsHeadsTheOtherWay(RightGroups):
    """Query head h uses key head h mod Hkv instead of h // 2."""

    right = RightGroups

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        q, k, v, _ = self._heads(x, None, None)
        k, v = (ops.tile(a, (1, self.heads // self.kv_heads, 1, 1)) for a in (k, v))
        return self.wo(ops.merge_heads(ops.softmax_attention(q, k, v, causal=True)))

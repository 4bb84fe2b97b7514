"""Product-key memory: a table of n^2 values, searched exactly by comparing with 2 n half keys.

    q = x W_q + b_q = [q1, q2]                            for each head
    a = q1 K1^T,   b = q2 K2^T                            (n,) each
    I1 = TopK(a, k),   I2 = TopK(b, k)
    c_uv = a_I1[u] + b_I2[v]                              k x k sums, u first
    S  = TopK(c, k),   slot = I1[u] n + I2[v]
    w  = softmax(c_S)
    y  = sum over heads and over S of w V[slot]

    x  (..., D)      y  (..., O)      W_q  (D, H dk)      K1, K2  (H, n, dk/2)      V  (n^2, O), for all heads

The key of slot i n + j is [K1_i, K2_j]: the k best of all n^2 sums lie among the k best of each half, so the
search is exact. The choice is a constant in the backward pass; one token gives a gradient to at most H k rows
of V.

Cost: 2 N D H dk + 2 N H n dk + 2 N H k O operations, sorting n scores twice and k^2 sums once for each head;
n^2 O + H n dk + D H dk parameters. Tables are trained with a large rate of their own (Adam, 1e-3).
Source: Large Memory Layers with Product Keys, Lample et al., arXiv:1907.05242, 2019, section 3.
Differs from the paper: sizes grow with D up to those of the paper, H = 4, k = 32, n = 512, dk = 256. With
`batchnorm` queries are normalised over tokens, which spreads the use of slots; in training mode tokens then
see each other.
Numerics: scores are not scaled before the softmax.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor
from minitf.nn import BatchNorm, Card, Case, Linear, Module, Paper, Parameter, identity, init, positive

CARD = Card(
    name="pkm",
    title="Product-key memory",
    kind="ffn",
    family="memory",
    papers=(Paper("Large Memory Layers with Product Keys", "1907.05242", 2019),),
    causal=True,
    streams=False,
    grid="any",
    complexity="2 N D H dk + 2 N H n dk + 2 N H n log n + 2 N H k^2 log k + 2 N H k D",
    properties=("token_wise",),
    basis="published code: facebookresearch/XLM PKM-layer.ipynb, xlm/model/memory/memory.py",
    parity=("facebookresearch/XLM cd281d3 HashingMemoryProductFast",),
)


def product_topk(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Array]:
    """The k largest of all sums a_i + b_j (..., k), a and b (..., n), and their slots i n + j."""
    best1, i1 = ops.topk(a, k)
    best2, i2 = ops.topk(b, k)
    # c_uv, flattened with u first: (..., k k)
    sums = (best1[..., :, None] + best2[..., None, :]).reshape((*a.shape[:-1], k * k))
    best, place = ops.topk(sums, k)
    u, v = place.data // k, place.data % k
    slots = np.take_along_axis(i1.data, u, axis=-1) * a.shape[-1] + np.take_along_axis(i2.data, v, axis=-1)
    return best, slots


def usage(slots: Array, weights: Any, size: int) -> tuple[float, float]:
    """How evenly a memory of `size` slots is read: the fraction ever read, and KL(reading || uniform)."""
    read = np.bincount(slots.reshape(-1), np.asarray(weights).reshape(-1), minlength=size)
    share = read[read > 0] / read.sum()
    return len(share) / size, float((share * np.log(share * size)).sum())


class PKM(Module):
    """(..., D) -> (..., O).

    Parameters: wq (D, H dk) with bias, keys (H, 2, n, dk/2), values (n^2, O); norm.weight and norm.bias
    (H dk,) if batchnorm.

    Args:
        dim: D. heads: H. out: O, default D. keys: n, default 2 D, at most 512.
        k: slots read by each head, default n, at most 32. key_dim: dk, even, default D, at most 256.
        batchnorm: normalise queries over tokens.

    Raises:
        ValueError: heads or out below 1, k outside 1..keys, or key_dim not even.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        out: int | None = None,
        keys: int | None = None,
        k: int | None = None,
        key_dim: int | None = None,
        batchnorm: bool = False,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads, out=out)
        n = min(2 * dim, 512) if keys is None else keys
        dk = min(dim + dim % 2, 256) if key_dim is None else key_dim
        self.heads, self.k = heads, min(n, 32) if k is None else k
        if not 1 <= self.k <= n:
            raise ValueError(f"k={k} must be from 1 to keys={n}")
        if dk < 2 or dk % 2:
            raise ValueError(f"key_dim={dk} must be even: it is cut in two halves")
        rng, out = init.generator(seed), dim if out is None else out
        self.wq = Linear(dim, heads * dk, True, rng, dtype=dtype)
        self.norm = BatchNorm(heads * dk, dtype=dtype) if batchnorm else None
        self.keys = Parameter(init.uniform(rng, (heads, 2, n, dk // 2), 1.0 / math.sqrt(dk // 2), dtype))
        self.values = Parameter(init.normal(rng, (n * n, out), 1.0 / math.sqrt(out), dtype))

    def forward(self, x: Tensor) -> Tensor:
        weights, slots = self.read(x)
        # (..., 1, H k) times rows (..., H k, O)
        flat = (*x.shape[:-1], self.heads * self.k)
        rows = self.values[slots.reshape(flat)]
        return (weights.reshape(flat)[..., None, :] @ rows)[..., 0, :]

    def read(self, x: Tensor) -> tuple[Tensor, Array]:
        """Weights w and slots, both (..., H, k), for x (..., D)."""
        q = self.wq(x)
        q = q if self.norm is None else self.norm(q)
        half = self.keys.shape[-1]
        # [q1, q2] of each head: (..., H, 2, 1, dk/2); scores [a, b]: (..., H, 2, n)
        q = q.reshape((*x.shape[:-1], self.heads, 2, 1, half))
        scores = (q @ self.keys.mT)[..., 0, :]
        best, slots = product_topk(scores[..., 0, :], scores[..., 1, :], self.k)
        return ops.softmax(best), slots


def build(case: Case, **options: Any) -> PKM:
    options = {"keys": 5, "k": 3, "key_dim": 4, **options}
    return PKM(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


def all_keys(layer: PKM) -> Tensor:
    """The key [K1_i, K2_j] of every slot i n + j: (H, n^2, dk)."""
    n = layer.keys.shape[2]
    i, j = np.divmod(np.arange(n * n), n)
    return ops.concat([layer.keys[:, 0][:, i], layer.keys[:, 1][:, j]], axis=-1)


def brute_force(layer: PKM, q: Tensor) -> Tensor:
    """y by scoring all n^2 keys with the queries q (..., H dk), head by head."""
    q = q.reshape((*q.shape[:-1], layer.heads, -1))
    y: Any = 0.0
    for h in range(layer.heads):
        best, slots = ops.topk(q[..., h, :] @ all_keys(layer)[h].mT, layer.k)
        y = y + (ops.softmax(best)[..., None] * layer.values[slots]).sum(axis=-2)
    return y


@identity("the search by halves equals scoring all n^2 keys")
def exact(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for k in (1, 3, 5):
        layer = build(case, k=k)
        left.append(layer(x))
        right.append(brute_force(layer, layer.wq(x)))
    return ops.stack(left), ops.stack(right)


@identity("the k best sums and their slots, by sorting all n^2")
def sums(case: Case) -> tuple[Any, Any]:
    rng = case.rng()
    a, b = rng.standard_normal((2, case.t, 6))
    best, slots = product_topk(Tensor(a), Tensor(b), 4)
    every = (a[:, :, None] + b[:, None, :]).reshape(case.t, 36)
    order = np.argsort(-every, axis=-1)[:, :4]
    return np.stack([best.data, slots]), np.stack([np.take_along_axis(every, order, axis=-1), order])


@identity("equal values V = v give y = H v: the weights of a head sum to 1")
def constant_values(case: Case) -> tuple[Tensor, Any]:
    layer, x = build(case), case.tokens()
    v = case.rng().standard_normal(case.dim)
    layer.values.data = np.broadcast_to(v, layer.values.shape).copy()
    return layer(x), np.broadcast_to(case.h * v, x.shape)


@identity("with k = n^2 the search over all keys is attention to the whole memory")
def whole_memory(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, keys=3, k=3), case.tokens()
    layer.k = 9
    q = layer.wq(x).reshape((case.b, case.t, case.h, 4)).permute_dims((0, 2, 1, 3))
    o = ops.softmax(q @ all_keys(layer).mT) @ layer.values
    return brute_force(layer, layer.wq(x)), o.sum(axis=1)


@identity("at most H k rows of V get a gradient from one token, and those are the ones it read")
def sparse_gradient(case: Case) -> tuple[Any, Any]:
    layer, x = build(case), case.tokens()[:1, :1]
    layer(x).sum().backward()
    touched = np.any(layer.values.grad.data != 0.0, axis=-1)  # type: ignore[union-attr]
    read = np.zeros(25)
    read[layer.read(x)[1].reshape(-1)] = 1.0
    return touched.astype(float), read


@identity("with batch norm, training mode: queries less their mean over all tokens, by their deviation")
def normalised_queries(case: Case) -> tuple[Tensor, Tensor]:
    layer: Any = build(case, batchnorm=True)
    x, rng = case.tokens(), case.rng()
    layer.norm.weight.data, layer.norm.bias.data = rng.standard_normal((2, *layer.norm.bias.shape))
    q = layer.wq(x).data
    q = (q - q.mean(axis=(0, 1))) / np.sqrt(q.var(axis=(0, 1)) + 1e-5)
    return layer(x), brute_force(layer, Tensor(q * layer.norm.weight.data + layer.norm.bias.data))

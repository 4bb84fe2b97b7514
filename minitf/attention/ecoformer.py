"""EcoFormer: attention between short codes of signs, whose products need no multiplications.

    z = x W_qk,  z_i <- z_i / |z_i|                          split into heads; one map for queries and keys
    kappa_ij = exp(-|z_i - u_j|^2 / (2 s))                   closeness to m anchors; s: mean of |z_i - u_j|^2
    h_i = sign(A (kappa_i - mu))                             the code, b numbers in {-1, +1}; sign(0) = +1
    w_ij = h_i . h_j + b + 1                                 from 1 to 2 b + 1
    o_i = sum_j w_ij v_j / sum_j w_ij,   v = x W_v           y = merge(o) W_o

    x, y  (B, N, D)        z, v, o  (B, H, N, d)        h  (B, H, N, b)        w  (B, H, N, N), never formed
    u  (H, m, d)           mu  (H, m)                   A  (H, b, m)           s  (B, H)

b = 16, m = 25. With the sums c = sum_j h_j^T v_j (b, d), n = sum_j h_j (b) and V = sum_j v_j (d):

    o_i = (h_i c + (b + 1) V) / (h_i . n + (b + 1) N)        linear in N, and signs only choose + or -

u, mu and A are not trained by the loss. `fit` learns them from one batch, at the start and again from time to
time: u are m tokens of the first sample, mu the mean of kappa. Then, bit after bit, row a of A makes

    L(a) = -mean y^T R y / (N b),   y = 2 sigmoid((kappa - mu) a) - 1

smaller by gradient descent. R is b times +1 for the 10 most similar tokens of each row of z z^T, -1 for the
10 least similar, less y y^T of the bits before, with hard signs. What does not make L smaller, with hard
signs and over all heads, is not kept.

Cost: 6 N D^2 for the maps, 2 N m D + 2 N H m b for the codes, 4 N b D (additions only) for the attention.
Source: EcoFormer: Energy-Saving Attention with Linear Complexity, Liu et al., arXiv:2209.09004, 2022.
Differs from the published code: that adds (b + 1) v_i where the sum of all w_ij v_j, as the paper means it,
has (b + 1) V. Until `fit`, u are random unit vectors and mu = exp(-1/2), kappa at the mean distance.
Numerics: the gradient of sign is 1 where its argument is between -1 and 1, else 0; none reaches A. Squared
lengths get 1e-12. s depends on all tokens, so this attention cannot be causal.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, grad, no_grad
from minitf.nn import Buffer, Card, Case, Linear, Module, Paper, identity, init, positive, visible_keys

CARD = Card(
    name="ecoformer",
    title="EcoFormer: attention between binary codes",
    kind="attention",
    family="linear",
    papers=(Paper("EcoFormer: Energy-Saving Attention with Linear Complexity", "2209.09004", 2022),),
    causal=False,
    streams=False,
    grid="1d",
    complexity="6 N D^2 + 2 N m D + 2 N H m b + 4 N b D",
    properties=("batch_independent", "permutation_equivariant", "row_stochastic", "key_masks"),
    basis="published code: ziplab/EcoFormer pvt/performer.py (EcoformerFastAttention), pvt/hashing/ksh.py",
    expected_failures={
        "gradients": "codes are signs: their slope is 0, and training passes gradients straight through",
        "full_jacobian": "codes are signs: their slope is 0, and training passes gradients straight through",
    },
    parity=("ziplab/EcoFormer a277f9e pvt/hashing/ksh.py KernelSH",),
)


def unit(x: Tensor) -> Tensor:
    return x / ops.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-12)


def closeness(z: Tensor, anchors: Tensor, visible: Any = True) -> Tensor:
    """kappa (B, H, N, m) from z (B, H, N, d) and u (H, m, d). visible: what counts in s, (B, 1, N, 1)."""
    # |z - u|^2 = |z|^2 - 2 z . u + |u|^2
    square = (z * z).sum(axis=-1, keepdims=True) - 2.0 * (z @ anchors.mT)
    square = square + (anchors * anchors).sum(axis=-1)[:, None]
    count = np.broadcast_to(visible, (z.shape[0], 1, z.shape[2], 1)).sum(axis=2, keepdims=True)
    total = ops.where(visible, square, 0.0).sum(axis=(2, 3), keepdims=True)
    s = total / np.maximum(count * anchors.shape[1], 1).astype(z.dtype)
    return ops.exp(-square / (2.0 * s + 1e-12))


def signs(x: Tensor) -> Tensor:
    """-1 where x < 0, else +1; its gradient is that of x limited to [-1, 1]."""
    return ops.straight_through(
        ops.where(x.detach() < 0.0, -1.0, 1.0).astype(x.dtype), ops.clip(x, -1.0, 1.0)
    )


def codes(z: Tensor, anchors: Tensor, mu: Tensor, a: Tensor, visible: Any = True) -> Tensor:
    """h (B, H, N, b) from z (B, H, N, d), u (H, m, d), mu (H, m) and A (H, b, m)."""
    return signs((closeness(z, anchors, visible) - mu[:, None]) @ a.detach().mT)


def attend(h: Tensor, v: Tensor, visible: Any = True) -> Tensor:
    """o (B, H, N, d) from codes (B, H, N, b) and v (B, H, N, d), in time linear in N."""
    beta = h.shape[-1] + 1.0
    keys, values = ops.where(visible, h, 0.0), ops.where(visible, v, 0.0)
    count = np.broadcast_to(visible, (*h.shape[:3], 1)).sum(axis=2, keepdims=True).astype(h.dtype)
    # h c + beta V, and h . n + beta N, which is at least N
    o = h @ (keys.mT @ values) + beta * values.sum(axis=2, keepdims=True)
    total = h @ keys.sum(axis=2)[..., None] + beta * count
    return o / ops.where(count == 0.0, 1.0, total)


def targets(z: Array, bits: int, similar: int) -> Array:
    """R (B, H, N, N) before the first bit: b for the most similar tokens of each row, -b for the least."""
    products = z @ z.swapaxes(-1, -2)
    r = np.zeros_like(products)
    # Lower indices win ties.
    for descending, value in ((True, bits), (False, -bits)):
        chosen = ops.argsort(products, descending=descending)[..., : min(similar, z.shape[2])]
        np.put_along_axis(r, np.asarray(chosen), value, axis=-1)
    return r


def loss(y: Any, r: Array, bits: int) -> Any:
    """L, a scalar: the mean over samples and heads of -y^T R y / (N b), y (B, H, N, 1)."""
    return -(y * (r @ y)).sum(axis=(-1, -2)).mean() / (r.shape[-1] * bits)


def descended(row: Array, centred: Array, r: Array, bits: int, steps: int, lr: float) -> Array:
    """a (H, m) after gradient descent on L with Nesterov momentum 0.9. centred: kappa - mu (B, H, N, m)."""

    def soft(row: Tensor) -> Tensor:
        return loss(2.0 * ops.sigmoid(Tensor(centred) @ row[..., None]) - 1.0, r, bits)

    velocity = np.zeros_like(row)
    for _ in range(steps):
        slope = grad(soft)(Tensor(row)).data
        velocity = 0.9 * velocity + slope
        row = row - lr * (slope + 0.9 * velocity)
    return row


def learned(
    z: Array, anchors: Array, a: Array, steps: int = 100, lr: float = 5e-4, similar: int = 10
) -> tuple[Array, Array]:
    """mu (H, m) and A (H, b, m), learned from z (B, H, N, d) of length 1, starting from A."""
    bits, r = a.shape[1], targets(z, a.shape[1], similar)
    with no_grad():
        kappa = closeness(Tensor(z), Tensor(anchors)).data
    mu = kappa.mean(axis=(0, 2))
    centred = kappa - mu[:, None]

    def hard(row: Array) -> Array:
        return np.where(centred @ row[..., None] > 0.0, 1.0, -1.0).astype(z.dtype)

    a = a.copy()
    for bit in range(bits):
        row = descended(a[:, bit], centred, r, bits, steps, lr)
        if loss(hard(row), r, bits) < loss(hard(a[:, bit]), r, bits):
            a[:, bit] = row
        y = hard(a[:, bit])
        r = r - y @ y.swapaxes(-1, -2)
    return mu, a


class EcoFormer(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: wqk, wv, wo (D, D). Buffers: anchors (H, m, d), mu (H, m), a (H, b, m).

    Args:
        dim: D. heads: H. bits: b. count: m.

    Raises:
        ValueError: heads that do not divide dim; bits or count below 1.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        bits: int = 16,
        count: int = 25,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        if bits < 1 or count < 1:
            raise ValueError(f"bits={bits} and count={count} must be at least 1")
        rng = init.generator(seed)
        self.heads = heads
        self.wqk, self.wv, self.wo = (Linear(dim, dim, False, rng, dtype=dtype) for _ in range(3))
        anchors = rng.standard_normal((heads, count, dim // heads))
        anchors /= np.linalg.norm(anchors, axis=-1, keepdims=True)
        self.anchors = Buffer(anchors.astype(dtype))
        self.mu = Buffer(np.full((heads, count), math.exp(-0.5), dtype))
        self.a = Buffer(rng.standard_normal((heads, bits, count)).astype(dtype))

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D). mask: boolean (B, 1, 1, N), True = visible; hidden tokens do not count."""
        visible = visible_keys(mask, x.shape[0], x.shape[1])
        visible = True if visible is None else visible
        h = codes(self._directions(x), self.anchors, self.mu, self.a, visible)
        return self.wo(ops.merge_heads(attend(h, ops.split_heads(self.wv(x), self.heads), visible)))

    def codes(self, x: Tensor) -> Tensor:
        """h (B, H, N, b)."""
        return codes(self._directions(x), self.anchors, self.mu, self.a)

    def weights(self, x: Tensor) -> Tensor:
        """w / sum w (B, H, N, N), for pictures and analysis."""
        h = self.codes(x)
        w = h @ h.mT + (h.shape[-1] + 1.0)
        return w / w.sum(axis=-1, keepdims=True)

    def fit(
        self, x: Tensor, *, seed: init.Seed = 0, steps: int = 100, lr: float = 5e-4, similar: int = 10
    ) -> None:
        """Learn anchors, mu and A from a batch x (B, N, D). With N < m tokens, anchors repeat."""
        with no_grad():
            z = self._directions(x).data
        order = np.resize(init.generator(seed).permutation(x.shape[1]), self.anchors.shape[1])
        self.anchors.data = z[0][:, order].copy()
        self.mu.data, self.a.data = learned(z, self.anchors.data, self.a.data, steps, lr, similar)

    def _directions(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise ShapeError(f"ecoformer: x must be (B, N, D), not {x.shape}")
        return unit(ops.split_heads(self.wqk(x), self.heads))


def heads_of(case: Case, bits: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z (b, h, t, d) of length 1, u (h, 5, d), mu (h, 5) and A (h, bits, 5)."""
    rng = case.rng()
    shapes = ((case.b, case.h, case.t, case.d), (case.h, 5, case.d), (case.h, 5), (case.h, bits, 5))
    z, anchors, mu, a = (rng.standard_normal(shape) for shape in shapes)
    return unit(Tensor(z)), unit(Tensor(anchors)), Tensor(0.6 + 0.1 * mu), Tensor(a)


def build(case: Case, **options: Any) -> EcoFormer:
    return EcoFormer(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


@identity("the linear form is the matrix of weights times the values, before and after learning")
def linear_is_quadratic(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, left, right = build(case, bits=5, count=4), case.tokens(), [], []
    for _ in range(2):
        left.append(layer(x))
        right.append(layer.wo(ops.merge_heads(layer.weights(x) @ ops.split_heads(layer.wv(x), case.h))))
        layer.fit(x, seed=case.seed, steps=2)
    return ops.stack(left), ops.stack(right)


@identity("h_i . h_j = b - 2 Hamming(h_i, h_j), so w is from 1 to 2 b + 1, and 2 b + 1 on the diagonal")
def hamming(case: Case) -> tuple[Any, Any]:
    h = codes(*heads_of(case)).data
    w = h @ h.swapaxes(-1, -2) + 7.0
    distance = np.sum(h[:, :, :, None] != h[:, :, None], axis=-1)
    diagonal = np.diagonal(w, axis1=-2, axis2=-1)
    left = [w, np.clip(w, 1.0, 13.0), w * 0.0 + np.max(w, axis=-1, keepdims=True)]
    return np.stack(left), np.stack([6.0 - 2.0 * distance + 7.0, w, w * 0.0 + diagonal[..., None]])


@identity("the code of a token is the sides of b planes on which its Gaussian closeness to the anchors lies")
def codes_by_loops(case: Case) -> tuple[Any, Any]:
    z, anchors, mu, a = (v.data for v in heads_of(case))
    expected = np.zeros((case.b, case.h, case.t, 6))
    for b, h in np.ndindex(case.b, case.h):
        square = np.array([[np.sum((token - u) ** 2) for u in anchors[h]] for token in z[b, h]])
        kappa = np.exp(-square / (2.0 * square.mean()))
        expected[b, h] = np.where((kappa - mu[h]) @ a[h].T < 0.0, -1.0, 1.0)
    return codes(*heads_of(case)), expected


@identity("tokens that are the same have the same code, and all together attend evenly")
def equal_tokens(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    same = ops.broadcast_to(x[:, :1], x.shape)
    h = layer.codes(same)
    v = ops.split_heads(layer.wv(x), case.h)
    mean = ops.broadcast_to(v.mean(axis=2, keepdims=True), v.shape)
    return ops.concat([h, attend(h, v)], axis=-1), ops.concat(
        [ops.broadcast_to(h[:, :, :1], h.shape), mean], axis=-1
    )


@identity("A = 0 gives sign(0) = +1 everywhere: every token gets the mean of the values")
def no_planes(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    layer.a.data = np.zeros_like(layer.a.data)
    mean = ops.broadcast_to(layer.wo(layer.wv(x)).mean(axis=1, keepdims=True), x.shape)
    h = layer.codes(x).reshape((-1,))
    return ops.concat([h, layer(x).reshape((-1,))]), ops.concat([ops.ones_like(h), mean.reshape((-1,))])


@identity("gradients pass through a sign as through a clip to [-1, 1]")
def straight_through(case: Case) -> tuple[Tensor, Tensor]:
    z, anchors, mu, a = heads_of(case)
    c = case.rng().standard_normal((case.b, case.h, case.t, 6))

    def smooth(z: Tensor) -> Tensor:
        return (ops.clip((closeness(z, anchors) - mu[:, None]) @ a.mT, -1.0, 1.0) * c).sum()

    return grad(lambda z: (codes(z, anchors, mu, a) * c).sum())(z), grad(smooth)(z)


@identity("directions have length 1: the code of a token does not depend on its length")
def directions(case: Case) -> tuple[Tensor, Any]:
    layer, x = build(case), case.tokens()
    z = ops.split_heads(layer.wqk(x), case.h).data
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    expected = codes(Tensor(z), layer.anchors, layer.mu, layer.a)
    return ops.stack([layer.codes(x), layer.codes(x * 3.0)]), ops.stack([expected, expected])


def lesson(case: Case) -> tuple[Array, Array, Array, Array, Array]:
    """z, u, A (h, 3, 5), kappa - mu and, by loops over rows, R with the 2 most and least similar tokens."""
    z, anchors, _, a = (v.data for v in heads_of(case, bits=3))
    kappa = closeness(Tensor(z), Tensor(anchors)).data
    r = np.zeros((case.b, case.h, case.t, case.t))
    for i in np.ndindex(case.b, case.h, case.t):
        products = z[i[0], i[1]] @ z[i]
        r[(*i, np.argsort(-products, kind="stable")[:2])] = 3.0
        r[(*i, np.argsort(products, kind="stable")[:2])] = -3.0
    return z, anchors, a, kappa - kappa.mean(axis=(0, 2))[:, None], r


@identity("two steps of learning are those of gradient descent with Nesterov momentum, by the chain rule")
def two_steps(case: Case) -> tuple[Any, Any]:
    z, _, a, centred, r = lesson(case)
    row, velocity = a[:, 0], 0.0 * a[:, 0]
    for _ in range(2):
        y = np.tanh(centred @ row[..., None] / 2.0)[..., 0]
        # dL/dy = -(R + R^T) y / (N b B H), dy/d(Kc a) = (1 - y^2) / 2
        dy = -np.einsum("bhij,bhj->bhi", r + r.swapaxes(-1, -2), y) / (case.t * 3 * case.b * case.h)
        slope = np.einsum("bhi,bhim->hm", dy * (1.0 - y * y) / 2.0, centred)
        velocity = 0.9 * velocity + slope
        row = row - 0.5 * (slope + 0.9 * velocity)
    return descended(a[:, 0], centred, targets(z, 3, 2), 3, 2, 0.5), row


@identity("bit after bit, a row that lowers the loss of the signs is kept, and their products leave R")
def bit_after_bit(case: Case) -> tuple[Any, Any]:
    z, anchors, a, centred, r = lesson(case)
    # Steps so long that some rows get better and some do not.
    found = learned(z, anchors, a, steps=2, lr=50.0, similar=2)[1]
    expected = []
    for bit in range(3):
        rows = [descended(a[:, bit], centred, r, 3, 2, 50.0), a[:, bit]]
        signs = [np.where((centred * row[:, None]).sum(axis=-1) > 0.0, 1.0, -1.0) for row in rows]
        gains = [np.einsum("bhi,bhij,bhj->", y, r, y) for y in signs]
        best = 0 if gains[0] > gains[1] else 1
        expected.append(rows[best])
        r = r - np.einsum("bhi,bhj->bhij", signs[best], signs[best])
    return found, np.stack(expected, axis=1)

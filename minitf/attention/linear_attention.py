"""Linear attention: exp(q . k) becomes phi(q) . phi(k), and the past fits into one matrix.

    q = phi(x W_q),  k = phi(x W_k),  v = x W_v                  split into heads;  phi(x) = elu(x) + 1
    S_t = S_{t-1} + k_t^T v_t,   z_t = z_{t-1} + k_t             causal; otherwise sums over all tokens
    o_t = q_t S_t / (q_t . z_t + eps)
    y   = merge(o) W_o

    x, y  (B, N, D)        q, k  (B, H, N, dk)        v, o  (B, H, N, dv)
    S  (B, H, dk, dv)      z  (B, H, dk)

With normalize=False, as later papers have it: o_t = RMSNorm(q_t S_t / sqrt(dk)) for each head, no z; phi may
then be the identity. The weights as a matrix: A = tril(q k^T), P = A / (sum of the row of A + eps), o = P v.

Cost: 8 N D^2 for the maps; causal 2 N H C (dk + dv) + 4 N H dk dv in chunks of C, otherwise 4 N H dk dv:
linear in N. A state holds H dk (dv + 1) numbers.
Source: Transformers are RNNs, Katharopoulos et al., arXiv:2006.16236, 2020, equations 4 to 7 and 16 to 20.
Unnormalised form: The Devil in Linear Transformer, Qin et al., arXiv:2210.10340, 2022.
Differs from the paper: nothing; z is computed as one more column of S, for a column of ones beside v.
Numerics: no scale 1/sqrt(d) with z, it would cancel. eps = 1e-6 is added to a sum of positive products; in
float32 it matters when all keys are very negative. Signed features can bring q . z near 0, so phi = identity
goes without z.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor, no_grad
from minitf.nn import (
    Card,
    Case,
    Linear,
    Module,
    Paper,
    RMSNorm,
    identity,
    init,
    not_negative,
    positive,
    visible_keys,
)

CARD = Card(
    name="linear_attention",
    title="Linear attention with a kernel feature map",
    kind="attention",
    family="linear",
    papers=(
        Paper(
            "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
            "2006.16236",
            2020,
        ),
        Paper("The Devil in Linear Transformer", "2210.10340", 2022),
    ),
    causal=True,
    streams=True,
    grid="1d",
    complexity="8 N D^2 + 4 N C D + 4 N D dv",
    properties=(
        "causal",
        "streams",
        "chunked",
        "batch_independent",
        "key_masks",
        "permutation_equivariant_without_causal",
    ),
    basis="published code: idiap/fast-transformers causal_linear_attention.py, linear_attention.py; "
    "fla-org/flash-linear-attention fla/ops/linear_attn/naive.py",
    parity=("fla-core 0.6.0 naive_recurrent_linear_attn",),
)


def elu_plus_one(x: Tensor) -> Tensor:
    """phi(x) = x + 1 where x > 0, else e^x: positive, and smooth to first order."""
    return ops.where(x > 0.0, x + 1.0, ops.exp(ops.clip(x, max=0.0)))


FEATURES = {"elu": elu_plus_one, "identity": lambda x: x}


def recurrent(q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-6) -> Tensor:
    """o (B, H, N, dv), token by token, as the equations say it. q, k: features (B, H, N, dk)."""
    s: Any = 0.0
    z: Any = 0.0
    rows = []
    for t in range(q.shape[2]):
        # S = S + k_t^T v_t: (B, H, dk, dv), z = z + k_t: (B, H, dk)
        s = s + k[:, :, t, :, None] * v[:, :, t, None, :]
        z = z + k[:, :, t]
        # o_t = q_t S / (q_t . z + eps): (B, H, dv)
        total = (q[:, :, t] * z).sum(axis=-1, keepdims=True) + eps
        rows.append((q[:, :, t, None, :] @ s)[:, :, 0] / total)
    return ops.stack(rows, axis=2)


def parallel(q: Tensor, k: Tensor, causal: bool = True, eps: float = 1e-6) -> Tensor:
    """P (B, H, N, N), the weights as a matrix: N^2 of them."""
    a = q @ k.mT
    a = ops.tril(a) if causal else a
    return a / (a.sum(axis=-1, keepdims=True) + eps)


def linear(
    q: Tensor, k: Tensor, v: Tensor, state: Any = None, causal: bool = True, chunk: int = 16
) -> tuple[Tensor, Any]:
    """q_t S_t (B, H, N, dv) and the last S (B, H, dk, dv), None if not causal. N^2 numbers never form."""
    if not causal:
        # (q k^T) v = q (k^T v)
        return q @ (k.mT @ v), None
    return ops.gated_scan(q, k, v, ops.zeros((*q.shape[:3], 1), like=q), state, chunk)


def normalised(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Any = None,
    causal: bool = True,
    chunk: int = 16,
    eps: float = 1e-6,
) -> tuple[Tensor, Any]:
    """o (B, H, N, dv) and the last [S, z] (B, H, dk, dv + 1): ones beside v sum up the weights."""
    ones = ops.ones((*v.shape[:3], 1), like=v)
    both, state = linear(q, k, ops.concat([v, ones], axis=-1), state, causal, chunk)
    return both[..., :-1] / (both[..., -1:] + eps), state


class LinearAttention(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: wq, wk (D, H dk), wv (D, H dv), wo (H dv, D); norm.weight (dv) unless `normalize`.

    Args:
        dim: D. heads: H. expand_k, expand_v: H dk / D and H dv / D.
        features: phi, "elu" (plus one) or "identity". normalize: divide by q . z; otherwise RMSNorm.
        causal: sum over the past only. eps: added to q . z.
        chunk: tokens that are computed at once when causal; any number gives the same result.

    Raises:
        ValueError: heads that do not divide dim; unknown features; identity features with `normalize`;
            chunk below 1, expand_k or expand_v of 0 or less, eps below 0.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        features: str = "elu",
        normalize: bool = True,
        causal: bool = True,
        eps: float = 1e-6,
        chunk: int = 16,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads, expand_k=expand_k, expand_v=expand_v, chunk=chunk)
        not_negative(eps=eps)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        if features not in FEATURES:
            raise ValueError(f"features={features!r} must be one of: {', '.join(FEATURES)}")
        if normalize and features == "identity":
            raise ValueError("identity features are signed, so q . z may be 0: write normalize=False")
        rng = init.generator(seed)
        dk, dv = (max(1, int(expand * dim / heads)) for expand in (expand_k, expand_v))
        self.heads, self.dk, self.dv, self.chunk, self.eps = heads, dk, dv, chunk, eps
        self.features, self.normalize, self.causal = features, normalize, causal
        self.wq = Linear(dim, heads * dk, False, rng, dtype=dtype)
        self.wk = Linear(dim, heads * dk, False, rng, dtype=dtype)
        self.wv = Linear(dim, heads * dv, False, rng, dtype=dtype)
        self.norm = None if normalize else RMSNorm(dv, dtype=dtype)
        self.wo = Linear(heads * dv, dim, False, rng, dtype=dtype)

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D). mask: boolean (B, 1, 1, N), True = visible; hidden tokens are not summed."""
        return self._mix(x, None, mask)[0]

    def weights(self, x: Tensor, *, mask: Any = None) -> Tensor:
        """P (B, H, N, N), the attention map that `normalize` implies, for pictures and analysis."""
        q, k, _ = self._heads(x, mask)
        return parallel(q, k, self.causal, self.eps)

    def start(self, batch: int) -> Tensor:
        """The empty memory [S, z] (B, H, dk, dv + 1), or S alone if nothing is normalised."""
        width = self.dv + 1 if self.normalize else self.dv
        return ops.zeros((batch, self.heads, self.dk, width), like=self.wq.weight)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        y, state = self.prefill(x.reshape((x.shape[0], 1, x.shape[1])), state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Several tokens x (B, n, D) at once after those in `state`: (B, n, D) and the new state."""
        if not self.causal:
            raise ValueError("only causal linear attention streams: build it with causal=True")
        with no_grad():
            return self._mix(x, state, None)

    def _heads(self, x: Tensor, mask: Any) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim != 3:
            raise ShapeError(f"linear_attention: x must be (B, N, D), not {x.shape}")
        phi = FEATURES[self.features]
        q, k, v = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv))
        k, visible = phi(k), visible_keys(mask, x.shape[0], x.shape[1])
        return phi(q), k if visible is None else ops.where(visible, k, 0.0), v

    def _mix(self, x: Tensor, state: Any, mask: Any) -> tuple[Tensor, Any]:
        q, k, v = self._heads(x, mask)
        if self.norm is None:
            o, state = normalised(q, k, v, state, self.causal, self.chunk, self.eps)
        else:
            o, state = linear(q / math.sqrt(self.dk), k, v, state, self.causal, self.chunk)
            o = self.norm(o)
        return self.wo(ops.merge_heads(o)), state


def heads_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Features q, k > 0 (b, h, t, d) and v (b, h, t, d + 1)."""
    rng = case.rng()
    q, k, v = (Tensor(rng.standard_normal((case.b, case.h, case.t, case.d + i))) for i in (0, 0, 1))
    return elu_plus_one(q), elu_plus_one(k), v


def build(case: Case, **options: Any) -> LinearAttention:
    return LinearAttention(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


@identity("chunks of any size equal the recurrence")
def chunks(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    sizes, expected = range(1, case.t + 6), recurrent(q, k, v)
    found = [normalised(q, k, v, chunk=c)[0] for c in sizes]
    return ops.stack(found), ops.stack([expected for _ in sizes])


@identity("the layer is its map of weights times the values, causal and not")
def weights_times_values(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for causal in (True, False):
        layer = build(case, causal=causal)
        left.append(layer(x))
        right.append(layer.wo(ops.merge_heads(layer.weights(x) @ ops.split_heads(layer.wv(x), case.h))))
    return ops.stack(left), ops.stack(right)


@identity("the layer by loops, with phi(a) = a + 1 where a > 0, else e^a; causal and not")
def by_loops(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for causal in (True, False):
        layer = build(case, causal=causal, eps=0.3)
        q, k, v = (ops.split_heads(w(x), case.h).data for w in (layer.wq, layer.wk, layer.wv))
        q, k = (np.where(a > 0.0, a + 1.0, np.exp(np.minimum(a, 0.0))) for a in (q, k))
        o = np.zeros(v.shape)
        for i in range(case.t):
            js = range(i + 1) if causal else range(case.t)
            w = [(q[:, :, i] * k[:, :, j]).sum(axis=-1, keepdims=True) for j in js]
            o[:, :, i] = sum(w[j] * v[:, :, j] for j in js) / (sum(w) + 0.3)
        left.append(layer(x))
        right.append(layer.wo(ops.merge_heads(Tensor(o))))
    return ops.stack(left), ops.stack(right)


@identity("(q k^T) v = q (k^T v)")
def either_order(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    return linear(q, k, v, causal=False)[0], (q @ k.mT) @ v


@identity("eps = 0: values that are the same for all tokens come out unchanged")
def constant_values(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    v = ops.broadcast_to(v[:, :, :1], v.shape)
    both = [normalised(q, k, v, causal=causal, eps=0.0)[0] for causal in (True, False)]
    return ops.stack(both), ops.stack([v, v])


@identity("not causal: keys and values permuted together change nothing")
def order_of_keys(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    order = case.rng().permutation(case.t)
    moved = normalised(q, k[:, :, order], v[:, :, order], causal=False)[0]
    return moved, normalised(q, k, v, causal=False)[0]


@identity("eps = 0: the scale of each query feature vector, and one common scale of the keys, do not matter")
def scale_free(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v = heads_of(case)
    c = case.rng().uniform(0.1, 9.0, (*q.shape[:3], 1))
    return normalised(q * c, k * 7.0, v, eps=0.0)[0], normalised(q, k, v, eps=0.0)[0]


@identity("without normalisation: RMSNorm of tril(q k^T) v / sqrt(dk), identity features, causal and not")
def unnormalised(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for causal in (True, False):
        layer = build(case, causal=causal, features="identity", normalize=False)
        q, k, v = (ops.split_heads(w(x), case.h) for w in (layer.wq, layer.wk, layer.wv))
        a = ops.tril(q @ k.mT) if causal else q @ k.mT
        left.append(layer(x))
        right.append(layer.wo(ops.merge_heads(ops.rms_norm(a @ v / math.sqrt(case.d)))))
    return ops.stack(left), ops.stack(right)


@identity("with the Taylor features of exp to order 11 it is softmax attention, for |q . k| <= 1")
def taylor_features(case: Case) -> tuple[Tensor, Tensor]:
    rng = case.rng()
    q, k, v = (Tensor(rng.standard_normal((case.b, case.h, case.t, 2))) for _ in range(3))
    q, k = (a / ops.sqrt((a * a).sum(axis=-1, keepdims=True) + 1e-9) for a in (q, k))

    def features(a: Tensor) -> Tensor:
        # (a . b)^p / p! = sum_i C(p, i) (a_0 b_0)^i (a_1 b_1)^(p - i) / p!: (B, H, N, 78)
        orders = [(i, p - i) for p in range(12) for i in range(p + 1)]
        return ops.stack(
            [
                a[..., 0] ** i * a[..., 1] ** j / math.sqrt(math.factorial(i) * math.factorial(j))
                for i, j in orders
            ],
            axis=-1,
        )

    return normalised(features(q), features(k), v, eps=0.0)[0], ops.softmax_attention(
        q, k, v, causal=True, scale=1.0
    )


@identity("two parts with the state passed on equal one pass, with and without normalisation")
def split(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for normalize in (True, False):
        layer = build(case, normalize=normalize)
        state, rows = layer.start(case.b), []
        for part in (x[:, : case.t // 2], x[:, case.t // 2 :]):
            if part.shape[1]:
                y, state = layer.prefill(part, state)
                rows.append(y)
        left.append(ops.concat(rows, axis=1))
        right.append(layer(x))
    return ops.stack(left), ops.stack(right)


@identity("hidden tokens could as well not be there")
def hidden_tokens(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, rng = build(case), case.tokens(), case.rng()
    visible = rng.permutation(case.t + 3) < case.t
    longer = rng.standard_normal((case.b, case.t + 3, case.dim))
    longer[:, visible] = x.data
    return layer(Tensor(longer), mask=visible[None, None, None])[:, visible], layer(x)

"""DeltaNet: before a token writes, it reads what the memory already says for its key, and corrects only that.

    q = silu(conv(x W_q)),  k = silu(conv(x W_k)),  v = silu(conv(x W_v))      split into heads
    q = l2norm(q) / sqrt(dk),  k = l2norm(k)              l2norm(a) = a / sqrt(|a|^2 + 1e-6)
    beta = sigmoid(x W_beta)                              how far to move, one for each head
    u_t = beta_t (v_t - k_t S_{t-1})                      the correction
    S_t = S_{t-1} + k_t^T u_t,   o_t = q_t S_t            S_{-1} = 0
    y   = merge(RMSNorm(o)) W_o                           the norm acts on each head

    x, y  (B, N, D)        q, k  (B, H, N, dk)        v, u, o  (B, H, N, dv)        beta  (B, H, N, 1)
    S  (B, H, dk, dv)      conv: causal, each channel alone, over W = 4 tokens

The same as S_t = (I - beta_t k_t^T k_t) S_{t-1} + beta_t k_t^T v_t: a step shrinks S along k_t.
With `negative`, beta is doubled, so that 1 - beta, an eigenvalue of this step, may be negative. With `gate`,
the output of the norm is multiplied by silu(x W_g).

Cost: 8 N D^2 for the maps, and in chunks of C tokens 8 N H C dk + 4 N H C dv + 10 N H dk dv: linear in N.
Source: Parallelizing Linear Transformers with the Delta Rule over Sequence Length, Yang et al.,
arXiv:2406.06484, 2024; the rule: Linear Transformers Are Secretly Fast Weight Programmers, Schlag et al.,
arXiv:2102.11174, 2021.
Differs from the paper: nothing; the output gate is off by default, as in the published code.
Numerics: keys of length 1 keep the memory bounded, which needs beta |k|^2 <= 2. The chunked form inverts a
triangular matrix by substitution, see `ops.delta_rule`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

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
    ShortConv,
    identity,
    init,
    positive,
    visible_keys,
)

CARD = Card(
    name="delta_net",
    title="DeltaNet: linear attention with the delta rule",
    kind="mixer",
    family="linear",
    papers=(
        Paper(
            "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", "2406.06484", 2024
        ),
        Paper("Linear Transformers Are Secretly Fast Weight Programmers", "2102.11174", 2021),
    ),
    causal=True,
    streams=True,
    grid="1d",
    complexity="8 N D^2 + 12 N C D + 10 N D dv",
    properties=("causal", "streams", "chunked", "batch_independent", "key_masks"),
    basis="published code: fla-org/flash-linear-attention fla/ops/delta_rule/naive.py, layers/delta_net.py",
    parity=("fla-core 0.6.0 delta_rule_recurrence",),
)


def l2norm(x: Tensor) -> Tensor:
    return x / ops.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6)


def recurrent(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
    """o (B, H, N, dv) and the last S (B, H, dk, dv), token by token, as the equations say it.

    q, k: (B, H, N, dk). v: (B, H, N, dv). beta: (B, H, N, 1).
    """
    s = ops.zeros((*q.shape[:2], q.shape[-1], v.shape[-1]), like=q) if state is None else state
    rows = []
    for t in range(q.shape[2]):
        q_t, k_t, v_t, beta_t = (a[:, :, t : t + 1] for a in (q, k, v, beta))
        # u_t = beta_t (v_t - k_t S): (B, H, 1, dv)
        u = beta_t * (v_t - k_t @ s)
        # S = S + k_t^T u_t: (B, H, dk, dv)
        s = s + k_t.mT @ u
        rows.append(q_t @ s)
    return ops.concat(rows, axis=2), s


class Memory(NamedTuple):
    """The last inputs of the convolutions (B, W - 1, H d) and S (B, H, dk, dv)."""

    q: Tensor
    k: Tensor
    v: Tensor
    s: Tensor


class DeltaNet(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: wq, wk (D, H dk), wv (D, H dv), wbeta (D, H); conv_q, conv_k, conv_v (W, 1, H d);
    norm.weight (dv); wo (H dv, D); wg (D, H dv) if `gate`.

    Args:
        dim: D. heads: H. expand_k, expand_v: H dk / D and H dv / D.
        width: W, the tokens that the convolutions see. negative: beta in (0, 2) instead of (0, 1).
        gate: whether the output is gated.
        chunk: tokens that are computed at once; any number gives the same result.

    Raises:
        ValueError: heads that do not divide dim; width or chunk below 1; expand_k or expand_v of 0 or less.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        width: int = 4,
        negative: bool = False,
        gate: bool = False,
        chunk: int = 16,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads, expand_k=expand_k, expand_v=expand_v, chunk=chunk)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        rng = init.generator(seed)
        dk, dv = (max(1, int(expand * dim / heads)) for expand in (expand_k, expand_v))
        self.heads, self.dk, self.dv, self.negative, self.chunk = heads, dk, dv, negative, chunk
        self.wq = Linear(dim, heads * dk, False, rng, dtype=dtype)
        self.wk = Linear(dim, heads * dk, False, rng, dtype=dtype)
        self.wv = Linear(dim, heads * dv, False, rng, dtype=dtype)
        self.wbeta = Linear(dim, heads, False, rng, dtype=dtype)
        self.conv_q = ShortConv(heads * dk, width, False, rng, dtype)
        self.conv_k = ShortConv(heads * dk, width, False, rng, dtype)
        self.conv_v = ShortConv(heads * dv, width, False, rng, dtype)
        self.norm = RMSNorm(dv, dtype=dtype)
        self.wg = Linear(dim, heads * dv, False, rng, dtype=dtype) if gate else None
        self.wo = Linear(heads * dv, dim, False, rng, dtype=dtype)

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D). mask: boolean (B, 1, 1, N), True = visible; hidden tokens leave no trace."""
        return self._mix(x, self.start(x.shape[0]), mask)[0]

    def start(self, batch: int) -> Memory:
        """The empty memory."""
        s = ops.zeros((batch, self.heads, self.dk, self.dv), like=self.wq.weight)
        return Memory(self.conv_q.start(batch), self.conv_k.start(batch), self.conv_v.start(batch), s)

    def step(self, x: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        y, state = self.prefill(x.reshape((x.shape[0], 1, x.shape[1])), state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        """Several tokens x (B, n, D) at once after those in `state`: (B, n, D) and the new state."""
        with no_grad():
            return self._mix(x, state, None)

    def _mix(self, x: Tensor, state: Memory, mask: Any) -> tuple[Tensor, Memory]:
        if x.ndim != 3:
            raise ShapeError(f"delta_net: x must be (B, N, D), not {x.shape}")
        visible = visible_keys(mask, x.shape[0], x.shape[1])
        inputs = [self.wq(x), self.wk(x), self.wv(x)]
        # beta: (B, H, N, 1)
        beta = ops.split_heads((2.0 if self.negative else 1.0) * ops.sigmoid(self.wbeta(x)), self.heads)
        if visible is not None:
            inputs = [ops.where(visible[:, 0], a, 0.0) for a in inputs]
            beta = ops.where(visible, beta, 0.0)
        q, last_q = self.conv_q(inputs[0], state.q)
        k, last_k = self.conv_k(inputs[1], state.k)
        v, last_v = self.conv_v(inputs[2], state.v)
        # (B, H, N, d)
        q, k, v = (ops.split_heads(ops.silu(a), self.heads) for a in (q, k, v))
        q, k = l2norm(q) / math.sqrt(self.dk), l2norm(k)
        o, s = ops.delta_rule(q, k, v, beta, None, state.s, self.chunk)
        o = ops.merge_heads(self.norm(o))
        if self.wg is not None:
            o = o * ops.silu(self.wg(x))
        return self.wo(o), Memory(last_q, last_k, last_v, s)


def heads_of(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k of length 1 (b, h, t, d), v (b, h, t, d + 1), beta in (0, 2) (b, h, t, 1)."""
    rng = case.rng()
    shape = (case.b, case.h, case.t)
    q, k, v = (rng.standard_normal((*shape, case.d + i)) for i in (0, 0, 1))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    return Tensor(q), Tensor(k), Tensor(v), Tensor(rng.uniform(0.0, 2.0, (*shape, 1)))


def joined(o: Tensor, state: Tensor) -> Tensor:
    return ops.concat([o.reshape((-1,)), state.reshape((-1,))])


@identity("chunks of any size give the outputs and the last state of the recurrence")
def chunks(case: Case) -> tuple[Tensor, Tensor]:
    heads, expected = heads_of(case), joined(*recurrent(*heads_of(case)))
    sizes = range(1, case.t + 6)
    found = [joined(*ops.delta_rule(*heads, chunk=c)) for c in sizes]
    return ops.stack(found), ops.stack([expected for _ in sizes])


@identity("all at once: O = tril(Q K^T) (I + tril(diag(beta) K K^T, -1))^-1 diag(beta) V")
def parallel(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, beta = heads_of(case)
    corrections = ops.solve(np.eye(case.t) + ops.tril(beta * (k @ k.mT), -1), beta * v)
    return ops.delta_rule(q, k, v, beta)[0], ops.tril(q @ k.mT) @ corrections


@identity("product form: S_t = (I - beta_t k_t^T k_t) S_{t-1} + beta_t k_t^T v_t")
def product_form(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, beta = heads_of(case)
    s: Any = np.zeros((case.d, case.d + 1))
    for t in range(case.t):
        k_t, v_t, beta_t = (a[:, :, t : t + 1] for a in (k, v, beta))
        s = (np.eye(case.d) - beta_t * (k_t.mT @ k_t)) @ s + beta_t * (k_t.mT @ v_t)
    return ops.delta_rule(q, k, v, beta)[1], s


@identity("orthonormal keys and beta = 1: the unnormalised linear attention tril(Q K^T) V")
def orthonormal_keys(case: Case) -> tuple[Tensor, Tensor]:
    q, _, v, beta = (a[:, :, : case.d] for a in heads_of(case))
    basis = np.linalg.qr(case.rng().standard_normal((case.d, case.d)))[0][: q.shape[2]]
    k = Tensor(np.broadcast_to(basis, q.shape))
    return ops.delta_rule(q, k, v, beta * 0.0 + 1.0)[0], ops.tril(q @ k.mT) @ v


@identity("beta = 1 and |k| = 1: the last key written recalls its value exactly")
def recall(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, beta = heads_of(case)
    return k[:, :, -1:] @ ops.delta_rule(q, k, v, beta * 0.0 + 1.0)[1], v[:, :, -1:]


@identity("beta = 0 leaves the state as it is; the same key and value twice with beta = 1 write once")
def writes_that_change_nothing(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, beta = heads_of(case)
    state = ops.delta_rule(q, k, v, beta * 0.0 + 1.0)[1]
    idle = ops.delta_rule(q, k, v, beta * 0.0, state=state)[1]
    last = [a[:, :, -1:] for a in (q, k, v, beta * 0.0 + 1.0)]
    again = recurrent(last[0], last[1], last[2], last[3], state)[1]
    return ops.stack([idle, again]), ops.stack([state, state])


@identity("a step multiplies the state by a matrix with eigenvalues 1, d - 1 times, and 1 - beta")
def eigenvalues(case: Case) -> tuple[Any, Any]:
    q, k, v, beta = (a[:, :, :1] for a in heads_of(case))
    identity_ = Tensor(np.broadcast_to(np.eye(case.d), (case.b, case.h, case.d, case.d)))
    step = ops.delta_rule(q, k, v[..., :-1] * 0.0, beta, state=identity_)[1].data
    expected = np.ones((case.b, case.h, case.d))
    expected[..., 0] = 1.0 - beta.data[:, :, 0, 0]
    return np.linalg.eigvalsh(step), expected


def build(case: Case, **options: Any) -> DeltaNet:
    return DeltaNet(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


@identity(
    "the layer without its convolutions (last tap alone) is the recurrence between its maps, gated or not"
)
def layer_is_recurrence(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for gate in (False, True):
        layer = build(case, gate=gate, negative=gate)
        for conv in (layer.conv_q, layer.conv_k, layer.conv_v):
            conv.weight.data = np.stack([np.full(conv.weight.shape[1:], float(j == 3)) for j in range(4)])
        q, k, v = (ops.split_heads(ops.silu(w(x)), case.h) for w in (layer.wq, layer.wk, layer.wv))
        beta = ops.split_heads(ops.sigmoid(layer.wbeta(x)) * (1.0 + gate), case.h)
        # sqrt(|a|^2 + 1e-6)
        lengths = (np.hypot(np.linalg.norm(a.data, axis=-1, keepdims=True), 1e-3) for a in (q, k))
        o = recurrent(q / next(lengths) / math.sqrt(case.d), k / next(lengths), v, beta)[0]
        o = ops.merge_heads(ops.rms_norm(o))
        left.append(layer(x))
        right.append(layer.wo(o if layer.wg is None else o * ops.silu(layer.wg(x))))
    return ops.stack(left), ops.stack(right)


@identity("hidden tokens could as well not be there: in front, or anywhere where no convolution looks back")
def hidden_tokens(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, rng, left, right = build(case), case.tokens(), case.rng(), [], []
    longer = rng.standard_normal((case.b, case.t + 3, case.dim))
    for visible in (np.arange(case.t + 3) >= 3, rng.permutation(case.t + 3) < case.t):
        longer[:, visible] = x.data
        left.append(layer(Tensor(longer), mask=visible[None, None, None])[:, visible])
        right.append(layer(x))
        # The last tap alone, for the second time.
        for conv in (layer.conv_q, layer.conv_k, layer.conv_v):
            conv.weight.data = np.stack([np.full(conv.weight.shape[1:], float(j == 3)) for j in range(4)])
    return ops.stack(left), ops.stack(right)

"""Gated DeltaNet: the delta rule corrects one association at a time, a gate forgets all of them at once.

    q = silu(conv(x W_q)),  k = silu(conv(x W_k)),  v = silu(conv(x W_v))      split into heads
    q = l2norm(q) / sqrt(dk),  k = l2norm(k)              l2norm(a) = a / sqrt(|a|^2 + 1e-6)
    beta = sigmoid(x W_beta)                              how far to move, one for each head
    g = -exp(A_log) softplus(x W_a + dt_bias)             logarithm of the decay, one for each head
    S'  = e^{g_t} S_{t-1}                                 S_{-1} = 0
    S_t = S' + beta_t k_t^T (v_t - k_t S'),   o_t = q_t S_t
    y   = merge(RMSNorm(o) * silu(x W_g)) W_o             the norm acts on each head

    x, y  (B, N, D)        q, k  (B, H, N, dk)        v, o  (B, H, N, dv)        beta, g  (B, H, N, 1)
    S  (B, H, dk, dv)      A_log, dt_bias  (H)        conv: causal, each channel alone, over W = 4 tokens

H dk = 3/4 D and dv = 2 dk. exp(A_log) starts uniform in (0, 16), softplus(dt_bias) log-uniform in
[0.001, 0.1]. The same as S_t = e^{g_t} (I - beta_t k_t^T k_t) S_{t-1} + beta_t k_t^T v_t.

Cost: 12 N D^2 for the maps, and in chunks of C tokens 8 N H C dk + 4 N H C dv + 10 N H dk dv: linear in N.
Source: Gated Delta Networks: Improving Mamba2 with Delta Rule, Yang, Kautz and Hatamizadeh, arXiv:2412.06464,
2024.
Differs from the paper: nothing. exp(A_log) starts at 0.001 at least, for its logarithm.
Numerics: the decay comes before the read that is corrected. Decays stay logarithms until they are subtracted.
A_log and dt_bias want no weight decay.
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
    Parameter,
    RMSNorm,
    ShortConv,
    identity,
    init,
    positive,
    visible_keys,
)

from . import delta_net
from .delta_net import joined, l2norm

CARD = Card(
    name="gated_delta_net",
    title="Gated DeltaNet",
    kind="mixer",
    family="linear",
    papers=(Paper("Gated Delta Networks: Improving Mamba2 with Delta Rule", "2412.06464", 2024),),
    causal=True,
    streams=True,
    grid="1d",
    complexity="12 N D^2 + 12 N C D + 10 N D dv",
    properties=("causal", "streams", "chunked", "batch_independent", "key_masks"),
    basis="published code: fla-org/flash-linear-attention fla/ops/gated_delta_rule/naive.py, gate.py, "
    "fla/layers/gated_deltanet.py",
    parity=(
        "fla-core 0.6.0 naive_recurrent_gated_delta_rule",
        "transformers 5.23.0 Qwen3NextGatedDeltaNet",
    ),
)


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, state: Any = None
) -> tuple[Tensor, Tensor]:
    """o (B, H, N, dv) and the last S (B, H, dk, dv), token by token, as the equations say it.

    q, k: (B, H, N, dk). v: (B, H, N, dv). beta, g: (B, H, N, 1).
    """
    s = ops.zeros((*q.shape[:2], q.shape[-1], v.shape[-1]), like=q) if state is None else state
    rows = []
    for t in range(q.shape[2]):
        q_t, k_t, v_t, beta_t, g_t = (a[:, :, t : t + 1] for a in (q, k, v, beta, g))
        # S' = e^g S, S = S' + beta k^T (v - k S'): (B, H, dk, dv)
        s = ops.exp(g_t) * s
        s = s + beta_t * k_t.mT @ (v_t - k_t @ s)
        rows.append(q_t @ s)
    return ops.concat(rows, axis=2), s


class Memory(NamedTuple):
    """The last inputs of the convolutions (B, W - 1, H d) and S (B, H, dk, dv)."""

    q: Tensor
    k: Tensor
    v: Tensor
    s: Tensor


class GatedDeltaNet(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: wq, wk (D, H dk), wv, wg (D, H dv), wa, wbeta (D, H); a_log, dt_bias (H);
    conv_q, conv_k, conv_v (W, 1, H d); norm.weight (dv); wo (H dv, D).

    Args:
        dim: D. heads: H. expand_k: H dk / D. expand_v: dv / dk.
        width: W, the tokens that the convolutions see. negative: beta in (0, 2) instead of (0, 1).
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
        expand_k: float = 0.75,
        expand_v: float = 2.0,
        width: int = 4,
        negative: bool = False,
        chunk: int = 16,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads, expand_k=expand_k, expand_v=expand_v, chunk=chunk)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        rng = init.generator(seed)
        dk = max(1, int(expand_k * dim / heads))
        dv = max(1, int(expand_v * dk))
        self.heads, self.dk, self.dv, self.negative, self.chunk = heads, dk, dv, negative, chunk
        self.wq = Linear(dim, heads * dk, False, rng, dtype=dtype)
        self.wk = Linear(dim, heads * dk, False, rng, dtype=dtype)
        self.wv = Linear(dim, heads * dv, False, rng, dtype=dtype)
        self.wg = Linear(dim, heads * dv, False, rng, dtype=dtype)
        self.wa = Linear(dim, heads, False, rng, dtype=dtype)
        self.wbeta = Linear(dim, heads, False, rng, dtype=dtype)
        self.a_log = Parameter(np.log(np.maximum(rng.uniform(0.0, 16.0, heads), 1e-3)).astype(dtype))
        # softplus(dt_bias) = dt, log-uniform in [0.001, 0.1]
        dt = np.exp(rng.uniform(math.log(1e-3), math.log(1e-1), heads))
        self.dt_bias = Parameter((dt + np.log(-np.expm1(-dt))).astype(dtype))
        self.conv_q = ShortConv(heads * dk, width, False, rng, dtype)
        self.conv_k = ShortConv(heads * dk, width, False, rng, dtype)
        self.conv_v = ShortConv(heads * dv, width, False, rng, dtype)
        self.norm = RMSNorm(dv, dtype=dtype)
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

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """beta and g (B, H, N, 1)."""
        beta = (2.0 if self.negative else 1.0) * ops.sigmoid(self.wbeta(x))
        g = -ops.exp(self.a_log) * ops.softplus(self.wa(x) + self.dt_bias)
        return ops.split_heads(beta, self.heads), ops.split_heads(g, self.heads)

    def _mix(self, x: Tensor, state: Memory, mask: Any) -> tuple[Tensor, Memory]:
        if x.ndim != 3:
            raise ShapeError(f"gated_delta_net: x must be (B, N, D), not {x.shape}")
        visible = visible_keys(mask, x.shape[0], x.shape[1])
        inputs = [self.wq(x), self.wk(x), self.wv(x)]
        beta, g = self.gates(x)
        if visible is not None:
            inputs = [ops.where(visible[:, 0], a, 0.0) for a in inputs]
            beta, g = ops.where(visible, beta, 0.0), ops.where(visible, g, 0.0)
        q, last_q = self.conv_q(inputs[0], state.q)
        k, last_k = self.conv_k(inputs[1], state.k)
        v, last_v = self.conv_v(inputs[2], state.v)
        # (B, H, N, d)
        q, k, v = (ops.split_heads(ops.silu(a), self.heads) for a in (q, k, v))
        q, k = l2norm(q) / math.sqrt(self.dk), l2norm(k)
        o, s = ops.delta_rule(q, k, v, beta, g, state.s, self.chunk)
        y = self.wo(ops.merge_heads(self.norm(o)) * ops.silu(self.wg(x)))
        return y, Memory(last_q, last_k, last_v, s)


Heads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def heads_of(case: Case) -> Heads:
    """q, k of length 1 (b, h, t, d), v (b, h, t, d + 1), beta in (0, 2) and g <= 0 (b, h, t, 1)."""
    q, k, v, beta = delta_net.heads_of(case)
    return q, k, v, beta, Tensor(-np.random.default_rng([case.seed, 1]).exponential(size=beta.shape))


@identity("chunks of any size give the outputs and the last state of the recurrence")
def chunks(case: Case) -> tuple[Tensor, Tensor]:
    heads, expected = heads_of(case), joined(*recurrent(*heads_of(case)))
    sizes = range(1, case.t + 6)
    found = [joined(*ops.delta_rule(*heads, chunk=c)) for c in sizes]
    return ops.stack(found), ops.stack([expected for _ in sizes])


@identity("all at once: O = (Q K^T * L) (I + tril(diag(beta) (K K^T * L), -1))^-1 diag(beta) V")
def parallel(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, beta, g = heads_of(case)
    total = ops.cumsum(g, axis=2)
    # L_ij = exp(g_{j+1} + .. + g_i), j <= i
    decay = ops.exp(ops.where(np.tri(case.t, dtype=bool), total - total.mT, -math.inf))
    corrections = ops.solve(np.eye(case.t) + ops.tril(beta * (k @ k.mT) * decay, -1), beta * v)
    return ops.delta_rule(q, k, v, beta, g)[0], (q @ k.mT * decay) @ corrections


@identity("product form: S_t = e^{g_t} (I - beta_t k_t^T k_t) S_{t-1} + beta_t k_t^T v_t")
def product_form(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, beta, g = heads_of(case)
    s: Any = np.zeros((case.d, case.d + 1))
    for t in range(case.t):
        k_t, v_t, beta_t, g_t = (a[:, :, t : t + 1] for a in (k, v, beta, g))
        s = ops.exp(g_t) * ((np.eye(case.d) - beta_t * (k_t.mT @ k_t)) @ s) + beta_t * (k_t.mT @ v_t)
    return ops.delta_rule(q, k, v, beta, g)[1], s


@identity("no decay, g = 0: DeltaNet")
def no_decay(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, beta, g = heads_of(case)
    return joined(*ops.delta_rule(q, k, v, beta, g * 0.0)), joined(*delta_net.recurrent(q, k, v, beta))


@identity("orthonormal keys: linear attention with one decay per head and values beta_t v_t")
def orthonormal_keys(case: Case) -> tuple[Tensor, Tensor]:
    q, _, v, beta, g = (a[:, :, : case.d] for a in heads_of(case))
    basis = np.linalg.qr(case.rng().standard_normal((case.d, case.d)))[0][: q.shape[2]]
    k = Tensor(np.broadcast_to(basis, q.shape))
    return joined(*ops.delta_rule(q, k, v, beta, g)), joined(*ops.gated_scan(q, k, beta * v, g))


@identity("beta = 0 only forgets: S_t = e^{g_t} S_{t-1}")
def only_forgets(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, beta, g = heads_of(case)
    first = ops.delta_rule(q, k, v, beta, g)[1]
    return ops.delta_rule(q, k, v, beta * 0.0, g, first)[1], first * ops.exp(g.sum(axis=2, keepdims=True))


@identity("a gate that closes at token t resets the memory: earlier tokens no longer matter")
def reset(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, beta, g = heads_of(case)
    t = case.t // 2
    closed = ops.where(np.arange(case.t)[:, None] == t, -60.0, g)
    q2, k2, v2, beta2, g2 = (a[:, :, t:] for a in (q, k, v, beta, g))
    return ops.delta_rule(q, k, v, beta, closed)[0][:, :, t:], ops.delta_rule(q2, k2, v2, beta2, g2)[0]


def build(case: Case, **options: Any) -> GatedDeltaNet:
    return GatedDeltaNet(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


@identity("the layer without its convolutions (last tap alone) is the recurrence between its maps")
def layer_is_recurrence(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for negative in (False, True):
        layer = build(case, negative=negative)
        for conv in (layer.conv_q, layer.conv_k, layer.conv_v):
            conv.weight.data = np.stack([np.full(conv.weight.shape[1:], float(j == 3)) for j in range(4)])
        q, k, v = (ops.split_heads(ops.silu(w(x)), case.h) for w in (layer.wq, layer.wk, layer.wv))
        # sqrt(|a|^2 + 1e-6)
        lengths = (np.hypot(np.linalg.norm(a.data, axis=-1, keepdims=True), 1e-3) for a in (q, k))
        beta = (1.0 + negative) / (1.0 + np.exp(-layer.wbeta(x).data))
        g = -np.exp(layer.a_log.data) * np.log1p(np.exp(layer.wa(x).data + layer.dt_bias.data))
        beta, g = (ops.split_heads(Tensor(a), case.h) for a in (beta, g))
        o = recurrent(q / next(lengths) / math.sqrt(layer.dk), k / next(lengths), v, beta, g)[0]
        left.append(layer(x))
        right.append(layer.wo(ops.merge_heads(ops.rms_norm(o)) * ops.silu(layer.wg(x))))
    return ops.stack(left), ops.stack(right)


@identity("closed gates everywhere leave each token its own write alone: o_t = (q_t . k_t) beta_t v_t")
def no_memory(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, beta, g = heads_of(case)
    return ops.delta_rule(q, k, v, beta, g * 0.0 - 60.0)[0], (q * k).sum(axis=-1, keepdims=True) * beta * v


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

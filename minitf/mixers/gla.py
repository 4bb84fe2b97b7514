"""Gated linear attention: a matrix of memory whose rows are forgotten at a rate that each token chooses.

    q = x W_q,  k = x W_k,  v = x W_v,  z = x W_z              split into heads
    g = log sigmoid(x W_a1 W_a2 + b_a) / tau                   g <= 0, one for each key channel
    S_t = diag(exp(g_t)) S_{t-1} + k_t^T v_t                   S_{-1} = 0
    o_t = q_t S_t / sqrt(dk)
    y   = merge(RMSNorm(o) * silu(z)) W_o                      the norm acts on each head

    x, y  (B, N, D)        q, k, g  (B, H, N, dk)        v, o, z  (B, H, N, dv)        S  (B, H, dk, dv)

dk = D / (2 H), dv = D / H, tau = 16: the decay starts near 1, because sigmoid^(1/16) is. The gate goes
through rank 16. With `width`, x W_q, x W_k and x W_v pass through silu(conv(.)) first: causal, each channel
alone, over so many tokens.

Cost: 6 N H C dk + 2 N H C dv + 6 N H dk dv operations in chunks of C, and 8 N D^2 for the maps: linear in N.
Source: Gated Linear Attention Transformers with Hardware-Efficient Training, Yang et al., arXiv:2312.06635,
2023, equations 3 to 6.
Differs from the paper: RMSNorm instead of LayerNorm on the heads, as the published code does.
Numerics: decays stay logarithms until they are subtracted; 1 / exp(sum of g) is never formed, it overflows.
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
    not_negative,
    positive,
    visible_keys,
)

CARD = Card(
    name="gla",
    title="Gated linear attention",
    kind="mixer",
    family="linear",
    papers=(
        Paper("Gated Linear Attention Transformers with Hardware-Efficient Training", "2312.06635", 2023),
    ),
    causal=True,
    streams=True,
    grid="1d",
    complexity="8 N D^2 + 6 N C D + 6 N D dv",
    properties=("causal", "streams", "chunked", "batch_independent", "key_masks"),
    basis="published code: fla-org/flash-linear-attention fla/ops/gla/naive.py, fla/layers/gla.py",
    parity=("fla-core 0.6.0 naive_recurrent_gla",),
)


def recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
    """o (B, H, N, dv) and the last S (B, H, dk, dv), token by token, as the equations say it.

    q, k, g: (B, H, N, dk). v: (B, H, N, dv).
    """
    s = ops.zeros((*q.shape[:2], q.shape[-1], v.shape[-1]), like=q) if state is None else state
    rows = []
    for t in range(q.shape[2]):
        # S = diag(exp(g_t)) S + k_t^T v_t: (B, H, dk, dv)
        s = ops.exp(g[:, :, t, :, None]) * s + k[:, :, t, :, None] * v[:, :, t, None, :]
        # o_t = q_t S / sqrt(dk): (B, H, dv)
        rows.append((q[:, :, t, None, :] @ s)[:, :, 0] / math.sqrt(q.shape[-1]))
    return ops.stack(rows, axis=2), s


class Memory(NamedTuple):
    """S (B, H, dk, dv), and the last inputs (B, W - 1, H d) of each convolution, if there are any."""

    s: Tensor
    inputs: tuple[Tensor, ...]


class GLA(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: wq, wk (D, H dk), wv, wz (D, H dv), wa1 (D, rank), wa2 (rank, H dk) with bias,
    norm.weight (dv), wo (H dv, D); convs.0, .1, .2 (W, 1, H d) for q, k and v if there is a `width`.

    Args:
        dim: D. heads: H. expand_k, expand_v: H dk / D and H dv / D.
        rank: width that the gate goes through. tau: what the logarithm of the gate is divided by.
        width: W, the tokens that the convolutions see, 4 in published code; 0 for no convolutions.
        chunk: tokens that are computed at once; any number gives the same result.

    Raises:
        ValueError: heads that do not divide dim; rank or chunk below 1, width below 0; expand_k, expand_v or
            tau of 0 or less.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        rank: int = 16,
        tau: float = 16.0,
        width: int = 0,
        chunk: int = 16,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, heads=heads, expand_k=expand_k, expand_v=expand_v, rank=rank, tau=tau, chunk=chunk)
        not_negative(width=width)
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        rng = init.generator(seed)
        dk, dv = (max(1, int(expand * dim / heads)) for expand in (expand_k, expand_v))
        self.heads, self.dk, self.dv, self.tau, self.chunk = heads, dk, dv, tau, chunk
        self.wq = Linear(dim, heads * dk, False, rng, dtype=dtype)
        self.wk = Linear(dim, heads * dk, False, rng, dtype=dtype)
        self.wv = Linear(dim, heads * dv, False, rng, dtype=dtype)
        self.wz = Linear(dim, heads * dv, False, rng, dtype=dtype)
        self.wa1 = Linear(dim, rank, False, rng, dtype=dtype)
        self.wa2 = Linear(rank, heads * dk, True, rng, dtype=dtype)
        self.norm = RMSNorm(dv, dtype=dtype)
        self.wo = Linear(heads * dv, dim, False, rng, dtype=dtype)
        self.convs = [ShortConv(heads * d, width, False, rng, dtype) for d in (dk, dk, dv) if width]

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D). mask: boolean (B, 1, 1, N), True = visible; hidden tokens leave no trace in S."""
        return self._mix(x, self.start(x.shape[0]), mask)[0]

    def start(self, batch: int) -> Memory:
        """The empty memory."""
        s = ops.zeros((batch, self.heads, self.dk, self.dv), like=self.wq.weight)
        return Memory(s, tuple(conv.start(batch) for conv in self.convs))

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
            raise ShapeError(f"gla: x must be (B, N, D), not {x.shape}")
        visible = visible_keys(mask, x.shape[0], x.shape[1])
        inputs, last = [self.wq(x), self.wk(x), self.wv(x)], []
        for i, conv in enumerate(self.convs):
            # silu(conv(x W)), where hidden tokens count as zeros: (B, N, H d)
            a = inputs[i] if visible is None else ops.where(visible[:, 0], inputs[i], 0.0)
            a, tail = conv(a, state.inputs[i])
            inputs[i] = ops.silu(a)
            last.append(tail)
        # q, k, g (B, H, N, dk), v, z (B, H, N, dv)
        q, k, v, z = (ops.split_heads(a, self.heads) for a in (*inputs, self.wz(x)))
        # g = log sigmoid(x W_a1 W_a2 + b_a) / tau
        g = ops.split_heads(-ops.softplus(-self.wa2(self.wa1(x))) / self.tau, self.heads)
        if visible is not None:
            k, g = ops.where(visible, k, 0.0), ops.where(visible, g, 0.0)
        o, s = ops.gated_scan(q / math.sqrt(self.dk), k, v, g, state.s, self.chunk)
        return self.wo(ops.merge_heads(self.norm(o) * ops.silu(z))), Memory(s, tuple(last))


def heads_of(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k (b, h, t, d), v (b, h, t, d + 1), g <= 0 (b, h, t, d)."""
    rng = case.rng()
    shape = (case.b, case.h, case.t)
    q, k, v = (Tensor(rng.standard_normal((*shape, case.d + i))) for i in (0, 0, 1))
    return q, k, v, Tensor(-rng.exponential(size=q.shape))


def scan(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Any = None, chunk: int = 3) -> Tensor:
    """The operation with the scale of the equations: outputs and last state in one vector."""
    return joined(*ops.gated_scan(q / math.sqrt(q.shape[-1]), k, v, g, state, chunk))


def joined(o: Tensor, state: Tensor) -> Tensor:
    return ops.concat([o.reshape((-1,)), state.reshape((-1,))])


@identity("chunks of any size give the outputs and the last state of the recurrence")
def chunks(case: Case) -> tuple[Tensor, Tensor]:
    heads, expected = heads_of(case), joined(*recurrent(*heads_of(case)))
    sizes = range(1, case.t + 6)
    return ops.stack([scan(*heads, chunk=c) for c in sizes]), ops.stack([expected for _ in sizes])


@identity("the parallel form: O = tril((Q exp(G)) (K exp(-G))^T) V / sqrt(dk), where nothing overflows")
def parallel(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, g = heads_of(case)
    total = ops.cumsum(g, axis=2)
    scores = ops.tril((q * ops.exp(total)) @ (k * ops.exp(-total)).mT)
    return ops.gated_scan(q, k, v, g)[0], scores @ v


@identity("two levels of chunks: products of matrices between blocks, from the first row of the later one")
def secondary_chunks(case: Case) -> tuple[Tensor, Any]:
    q, k, v, g = heads_of(case)
    total, left, right = np.cumsum(g.data, axis=2), [], []
    for size in (1, 2, 3):
        a = np.zeros((case.b, case.h, case.t, case.t))
        for n in range(0, case.t, size):
            # (Q_i exp(G_i - G_n)) (K_j exp(G_n - G_j))^T for all j < n <= i: every exponent is at most 0
            block, anchor = np.s_[:, :, n : n + size], total[:, :, n : n + 1]
            earlier = k.data[:, :, :n] * np.exp(anchor - total[:, :, :n])
            a[:, :, n : n + size, :n] = (
                q.data[block] * np.exp(total[block] - anchor) @ earlier.swapaxes(-1, -2)
            )
            # Inside the block, entry by entry.
            for i in range(n, min(n + size, case.t)):
                for j in range(n, i + 1):
                    decay = np.exp(total[:, :, i] - total[:, :, j])
                    a[:, :, i, j] = (q.data[:, :, i] * k.data[:, :, j] * decay).sum(axis=-1)
        left.append(ops.gated_scan(q, k, v, g)[0])
        right.append(a @ v.data)
    return ops.stack(left), np.stack(right)


@identity("without decay, the unnormalised linear attention tril(Q K^T) V")
def no_decay(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, g = heads_of(case)
    return ops.gated_scan(q, k, v, g * 0.0)[0], ops.tril(q @ k.mT) @ v


@identity("one gate for all channels is a decay of each head; constant in time, retention")
def one_gate(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, g = heads_of(case)
    scalar = g[..., :1]
    n = np.arange(case.t)
    # gamma^(i - j): (H, N, N)
    gamma = case.rng().uniform(0.1, 1.0, (case.h, 1, 1))
    retention = np.tril(gamma ** np.maximum(n[:, None] - n, 0))
    fixed = Tensor(np.broadcast_to(np.log(gamma), scalar.shape))
    left = [ops.gated_scan(q, k, v, scalar)[0], ops.gated_scan(q, k, v, fixed)[0]]
    return ops.stack(left), ops.stack(
        [ops.gated_scan(q, k, v, scalar + g * 0.0)[0], (q @ k.mT * retention) @ v]
    )


@identity("a gate that closes at token t resets the memory: earlier tokens no longer matter")
def reset(case: Case) -> tuple[Tensor, Tensor]:
    q, k, v, g = heads_of(case)
    t = case.t // 2
    closed = ops.where(np.arange(case.t)[:, None] == t, -60.0, g)
    q2, k2, v2, g2 = (a[:, :, t:] for a in (q, k, v, g))
    return ops.gated_scan(q, k, v, closed)[0][:, :, t:], ops.gated_scan(q2, k2, v2, g2)[0]


@identity("two parts with the state passed on equal one pass")
def split(case: Case) -> tuple[Tensor, Tensor]:
    heads, t = heads_of(case), max(1, case.t // 2)
    if case.t < 2:
        return scan(*heads), joined(*recurrent(*heads))
    first, state = recurrent(*(a[:, :, :t] for a in heads))
    q, k, v, g = (a[:, :, t:] for a in heads)
    second, state = ops.gated_scan(q / math.sqrt(case.d), k, v, g, state, 2)
    return joined(ops.concat([first, second], axis=2), state), joined(*recurrent(*heads))


def build(case: Case, **options: Any) -> GLA:
    return GLA(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)


@identity("the layer is the recurrence between its maps, with convolutions, by loops, and without")
def layer_is_recurrence(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for width in (0, 3):
        layer = build(case, width=width, rank=3, tau=2.0, expand_v=0.5)
        assert layer.wa2.bias is not None
        layer.wa2.bias.data = case.rng().standard_normal(layer.wa2.bias.shape)
        inputs = [layer.wq(x), layer.wk(x), layer.wv(x)]
        for i, conv in enumerate(layer.convs):
            # a_t = w_2 a_t + w_1 a_{t-1} + w_0 a_{t-2}
            w, a = conv.weight.data[:, 0], inputs[i].data
            rows = [sum(w[2 - j] * a[:, t - j] for j in range(min(t, 2) + 1)) for t in range(case.t)]
            inputs[i] = ops.silu(Tensor(np.stack(rows, axis=1)))
        # alpha = sigmoid(.)^(1 / tau)
        alpha = ops.sigmoid(layer.wa2(layer.wa1(x))) ** 0.5
        q, k, v, alpha = (ops.split_heads(a, case.h) for a in (*inputs, alpha))
        o = ops.rms_norm(recurrent(q, k, v, ops.log(alpha))[0])
        left.append(layer(x))
        right.append(layer.wo(ops.merge_heads(o) * ops.silu(layer.wz(x))))
    return ops.stack(left), ops.stack(right)


@identity("hidden tokens could as well not be there: in front, or anywhere where no convolution looks back")
def hidden_tokens(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, rng, left, right = build(case, width=3), case.tokens(), case.rng(), [], []
    longer = rng.standard_normal((case.b, case.t + 3, case.dim))
    for visible in (np.arange(case.t + 3) >= 3, rng.permutation(case.t + 3) < case.t):
        longer[:, visible] = x.data
        left.append(layer(Tensor(longer), mask=visible[None, None, None])[:, visible])
        right.append(layer(x))
        # No convolutions, for the second time.
        layer = build(case)
    return ops.stack(left), ops.stack(right)

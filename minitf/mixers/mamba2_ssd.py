"""Mamba-2: a selective state space with one decay per head, which is linear attention under a mask of decays.

    z, r, dt = x W_in                                       widths E, E + 2 G n, H
    [u, B, C] = silu(conv(r) + b)                           causal, each channel alone, over W = 4 tokens
    dt  = softplus(dt + dt_bias),   a = -exp(A_log) dt      a <= 0: logarithm of the decay
    S_t = e^{a_t} S_{t-1} + B_t^T (dt_t u_t)                S_{-1} = 0
    o_t = C_t S_t + D u_t                                   for each head
    y   = RMSNorm(merge(o) * silu(z)) W_out                 over all E channels, after the gate

    x, y  (B, N, D)        u, o  (B, H, N, p), E = H p = 2 D        B, C  (B, G, N, n), shared by H / G heads
    dt, a  (B, H, N, 1)    S  (B, H, n, p)                          A_log, dt_bias, D  (H)

The same all at once (state-space duality): O = ((C B^T) * L) (dt u) + D u, with
L_ij = exp(a_{j+1} + .. + a_i), j <= i.

Cost: 6 N D E for the maps, and in chunks of C tokens 2 N C H n + 2 N C E + 6 N E n: linear in N.
Source: Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
Duality, Dao and Gu, arXiv:2405.21060, 2024.
Differs from the paper: p and n are cut down to what a small dim allows. exp(A_log) starts uniform in (1, 16),
softplus(dt_bias) log-uniform in [0.001, 0.1], D = 1.
Numerics: sums of a are taken inside a chunk and subtracted before exp, see `ops.gated_scan`. dt multiplies u,
not the decayed state. A_log, dt_bias and D want no weight decay.
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

CARD = Card(
    name="mamba2_ssd",
    title="Mamba-2 (state-space duality)",
    kind="mixer",
    family="state space",
    papers=(
        Paper(
            "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State "
            "Space Duality",
            "2405.21060",
            2024,
        ),
    ),
    causal=True,
    streams=True,
    grid="1d",
    complexity="12 N D^2 + 2 N C H n + 2 N C E + 6 N E n",
    properties=("causal", "streams", "chunked", "batch_independent", "key_masks"),
    basis="published code: state-spaces/mamba mamba_ssm/modules/ssd_minimal.py, mamba2_simple.py",
    aliases={"mamba2": {}},
    parity=("transformers 5.23.0 Mamba2Mixer",),
)


def recurrent(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Any = None
) -> tuple[Tensor, Tensor]:
    """o (B, H, N, p) and the last S (B, H, n, p), token by token, as the equations say it.

    u: (B, H, N, p). dt, a: (B, H, N, 1). b, c: (B, H, N, n). d: (H, 1, 1).
    """
    s: Any = 0.0 if state is None else state
    rows = []
    for t in range(u.shape[2]):
        u_t, dt_t, a_t, b_t, c_t = (v[:, :, t : t + 1] for v in (u, dt, a, b, c))
        # S = e^a S + B^T (dt u): (B, H, n, p)
        s = ops.exp(a_t) * s + b_t.mT @ (dt_t * u_t)
        rows.append(c_t @ s + d * u_t)
    return ops.concat(rows, axis=2), s


def quadratic(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The dual form: o (B, H, N, p) through a matrix (B, H, N, N)."""
    total = ops.cumsum(a, axis=2)
    # L_ij = exp(a_{j+1} + .. + a_i) where j <= i, else 0
    decay = ops.exp(ops.where(np.tri(u.shape[2], dtype=bool), total - total.mT, -math.inf))
    return (c @ b.mT * decay) @ (dt * u) + d * u


class State(NamedTuple):
    """The last inputs of the convolution (B, W - 1, E + 2 G n), and S (B, H, n, p)."""

    inputs: Tensor
    s: Tensor


class Mamba2(Module):
    """x (B, N, D) -> (B, N, D).

    Parameters: win (D, 2 E + 2 G n + H), conv (W, 1, E + 2 G n) with bias, a_log, dt_bias, d (H),
    norm.weight (E), wo (E, D).

    Args:
        dim: D. expand: E / D. head_dim: p, must divide E; default 64, halved until it divides.
        states: n. groups: G, must divide H = E / p. width: W.
        chunk: tokens that are computed at once; any number gives the same result.

    Raises:
        ValueError: sizes that do not divide each other, or are below 1.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        expand: int = 2,
        head_dim: int | None = None,
        states: int = 64,
        groups: int = 1,
        width: int = 4,
        chunk: int = 16,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, chunk=chunk)
        inner = expand * dim
        head_dim = math.gcd(inner, 64) if head_dim is None else head_dim
        if min(expand, head_dim, states, groups) < 1:
            raise ValueError(
                f"expand={expand}, head_dim={head_dim}, states={states} and groups={groups} must each be "
                "at least 1"
            )
        heads = inner // head_dim
        if inner % head_dim or heads % groups:
            raise ValueError(
                f"head_dim={head_dim} must divide E={inner}, and groups={groups} the {heads} heads"
            )
        rng = init.generator(seed)
        self.heads, self.head_dim = heads, head_dim
        self.states, self.groups, self.chunk = states, groups, chunk
        mixed = inner + 2 * groups * states
        self.win = Linear(dim, inner + mixed + heads, False, rng, dtype=dtype)
        self.conv = ShortConv(mixed, width, True, rng, dtype)
        self.a_log = Parameter(np.log(rng.uniform(1.0, 16.0, heads)).astype(dtype))
        # softplus(dt_bias) = dt, log-uniform in [0.001, 0.1]
        dt = np.exp(rng.uniform(math.log(1e-3), math.log(1e-1), heads))
        self.dt_bias = Parameter((dt + np.log(-np.expm1(-dt))).astype(dtype))
        self.d = Parameter(np.ones(heads, dtype=dtype))
        self.norm = RMSNorm(inner, eps=1e-5, dtype=dtype)
        self.wo = Linear(inner, dim, False, rng, dtype=dtype)

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D). mask: boolean (B, 1, 1, N), True = visible; hidden tokens leave no trace."""
        return self._mix(x, self.start(x.shape[0]), mask)[0]

    def start(self, batch: int) -> State:
        """The state before the first token."""
        s = ops.zeros((batch, self.heads, self.states, self.head_dim), like=self.win.weight)
        return State(self.conv.start(batch), s)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        y, state = self.prefill(x.reshape((x.shape[0], 1, x.shape[1])), state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Several tokens x (B, n, D) at once after those in `state`: (B, n, D) and the new state."""
        with no_grad():
            return self._mix(x, state, None)

    def _mix(self, x: Tensor, state: State, mask: Any) -> tuple[Tensor, State]:
        if x.ndim != 3:
            raise ShapeError(f"mamba2_ssd: x must be (B, N, D), not {x.shape}")
        inner, shared = self.heads * self.head_dim, self.groups * self.states
        visible = visible_keys(mask, x.shape[0], x.shape[1])
        z, r, dt = ops.split(self.win(x), [inner, inner + 2 * shared, self.heads], axis=-1)
        r = r if visible is None else ops.where(visible[:, 0], r, 0.0)
        r, inputs = self.conv(r, state.inputs)
        u, b, c = ops.split(ops.silu(r), [inner, shared, shared], axis=-1)
        # dt (B, H, N, 1), u (B, H, N, p), B and C (B, H, N, n)
        dt = ops.split_heads(ops.softplus(dt + self.dt_bias), self.heads)
        dt = dt if visible is None else ops.where(visible, dt, 0.0)
        u = ops.split_heads(u, self.heads)
        b, c = (
            ops.repeat(ops.split_heads(v, self.groups), self.heads // self.groups, axis=1) for v in (b, c)
        )
        a = -ops.exp(self.a_log[:, None, None]) * dt
        o, s = ops.gated_scan(c, b, dt * u, a, state.s, self.chunk)
        o = ops.merge_heads(o + self.d[:, None, None] * u)
        return self.wo(self.norm(o * ops.silu(z))), State(inputs, s)


Heads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def heads_of(case: Case) -> Heads:
    """u (b, h, t, d), dt > 0 and a <= 0 (b, h, t, 1), B, C (b, h, t, 3), D (h, 1, 1)."""
    rng = case.rng()
    shape = (case.b, case.h, case.t)
    u, b, c = (Tensor(rng.standard_normal((*shape, w))) for w in (case.d, 3, 3))
    dt = Tensor(rng.exponential(size=(*shape, 1)))
    return (
        u,
        dt,
        dt * -rng.exponential(size=(case.h, 1, 1)),
        b,
        c,
        Tensor(rng.standard_normal((case.h, 1, 1))),
    )


def joined(o: Tensor, state: Tensor) -> Tensor:
    return ops.concat([o.reshape((-1,)), state.reshape((-1,))])


@identity("chunks of any size give the outputs and the last state of the recurrence")
def chunks(case: Case) -> tuple[Tensor, Tensor]:
    u, dt, a, b, c, d = heads_of(case)
    sizes, expected = range(1, case.t + 6), joined(*recurrent(u, dt, a, b, c, d))
    found = []
    for size in sizes:
        o, s = ops.gated_scan(c, b, dt * u, a, None, size)
        found.append(joined(o + d * u, s))
    return ops.stack(found), ops.stack([expected for _ in sizes])


@identity("duality: the recurrence is attention with C as queries, B as keys, dt u as values, under decays")
def duality(case: Case) -> tuple[Tensor, Tensor]:
    return quadratic(*heads_of(case)), recurrent(*heads_of(case))[0]


@identity("without decay and skip, and dt = 1: the unnormalised linear attention tril(C B^T) u")
def no_decay(case: Case) -> tuple[Tensor, Tensor]:
    u, dt, a, b, c, d = heads_of(case)
    return quadratic(u, dt * 0.0 + 1.0, a * 0.0, b, c, d * 0.0), ops.tril(c @ b.mT) @ u


@identity("the selective scan with one A for all states of a head, and one dt for all its channels")
def tied_selective_scan(case: Case) -> tuple[Tensor, Tensor]:
    u, dt, a, b, c, d = heads_of(case)
    # Each head is a batch of its own there: (B H, N, p) and (B H, N, n).
    flat = [v.reshape((case.b * case.h, case.t, -1)) for v in (u, ops.broadcast_to(dt, u.shape), b, c)]
    left = recurrent(u, dt, dt * -0.7, b, c, d * 0.0)[0]
    y = ops.selective_scan(flat[0], flat[1], Tensor(np.full((case.d, 3), -0.7)), flat[2], flat[3])[0]
    return left, y.reshape(left.shape)


def build(case: Case, **options: Any) -> Mamba2:
    # Small heads and states: many heads to mix up.
    options = {"head_dim": 2, "states": 3, **options}
    return Mamba2(case.dim, seed=case.seed, dtype="float64", **options)


@identity(
    "the layer without its convolution (last tap alone) is the recurrence between its maps, with groups"
)
def layer_is_recurrence(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, groups=case.h), case.tokens()
    layer.conv.weight.data = np.zeros_like(layer.conv.weight.data)
    layer.conv.weight.data[-1] = 1.0
    found, e, n = layer.win(x), 2 * case.dim, 3 * case.h
    z, u, b, c, dt = ops.split(found, [e, e, n, n, e // 2], axis=-1)
    u, b, c = (ops.silu(v) for v in (u, b, c))
    dt = ops.softplus(dt + layer.dt_bias)
    rows: list[Tensor] = []
    for head in range(layer.heads):
        group = head // (layer.heads // case.h)
        parts = (u[..., 2 * head : 2 * head + 2], dt[..., head : head + 1])
        keys = (v[..., 3 * group : 3 * group + 3] for v in (b, c))
        one = [v[:, None] for v in (*parts, -ops.exp(layer.a_log[head]) * parts[1], *keys)]
        rows.append(recurrent(one[0], one[1], one[2], one[3], one[4], layer.d[head])[0][:, 0])
    o = ops.concat(rows, axis=-1) * ops.silu(z)
    return layer(x), layer.wo(o / ops.sqrt((o * o).mean(axis=-1, keepdims=True) + 1e-5))


@identity("two parts with the state passed on equal one pass")
def split(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, cut = build(case), case.tokens(), (case.t + 1) // 2
    first, state = layer.prefill(x[:, :cut], layer.start(case.b))
    if cut == case.t:
        return first, layer(x)
    return ops.concat([first, layer.prefill(x[:, cut:], state)[0]], axis=1), layer(x)


@identity("hidden tokens could as well not be there: in front, or anywhere where no convolution looks back")
def hidden_tokens(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, rng, left, right = build(case), case.tokens(), case.rng(), [], []
    longer = rng.standard_normal((case.b, case.t + 3, case.dim))
    for visible in (np.arange(case.t + 3) >= 3, rng.permutation(case.t + 3) < case.t):
        longer[:, visible] = x.data
        left.append(layer(Tensor(longer), mask=visible[None, None, None])[:, visible])
        right.append(layer(x))
        # The last tap alone, for the second time.
        layer.conv.weight.data = np.zeros_like(layer.conv.weight.data)
        layer.conv.weight.data[-1] = 1.0
    return ops.stack(left), ops.stack(right)

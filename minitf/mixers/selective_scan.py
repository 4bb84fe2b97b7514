"""S6, the selective scan: a diagonal state space whose step, input map and output map depend on the token.

    dt  = softplus(delta + bias)                                   step sizes
    x_t[e, :] = exp(dt_t[e] A[e, :]) * x_{t-1}[e, :] + dt_t[e] u_t[e] B_t        x_{-1} = 0
    y_t[e]    = x_t[e, :] . C_t + D[e] u_t[e]
    y_t      <- y_t * silu(z_t)                                    if there is a gate z

    u, delta, z, y  (B, N, E)        B, C  (B, N, n)        x  (B, E, n)
    A  (E, n), negative              D, bias  (E)

A small dt keeps the state and ignores the token, a large one resets the state to it. In closed form, with
G_i = sum of dt_m A for m <= i:

    x_i = exp(G_i) x_{-1} + sum_{j <= i} exp(G_i - G_j) dt_j u_j B_j

Cost: 11 N E n operations, a state of E n numbers.
Source: Mamba: Linear-Time Sequence Modeling with Selective State Spaces, Gu and Dao, arXiv:2312.00752, 2023,
algorithm 2.
Differs from the paper: the input map is dt B, as in the published code, not the exact
(e^{dt A} - 1) / A B. The projections that make delta, B, C and z are those of `mamba_block`.
A = -exp(A_log) with A_log = log(1..n), D = 1; softplus(bias) starts log-uniform in [0.001, 0.1].
Numerics: A is stored as log(-A), so it stays negative. softplus comes after the bias. No division anywhere.
A_log, D and the bias want no weight decay.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor, no_grad
from minitf.nn import Card, Case, Module, Paper, Parameter, identity, init, positive

CARD = Card(
    name="selective_scan",
    title="Selective scan (S6)",
    kind="operation",
    family="state space",
    papers=(Paper("Mamba: Linear-Time Sequence Modeling with Selective State Spaces", "2312.00752", 2023),),
    causal=True,
    streams=True,
    grid="1d",
    complexity="11 N E n",
    properties=("causal", "batch_independent"),
    basis="published code: state-spaces/mamba mamba_ssm/ops/selective_scan_interface.py (selective_scan_ref)",
    aliases={"s6": {}},
    parity=("transformers 5.23.0 mamba_selective_scan",),
)


def recurrent(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Any = None
) -> tuple[Tensor, Tensor]:
    """x_t . C_t (B, N, E) and the last x (B, E, n), token by token, as the equations say it.

    u: (B, N, E). dt: after softplus, (B, N, E). a: (E, n). b, c: (B, N, n).
    """
    x: Any = 0.0 if state is None else state
    rows = []
    for t in range(u.shape[1]):
        step = dt[:, t, :, None]
        # x = exp(dt A) * x + dt u B: (B, E, n)
        x = ops.exp(step * a) * x + step * u[:, t, :, None] * b[:, t, None, :]
        rows.append((x * c[:, t, None, :]).sum(axis=-1))
    return ops.stack(rows, axis=1), x


def selective_scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor | None = None,
    bias: Any = 0.0,
    state: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """y (B, N, E) and the last x (B, E, n). state: x before the first token (B, E, n)."""
    y, state = ops.selective_scan(u, ops.softplus(delta + bias), a, b, c, state, chunk)
    y = y + d * u
    return (y if z is None else y * ops.silu(z)), state


class SelectiveScan(Module):
    """u, delta (B, N, E), b, c (B, N, n), z (B, N, E) or None -> y (B, N, E), last state (B, E, n).

    Parameters, which do not depend on the token: a_log (E, n), d (E), bias (E).

    Args:
        dim: E. states: n. chunk: tokens that are computed at once; any number gives the same result.

    Raises:
        ValueError: states or chunk below 1.
    """

    card = CARD

    def __init__(
        self, dim: int, *, states: int = 16, chunk: int = 64, seed: init.Seed = 0, dtype: Any = "float32"
    ):
        positive(dim=dim, chunk=chunk)
        if states < 1:
            raise ValueError(f"states={states} must be at least 1")
        self.chunk = chunk
        # A = -1, -2, .., -n for every channel
        self.a_log = Parameter(np.tile(np.log(np.arange(1.0, states + 1)), (dim, 1)).astype(dtype))
        self.d = Parameter(np.ones(dim, dtype=dtype))
        dt = np.exp(init.generator(seed).uniform(math.log(1e-3), math.log(1e-1), dim))
        # softplus(bias) = dt
        self.bias = Parameter((dt + np.log(-np.expm1(-dt))).astype(dtype))

    def forward(
        self,
        u: Tensor,
        delta: Tensor,
        b: Tensor,
        c: Tensor,
        z: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scan from `state` (B, E, n), 0 if left out. Shapes as in the text of the class."""
        if u.ndim != 3 or u.shape[-1] != self.d.shape[0]:
            raise ShapeError(f"selective_scan: u must be (B, N, {self.d.shape[0]}), not {u.shape}")
        return selective_scan(u, delta, -ops.exp(self.a_log), b, c, self.d, z, self.bias, state, self.chunk)

    def start(self, batch: int) -> Tensor:
        """x before the first token: zeros (B, E, n)."""
        return ops.zeros((batch, *self.a_log.shape), like=self.a_log)

    def step(
        self, u: Tensor, state: Tensor, delta: Tensor, b: Tensor, c: Tensor, z: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One token, u, delta and z (B, E), b and c (B, n), after `state`: y (B, E) and the new state."""
        one = [None if v is None else v.reshape((v.shape[0], 1, -1)) for v in (delta, b, c, z)]
        with no_grad():
            y, state = self(u.reshape((u.shape[0], 1, -1)), *one, state)
        return y[:, 0], state

    @staticmethod
    def example_inputs(case: Case) -> tuple[Tensor, ...]:
        """u, delta, b, c and z."""
        rng = case.rng()
        widths = (case.dim, case.dim, 16, 16, case.dim)
        return tuple(Tensor(rng.standard_normal((case.b, case.t, w))) for w in widths)


Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs_of(case: Case, n: int = 3) -> Inputs:
    """u, dt > 0 (b, t, dim), A < 0 (dim, n), B, C (b, t, n)."""
    rng = case.rng()
    u, b, c = (Tensor(rng.standard_normal((case.b, case.t, w))) for w in (case.dim, n, n))
    dt, a = rng.exponential(size=u.shape), -rng.exponential(size=(case.dim, n))
    return u, Tensor(dt), Tensor(a), b, c


def joined(y: Tensor, state: Tensor) -> Tensor:
    return ops.concat([y.reshape((-1,)), state.reshape((-1,))])


@identity("chunks of any size give the outputs and the last state of the recurrence")
def chunks(case: Case) -> tuple[Tensor, Tensor]:
    inputs, expected = inputs_of(case), joined(*recurrent(*inputs_of(case)))
    sizes = range(1, case.t + 6)
    found = [joined(*ops.selective_scan(*inputs, chunk=c)) for c in sizes]
    return ops.stack(found), ops.stack([expected for _ in sizes])


@identity(
    "an associative scan with (a2, b2) o (a1, b1) = (a1 a2, a2 b1 + b2), in doubling steps, is the recurrence"
)
def associative(case: Case) -> tuple[Tensor, Tensor]:
    u, dt, a, b, c = inputs_of(case)
    step = dt[..., None]
    decay, write, reach = ops.exp(step * a), step * u[..., None] * b[:, :, None], 1
    while reach < case.t:
        # Token t and the one `reach` before it; before the first there is nothing: (1, 0).
        pads = ((0, 0), (reach, 0), (0, 0), (0, 0))
        before = ops.pad(decay, pads, value=1.0)[:, : case.t], ops.pad(write, pads)[:, : case.t]
        decay, write = decay * before[0], decay * before[1] + write
        reach *= 2
    return ops.selective_scan(u, dt, a, b, c)[0], (write * c[:, :, None]).sum(axis=-1)


@identity("closed form: x_i = exp(G_i) x_{-1} + sum_{j <= i} exp(G_i - G_j) dt_j u_j B_j")
def closed_form(case: Case) -> tuple[Tensor, Tensor]:
    u, dt, a, b, c = inputs_of(case)
    first = Tensor(np.random.default_rng([case.seed, 1]).standard_normal((case.b, *a.shape)))
    total = ops.cumsum(dt[..., None] * a, axis=1)
    past = np.tri(case.t, dtype=bool)[..., None, None]
    # exp(G_i - G_j): (B, N, N, E, n)
    decay = ops.exp(ops.where(past, total[:, :, None] - total[:, None], -math.inf))
    write = dt[..., None] * u[..., None] * b[:, :, None]
    x = ops.exp(total) * first[:, None] + (decay * write[:, None]).sum(axis=2)
    y, last = ops.selective_scan(u, dt, a, b, c, first)
    return joined(y, last), joined((x * c[:, :, None]).sum(axis=-1), x[:, -1])


@identity("delta, B and C that do not change: a convolution with the kernel dt C e^{l dt A} B, plus D u")
def time_invariant(case: Case) -> tuple[Tensor, Tensor]:
    u, delta, a, b, c = inputs_of(case)
    delta, b, c = (ops.broadcast_to(v[:1, :1], v.shape) for v in (delta, b, c))
    d = delta[0, 0]
    y = selective_scan(u, delta, a, b, c, d)[0]
    dt = ops.softplus(delta[0, :1])
    # K (N, E), l = 0 .. N-1
    powers = ops.exp(np.arange(case.t)[:, None, None] * dt[..., None] * a)
    kernel = dt * (c[0, 0] * powers * b[0, 0]).sum(axis=-1)
    rows = [(ops.flip(kernel[: t + 1], axis=0) * u[:, : t + 1]).sum(axis=1) for t in range(case.t)]
    return y, ops.stack(rows, axis=1) + d * u


@identity("one A for all states of a head and one dt for all its channels: scalar-gated linear attention")
def scalar_decay(case: Case) -> tuple[Tensor, Tensor]:
    u, dt, a, b, c = inputs_of(case)
    dt, a = dt[..., :1], a[:1, :1]
    wide = ops.broadcast_to(dt, u.shape), ops.broadcast_to(a, (case.dim, 3))
    y = ops.gated_scan(c[:, None], b[:, None], (dt * u)[:, None], (dt * a)[:, None])[0][:, 0]
    return ops.selective_scan(u, *wide, b, c)[0], y


@identity("n = 1, A = -1, B = C = 1, exact input map: x_t = (1 - g) x_{t-1} + g u_t, g = sigmoid(delta)")
def gated_average(case: Case) -> tuple[Tensor, Tensor]:
    u, delta, a, b, _ = inputs_of(case, n=1)
    g, dt = ops.sigmoid(delta), ops.softplus(delta)
    one = b * 0.0 + 1.0
    # The scan multiplies by dt, the exact map by (1 - e^-dt) = g; the code's own map leaves softplus.
    scan = ops.stack([ops.selective_scan(v, dt, a * 0.0 - 1.0, one, one)[0] for v in (u * g / dt, u)])
    x: Any = 0.0
    rows = []
    for t in range(case.t):
        x = (1.0 - g[:, t]) * x + ops.stack([g[:, t] * u[:, t], dt[:, t] * u[:, t]])
        rows.append(x)
    return scan, ops.stack(rows, axis=2)


@identity("a very small dt ignores the token and keeps the state; a very large one forgets what was before")
def select(case: Case) -> tuple[Tensor, Tensor]:
    u, dt, a, b, c = inputs_of(case)
    a, t, d = a - 0.5, case.t // 2, u[0, 0] * 0.0
    here, others = np.arange(case.t)[:, None] == t, [i for i in range(case.t) if i != t]
    delta = ops.log(ops.expm1(dt))
    ignored = selective_scan(u, ops.where(here, -60.0, delta), a, b, c, d)[1]
    without = ignored * 0.0
    if others:
        without = recurrent(u[:, others], dt[:, others], a, b[:, others], c[:, others])[1]
    forgotten = selective_scan(u, ops.where(here, 200.0, delta), a, b, c, d)[1]
    later = ops.where(here, 200.0, dt)[:, t:]
    alone = recurrent(u[:, t:], later, a, b[:, t:], c[:, t:])[1]
    return ops.stack([ignored, forgotten]), ops.stack([without, alone])


@identity("the layer, token by token, is the recurrence with its bias, skip and gate")
def layer_is_recurrence(case: Case) -> tuple[Tensor, Tensor]:
    layer = SelectiveScan(case.dim, seed=case.seed, dtype="float64")
    u, delta, b, c, z = SelectiveScan.example_inputs(case)
    y, last = recurrent(u, ops.softplus(delta + layer.bias), -ops.exp(layer.a_log), b, c)
    state, rows = layer.start(case.b), []
    for t in range(case.t):
        row, state = layer.step(u[:, t], state, delta[:, t], b[:, t], c[:, t], z[:, t])
        rows.append(row)
    return joined(ops.stack(rows, axis=1), state), joined((y + layer.d * u) * ops.silu(z), last)

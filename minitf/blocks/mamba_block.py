"""Mamba block: a state space and a gated network in one branch; a stack of these needs no other layer.

    h   = RMSNorm(x)
    u, z = h W_in                                 two halves
    u   = silu(conv(u) + b)                       causal, each channel alone, over W = 4 tokens
    r, B, C = u W_x,   delta = r W_dt
    y   = scan(u, delta, B, C, z)                 the selective scan: dt = softplus(delta + bias),
                                                  x_t = exp(dt A) x_{t-1} + dt u_t B_t,
                                                  y_t = (x_t . C_t + D u_t) * silu(z_t)
    x  <-  x + y W_out

    x, h  (B, N, D)        u, z, delta, y  (B, N, E), E = 2 D        r  (B, N, R), R = ceil(D / 16)
    B, C  (B, N, n), n = 16

Cost: 12 N D^2 for the maps in and out, 4 N D (2 R + 2 n) for those of the scan, 22 N D n for the scan itself.
Source: Mamba: Linear-Time Sequence Modeling with Selective State Spaces, Gu and Dao, arXiv:2312.00752, 2023,
section 3.4 and figure 3.
Differs from the paper: the sum x has the type of x, where the published code keeps it in float32.
Numerics: see `selective_scan`. W_dt starts uniform in +-1/sqrt(R).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor, no_grad
from minitf.mixers.selective_scan import SelectiveScan, recurrent
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
    name="mamba_block",
    title="Mamba block",
    kind="block",
    family="state space",
    papers=(Paper("Mamba: Linear-Time Sequence Modeling with Selective State Spaces", "2312.00752", 2023),),
    causal=True,
    streams=True,
    grid="1d",
    complexity="12 N D^2 + 8 N D n + 8 N D R + 22 N D n",
    properties=("causal", "streams", "chunked", "batch_independent", "key_masks"),
    basis="published code: state-spaces/mamba mamba_ssm/modules/mamba_simple.py, block.py",
    aliases={"mamba": {}},
    parity=("transformers 5.23.0 MambaMixer",),
)


class State(NamedTuple):
    """The last inputs of the convolution (B, W - 1, E), and x of the scan (B, E, n)."""

    inputs: Tensor
    x: Tensor


class Mamba(Module):
    """The branch without norm and sum: h (B, N, D) -> (B, N, D).

    Parameters: win (D, 2 E), conv (W, 1, E) with bias, wx (E, R + 2 n), wdt (R, E), scan.a_log (E, n),
    scan.d, scan.bias (E), wo (E, D). Arguments as in `MambaBlock`.
    """

    def __init__(
        self,
        dim: int,
        *,
        expand: int = 2,
        states: int = 16,
        width: int = 4,
        rank: int | None = None,
        chunk: int = 64,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, chunk=chunk)
        if min(expand, states) < 1 or (rank is not None and rank < 1):
            raise ValueError(f"expand={expand}, states={states} and rank={rank} must be at least 1")
        rng = init.generator(seed)
        inner, self.rank, self.states = expand * dim, -(-dim // 16) if rank is None else rank, states
        self.win = Linear(dim, 2 * inner, False, rng, dtype=dtype)
        self.conv = ShortConv(inner, width, True, rng, dtype)
        self.wx = Linear(inner, self.rank + 2 * states, False, rng, dtype=dtype)
        self.wdt = Linear(self.rank, inner, False, rng, dtype=dtype)
        self.scan = SelectiveScan(inner, states=states, chunk=chunk, seed=rng, dtype=dtype)
        self.wo = Linear(inner, dim, False, rng, dtype=dtype)

    def forward(self, h: Tensor, state: State | None = None, mask: Any = None) -> tuple[Tensor, State]:
        """Mix h (B, N, D) after the tokens in `state`: (B, N, D) and the new state."""
        if h.ndim != 3:
            raise ShapeError(f"mamba_block: x must be (B, N, D), not {h.shape}")
        state = self.start(h.shape[0]) if state is None else state
        # (B, 1, N, 1) -> (B, N, 1)
        visible = visible_keys(mask, h.shape[0], h.shape[1])
        visible = None if visible is None else visible[:, 0]
        # u, z (B, N, E)
        u, z = ops.split(self.win(h), 2, axis=-1)
        u = u if visible is None else ops.where(visible, u, 0.0)
        u, inputs = self.conv(u, state.inputs)
        u = ops.silu(u)
        # r (B, N, R), B and C (B, N, n)
        r, b, c = ops.split(self.wx(u), [self.rank, self.states, self.states], axis=-1)
        delta = self.wdt(r)
        # dt = softplus(-inf) = 0: a hidden token neither writes nor lets the state decay.
        delta = delta if visible is None else ops.where(visible, delta, -np.inf)
        y, x = self.scan(u, delta, b, c, z, state.x)
        return self.wo(y), State(inputs, x)

    def start(self, batch: int) -> State:
        """The state before the first token."""
        return State(self.conv.start(batch), self.scan.start(batch))


class MambaBlock(Module):
    """x (B, N, D) -> (B, N, D). Parameters: norm.weight (D); those of `Mamba` in mixer.

    Args:
        dim: D. expand: E / D. states: n. width: W, the tokens that the convolution sees. rank: R.
        chunk: tokens that are scanned at once; any number gives the same result.

    Raises:
        ValueError: expand, states, width, rank or chunk below 1.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        expand: int = 2,
        states: int = 16,
        width: int = 4,
        rank: int | None = None,
        chunk: int = 64,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        self.norm = RMSNorm(dim, eps=1e-5, dtype=dtype)
        self.mixer = Mamba(
            dim, expand=expand, states=states, width=width, rank=rank, chunk=chunk, seed=seed, dtype=dtype
        )

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """One block on x (B, N, D). mask: boolean (B, 1, 1, N), True = visible."""
        return x + self.mixer(self.norm(x), None, mask)[0]

    def start(self, batch: int) -> State:
        """The state before the first token."""
        return self.mixer.start(batch)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token x (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        y, state = self.prefill(x.reshape((x.shape[0], 1, x.shape[1])), state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Several tokens x (B, n, D) at once after those in `state`: (B, n, D) and the new state."""
        with no_grad():
            y, state = self.mixer(self.norm(x), state)
            return x + y, state


def build(case: Case, **options: Any) -> MambaBlock:
    return MambaBlock(case.dim, seed=case.seed, dtype="float64", **options)


def last_tap(layer: Mamba) -> None:
    """Let the convolution pass on the token itself alone."""
    weight = layer.conv.weight
    weight.data = np.zeros_like(weight.data)
    weight.data[-1] = 1.0


@identity("the block is its equations, token by token, with the convolution as a loop")
def token_by_token(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case, states=3, width=3), case.tokens()
    inner = block.mixer
    inner.conv.bias = Tensor(case.rng().standard_normal(2 * case.dim))  # type: ignore[assignment]
    w = inner.conv.weight[:, 0]
    u, z = ops.split(inner.win(block.norm(x)), 2, axis=-1)
    rows = [sum(w[2 - i] * u[:, t - i] for i in range(min(t, 2) + 1)) for t in range(case.t)]
    u = ops.silu(ops.stack(rows, axis=1) + inner.conv.bias)
    found = inner.wx(u)
    r, b, c = found[..., : inner.rank], found[..., inner.rank : -3], found[..., -3:]
    dt = ops.softplus(inner.wdt(r) + inner.scan.bias)
    y = recurrent(u, dt, -ops.exp(inner.scan.a_log), b, c)[0] + inner.scan.d * u
    return block(x), x + inner.wo(y * ops.silu(z))


@identity("W_x = 0 and a convolution that passes on the token: a gated network on each token alone")
def no_scan(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    last_tap(block.mixer)
    block.mixer.wx.weight.data = np.zeros_like(block.mixer.wx.weight.data)
    both = ops.silu(block.mixer.win(block.norm(x)))
    u, z = ops.split(both, 2, axis=-1)
    return block(x), x + block.mixer.wo(u * z)


@identity(
    "delta, B and C that do not change: a gated convolution with the kernel dt C e^{l dt A} B, plus D u"
)
def time_invariant(case: Case) -> tuple[Tensor, Any]:
    layer, x, e = build(case, states=3).mixer, case.tokens(), 2 * case.dim
    last_tap(layer)
    # The last channel of the input is 1, channel 0 of u reads it alone, and W_x reads channel 0 alone.
    h = ops.concat([x[..., :-1], x[..., -1:] * 0.0 + 1.0], axis=-1)
    layer.win.weight.data[:, 0] = 0.0
    layer.win.weight.data[-1, 0] = 2.0
    layer.wx.weight.data[1:] = 0.0
    uz = layer.win(h).data
    uz = uz / (1.0 + np.exp(-uz))
    r, b, c = np.split(uz[0, 0, 0] * layer.wx.weight.data[0], [layer.rank, layer.rank + 3])
    # dt (E), K (N, E)
    dt = np.log1p(np.exp(r @ layer.wdt.weight.data + layer.scan.bias.data))
    powers = np.exp(np.arange(case.t)[:, None, None] * dt[:, None] * -np.exp(layer.scan.a_log.data))
    kernel, y = dt * (powers * b * c).sum(axis=-1), np.zeros((case.b, case.t, e))
    for i in range(case.t):
        for j in range(i + 1):
            y[:, i] += kernel[i - j] * uz[:, j, :e]
    y = (y + layer.scan.d.data * uz[..., :e]) * uz[..., e:]
    return layer(h)[0], y @ layer.wo.weight.data


@identity("W_out = 0: the block is the identity")
def silent(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    block.mixer.wo.weight.data = np.zeros_like(block.mixer.wo.weight.data)
    return block(x), x


@identity("outputs of a prefix are the prefix of the outputs")
def prefix(case: Case) -> tuple[Tensor, Tensor]:
    block, x = build(case), case.tokens()
    n = (case.t + 1) // 2
    return block(x[:, :n]), block(x)[:, :n]


@identity("a gate that is large everywhere only scales: silu(z) = z")
def open_gate(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case).mixer, case.tokens()
    # One channel of the input is 1, and it alone makes z = 40.
    h = ops.concat([x[..., :-1], x[..., -1:] * 0.0 + 1.0], axis=-1)
    layer.win.weight.data[:, 2 * case.dim :] = 0.0
    layer.win.weight.data[-1, 2 * case.dim :] = 40.0
    last_tap(layer)
    u = ops.silu(layer.win(h)[..., : 2 * case.dim])
    r, b, c = ops.split(layer.wx(u), [layer.rank, layer.states, layer.states], axis=-1)
    y = layer.scan(u, layer.wdt(r), b, c)[0]
    return layer(h)[0], 40.0 * layer.wo(y)


@identity("hidden tokens could as well not be there: in front, or anywhere where no convolution looks back")
def hidden_tokens(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, rng, left, right = build(case), case.tokens(), case.rng(), [], []
    longer = rng.standard_normal((case.b, case.t + 3, case.dim))
    for visible in (np.arange(case.t + 3) >= 3, rng.permutation(case.t + 3) < case.t):
        longer[:, visible] = x.data
        left.append(layer(Tensor(longer), mask=visible[None, None, None])[:, visible])
        right.append(layer(x))
        # The last tap alone, for the second time.
        last_tap(layer.mixer)
    return ops.stack(left), ops.stack(right)

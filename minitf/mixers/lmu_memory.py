"""Legendre memory unit, parallel form: a fixed linear system that keeps a sliding window of one signal.

    u_t = relu(x_t W_u + b_u)                               one number for each token
    m_t = Ad m_{t-1} + Bd u_t                               m_{-1} = 0; nothing here is learned
    h_t = relu([m_t, x_t] W_h + b_h)

    R_i  = (2 i + 1) / theta,   i, j = 0 .. n-1
    A_ij = -R_i where i < j, else (-1)^{i-j+1} R_i,   B_i = (-1)^i R_i
    [[Ad, Bd], [0, 1]] = exp([[A, B], [0, 0]])              zero-order hold with a step of 1

    x, h  (B, N, D), (B, N, hidden)      u  (B, N, 1)      m  (B, N, n)      A, Ad  (n, n)      B, Bd  (n)
    W_u (D, 1)      W_h (n + D, hidden)

m holds the Legendre coefficients of the last theta values of u: sum_i P_i(2 r / theta - 1) m_t[i] is close to
u_{t-r} for 0 <= r <= theta, where u is smooth. As a convolution, by Fourier transforms of length 2 N:
m_t = sum_{l <= t} (Ad^l Bd) u_{t-l}. n = D, theta = 128, hidden = D.

Cost: 2 N n^2 for the powers, 10 N log2(2 N) n for the transforms, 2 N (n + D) hidden for W_h. A step: 2 n^2.
Source: LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units, Liu et al.,
arXiv:2402.04882, 2024; the unit: Voelker et al., 2019; this form: Parallelizing Legendre Memory Unit
Training, Chilkuri and Eliasmith, arXiv:2102.11417, 2021.
Differs from the paper: nothing; the powers are computed for the N of each call, not for one fixed N.
Numerics: the Euler step instead of zero-order hold is unstable for large n. The exponential is computed in
float64. The transform is causal up to rounding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, no_grad
from minitf.nn import Buffer, Card, Case, Linear, Module, Paper, identity, init, positive, visible_keys

CARD = Card(
    name="lmu_memory",
    title="Legendre memory unit (parallel form)",
    kind="mixer",
    family="state space",
    papers=(
        Paper(
            "LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units",
            "2402.04882",
            2024,
        ),
        Paper("Parallelizing Legendre Memory Unit Training", "2102.11417", 2021),
    ),
    causal=True,
    streams=True,
    grid="1d",
    complexity="2 N n^2 + 10 N log N n + 4 N D^2",
    properties=("causal", "causal_to_rounding", "streams", "batch_independent", "key_masks"),
    basis="published code: zeyuliu1037/LMUFormer src/blocks/lmu_cell.py (LMUFFTCell), lmu.py",
    parity=("zeyuliu1037/LMUFormer 5debadd src/blocks/lmu_cell.py LMUFFTCell",),
)


def continuous(n: int, theta: float) -> tuple[Array, Array]:
    """A (n, n) and B (n)."""
    i, j = np.arange(n)[:, None], np.arange(n)
    r = (2.0 * i + 1.0) / theta
    return r * np.where(i < j, -1.0, (-1.0) ** (i - j + 1)), (r * (-1.0) ** i)[:, 0]


def discrete(n: int, theta: float, dt: float = 1.0) -> tuple[Array, Array]:
    """Ad (n, n) and Bd (n): zero-order hold with step dt."""
    a, b = continuous(n, theta)
    m = dt * np.block([[a, b[:, None]], [np.zeros((1, n + 1))]])
    # exp(M) = exp(M / 2^k)^(2^k), the inner one by its series, where the norm is at most 1/2
    k = max(0, math.ceil(math.log2(2.0 * np.abs(m).sum(axis=1).max())))
    term = power = np.eye(n + 1)
    for i in range(1, 18):
        term = term @ m / (2.0**k * i)
        power = power + term
    for _ in range(k):
        power = power @ power
    return power[:n, :n], power[:n, n]


def recurrent(u: Tensor, ad: Tensor, bd: Tensor, state: Any) -> tuple[Tensor, Tensor]:
    """m (B, N, n) and its last row (B, n), token by token: m_t = Ad m_{t-1} + Bd u_t. u: (B, N, 1)."""
    m, rows = state, []
    for t in range(u.shape[1]):
        m = m @ ad.mT + u[:, t] * bd
        rows.append(m)
    return ops.stack(rows, axis=1), m


def impulse(ad: Tensor, bd: Tensor, n: int) -> Tensor:
    """Ad^l Bd for l = 0 .. n-1, as rows (n, states): each round doubles how many there are."""
    rows, power = bd[None], ad
    while rows.shape[0] < n:
        rows = ops.concat([rows, rows @ power.mT], axis=0)
        power = power @ power
    return rows[:n]


def convolved(u: Tensor, ad: Tensor, bd: Tensor) -> Tensor:
    """The same m (B, N, n) from the empty state, by Fourier transforms of length 2 N."""
    n = u.shape[1]
    u = ops.pad(u, ((0, 0), (0, n), (0, 0)))
    h = ops.pad(impulse(ad, bd, n), ((0, n), (0, 0)))
    return ops.irfft(ops.rfft(u, axis=1) * ops.rfft(h, axis=0), 2 * n, axis=1)[:, :n]


class LMUMemory(Module):
    """x (B, N, D) -> h (B, N, hidden).

    Parameters: wu (D, 1), wh (n + D, hidden), both with bias. Buffers: ad (n, n), bd (n).

    Args:
        dim: D. memory: n, default D. theta: the length of the window in tokens. hidden: default D.

    Raises:
        ValueError: memory, theta or hidden that is not positive.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        memory: int | None = None,
        theta: float = 128.0,
        hidden: int | None = None,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, memory=memory, theta=theta, hidden=hidden)
        memory, hidden = (dim if size is None else size for size in (memory, hidden))
        rng = init.generator(seed)
        self.wu = Linear(dim, 1, True, rng, dtype=dtype)
        self.wh = Linear(memory + dim, hidden, True, rng, dtype=dtype)
        ad, bd = discrete(memory, theta)
        self.ad, self.bd = Buffer(ad.astype(dtype)), Buffer(bd.astype(dtype))

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix x (B, N, D). mask: boolean (B, 1, 1, N), True = visible; hidden tokens count as u = 0."""
        u = self._signal(x)
        visible = visible_keys(mask, x.shape[0], x.shape[1])
        u = u if visible is None else ops.where(visible[:, 0], u, 0.0)
        return self._read(convolved(u, self.ad, self.bd), x)

    def start(self, batch: int) -> Tensor:
        """The empty memory m (B, n)."""
        return ops.zeros((batch, self.bd.shape[0]), like=self.bd)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token x (B, D) after those in `state`: (B, hidden) and the new state. No gradients pass."""
        y, state = self.prefill(x.reshape((x.shape[0], 1, x.shape[1])), state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Several tokens x (B, k, D) after those in `state`: (B, k, hidden) and the new state."""
        with no_grad():
            m, state = recurrent(self._signal(x), self.ad, self.bd, state)
            return self._read(m, x), state

    def _signal(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise ShapeError(f"lmu_memory: x must be (B, N, D), not {x.shape}")
        return ops.relu(self.wu(x))

    def _read(self, m: Tensor, x: Tensor) -> Tensor:
        return ops.relu(self.wh(ops.concat([m, x], axis=-1)))


def system_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """u (b, t, 1), Ad and Bd for n = d + 1 and a window of 6."""
    ad, bd = discrete(case.d + 1, 6.0)
    return Tensor(case.rng().standard_normal((case.b, case.t, 1))), Tensor(ad), Tensor(bd)


@identity("the convolution by Fourier transforms is the recurrence")
def convolution_is_recurrence(case: Case) -> tuple[Tensor, Tensor]:
    u, ad, bd = system_of(case)
    return convolved(u, ad, bd), recurrent(u, ad, bd, Tensor(np.zeros((case.b, case.d + 1))))[0]


@identity("discretised exactly: two half steps are one step, and A Bd = (Ad - 1) B")
def exact_steps(case: Case) -> tuple[Any, Any]:
    n, theta = case.dim, 2.0 + case.t
    (a, b), (ad, bd), (half, half_b) = continuous(n, theta), discrete(n, theta), discrete(n, theta, 0.5)
    left = [*(half @ half).ravel(), *(half @ half_b + half_b), *(a @ bd)]
    return np.array(left), np.array([*ad.ravel(), *bd, *((ad - np.eye(n)) @ b)])


@identity("the first row of A is -1 / theta everywhere, the first of B is 1 / theta: m_0 leaks and sums u")
def first_row(case: Case) -> tuple[Any, Any]:
    a, b = continuous(case.dim, 7.0)
    return np.append(a[0], b[0]), np.append(np.full(case.dim, -1.0 / 7.0), 1.0 / 7.0)


# The specification gives the bound: n = 12 polynomials, a sine of period 80, a window of 32, r from 4 on.
@identity(
    "delays can be read off: sum_i P_i(2 r / theta - 1) m_t[i] = u(t - r + 1/2) for a slow sine",
    tolerance=2e-3,
)
def delays(case: Case) -> tuple[Any, Any]:
    theta, wave, t = 32, 2.0 * math.pi / 80.0, 200 + case.t
    ad, bd = (Tensor(v) for v in discrete(12, theta))
    u = Tensor(np.sin(wave * np.arange(t + 1.0))[None, :, None])
    m = convolved(u, ad, bd).data[0, -1]
    r = np.arange(4.0, theta + 1.0)
    # P_i by Legendre's recurrence (i + 1) P_{i+1} = (2 i + 1) s P_i - i P_{i-1}
    s = 2.0 * r / theta - 1.0
    p = [np.ones_like(s), s]
    for i in range(1, 11):
        p.append(((2.0 * i + 1.0) * s * p[i] - i * p[i - 1]) / (i + 1.0))
    return m @ np.array(p), np.sin(wave * (t - r + 0.5))


@identity("the memory is linear in u")
def linear(case: Case) -> tuple[Tensor, Tensor]:
    u, ad, bd = system_of(case)
    other = ops.flip(u, axis=1)
    return convolved(3.0 * u - other, ad, bd), 3.0 * convolved(u, ad, bd) - convolved(other, ad, bd)


def build(case: Case, **options: Any) -> LMUMemory:
    return LMUMemory(case.dim, seed=case.seed, dtype="float64", **options)


@identity("where u = 0, h_t depends on x_t alone")
def silent_signal(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    layer.wu.load_state_dict({"weight": np.zeros((case.dim, 1)), "bias": np.array([-1.0])})
    return layer(x), ops.relu(x @ layer.wh.weight[case.dim :])


@identity("the layer is its equations, token by token")
def token_by_token(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case, memory=case.d + 1, theta=5.0), case.tokens()
    ad, bd = discrete(case.d + 1, 5.0)
    m, rows = np.zeros((case.b, case.d + 1)), []
    for t in range(case.t):
        m = m @ ad.T + np.maximum(layer.wu(x[:, t]).data, 0.0) * bd
        rows.append(ops.relu(layer.wh(ops.concat([Tensor(m), x[:, t]], axis=-1))))
    return layer(x), ops.stack(rows, axis=1)


@identity("hidden tokens in front of the others leave no trace")
def hidden_in_front(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    longer = ops.concat([Tensor(case.rng().uniform(1.0, 2.0, (case.b, 3, case.dim))), x], axis=1)
    visible = np.arange(case.t + 3) >= 3
    return layer(longer, mask=visible[None, None, None])[:, 3:], layer(x)

"""S4D: a diagonal state space for each channel, computed as one long convolution.

    A = -exp(log_A_real) + i A_imag,   dt = exp(log_dt)
    Abar = exp(dt A),   Bbar = (Abar - 1) / A                 zero-order hold, or "bilinear":
    Abar = (1 + dt A / 2) / (1 - dt A / 2),   Bbar = dt / (1 - dt A / 2)
    K_l = 2 Re sum_m C_m Bbar_m Abar_m^l                      the kernel, l = 0 .. N-1
    v_t = sum_{l <= t} K_l u_{t-l} + d u_t                    by a Fourier transform of length 2 N
    [a, b] = gelu(v) W + bias,   y = a * sigmoid(b)

    u, v, y  (B, N, D)      K  (D, N)      A, C, Abar, Bbar  (D, n/2) complex      dt, d  (D)      W  (D, 2 D)

The same as a recurrence, which `step` uses: x_t = Abar x_{t-1} + Bbar u_t, v_t = 2 Re(C x_t) + d u_t, with
x (B, D, n/2). The n states come in conjugate pairs, of which one is kept: hence 2 Re. n = 64.

A starts with real part -1/2, and imaginary part, m = 0 .. n/2-1,
    lin   pi m                             inv    n / pi (n / (2 m + 1) - 1)
    legs  that of the HiPPO eigenvalues    quad   (2 m + 1)^2 / pi
or "real": A_m = -(1 + m) without imaginary part, where the factor 2 falls away.

Cost: 2 N D n for the kernel, complex numbers counted as one, 15 N log2(2 N) D for the transforms, 4 N D^2 for
W. A step costs 3 n D + 4 D^2.
Source: On the Parameterization and Initialization of Diagonal State Space Models, Gu et al.,
arXiv:2206.11893, 2022.
Differs from the paper: B = 1, as in the published minimal code; C absorbs it.
Numerics: expm1 keeps Abar - 1 precise for small dt. In float32 the phase l dt A_imag loses digits as l grows.
The transform mixes all tokens before it separates them, so it is causal up to rounding. log_dt and A want no
weight decay.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor, no_grad
from minitf.nn import Card, Case, Linear, Module, Paper, Parameter, identity, init, positive, visible_keys

CARD = Card(
    name="s4d",
    title="S4D: diagonal state space",
    kind="mixer",
    family="state space",
    papers=(
        Paper(
            "On the Parameterization and Initialization of Diagonal State Space Models", "2206.11893", 2022
        ),
    ),
    causal=True,
    streams=True,
    grid="1d",
    complexity="2 N D n + 15 N log N D + 4 N D^2",
    properties=("causal", "causal_to_rounding", "streams", "batch_independent", "key_masks"),
    basis="published code: state-spaces/s4 models/s4/s4d.py, src/models/sequence/kernels/dplr.py, ssm.py",
    parity=("state-spaces/s4 e757cef models/s4/s4d.py S4D",),
)


def hippo_frequencies(n: int) -> Array:
    """The n // 2 positive imaginary parts of the eigenvalues of the normal part of HiPPO-LegS, ascending.

    That part is S - I / 2, where S_ij = sqrt((2 i + 1) (2 j + 1)) / 2 above the diagonal, minus it below.
    """
    root = np.sqrt(2.0 * np.arange(n) + 1.0)
    s = np.triu(np.outer(root, root), 1) / 2.0
    return np.linalg.eigvalsh(1j * (s - s.T))[-(n // 2) :]


def frequencies(name: str, n: int) -> Array:
    """A_imag (n // 2,) at the start, as the text of this file lists them."""
    m = np.arange(n // 2)
    if name == "lin":
        return math.pi * m
    if name == "inv":
        return n / math.pi * (n / (2.0 * m + 1.0) - 1.0)
    if name == "quad":
        return (2.0 * m + 1.0) ** 2 / math.pi
    return hippo_frequencies(n)


def discretised(a: Tensor, dt: Tensor, rule: str = "zoh") -> tuple[Tensor, Tensor]:
    """log Abar and Bbar (D, n/2) from A (D, n/2) and dt (D, 1)."""
    if rule == "zoh":
        return dt * a, ops.expm1(dt * a) / a
    half = dt * a / 2.0
    return ops.log((1.0 + half) / (1.0 - half)), dt / (1.0 - half)


def kernel(log_abar: Tensor, cb: Tensor, positions: Array) -> Tensor:
    """Re sum_m cb_m Abar_m^l at all positions l: (D, N) from log Abar and cb = C Bbar (D, n/2)."""
    powers = ops.exp(log_abar[:, :, None] * positions)
    return ops.real((cb[:, None, :] @ powers)[:, 0])


def recurrent(
    log_abar: Tensor, bbar: Tensor, c: Tensor, u: Tensor, state: Any = None
) -> tuple[Tensor, Tensor]:
    """Re(C x_t) (B, N, D) and the last x (B, D, n/2), token by token: x_t = Abar x_{t-1} + Bbar u_t."""
    abar, rows = ops.exp(log_abar), []
    x: Any = 0.0 if state is None else state
    for t in range(u.shape[1]):
        x = abar * x + bbar * u[:, t, :, None]
        rows.append(ops.real((c * x).sum(axis=-1)))
    return ops.stack(rows, axis=1), x


def convolved(u: Tensor, k: Tensor) -> Tensor:
    """sum_{l <= t} K_l u_{t-l} (B, N, D) from u (B, N, D) and K (D, N), by transforms of length 2 N."""
    n = u.shape[1]
    pad = ((0, 0), (0, n), (0, 0))
    product = ops.rfft(ops.pad(u, pad), axis=1) * ops.rfft(ops.pad(k.mT[None], pad), axis=1)
    return ops.irfft(product, 2 * n, axis=1)[:, :n]


class S4D(Module):
    """u (B, N, D) -> (B, N, D).

    Parameters: log_dt, d (D); log_a_real, a_imag, c_real, c_imag (D, n/2), the imaginary ones not if start is
    "real"; wo (D, 2 D) with bias.

    Args:
        dim: D. states: n, even. start: how A begins, "lin", "inv", "quad", "legs" or "real".
        rule: how time becomes discrete, "zoh" or "bilinear".

    Raises:
        ValueError: an odd number of states; unknown start or rule.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        states: int = 64,
        start: str = "lin",
        rule: str = "zoh",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim)
        if states < 2 or states % 2:
            raise ValueError(f"states={states} must be even and at least 2")
        if start not in ("lin", "inv", "quad", "legs", "real"):
            raise ValueError(f"start={start!r} must be one of: lin, inv, quad, legs, real")
        if rule not in ("zoh", "bilinear"):
            raise ValueError(f"rule={rule!r} must be one of: zoh, bilinear")
        rng = init.generator(seed)
        pairs, real, self.rule = states // 2, start == "real", rule
        self.log_dt = Parameter(rng.uniform(math.log(1e-3), math.log(1e-1), dim).astype(dtype))
        decay = np.arange(1.0, pairs + 1) if real else np.full(pairs, 0.5)
        self.log_a_real = Parameter(np.tile(np.log(decay), (dim, 1)).astype(dtype))
        self.a_imag = None if real else Parameter(np.tile(frequencies(start, states), (dim, 1)).astype(dtype))
        # C complex normal with variance 1
        scale = 1.0 if real else math.sqrt(0.5)
        self.c_real = Parameter(init.normal(rng, (dim, pairs), scale, dtype))
        self.c_imag = None if real else Parameter(init.normal(rng, (dim, pairs), scale, dtype))
        self.d = Parameter(init.normal(rng, (dim,), 1.0, dtype))
        self.wo = Linear(dim, 2 * dim, True, rng, dtype=dtype)

    def forward(self, u: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        """Mix u (B, N, D). mask: boolean (B, 1, 1, N), True = visible; hidden tokens count as zeros."""
        if u.ndim != 3:
            raise ShapeError(f"s4d: u must be (B, N, D), not {u.shape}")
        visible = visible_keys(mask, u.shape[0], u.shape[1])
        if visible is not None:
            u = ops.where(visible[:, 0], u, 0.0)
        return self._read(convolved(u, self.kernel(u.shape[1])), u)

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """log Abar, Bbar and C, which has the factor 2 in it: (D, n/2), complex."""
        zeros = ops.zeros_like(self.log_a_real)
        a = ops.complex(-ops.exp(self.log_a_real), zeros if self.a_imag is None else self.a_imag)
        log_abar, bbar = discretised(a, ops.exp(self.log_dt)[:, None], self.rule)
        if self.c_imag is None:
            return log_abar, bbar, ops.complex(self.c_real, zeros)
        return log_abar, bbar, 2.0 * ops.complex(self.c_real, self.c_imag)

    def kernel(self, n: int) -> Tensor:
        """K (D, n), for pictures and for `forward`."""
        log_abar, bbar, c = self.system()
        return kernel(log_abar, bbar * c, np.arange(n, dtype=self.d.dtype))

    def start(self, batch: int) -> Tensor:
        """x before the first token: complex zeros (B, D, n/2)."""
        zeros = ops.zeros((batch, *self.c_real.shape), like=self.d)
        return ops.complex(zeros, zeros)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token u (B, D) after those in `state`: (B, D) and the new state. No gradients pass."""
        y, state = self.prefill(u.reshape((u.shape[0], 1, u.shape[1])), state)
        return y[:, 0], state

    def prefill(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Several tokens u (B, k, D) at once after those in `state`: (B, k, D) and the new state."""
        with no_grad():
            log_abar, bbar, c = self.system()
            x = ops.diagonal_scan(ops.exp(log_abar)[None, None], bbar * u[..., None], state)
            return self._read(ops.real((c * x).sum(axis=-1)), u), x[:, -1]

    def _read(self, v: Tensor, u: Tensor) -> Tensor:
        a, b = ops.split(self.wo(ops.gelu(v + self.d * u)), 2, axis=-1)
        return a * ops.sigmoid(b)


def imaginary(part: Tensor | None) -> Array:
    return np.zeros((1, 1)) if part is None else part.data


KINDS = [("lin", "zoh"), ("inv", "zoh"), ("quad", "bilinear"), ("legs", "bilinear"), ("real", "zoh")]


def build(case: Case, **options: Any) -> S4D:
    return S4D(case.dim, **{"states": 8, "seed": case.seed, "dtype": "float64", **options})


@identity("the layer is its recurrence, for every start and both rules")
def convolution_is_recurrence(case: Case) -> tuple[Tensor, Tensor]:
    u, left, right = case.tokens(), [], []
    for start, rule in KINDS:
        layer = build(case, start=start, rule=rule)
        v = recurrent(*layer.system(), u)[0] + layer.d * u
        a, b = ops.split(layer.wo(ops.gelu(v)), 2, axis=-1)
        left.append(layer(u))
        right.append(a * ops.sigmoid(b))
    return ops.stack(left), ops.stack(right)


@identity("A starts as listed; legs has the eigenvalues of HiPPO-LegS with its rank-one part taken out")
def starts(case: Case) -> tuple[Any, Any]:
    m, n, left, right = np.arange(case.d), 2 * case.d, [], []
    root = np.sqrt(2.0 * np.arange(n) + 1.0)
    # HiPPO: -sqrt(2 i + 1) sqrt(2 j + 1) below the diagonal, -(i + 1) on it; plus p p^T, p_i = sqrt(i + 1/2)
    hippo = -np.tril(np.outer(root, root), -1) - np.diag(np.arange(n) + 1.0) + np.outer(root, root) / 2.0
    legs = np.linalg.eigvals(hippo)
    expected = {
        "lin": 1j * math.pi * m,
        "inv": 1j * n / math.pi * (n / (2.0 * m + 1.0) - 1.0),
        "quad": 1j * (2.0 * m + 1.0) ** 2 / math.pi,
        "legs": legs[np.argsort(legs.imag)][case.d :] + 0.5,
        "real": 0.5 - (1.0 + m),
    }
    for start, value in expected.items():
        layer = build(case, states=n, start=start)
        left.append(1j * imaginary(layer.a_imag)[0] - np.exp(layer.log_a_real.data[0]))
        right.append(value - 0.5)
    return np.stack([np.stack(left).real, np.stack(left).imag]), np.stack(
        [np.stack(right).real, np.stack(right).imag]
    )


@identity("both rules equal those of dense real matrices of twice the size, by a linear solve and a series")
def dense_systems(case: Case) -> tuple[Any, Any]:
    left, right = [], []
    for rule in ("zoh", "bilinear"):
        layer = build(case, states=4, rule=rule)
        left.append(layer.kernel(case.t).data[0])
        a = 1j * imaginary(layer.a_imag)[0] - np.exp(layer.log_a_real.data[0])
        dt = float(np.exp(layer.log_dt.data[0]))
        # Re and Im of x as four real numbers, driven by u through Re.
        zero = np.zeros((2, 2))
        matrix = dt * (np.block([[np.diag(a.real), zero], [zero, np.diag(a.real)]])
                       + np.block([[zero, np.diag(-a.imag)], [np.diag(a.imag), zero]]))  # fmt: skip
        drive, eye = dt * np.array([1.0, 1.0, 0.0, 0.0]), np.eye(4)
        if rule == "bilinear":
            step = np.linalg.solve(eye - matrix / 2, eye + matrix / 2)
            write = np.linalg.solve(eye - matrix / 2, drive)
        else:
            # exp(M) = sum M^k / k!, and (exp(M) - 1) / M likewise
            terms = [eye]
            for k in range(1, 40):
                terms.append(terms[-1] @ matrix / k)
            step = np.sum(terms, axis=0)
            write = np.sum([term / (k + 1) for k, term in enumerate(terms)], axis=0) @ drive
        read = 2.0 * np.concatenate([layer.c_real.data[0], -imaginary(layer.c_imag)[0]])
        right.append([read @ np.linalg.matrix_power(step, l) @ write for l in range(case.t)])
    return np.array(left), np.array(right)


# The kernel differs from its limit by a relative dt |A| / 2, below 2e-6 here.
@identity("for a small dt, K_l / dt tends to the continuous kernel 2 Re sum C exp(l dt A)", tolerance=1e-5)
def continuous(case: Case) -> tuple[Tensor, Tensor]:
    rng, dt, times = case.rng(), 1e-7, np.arange(1.0, 6.0)
    a = Tensor(-rng.uniform(0.1, 1.0, (3, 4)) + 1j * rng.uniform(0.0, 9.0, (3, 4)))
    c = Tensor(rng.standard_normal((3, 4)) + 1j * rng.standard_normal((3, 4)))
    found = []
    for rule in ("zoh", "bilinear"):
        log_abar, bbar = discretised(a, Tensor(np.full((3, 1), dt)), rule)
        found.append(kernel(log_abar, 2.0 * c * bbar, times / dt) / dt)
    expected = ops.real((2.0 * c[:, :, None] * ops.exp(a[:, :, None] * times)).sum(axis=1))
    return ops.stack(found), ops.stack([expected, expected])


@identity("all A = -a: an exponential moving average, K_l = K_0 exp(-a dt l)")
def moving_average(case: Case) -> tuple[Tensor, Tensor]:
    layer, u = build(case, start="real"), case.tokens()
    layer.log_a_real.data = np.full_like(layer.log_a_real.data, math.log(0.7))
    keep = ops.exp(-0.7 * ops.exp(layer.log_dt))
    # C (1 - e^{-a dt}) / a u: the average of past tokens, times the sum of all C over a
    total: Any = 0.0
    rows = []
    for t in range(case.t):
        total = keep * total + (1.0 - keep) * u[:, t]
        rows.append(total)
    return convolved(u, layer.kernel(case.t)), ops.stack(rows, axis=1) * layer.c_real.sum(axis=-1) / 0.7


@identity("half the step and every token twice: the same response, exactly under zero-order hold")
def sampling_rate(case: Case) -> tuple[Tensor, Tensor]:
    layer, u = build(case), case.tokens()
    slow = convolved(u, layer.kernel(case.t))
    layer.log_dt.data = layer.log_dt.data - math.log(2.0)
    fast = convolved(ops.repeat(u, 2, axis=1), layer.kernel(2 * case.t))
    return fast[:, 1::2], slow


@identity("two parts with the state passed on, then tokens one by one, equal one pass")
def streaming(case: Case) -> tuple[Tensor, Tensor]:
    layer, u, cut = build(case, start="legs"), case.tokens(), (case.t + 1) // 2
    first, state = layer.prefill(u[:, :cut], layer.start(case.b))
    rows = [first]
    for t in range(cut, case.t):
        y, state = layer.step(u[:, t], state)
        rows.append(y[:, None])
    return ops.concat(rows, axis=1), layer(u)


@identity("hidden tokens in front of the others leave no trace")
def hidden_in_front(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    longer = ops.concat([Tensor(case.rng().uniform(1.0, 2.0, (case.b, 3, case.dim))), x], axis=1)
    visible = np.arange(case.t + 3) >= 3
    return layer(longer, mask=visible[None, None, None])[:, 3:], layer(x)

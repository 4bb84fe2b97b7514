"""A forecaster: pieces of the past are tokens, and all of them together tell the future.

    z   = (x - m) / s                          m, s: mean and standard deviation of x over its T steps
    u_n = z[n p : (n+1) p] W_p + b_p           one token for each patch of p steps, n = 0 .. T/p - 1
    h   = Backbone(u)
    f   = flat(h) W + b                        the next S steps, in standardised units
    y   = m + s f
    loss = mean of (f - (future - m) / s)^2

    x  (B, T, V)   V variates, each on its own, by the same weights;  future, y  (B, S, V)
    m, s  (B, 1, V);  u, h  (B V, T/p, D);  W_p (p, D);  W (T/p D, S)

All tokens lie in the past of what is forecast, so they may see each other; a mixer that sees only the past
works too. A constant window has s = 1.
Source: PatchTST, A Time Series is Worth 64 Words, Nie et al., arXiv:2211.14730, 2022, with exchangeable
parts; the standardisation is that of RevIN (Kim et al., ICLR 2022) without learned scale.
Differs from the paper: patches do not overlap; the norm is the config's, not batch norm.
Numerics: adding a constant or scaling the series changes f only by rounding. In float32 a series far from
zero (1e6 times its deviation) loses its shape: subtract something first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, ShapeError, Tensor
from minitf.nn import Linear, init

from .backbone import Backbone, Host, tensor_like
from .config import ForecastConfig


class Forecaster(Backbone):
    """series (B, T, V) -> forecast (B, S, V), in the units of the series.

    Parameters: patches.weight (p, D), patches.bias; those of the backbone; head.weight (T/p D, S), head.bias.

    Args:
        config: sizes and names of the parts.
        seed: for all initial values. dtype: of the parameters.

    Raises:
        ValueError: parts that do not fit each other.
    """

    # The loss is a squared error, not a number of nats.
    nats = False

    def __init__(self, config: ForecastConfig, seed: init.Seed = 0, dtype: Any = "float32"):
        rng = init.generator(seed)
        tokens = config.context // config.patch
        self.patches = Linear(config.patch, config.dim, seed=rng, dtype=dtype)
        host = Host("a forecaster", (tokens,), causal="either", varies=False)
        super().__init__(config, host, rng, dtype)
        self.head = Linear(tokens * config.dim, config.horizon, seed=rng, dtype=dtype)

    @staticmethod
    def first_weight(config: ForecastConfig) -> tuple[str, tuple[int, ...]]:
        """Name and shape of the first parameter, by which files are checked."""
        return "patches.weight", (config.patch, config.dim)

    def forward(self, series: Any, rng: np.random.Generator | None = None) -> Tensor:
        """Forecast.

        Args:
            series: real numbers (B, T, V), T the context.
            rng: for dropout in training mode.

        Raises:
            ShapeError: the series is not (B, T, V).
        """
        z, m, s = self.standardised(series)
        return m + s * self.future(z, rng)

    def loss(self, series: Any, future: Any, rng: np.random.Generator | None = None) -> Tensor:
        """The mean squared error in standardised units, a scalar. series: (B, T, V); future: (B, S, V)."""
        z, m, s = self.standardised(series)
        goal = tensor_like(future, self.head.weight)
        wanted = (series.shape[0], self.config.horizon, series.shape[2])
        if goal.shape != wanted:
            raise ShapeError(f"the future must be {wanted} for a series {series.shape}, not {goal.shape}")
        return self.with_auxiliary(lambda: ops.square(self.future(z, rng) - (goal - m) / s).mean())

    def standardised(self, series: Any) -> tuple[Tensor, Tensor, Tensor]:
        """z (B, T, V), m and s (B, 1, V)."""
        x = tensor_like(series, self.head.weight)
        if x.ndim != 3 or x.shape[1] != self.config.context:
            raise ShapeError(
                f"the series must be (B, {self.config.context}, V), not {x.shape}: the context is "
                f"{self.config.context}, and a single variate is the last axis of 1: series[..., None]"
            )
        m = x.mean(axis=1, keepdims=True)
        variance = ops.square(x - m).mean(axis=1, keepdims=True)
        # sqrt has no slope at 0.
        s = ops.sqrt(ops.where(variance == 0.0, 1.0, variance))
        return (x - m) / s, m, s

    def future(self, z: Tensor, rng: np.random.Generator | None) -> Tensor:
        """f (B, S, V) from z (B, T, V)."""
        batch, steps, variates = z.shape
        p = self.config.patch
        # Each variate is a sequence of its own: (B V, T/p, p)
        pieces = z.mT.reshape((batch * variates, steps // p, p))
        h = self.through(self.placed(self.patches(pieces)), rng)
        return self.head(h.reshape((batch * variates, -1))).reshape((batch, variates, -1)).mT


def seasonal_naive(series: Array, horizon: int, period: int) -> Array:
    """What every forecast must beat: the future repeats the last period, (B, T, V) -> (B, horizon, V).

    Raises:
        ValueError: the series is shorter than a period.
    """
    steps = series.shape[1]
    if not 1 <= period <= steps:
        raise ValueError(f"a series of {steps} steps has no period of {period}: give one in 1..{steps}")
    return series[:, steps - period + np.arange(horizon) % period]

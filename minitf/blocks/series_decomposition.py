"""Series decomposition: every sub-layer splits off a moving average, and passes on what is left (Autoformer).

    T(x)_t = mean of x~ over t - (kappa - 1) / 2 .. t + (kappa - 1) / 2    trend
    S(x)   = x - T(x)                                                      season
    x~     = x with its first and last value repeated at the ends

    encoder layer:   x <- S(x + AC(x))
                     x <- S(x + FF(x))
    decoder layer:   x, t1 <- S, T of x + AC(x)
                     x, t2 <- S, T of x + AC(x, c)
                     x, t3 <- S, T of x + FF(x)
                     trend <- trend + conv(t1 + t2 + t3)
    start:           seasonal = last L of S(c0), then horizon zeros
                     trend    = last L of T(c0), then horizon times the mean of c0 over time
    prediction:      last horizon steps of  trend + SLN(x) W + b,    SLN(x) = LN(x) - mean over time of LN(x)

    x  (B, N, D)    tokens, one for each time step    c  (B, M, D)     the encoder's output
    trend  (B, N, C)                                  c0 (B, N0, C)    the series itself, not embedded
    prediction  (B, horizon, C)

AC is auto-correlation, with context c in the second place; FF is gelu(x W1) W2 without biases; conv runs
around the circle with 3 taps, D -> C, no bias. kappa is odd, 25 unless given.

The block of the catalogue is the encoder layer. A constant in time is all trend: biases behind the values of
AC change nothing, and one token alone gives zeros.

Cost: 24 N D^2 for the maps, that of AC, and 2 N D kappa for the averages.
Source: Autoformer: Decomposition Transformers with Auto-Correlation for Long-Term Series Forecasting, Wu et
al., arXiv:2106.13008, 2021, equations 1 to 4.
Differs from the paper: dropout is 0 unless asked for and acts on what a branch adds.
Numerics: windows are averaged one by one; a running sum would lose digits on long series.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor
from minitf.ffn.gelu_ffn import GELUFFN
from minitf.mixers.auto_correlation import AutoCorrelation
from minitf.nn import Card, Case, Dropout, LayerNorm, Linear, Module, Paper, Parameter, identity, init

CARD = Card(
    name="series_decomposition",
    title="Series decomposition block (Autoformer)",
    kind="block",
    family="residual",
    papers=(
        Paper(
            "Autoformer: Decomposition Transformers with Auto-Correlation for Long-Term Series Forecasting",
            "2106.13008",
            2021,
        ),
    ),
    causal=False,
    streams=False,
    grid="1d",
    complexity="24 N D^2 + 8 N log N D + 2 N D kappa",
    properties=("batch_independent",),
    basis="published code: thuml/Autoformer layers/Autoformer_EncDec.py, models/Autoformer.py",
    parity=(
        "transformers 5.23.0 AutoformerSeriesDecompositionLayer",
        "thuml/Autoformer 51c7d41 EncoderLayer, DecoderLayer",
    ),
)


def checked(kernel: int) -> int:
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel={kernel} must be odd and at least 1")
    return kernel


def decompose(x: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """(S(x), T(x)), both (B, N, D).

    Raises:
        ValueError: a kernel that is not odd: it would change the length.
    """
    side = checked(kernel) // 2
    trend = ops.avg_pool(ops.pad(x, ((0, 0), (side, side), (0, 0)), mode="edge"), kernel, stride=1)
    return x - trend, trend


def first_guess(series: Tensor, label: int, horizon: int, kernel: int) -> tuple[Tensor, Tensor]:
    """What the decoder starts from: seasonal and trend (B, label + horizon, C) of the series (B, N0, C).

    Raises:
        ValueError: a label longer than the series, or a horizon below 1.
    """
    if not 0 <= label <= series.shape[1] or horizon < 1:
        raise ValueError(f"label={label} must be from 0 to {series.shape[1]}, horizon={horizon} at least 1")
    seasonal, trend = (part[:, series.shape[1] - label :] for part in decompose(series, kernel))
    mean = series.mean(axis=1, keepdims=True)
    seasonal = ops.pad(seasonal, ((0, 0), (0, horizon), (0, 0)))
    return seasonal, ops.concat([trend, ops.repeat(mean, horizon, axis=1)], axis=1)


class SeasonalNorm(Module):
    """SLN: (B, N, D) -> (B, N, D), with mean 0 over time. Parameters: norm.weight, norm.bias (D,)."""

    def __init__(self, dim: int, dtype: Any = "float32"):
        self.norm = LayerNorm(dim, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return y - y.mean(axis=1, keepdims=True)


class SeriesDecomposition(Module):
    """The encoder layer, x (B, N, D) -> (B, N, D). Parameters: mixer, ffn.

    Args:
        mixer, ffn: the branches; auto-correlation with `heads` and a GELU network without biases unless
            given.
        kernel: kappa, odd. dropout: rate on the branches in training mode.

    Raises:
        ValueError: a kernel that is not odd.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        kernel: int = 25,
        mixer: Module | None = None,
        ffn: Module | None = None,
        dropout: float = 0.0,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        rng = init.generator(seed)
        self.kernel = checked(kernel)
        self.mixer: Any = AutoCorrelation(dim, heads=heads, seed=rng, dtype=dtype) if mixer is None else mixer
        self.ffn: Any = GELUFFN(dim, bias=False, seed=rng, dtype=dtype) if ffn is None else ffn
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, *, rng: np.random.Generator | None = None) -> Tensor:
        x, _ = decompose(x + self.dropout(self.mixer(x, rng=rng), rng), self.kernel)
        return decompose(x + self.dropout(self.ffn(x), rng), self.kernel)[0]


class SeriesDecoder(Module):
    """The decoder layer. Parameters: mixer, cross, ffn, and trend (3, D, C), the taps of conv.

    Args:
        dim: D. channels: C. Others as in `SeriesDecomposition`; mixer and cross are auto-correlations.
    """

    def __init__(
        self,
        dim: int,
        channels: int,
        *,
        heads: int = 4,
        kernel: int = 25,
        dropout: float = 0.0,
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        rng = init.generator(seed)
        self.kernel = checked(kernel)
        self.mixer, self.cross = (AutoCorrelation(dim, heads=heads, seed=rng, dtype=dtype) for _ in range(2))
        self.ffn = GELUFFN(dim, bias=False, seed=rng, dtype=dtype)
        self.trend = Parameter(init.fan_in_uniform(rng, (3, dim, channels), dtype))
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, context: Tensor, trend: Tensor, *, rng: np.random.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, N, D), context (B, M, D), trend (B, N, C) -> the new x and the new trend."""
        x, t1 = decompose(x + self.dropout(self.mixer(x), rng), self.kernel)
        x, t2 = decompose(x + self.dropout(self.cross(x, context=context), rng), self.kernel)
        x, t3 = decompose(x + self.dropout(self.ffn(x), rng), self.kernel)
        around = ops.pad(t1 + t2 + t3, ((0, 0), (1, 1), (0, 0)), mode="wrap")
        return x, trend + ops.conv1d(around, self.trend)


class SeriesHead(Module):
    """The prediction, from the last decoder layer. Parameters: norm (SLN), linear (D, C) with bias."""

    def __init__(self, dim: int, channels: int, *, seed: init.Seed = 0, dtype: Any = "float32"):
        self.norm = SeasonalNorm(dim, dtype)
        self.linear = Linear(dim, channels, True, seed, dtype=dtype)

    def forward(self, x: Tensor, trend: Tensor, horizon: int) -> Tensor:
        """x (B, N, D), trend (B, N, C) -> (B, horizon, C)."""
        return (trend + self.linear(self.norm(x)))[:, x.shape[1] - horizon :]


def build(case: Case, **options: Any) -> SeriesDecomposition:
    layer = SeriesDecomposition(case.dim, heads=case.h, seed=case.seed, dtype="float64", **options)
    return layer.eval()


KERNELS = (1, 3, 5, 25)


@identity("each value of the trend is the mean of its window, by loops; S + T = x")
def by_loops(case: Case) -> tuple[Tensor, Tensor]:
    x, left, right = case.tokens(), [], []
    for kernel in KERNELS:
        expected = np.zeros(x.shape)
        for t in range(case.t):
            window = [min(max(s, 0), case.t - 1) for s in range(t - kernel // 2, t + kernel // 2 + 1)]
            expected[:, t] = sum(x.data[:, s] for s in window) / kernel
        seasonal, trend = decompose(x, kernel)
        left += [trend, seasonal + trend]
        right += [Tensor(expected), x]
    return ops.stack(left), ops.stack(right)


@identity("a constant has no season; with kappa = 1 nothing has")
def constant(case: Case) -> tuple[Tensor, Tensor]:
    x = case.tokens()
    still = x[:, :1] + 0.0 * x
    left = [*decompose(still, 5), *decompose(still, 25), *decompose(x, 1)]
    return ops.stack(left), ops.stack([0.0 * x, still, 0.0 * x, still, 0.0 * x, x])


@identity(
    "away from both ends a straight line is all trend, and a season whose period divides kappa all season"
)
def inside(case: Case) -> tuple[Tensor, Tensor]:
    rng, n, kernel = case.rng(), case.t + 14, 15
    line = Tensor(rng.standard_normal((case.b, 1, case.dim)) * np.arange(n)[:, None] + 2.0)
    period = rng.standard_normal((case.b, 5, case.dim))
    season = Tensor(
        np.resize((period - period.mean(axis=1, keepdims=True)).swapaxes(0, 1), (n, case.b, case.dim))
    )
    season = season.permute_dims((1, 0, 2))
    left = [decompose(line, kernel)[0][:, 7:-7], decompose(season, kernel)[1][:, 7:-7]]
    return ops.stack(left), ops.stack([0.0 * left[0]] * 2)


@identity("decomposing is linear")
def linear(case: Case) -> tuple[Tensor, Tensor]:
    x, y = case.tokens(), Tensor(case.rng().standard_normal((case.b, case.t, case.dim)) ** 2)
    left, right = decompose(3.0 * x - 2.0 * y, 5), zip(decompose(x, 5), decompose(y, 5))
    return ops.stack(left), ops.stack([3.0 * a - 2.0 * b for a, b in right])


@identity("the block is two decompositions, by hand; both branches silent: x decomposed twice")
def by_hand(case: Case) -> tuple[Tensor, Tensor]:
    layer, silent, x = build(case, kernel=3), build(case, kernel=3), case.tokens()
    for w in (silent.mixer.wo, silent.ffn.w2):
        w.weight.data = np.zeros_like(w.weight.data)
    h = decompose(x + layer.mixer(x), 3)[0]
    expected = decompose(h + ops.gelu(h @ layer.ffn.w1.weight) @ layer.ffn.w2.weight, 3)[0]
    return ops.stack([layer(x), silent(x)]), ops.stack([expected, decompose(decompose(x, 3)[0], 3)[0]])


@identity("adding a constant over time to the values' and the output's bias changes nothing")
def biases_are_trend(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, rng = build(case), case.tokens(), case.rng()
    y = layer(x)
    for w in (layer.mixer.wv, layer.mixer.wo):
        w.bias.data = rng.standard_normal(w.bias.shape)
    return layer(x), y


@identity("the seasonal norm has mean 0 over time, and differs from the layer norm by a constant over time")
def seasonal_norm(case: Case) -> tuple[Tensor, Tensor]:
    norm, x = SeasonalNorm(case.dim, dtype="float64"), case.tokens()
    y = norm(x)
    gap = ops.layer_norm(x) - y
    return ops.stack([y.mean(axis=1), (gap - gap[:, :1]).mean(axis=1)]), ops.zeros((2, case.b, case.dim))


@identity("silent trend taps and a silent head predict the mean of the series, plus the head's bias")
def mean_forecast(case: Case) -> tuple[Tensor, Tensor]:
    rng, horizon = case.rng(), 3
    series = Tensor(rng.standard_normal((case.b, case.t, 2)))
    decoder = SeriesDecoder(case.dim, 2, heads=case.h, seed=case.seed, dtype="float64").eval()
    head = SeriesHead(case.dim, 2, seed=case.seed, dtype="float64")
    decoder.trend.data = np.zeros_like(decoder.trend.data)
    bias = rng.standard_normal(2)
    head.linear.load_state_dict({"weight": np.zeros((case.dim, 2)), "bias": bias})
    seasonal, trend = first_guess(series, case.t // 2, horizon, 5)
    embed = Tensor(rng.standard_normal((2, case.dim)))
    x, trend = decoder(seasonal @ embed, case.tokens(), trend)
    mean = series.mean(axis=1, keepdims=True)
    return head(x, trend, horizon), ops.repeat(mean, horizon, axis=1) + bias


@identity("the decoder starts from the last parts of the past; then from zeros, and from the mean")
def start(case: Case) -> tuple[Tensor, Any]:
    series = case.tokens()
    label, mean = (case.t + 1) // 2, series.data.mean(axis=1, keepdims=True)
    s, t = (part.data[:, case.t - label :] for part in decompose(series, 5))
    expected = [np.concatenate([s, 0.0 * mean, 0.0 * mean], axis=1), np.concatenate([t, mean, mean], axis=1)]
    return ops.stack(first_guess(series, label, 2, 5)), np.stack(expected)


@identity("the decoder layer is its equations by hand; the taps act before, now and after, around the circle")
def decoder_by_hand(case: Case) -> tuple[Tensor, Tensor]:
    decoder = SeriesDecoder(
        case.dim, case.dim, heads=case.h, seed=case.seed, kernel=3, dtype="float64"
    ).eval()
    x, context = case.tokens(), Tensor(case.rng().standard_normal((case.b, case.t + 2, case.dim)))
    a = x + decoder.mixer(x)
    s1, t1 = decompose(a, 3)
    b = s1 + decoder.cross(s1, context=context)
    s2, t2 = decompose(b, 3)
    s3, t3 = decompose(s2 + decoder.ffn(s2), 3)
    taken, taps = t1 + t2 + t3, decoder.trend
    around = [ops.roll(taken, 1, 1) @ taps[0], taken @ taps[1], ops.roll(taken, -1, 1) @ taps[2]]
    return ops.stack(decoder(x, context, x)), ops.stack([s3, x + around[0] + around[1] + around[2]])

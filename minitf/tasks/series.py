"""Forecasting: windows of a time series, and what is forecast without learning.

    past    (windows, T, 1)    T steps that are known
    future  (windows, S, 1)    the S steps after them

The series is cut in the order of time: the first 70 % to learn from, the next 10 % to validate, the last 20 %
to test. Every window lies inside one part, so nothing that is tested was ever seen. Gaps are filled linearly.

Errors are measured after each window is standardised by the mean and deviation of its past; then neither the
level nor the scale of the series matters.
Source: a standard setting, as in PatchTST, Nie et al., arXiv:2211.14730, 2022; the baselines are those of
Hyndman and Athanasopoulos, Forecasting: Principles and Practice, 2021.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.tasks.corpus import load_series

Values = np.ndarray[Any, Any]
Windows = tuple[Values, Values]
# Where the parts end, as shares of the series.
CUTS = (0.7, 0.8, 1.0)


def fill_gaps(values: Values) -> Values:
    """The series (N,) with every NaN replaced by a value on the line between its neighbours."""
    at, known = np.arange(len(values)), ~np.isnan(values)
    return np.interp(at, at[known], values[known])


def windows(values: Values, context: int, horizon: int) -> Windows:
    """All windows of a series (N,), one a step: past (W, T, 1) and future (W, S, 1).

    Raises:
        ValueError: the series is shorter than one window.
    """
    count = len(values) - context - horizon + 1
    if count < 1:
        raise ValueError(
            f"a part of the series has {len(values)} steps, and a window of context {context} and horizon "
            f"{horizon} needs {context + horizon}: choose a shorter context"
        )
    at = np.arange(count)[:, None] + np.arange(context + horizon)
    cut = values[at][..., None]
    return cut[:, :context], cut[:, context:]


def split_series(name: str, context: int, horizon: int) -> tuple[Windows, Windows, Windows]:
    """The windows of a bundled series to learn from, to validate and to test, float32.

    Raises:
        ValueError: no such series, or a part that is shorter than one window.
    """
    values = fill_gaps(load_series(name)[1]).astype(np.float32)
    ends = [round(share * len(values)) for share in CUTS]
    first, second, third = (
        windows(values[a:b], context, horizon) for a, b in zip([0, *ends], ends, strict=False)
    )
    return first, second, third


def standardised_error(past: Values, future: Values, forecast: Values) -> float:
    """The mean squared error, each window in units of the deviation of its past."""
    s = past.std(axis=1, keepdims=True)
    return float(np.mean(np.square((forecast - future) / np.where(s == 0.0, 1.0, s))))


def linear_forecast(learn: Windows, past: Values, ridge: float = 1e-3) -> Values:
    """What the best linear map from past to future forecasts, (W, S, 1). Hard to beat.

    One matrix (T + 1, S) from the standardised past and a 1, with the least mean squared error plus `ridge`
    times the sum of its squares.
    """

    def standardise(x: Values) -> tuple[Values, Values, Values]:
        x = x[..., 0].astype(np.float64)
        m, s = x.mean(axis=1, keepdims=True), x.std(axis=1, keepdims=True)
        s = np.where(s == 0.0, 1.0, s)
        return np.concatenate([(x - m) / s, np.ones_like(m)], axis=1), m, s

    z, m, s = standardise(learn[0])
    goal = (learn[1][..., 0] - m) / s
    matrix = np.linalg.solve(z.T @ z / len(z) + ridge * np.eye(z.shape[1]), z.T @ goal / len(z))
    z, m, s = standardise(past)
    return (m + s * (z @ matrix))[..., None]

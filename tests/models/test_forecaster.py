"""The forecaster: standardised windows, patches of time, independent variates, the seasonal baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import minitf as mt
from minitf.engine import ShapeError
from minitf.models import ForecastConfig, Forecaster, seasonal_naive
from minitf.train import AdamW
from tests.models.small import distance, same_weights

SIZES = dict(context=12, horizon=5, patch=3, dim=8, depth=2, heads=2)


def build(seed: int = 0, **options) -> Forecaster:
    model = Forecaster(ForecastConfig(**{**SIZES, **options}), seed=seed, dtype="float64")
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = p.data + 0.3 * rng.standard_normal(p.shape)
    return model


def series_of(seed: int = 0, batch: int = 3, variates: int = 2) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).standard_normal((batch, 17, variates))
    return x[:, :12], x[:, 12:]


def test_level_and_scale_do_not_matter() -> None:
    model, (past, future) = build(), series_of()
    y, loss = model(past).data, float(model.loss(past, future))
    assert y.shape == (3, 5, 2)
    for a, b in ((1.0, 100.0), (-7.0, 0.0), (0.01, -3.0)):
        # A change of sign is no change of scale: the network is not odd.
        moved = model(abs(a) * past + b).data
        assert distance(moved, abs(a) * y + b) <= 1e-9, f"{a} x + {b} is not forecast as {a} y + {b}"
        again = float(model.loss(abs(a) * past + b, abs(a) * future + b))
        assert abs(again - loss) <= 1e-9 * loss, "the error in standardised units depends on the units"


def test_loss_by_hand() -> None:
    model, (past, future) = build(), series_of()
    s = past.std(axis=1, keepdims=True)
    expected = np.mean(np.square((model(past).data - future) / s))
    assert abs(float(model.loss(past, future)) - expected) <= 1e-12 * expected


def test_variates_do_not_see_each_other() -> None:
    model, (past, _) = build(), series_of()
    whole = model(past).data
    for v in range(2):
        alone = model(past[..., v : v + 1]).data
        assert distance(alone[..., 0], whole[..., v]) <= 1e-12, f"variate {v} is forecast from others too"


@pytest.mark.parametrize("attention", ["softmax", "gla"])
def test_every_step_of_the_past_counts(attention: str) -> None:
    model, (past, _) = build(attention=attention), series_of(variates=1)
    before = model(past).data
    for t in range(12):
        changed = past.copy()
        changed[:, t] += 0.5
        assert np.abs(model(changed).data - before).max() > 1e-6, f"{attention}: step {t} changes nothing"


def test_a_constant_window_stays_finite() -> None:
    model = build()
    past = mt.tensor(np.full((1, 12, 1), 4.0), requires_grad=True)
    loss = model.loss(past, np.full((1, 5, 1), 4.0))
    loss.backward()
    assert np.isfinite(float(loss)) and past.grad is not None and np.all(np.isfinite(past.grad.data))


def test_gradients() -> None:
    model, (past, future) = build(depth=1, dim=4), series_of()
    worst = mt.check_grad(lambda x: model.loss(x, future), past, order=1)
    assert worst <= 1e-6, f"derivatives by the series differ from central differences by {worst:.2g}"


def test_save_and_load(tmp_path: Path) -> None:
    model = Forecaster(ForecastConfig(**SIZES, attention="gla"), seed=3)
    mt.save(model, tmp_path)
    again = mt.load(tmp_path)
    assert type(again) is Forecaster and again.config == model.config and same_weights(again, model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch": 5}, "patch=5 must divide context=12"),
        ({"horizon": 0}, "ForecastConfig: horizon must be a positive integer"),
        ({"attention": "swin_attention"}, "grid of 2 axes, and a forecaster has a sequence"),
    ],
)
def test_what_does_not_fit(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(**options)


def test_series_of_another_shape() -> None:
    model, (past, future) = build(), series_of()
    with pytest.raises(ShapeError, match=r"the series must be \(B, 12, V\), not \(3, 11, 2\)"):
        model(past[:, 1:])
    with pytest.raises(ShapeError, match=r"series\[..., None\]"):
        model(past[..., 0])
    with pytest.raises(ShapeError, match=r"the future must be \(3, 5, 2\)"):
        model.loss(past, future[:, 1:])


def test_seasonal_naive() -> None:
    wave = np.tile([1.0, 5.0, 2.0], 8)[None, :, None]
    assert np.array_equal(seasonal_naive(wave[:, :10], 9, 3), wave[:, 10:19]), (
        "a series that repeats itself is forecast exactly"
    )
    for period in (0, 11):
        with pytest.raises(ValueError, match=r"give one in 1\.\.10"):
            seasonal_naive(wave[:, :10], 4, period)


def test_a_wave_is_learned() -> None:
    rng = np.random.default_rng(0)
    model = Forecaster(ForecastConfig(context=24, horizon=6, patch=4, dim=16, depth=1, heads=2), seed=0)
    optimizer = AdamW(model.parameters(), lr=5e-3)

    def batch() -> tuple[np.ndarray, np.ndarray]:
        phase = rng.random((64, 1)) * 2 * np.pi
        x = np.sin(np.arange(30) * 2 * np.pi / 10 + phase)[..., None]
        return x[:, :24], x[:, 24:]

    for _ in range(150):
        optimizer.zero_grad()
        model.loss(*batch()).backward()
        optimizer.step()
    error = float(model.loss(*batch()))
    assert error <= 0.1, f"after 150 steps the squared error of a sine is {error:.3f}; its variance is 1"

"""Auto-correlation beyond the checks: periods of noisy series, modes, gradients, options."""

import numpy as np
import pytest

from minitf import Tensor
from minitf.engine import ShapeError, check_grad
from minitf.mixers.auto_correlation import MODES, AutoCorrelation, aggregated, correlation, delays


def test_finds_the_period_of_a_noisy_series() -> None:
    """Period 24, as much noise as signal, 40 samples: each of the 3 best delays is near a multiple of 24."""
    rng, t = np.random.default_rng(0), np.arange(240)
    phase = rng.uniform(0, 2 * np.pi, (40, 1, 1, 8))
    series = Tensor(np.sin(2 * np.pi * t[:, None] / 24 + phase) + rng.standard_normal((40, 1, 240, 8)))
    tau, _ = delays(correlation(series, series), 3, "inference")
    off = np.minimum(tau % 24, 24 - tau % 24)
    assert np.all(tau[:, 0, 0, 0] == 0), "a series matches itself best without a delay"
    assert np.mean(off <= 1) >= 0.95, f"delays {off.mean():.2f} away from a multiple of 24 on average"


@pytest.mark.parametrize("mode", MODES)
def test_gradients_flow_through_values_and_weights(mode: str) -> None:
    rng = np.random.default_rng(1)
    heads = [rng.standard_normal((2, 2, 7, 3)) for _ in range(3)]

    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return aggregated(v, *delays(correlation(q, k), 3, mode))

    check_grad(f, *heads)


def test_the_mode_follows_the_module() -> None:
    x = Tensor(np.random.default_rng(2).standard_normal((3, 20, 8)))
    layer, full = (AutoCorrelation(8, dtype="float64", mode=mode) for mode in (None, "full"))
    outputs = {}
    for mode in ("inference", "training"):
        named = AutoCorrelation(8, dtype="float64", mode=mode)
        outputs[mode] = named(x).data
        layer.train(mode == "training")
        assert np.array_equal(layer(x).data, outputs[mode]), f"not {mode} in that mode"
    assert not np.array_equal(outputs["inference"], outputs["training"]), "a batch and a sample choose alike"
    assert not np.array_equal(full(x).data, outputs["inference"]), "channels and samples choose alike"


@pytest.mark.parametrize(
    "n, factor, count", [(1, 1.0, 1), (2, 1.0, 1), (96, 1.0, 4), (96, 3.0, 13), (3, 9.0, 3)]
)
def test_number_of_delays(n: int, factor: float, count: int) -> None:
    assert AutoCorrelation(8, factor=factor).count(n) == count, "K is floor(factor ln N), from 1 to N"


@pytest.mark.parametrize("options", [{"heads": 3}, {"factor": 0.0}, {"mode": "both"}])
def test_options_out_of_range(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        AutoCorrelation(8, **options)


def test_grids_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(B, N, D\)"):
        AutoCorrelation(8)(Tensor(np.zeros((1, 2, 3, 8), dtype="float32")))

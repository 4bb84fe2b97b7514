"""Series decomposition beyond the checks: first guesses, taps around the circle, options."""

import numpy as np
import pytest

from minitf import Tensor, ops
from minitf.attention.softmax import SoftmaxAttention
from minitf.blocks.series_decomposition import (
    SeriesDecoder,
    SeriesDecomposition,
    decompose,
    first_guess,
)
from minitf.engine import check_grad


def test_the_decoder_starts_from_the_parts_of_the_past() -> None:
    series = Tensor(np.random.default_rng(0).standard_normal((2, 9, 3)))
    seasonal, trend = first_guess(series, 4, 5, 3)
    s, t = decompose(series, 3)
    assert np.array_equal(seasonal.data[:, :4], s.data[:, 5:]), "the label part is not that of the series"
    assert not np.any(seasonal.data[:, 4:]), "the season of the future starts at zero"
    assert np.array_equal(trend.data[:, :4], t.data[:, 5:]), "the label part is not that of the series"
    mean = series.data.mean(axis=1, keepdims=True)
    assert np.max(np.abs(trend.data[:, 4:] - mean)) <= 1e-12, "the trend of the future starts at the mean"
    assert first_guess(series, 0, 2, 3)[0].shape == (2, 2, 3), "no label is allowed"


def test_trend_taps_run_around_the_circle() -> None:
    """A step of the trend reaches its neighbours, and the first step the last."""
    decoder = SeriesDecoder(4, 4, heads=2, kernel=1, dtype="float64").eval()
    decoder.trend.data = np.stack([np.eye(4) * w for w in (1.0, 10.0, 100.0)])
    x, zero = Tensor(np.random.default_rng(1).standard_normal((1, 6, 4))), Tensor(np.zeros((1, 6, 4)))
    y, trend = decoder(x, x, zero)
    assert not np.any(y.data), "kappa = 1 leaves no season"
    t = (x + decoder.mixer(x) + decoder.cross(zero, context=x) + decoder.ffn(zero)).data
    expected = np.roll(t, 1, 1) + 10.0 * t + 100.0 * np.roll(t, -1, 1)
    assert np.max(np.abs(trend.data - expected)) <= 1e-9, "the taps are not before, now, after"


def test_gradients_of_the_decoder() -> None:
    rng = np.random.default_rng(2)
    decoder = SeriesDecoder(4, 2, heads=2, kernel=3, dtype="float64").eval()
    shapes = ((1, 5, 4), (1, 7, 4), (1, 5, 2))
    check_grad(lambda x, c, t: ops.concat(decoder(x, c, t), axis=-1), *map(rng.standard_normal, shapes))


def test_other_branches() -> None:
    mixer = SoftmaxAttention(8, heads=2, causal=False, dtype="float64")
    block = SeriesDecomposition(8, mixer=mixer, kernel=3, dtype="float64")
    x = Tensor(np.random.default_rng(3).standard_normal((2, 6, 8)))
    h = decompose(x + mixer(x), 3)[0]
    expected = decompose(h + block.ffn(h), 3)[0]
    assert np.array_equal(block(x).data, expected.data), "the given mixer is not the one that is used"


@pytest.mark.parametrize("kernel", [0, 2, -3])
def test_kernels_must_be_odd(kernel: int) -> None:
    for make in (
        lambda: SeriesDecomposition(8, kernel=kernel),
        lambda: SeriesDecoder(8, 2, kernel=kernel),
        lambda: decompose(Tensor(np.zeros((1, 3, 2))), kernel),
    ):
        with pytest.raises(ValueError, match="must be odd"):
            make()


def test_first_guesses_out_of_range() -> None:
    for label, horizon in ((4, 1), (-1, 1), (2, 0)):
        with pytest.raises(ValueError, match="label"):
            first_guess(Tensor(np.zeros((1, 3, 2))), label, horizon, 3)

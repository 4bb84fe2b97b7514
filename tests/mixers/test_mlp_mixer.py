"""MLP-Mixer: parameters, grids, an image model, refusals."""

from __future__ import annotations

import pytest

import minitf as mt
from minitf.mixers.mlp_mixer import MLPMixer


def test_parameters() -> None:
    n, d, s, f = 9, 16, 8, 64
    count = 2 * n * s + n + s + 2 * d * f + d + f + 4 * d
    assert MLPMixer(d, grid=(3, 3)).count_parameters() == count
    assert MLPMixer(2, grid=1, token_hidden=5, hidden=3).t1.weight.shape == (1, 5)


def test_in_an_image_model() -> None:
    config = mt.models.ImageConfig(
        size=(8, 8), patch=4, dim=8, depth=1, heads=2, attention="mlp_mixer", classes=3
    )
    assert mt.models.ImageModel(config)(mt.zeros((2, 8, 8))).shape == (2, 3)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(mt.ShapeError, match=r"\(B, 9, D\), the grid that it was built for"):
        MLPMixer(8, grid=(3, 3))(mt.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match="at least 1"):
        MLPMixer(8, grid=(3, 0))
    with pytest.raises(ValueError, match="at least 1"):
        MLPMixer(8, grid=3, token_hidden=0)

"""Patch embedding: sizes, positions of other grids, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.tokens.vit_patch_embed import ViTHead, ViTPatchEmbed, bilinear


def test_default_sizes_are_those_of_vit() -> None:
    layer = mt.build("vit_patch_embed", 192)
    p2c = 16 * 16 * 3
    assert layer.count_parameters() == (p2c + 1) * 192 + (196 + 2) * 192
    assert layer(mt.zeros((1, 224, 224, 3))).shape == (1, 197, 192)
    assert mt.build("vit_patch_embed", 8, class_token=False)(mt.zeros((2, 32, 64, 3))).shape == (2, 8, 8)


def test_resizing_keeps_constants_and_halves_exactly() -> None:
    for size, out in ((1, 5), (4, 7), (7, 4), (6, 3)):
        rows = bilinear(size, out).sum(axis=1)
        error = np.max(np.abs(rows - 1.0))
        assert error <= 1e-12, f"weights from {size} to {out} cells sum to 1 only within {error:.2g}"
    halves = bilinear(6, 3) @ np.arange(6.0)
    assert np.array_equal(halves, [0.5, 2.5, 4.5]), "half as many cells lie between pairs of cells"


def test_positions_learn_from_images_of_other_sizes() -> None:
    layer = ViTPatchEmbed(4, patch=2, grid=3, dtype="float64")
    layer(mt.ones((1, 10, 4, 3), dtype="float64")).sum().backward()
    grad = layer.pos.grad
    assert grad is not None and np.all(grad.data != 0.0), "every position has a share in a larger grid"


def test_errors_say_what_to_do() -> None:
    layer = ViTPatchEmbed(4, patch=4, grid=2)
    for shape in ((1, 8, 9, 3), (1, 8, 8, 1), (8, 8, 3)):
        with pytest.raises(mt.ShapeError, match=r"\(B, rows, columns, 3\).*crop, pad or resize"):
            layer(mt.zeros(shape))
    with pytest.raises(ValueError, match="at least 1"):
        ViTPatchEmbed(4, patch=0)
    with pytest.raises(ValueError, match="at least 1"):
        ViTPatchEmbed(4, grid=(3, 0))
    with pytest.raises(ValueError, match="'class' or 'mean'"):
        ViTHead(4, 2, pool="max")

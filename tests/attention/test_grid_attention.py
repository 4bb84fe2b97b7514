"""Attention on images, by window, by channel and by sampled places: masks of maps, start values, errors."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.attention.deformable_attention import DeformableAttention, bilinear, directions
from minitf.attention.mdta import MDTA
from minitf.attention.swin_attention import SwinAttention, visible
from minitf.engine import ShapeError, Tensor
from minitf.nn import Case


def test_shifted_windows_are_as_many_as_regular_ones() -> None:
    for shift in (0, 1, 3):
        assert visible(14, 21, 7, shift).shape == (6, 49, 49)
    assert visible(14, 14, 7, 0).all() and not visible(14, 14, 7, 3).all()


def test_a_small_grid_has_no_shift() -> None:
    layer = SwinAttention(8, heads=2, window=4, shift=2)
    assert layer.sizes(3, 9) == (3, 0) and layer.sizes(4, 9) == (4, 0) and layer.sizes(5, 9) == (4, 2)


def test_bilinear_between_cells_and_outside() -> None:
    v = Tensor(np.arange(6.0).reshape(1, 1, 6, 1))
    # The middle of cell (0, 0), half way to (0, 1), half way down, and half a cell beyond the left edge.
    places = np.array([[1 / 6, 1 / 4], [2 / 6, 1 / 4], [1 / 6, 1 / 2], [0.0, 3 / 4], [-1.0, 0.5]])
    found = bilinear(v, (2, 3), Tensor(places[None, None])).data[0, 0, :, 0]
    assert np.allclose(found, [0.0, 0.5, 1.5, 1.5, 0.0], atol=1e-12), found


def test_deformable_heads_start_in_all_directions() -> None:
    first = directions(8, 1, 2).reshape(8, 2, 2)
    assert np.allclose(first[0], [[1, 0], [2, 0]]) and np.allclose(first[1], [[1, 1], [2, 2]])
    assert np.allclose(np.abs(first).max(axis=-1), [[1, 2]] * 8)


def test_padded_cells_of_a_map_count_as_zeros() -> None:
    layer = DeformableAttention(8, heads=2, dtype="float64")
    query, references, *maps = DeformableAttention.example_inputs(Case(t=6, w=6))
    masks = [np.ones(m.shape[:3], bool) for m in maps]
    masks[0][:, 3:] = False
    changed = maps[0].data.copy()
    changed[:, 3:] = 9.0
    error = np.max(
        np.abs(
            layer(query, references, *maps, masks=masks).data
            - layer(query, references, Tensor(changed), *maps[1:], masks=masks).data
        )
    )
    assert error == 0.0, f"what padding holds must not matter, not {error:.2g}"


def test_errors() -> None:
    x = Tensor(np.ones((2, 3, 8), "float32"))
    for layer in (SwinAttention(8, heads=2), MDTA(8, heads=2)):
        with pytest.raises(ShapeError, match="rows, columns"):
            layer(x)
    with pytest.raises(ValueError, match="shift"):
        SwinAttention(8, window=4, shift=4)
    query, references, *maps = DeformableAttention.example_inputs(Case())
    layer = DeformableAttention(8, heads=2, dtype="float64")
    with pytest.raises(ShapeError, match="4 maps"):
        layer(query, references, *maps[:2])
    with pytest.raises(ShapeError, match="references"):
        layer(query, references[:, :, :2], *maps)
    for cls in (SwinAttention, MDTA, DeformableAttention):
        with pytest.raises(ValueError, match="must divide"):
            cls(9, heads=2)

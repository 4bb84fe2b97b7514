"""Axial attention beyond the checks: what depends on what, initial values, options."""

import numpy as np
import pytest

from minitf import Tensor, build
from minitf.attention.axial_attention import AxialAttention, AxialPositions
from minitf.engine import ShapeError


def reach(layer: AxialAttention, grid: tuple[int, ...]) -> np.ndarray:
    """Which cells a small change of each cell moves: (*grid, *grid)."""
    x = np.random.default_rng(0).standard_normal((1, *grid, 4))
    y = layer(Tensor(x)).data
    found = np.zeros((*grid, *grid), dtype=bool)
    for cell in np.ndindex(grid):
        other = x.copy()
        other[(0, *cell)] += 1.0
        found[cell] = np.any(layer(Tensor(other)).data != y, axis=-1)[0]
    return found


def test_two_axes_reach_every_cell_and_one_only_its_line() -> None:
    grid = (3, 4)
    both = AxialAttention(4, heads=2, combine="sequential", dtype="float64")
    assert np.all(reach(both, grid)), "after a column and a row layer some cell depends on not every cell"
    rows = reach(AxialAttention(4, heads=2, axes=1, dtype="float64"), grid)
    i, j = np.indices(grid)
    assert np.array_equal(rows, np.broadcast_to((i[:, :, None, None] == i), rows.shape)), (
        "row attention reaches something else than its row"
    )
    summed = reach(AxialAttention(4, heads=2, dtype="float64"), grid)
    cross = (i[:, :, None, None] == i) | (j[:, :, None, None] == j)
    assert np.array_equal(summed, cross), "the sum of axes reaches something else than a cross"


def test_causal_is_strict_along_the_axis() -> None:
    grid = (3, 4)
    found = reach(AxialAttention(4, heads=2, axes=0, causal=True, dtype="float64"), grid)
    i, j = np.indices(grid)
    assert np.array_equal(found, (i[:, :, None, None] <= i) & (j[:, :, None, None] == j)), (
        "causal columns must reach their own lower cells only"
    )


def test_positions_start_with_the_published_spread() -> None:
    layer = AxialPositions(64, (500, 400))
    for table in layer.tables:
        spread = float(table.weight.data.std())
        assert abs(spread - 5.0 / 8.0) <= 0.02, (
            f"standard deviation {spread}, published code has 5 / sqrt(64)"
        )
    assert [name for name, _ in layer.named_parameters()] == ["tables.0.weight", "tables.1.weight"]


def test_names_for_rows_and_columns() -> None:
    assert build("row_attention", dim=8).axes == (1,), "a row runs along axis 1"
    assert build("column_attention", dim=8).axes == (0,), "a column runs along axis 0"


@pytest.mark.parametrize(
    "options", [{"heads": 3}, {"axes": ()}, {"axes": (0, 0)}, {"axes": -1}, {"combine": "mean"}]
)
def test_options_out_of_range(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        AxialAttention(8, **options)


def test_grids_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="grid axis 1"):
        AxialAttention(8)(Tensor(np.zeros((1, 3, 8), dtype="float32")))
    with pytest.raises(ShapeError, match=r"up to \(2, 3\)"):
        AxialPositions(8, (2, 3))(Tensor(np.zeros((1, 3, 3, 8), dtype="float32")))

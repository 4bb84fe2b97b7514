"""Convolution, pooling, windows and sorting, against loops that a reader can check."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitf import ops
from minitf.engine import ShapeError, check_grad, tensor


def naive_conv(
    x: Any, w: Any, stride: int, pads: list[tuple[int, int]], dilation: int, groups: int
) -> np.ndarray:
    """One output element at a time."""
    axes = w.ndim - 2
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    kernel, c_group, c_out = w.shape[:axes], w.shape[-2], w.shape[-1]
    out = [(n - (k - 1) * dilation - 1) // stride + 1 for n, k in zip(x.shape[1:-1], kernel, strict=True)]
    y = np.zeros((x.shape[0], *out, c_out))
    for b, o in itertools.product(range(x.shape[0]), range(c_out)):
        first = o // (c_out // groups) * c_group
        for place in itertools.product(*map(range, out)):
            for tap in itertools.product(*map(range, kernel)):
                at = tuple(p * stride + t * dilation for p, t in zip(place, tap, strict=True))
                y[(b, *place, o)] += x[(b, *at)][first : first + c_group] @ w[(*tap, slice(None), o)]
    return y


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(("groups", "stride", "dilation"), [(1, 1, 1), (2, 2, 1), (4, 1, 2)])
@pytest.mark.parametrize("padding", [0, 1, "same", "causal"])
def test_convolution(axes: int, groups: int, stride: int, dilation: int, padding: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *(5, 6, 5)[:axes], 4))
    w = rng.standard_normal((*(3, 2, 2)[:axes], 4 // groups, 8))
    bias = rng.standard_normal(8)
    reach = [(k - 1) * dilation for k in w.shape[:axes]]
    pads = {"same": [(n // 2, n - n // 2) for n in reach], "causal": [(n, 0) for n in reach]}.get(padding)
    expected = naive_conv(x, w, stride, pads or [(padding, padding)] * axes, dilation, groups) + bias
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    conv = getattr(ops, f"conv{axes}d")
    y = conv(tensor(x), tensor(w), tensor(bias), **options)
    error = np.max(np.abs(y.numpy() - expected))
    assert y.shape == expected.shape and error <= 1e-12, f"conv{axes}d differs from the loop by {error:.1e}"
    check_grad(lambda *a: conv(*a, **options), x, w, bias)


def test_convolution_per_axis_and_refusals() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 6, 7, 2)), rng.standard_normal((2, 3, 2, 3))
    y = ops.conv2d(tensor(x), tensor(w), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    assert y.shape == (1, 4, 3, 3), "stride, padding and dilation may differ from axis to axis"
    with pytest.raises(ShapeError, match=r"conv2d: x \(1, 6, 7, 2\)"):
        ops.conv2d(tensor(x), tensor(w), groups=2)
    with pytest.raises(ShapeError, match="3 axes"):
        ops.conv1d(tensor(x), tensor(w))
    with pytest.raises(ValueError, match="'same' or 'causal'"):
        ops.conv2d(tensor(x), tensor(w), padding="valid")
    with pytest.raises(ShapeError, match="reach 3"):
        ops.conv1d(tensor(np.ones((1, 2, 1))), tensor(np.ones((3, 1, 1))))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(("name", "reduce"), [("max_pool", np.max), ("avg_pool", np.mean)])
@pytest.mark.parametrize(("size", "stride"), [(2, None), (3, 1), (2, 3)])
def test_pooling(axes: int, name: str, reduce: Any, size: int, stride: int | None) -> None:
    x = np.random.default_rng(0).standard_normal((2, *(6, 5, 4)[:axes], 3))
    step = stride or size
    y = getattr(ops, name)(tensor(x), size, stride).numpy()
    for place in itertools.product(*map(range, y.shape[1:-1])):
        window = x[(slice(None), *(slice(p * step, p * step + size) for p in place))]
        expected = reduce(window, axis=tuple(range(1, axes + 1)))
        error = np.max(np.abs(y[(slice(None), *place)] - expected))
        assert error <= 1e-15, f"{name} at {place} differs from the loop by {error:.1e}"
    check_grad(lambda a: getattr(ops, name)(a, size, stride), x)


@given(
    n=st.integers(1, 9),
    size=st.integers(1, 4),
    step=st.integers(1, 3),
    dilation=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_unfold_and_fold(n: int, size: int, step: int, dilation: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((2, n, 2))
    reach = (size - 1) * dilation + 1
    if reach > n:
        with pytest.raises(ShapeError, match=f"reach {reach}"):
            ops.unfold(tensor(x), size, 1, step, dilation)
        return
    windows = ops.unfold(tensor(x), size, 1, step, dilation)
    expected = [x[:, i : i + reach : dilation] for i in range(0, n - reach + 1, step)]
    assert np.array_equal(windows.numpy(), np.stack(expected, 1).swapaxes(-1, -2)), (
        "unfold differs from slices"
    )
    # fold is the transpose of unfold: <fold(w), x> = <w, unfold(x)>
    w = np.random.default_rng(seed + 1).standard_normal(windows.shape)
    left = float(np.sum(ops.fold(w, x.shape, 1, step, dilation) * x))
    assert abs(left - float(np.sum(w * windows.numpy()))) <= 1e-12, "fold is not the transpose of unfold"


@given(data=st.lists(st.integers(0, 3), min_size=1, max_size=8), k=st.integers(0, 8))
def test_lower_index_wins(data: list[int], k: int) -> None:
    x = np.array(data, dtype=float)
    ascending = sorted(range(len(x)), key=lambda i: (x[i], i))
    descending = sorted(range(len(x)), key=lambda i: (-x[i], i))
    assert ops.argsort(x).tolist() == ascending, "argsort: equal elements must keep their order"
    assert ops.argsort(x, descending=True).tolist() == descending, (
        "descending argsort: the lower index comes first"
    )
    assert np.array_equal(ops.sort(tensor(x), descending=True).numpy(), x[descending])
    assert np.array_equal(ops.sort(tensor(x)).numpy(), np.sort(x))
    assert int(ops.argmax(tensor(x))) == descending[0] and int(ops.argmin(tensor(x))) == ascending[0]
    if k > len(x):
        with pytest.raises(ValueError, match=f"k={k}"):
            ops.topk(tensor(x), k)
    else:
        values, index = ops.topk(tensor(x), k)
        assert index.numpy().tolist() == descending[:k], "topk: the lower index comes first among equals"
        assert np.array_equal(values.numpy(), x[descending[:k]])


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_pad_modes(mode: Any) -> None:
    x = np.arange(12.0).reshape(3, 4)
    width = [(2, 1), (0, 3)]
    assert np.array_equal(ops.pad(tensor(x), width, mode=mode).numpy(), np.pad(x, width, mode=mode))
    check_grad(lambda a: ops.pad(a, width, mode=mode), x)


def test_split_tile_and_triangles() -> None:
    x = np.arange(12.0).reshape(2, 6)
    for sections in (3, [1, 2, 3]):
        cuts = 3 if sections == 3 else [1, 3]
        parts = [p.numpy() for p in ops.split(tensor(x), sections, axis=1)]
        assert all(np.array_equal(a, b) for a, b in zip(parts, np.split(x, cuts, axis=1), strict=True))
    with pytest.raises(ShapeError, match="equal parts"):
        ops.split(tensor(x), 4, axis=1)
    with pytest.raises(ShapeError, match="add up to 3"):
        ops.split(tensor(x), [1, 2], axis=1)
    assert np.array_equal(ops.tile(tensor(x), (2, 3)).numpy(), np.tile(x, (2, 3)))
    with pytest.raises(ShapeError, match="1 counts for 2 axes"):
        ops.tile(tensor(x), (2,))
    assert np.array_equal(ops.repeat(tensor(x), 2, 1).numpy(), np.repeat(x, 2, axis=1))
    for k in (-1, 0, 2):
        assert np.array_equal(ops.tril(tensor(x), k).numpy(), np.tril(x, k))
        assert np.array_equal(ops.triu(tensor(x), k).numpy(), np.triu(x, k))
    assert np.array_equal(ops.one_hot(tensor([2, 0]), 3).numpy(), np.eye(3)[[2, 0]])
    with pytest.raises(ShapeError, match="axis 1 of shape"):
        ops.squeeze(tensor(x), 1)


def test_tensordot_values() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 4)), rng.standard_normal((4, 2, 5))
    for axes in (0, 1, ((2,), (0,)), ((0, 2), (1, 0))):
        got = ops.tensordot(tensor(a), tensor(b), axes=axes).data
        assert np.max(np.abs(got - np.tensordot(a, b, axes=axes))) <= 1e-12, f"tensordot over {axes} differs"


def test_argmax_keeps_the_axis_on_request() -> None:
    x = tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])
    assert np.array_equal(ops.argmax(x, axis=1, keepdims=True).data, [[1], [0]])
    assert np.array_equal(ops.argmin(x, axis=0).data, [0, 1, 1])

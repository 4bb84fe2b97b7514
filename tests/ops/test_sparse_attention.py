"""Listed blocks and windows: values from loops over single tokens, gradients, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minitf import ops
from minitf.engine import ShapeError, check_grad

RNG = np.random.default_rng(0)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: Any = 0.0, scale: float | None = None) -> Any:
    """Softmax attention of one query to the keys k; zeros for none."""
    s = k @ q * (len(q) ** -0.5 if scale is None else scale) + bias
    e = np.exp(s - s.max(initial=0.0))
    return e / e.sum() @ v if len(k) else np.zeros(v.shape[-1])


def by_blocks(q, k, v, block_mask, block_q, block_k, mask=True, causal=False, scale=None) -> np.ndarray:
    """The equation, one query at a time."""
    (b, h, nq, _), (hkv, nk) = q.shape, k.shape[1:3]
    block_mask = np.broadcast_to(block_mask, (b, h, *block_mask.shape[2:]))
    mask = np.broadcast_to(mask, (b, h, nq, nk))
    o = np.zeros((*q.shape[:3], v.shape[3]))
    for n, m, i in np.ndindex(b, h, nq):
        seen = [
            j
            for j in range(nk)
            if block_mask[n, m, i // block_q, j // block_k]
            and mask[n, m, i, j]
            and not (causal and j > i + nk - nq)
        ]
        g = m // (h // hkv)
        o[n, m, i] = attend(q[n, m, i], k[n, g, seen], v[n, g, seen], scale=scale)
    return o


def heads(b=2, h=4, hkv=2, nq=11, nk=13, d=3, dv=2) -> list[np.ndarray]:
    return [RNG.standard_normal(s) for s in ((b, h, nq, d), (b, hkv, nk, d), (b, hkv, nk, dv))]


def blocks(q: np.ndarray, k: np.ndarray, size_q: int, size_k: int, b: int = 2, h: int = 4) -> np.ndarray:
    """A random block mask, with an empty row and a full one."""
    found = RNG.random((b, h, -(-q.shape[2] // size_q), -(-k.shape[2] // size_k))) < 0.4
    found[0, 0, 0], found[-1, -1, -1] = False, True
    return found


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (4, 4), (11, 13), (20, 5)])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"mask": True, "scale": 2.0}])
def test_listed_blocks(sizes: tuple[int, int], options: dict) -> None:
    q, k, v = heads()
    if options.get("mask"):
        options = {**options, "mask": RNG.random((2, 1, 11, 13)) < 0.7}
    for shape in ((2, 4), (1, 4), (2, 1), (1, 1)):
        seen = blocks(q, k, *sizes, *shape)
        o = ops.block_sparse_attention(q, k, v, *ops.csr_of(seen), *sizes, **options)
        error = np.max(np.abs(o - by_blocks(q, k, v, seen, *sizes, **options)))
        assert error <= 1e-13, f"blocks {sizes} of pattern {shape} differ from the loop by {error:.2g}"


def test_full_and_empty_patterns() -> None:
    q, k, v = heads()
    full = ops.csr_of(np.ones((1, 1, 3, 4), bool))
    o = ops.block_sparse_attention(q, k, v, *full, 4, 4, causal=True)
    error = np.max(np.abs(o - ops.softmax_attention(q, k, v, causal=True)))
    assert error <= 1e-13, f"all blocks differ from full attention by {error:.2g}"
    none = ops.csr_of(np.zeros((1, 1, 3, 4), bool))
    assert not np.any(ops.block_sparse_attention(q, k, v, *none, 4, 4)), "seeing nothing must give zeros"
    assert ops.block_sparse_attention(q[:, :, :0], k, v, np.zeros((1, 1, 1), int), none[1]).shape == (
        2,
        4,
        0,
        2,
    )
    nothing = ops.block_sparse_attention(q, k[:, :, :0], v[:, :, :0], np.zeros((1, 1, 2), int), none[1])
    assert nothing.shape == (2, 4, 11, 2) and not np.any(nothing), "no keys must give zeros"


def test_lists_in_any_order_and_shared() -> None:
    q, k, v = heads()
    seen = np.zeros((1, 1, 3, 4), bool)
    seen[0, 0, 0, [0, 2, 3]] = seen[0, 0, 1, [2, 3]] = True
    # Row 1 is a part of row 0, row 2 is empty.
    indptr = np.array([[[0, 3, 3, 3]]])
    o = ops.block_sparse_attention(q[:, :, :4], k, v, indptr[..., :2], np.array([3, 0, 2]), 4, 4)
    error = np.max(np.abs(o - by_blocks(q[:, :, :4], k, v, seen[:, :, :1], 4, 4)))
    assert error <= 1e-13, f"an unsorted list differs by {error:.2g}"
    every = ops.csr_of(np.ones((1, 1, 3, 4), bool))
    shared = ops.block_sparse_attention(q, k, v, np.array([[[0, 4, 8, 12]]] * 2), every[1], 4, 4)
    error = np.max(np.abs(shared - ops.softmax_attention(q, k, v)))
    assert error <= 1e-13, f"a list that two examples share differs by {error:.2g}"


def test_csr_by_hand() -> None:
    mask = np.array([[[[1, 0, 1], [0, 0, 0]], [[0, 1, 0], [1, 1, 1]]]], dtype=bool)
    indptr, indices = ops.csr_of(mask)
    assert indptr.tolist() == [[[0, 2, 2], [2, 3, 6]]], f"the rows begin elsewhere: {indptr.tolist()}"
    assert indices.tolist() == [0, 2, 1, 0, 1, 2], f"the lists are wrong: {indices.tolist()}"
    with pytest.raises(ShapeError, match="must be"):
        ops.csr_of(mask[0])
    with pytest.raises(TypeError, match="must be boolean, not int64"):
        ops.csr_of(mask.astype(np.int64))


def test_gradients_of_listed_blocks() -> None:
    q, k, v = heads(1, 2, 1, 5, 6)
    indptr, indices = ops.csr_of(blocks(q, k, 2, 2, 1, 2))
    mask = RNG.random((1, 1, 5, 6)) < 0.8

    def run(q: Any, k: Any, v: Any) -> Any:
        return ops.block_sparse_attention(q, k, v, indptr, indices, 2, 2, mask=mask, causal=True)

    check_grad(run, q, k, v)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"indptr": np.array([[[0, 2, 1, 3]]])}, ValueError, "must not decrease"),
        ({"indptr": np.array([[[0, 2, 2, 5]]])}, ValueError, r"into the 4 indices, found 0\.\.5"),
        ({"indptr": np.array([[[0, 2, 4]]])}, ShapeError, r"Mq = 3 blocks of 4"),
        ({"indptr": np.array([[[0.0, 2, 3, 4]]])}, TypeError, "indptr must be integers"),
        ({"indices": np.array([0, 1, 4, 2])}, ValueError, r"blocks 0\.\.3, of 4 for 13 keys, found 0\.\.4"),
        ({"indices": np.array([0, 1, -1, 2])}, ValueError, r"found -1\.\.2"),
        ({"indices": np.array([2, 2, 1, 2])}, ValueError, "more than once"),
        ({"indices": np.array([[0, 1, 1, 2]])}, ShapeError, "must have one axis"),
        ({"block_q": 0}, ValueError, "must be at least 1"),
        ({"k": np.zeros((2, 3, 13, 3)), "v": np.zeros((2, 3, 13, 3))}, ShapeError, "must divide"),
        ({"v": np.zeros((2, 2, 12, 3))}, ShapeError, "B, Hkv and Nk"),
        ({"q": np.zeros((2, 4, 11, 5))}, ShapeError, "must be"),
    ],
)
def test_refusals_of_listed_blocks(change: dict, error: type[Exception], words: str) -> None:
    q, k, v = heads()
    given = {
        "indptr": np.array([[[0, 2, 3, 4]]]),
        "indices": np.array([0, 1, 1, 2]),
        "block_q": 4,
        "block_k": 4,
    }
    ops.block_sparse_attention(q, k, v, **given)
    with pytest.raises(error, match=words):
        ops.block_sparse_attention(**{"q": q, "k": k, "v": v, **given, **change})


def by_cells(q, k, v, window, bias=None, shift=(0, 0), scale=None) -> np.ndarray:
    """The equation, one cell at a time."""
    rows, columns = q.shape[2:4]
    o = np.zeros((*q.shape[:4], v.shape[4]))

    def place(r: int, c: int) -> tuple[int, int, int]:
        a, b = r - shift[0], c - shift[1]
        return a // window[0], b // window[1], a % window[0] * window[1] + b % window[1]

    cells = list(np.ndindex(rows, columns))
    for n, h in np.ndindex(*q.shape[:2]):
        for cell in cells:
            mine = place(*cell)
            seen = [other for other in cells if place(*other)[:2] == mine[:2]]
            at = tuple(np.array(seen).T)
            b = 0.0 if bias is None else bias[h, mine[2], [place(*other)[2] for other in seen]]
            o[n, h][cell] = attend(q[n, h][cell], k[n, h][at], v[n, h][at], b, scale)
    return o


@pytest.mark.parametrize("shift", [0, 1, (0, 1)])
@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (1, 3), (3, 1)])
def test_windows(grid: tuple[int, int], shift: Any) -> None:
    q, k, v = (RNG.standard_normal((2, 2, *grid, d)) for d in (3, 3, 4))
    for window in (2, 3, (2, 4), 8):
        w = (window, window) if isinstance(window, int) else window
        s = (shift, shift) if isinstance(shift, int) else shift
        n = w[0] * w[1]
        for bias, scale in ((None, None), (RNG.standard_normal((2, n, n)), 0.7)):
            o = ops.window_attention(q, k, v, window, bias, shift, scale)
            error = np.max(np.abs(o - by_cells(q, k, v, w, bias, s, scale)))
            assert error <= 1e-13, f"windows of {window} shifted {shift} differ from the loop by {error:.2g}"


def test_gradients_of_windows() -> None:
    q, k, v = (RNG.standard_normal((1, 2, 3, 5, d)) for d in (2, 2, 3))
    bias = RNG.standard_normal((2, 4, 4))
    check_grad(lambda q, k, v, bias: ops.window_attention(q, k, v, 2, bias, 1), q, k, v, bias)
    check_grad(lambda q, k, v: ops.window_attention(q, k, v, (1, 5)), q, k, v)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"window": 0}, ValueError, "window=0 must be at least 1"),
        ({"shift": 2}, ValueError, "shift=2, from 0|shift=2 from 0"),
        ({"shift": (0, -1)}, ValueError, "from 0 to window - 1"),
        ({"bias": np.zeros((2, 4, 5))}, ShapeError, r"\(H, n, n\) = \(2, 4, 4\)"),
        ({"k": np.zeros((1, 2, 3, 4, 2))}, ShapeError, "must be"),
    ],
)
def test_refusals_of_windows(change: dict, error: type[Exception], words: str) -> None:
    given = {"q": np.zeros((1, 2, 3, 5, 2)), "k": np.zeros((1, 2, 3, 5, 2)), "v": np.zeros((1, 2, 3, 5, 2))}
    with pytest.raises(error, match=words):
        ops.window_attention(**{**given, "window": 2, **change})

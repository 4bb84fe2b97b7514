"""kMaX: the assignment is a constant, batch norms learn statistics, errors."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.attention.kmax_cross_attention import KMaXCrossAttention
from minitf.engine import ShapeError
from minitf.nn import Case


def test_no_gradient_reaches_the_masks_through_the_assignment() -> None:
    layer = KMaXCrossAttention(8, heads=2, norm="none", dtype="float64")
    layer.wu.norm.weight.data = np.ones(8)
    update = layer(*KMaXCrossAttention.example_inputs(Case()))
    update.queries.sum().backward()
    for name in ("wm", "wf1", "wf2"):
        grad = getattr(layer, name).w.weight.grad
        assert grad is None or np.all(grad.data == 0.0), f"{name} must learn from mask losses only"
    assert np.any(layer.wv.w.weight.grad.data != 0.0), "values learn through the sums"
    layer(*KMaXCrossAttention.example_inputs(Case())).masks.sum().backward()
    assert np.any(layer.wm.w.weight.grad.data != 0.0), "mask losses reach the mask head"


def test_void_starts_likely() -> None:
    layer = KMaXCrossAttention(8, heads=2, classes=5, norm="none", dtype="float64")
    layer.wc.weight.data = np.zeros((8, 6))
    scores = layer(*KMaXCrossAttention.example_inputs(Case())).classes.data
    p = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    error = np.max(np.abs(p[..., -1] - 0.9))
    assert error <= 1e-12, f"void must start with probability 0.9, off by {error:.2g}"


def test_batch_norms_follow_the_batch_while_training() -> None:
    layer = KMaXCrossAttention(8, heads=2)
    before = layer.wp.norm.mean.data.copy()
    pixels, queries = KMaXCrossAttention.example_inputs(Case())
    layer(pixels.astype("float32"), queries.astype("float32"))
    assert np.any(layer.wp.norm.mean.data != before), "training mode moves the running mean"


def test_errors() -> None:
    with pytest.raises(ValueError, match="bn, ln or none"):
        KMaXCrossAttention(8, norm="gn")
    with pytest.raises(ValueError, match="must divide"):
        KMaXCrossAttention(9, heads=2)
    pixels, queries = KMaXCrossAttention.example_inputs(Case())
    with pytest.raises(ShapeError, match=r"\(B, R, C, D\)"):
        KMaXCrossAttention(8, heads=2)(queries, queries)

"""sigmaReparam: when its buffers move, starting from a trained layer, precision, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.adapt.sigma_reparam import SigmaReparam
from minitf.nn import Linear


def inputs(seed: int = 0) -> mt.Tensor:
    return mt.tensor(np.random.default_rng(seed).standard_normal((3, 4)))


def unsettled(**options: str) -> SigmaReparam:
    """A layer whose u is far from the singular vector."""
    layer = SigmaReparam(4, dtype="float64", **options)
    layer.u.data = np.eye(4)[1]
    return layer


def test_buffers_move_in_training_mode_only() -> None:
    layer, before = unsettled().eval(), np.eye(4)[1]
    layer(inputs())
    assert np.array_equal(layer.u.data, before), "eval mode must not move u"
    layer.train()
    layer(inputs())
    assert not np.array_equal(layer.u.data, before) and abs(np.linalg.norm(layer.u.data) - 1.0) <= 1e-12
    w, v = layer.weight.data, layer.weight.data.T @ before
    expected = np.linalg.norm(w @ (v / np.linalg.norm(v)))
    assert abs(layer.sigma.item() - expected) <= 1e-12, "sigma must be that of the pass"


def test_manual_updates_leave_several_passes_alone() -> None:
    layer = unsettled(update="manual").train()
    first, second = layer(inputs()).data, layer(inputs()).data
    assert np.array_equal(first, second), "passes of one optimiser step must see one u"
    layer.power_iterate(60)
    top = np.linalg.svd(layer.weight.data)[1][0]
    assert abs(layer.sigma.item() - top) <= 1e-6 * top


def test_from_a_trained_layer() -> None:
    linear = Linear(4, 6, True, seed=3)
    linear.bias.data = np.arange(6, dtype="float32")
    layer = SigmaReparam.from_linear(linear).eval()
    x = inputs().astype("float32")
    error = np.max(np.abs(layer(x).data - linear(x).data))
    assert error <= 1e-5, f"the copy differs by {error:.2g}"
    layer.weight.data *= 2.0
    assert np.max(np.abs(layer(x).data - linear(x).data)) <= 1e-5, "the length of W must not matter"
    assert SigmaReparam.from_linear(Linear(4, 4, False), gamma=1.0).gamma.item() == 1.0


def test_half_precision_iterates_in_single() -> None:
    layer = SigmaReparam(4, std=1.0, dtype="float16").eval()
    assert layer.u.dtype == "float32" and layer.gamma.dtype == "float32"
    y = layer(inputs().astype("float16"))
    assert y.dtype == "float16" and np.all(np.isfinite(y.data))


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="'forward' or 'manual'"):
        SigmaReparam(4, update="never")
    with pytest.raises(ValueError, match="a weight of zeros"):
        SigmaReparam(4, values=np.zeros((4, 4)))

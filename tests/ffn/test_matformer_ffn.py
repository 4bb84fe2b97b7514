"""The nested network: widths, training of all of them, a width for each layer."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.ffn.matformer_ffn import MatFormerFFN, growing_widths, joint_loss, nested_widths, sampled_width

X = mt.tensor(np.random.default_rng(0).standard_normal((3, 8)))


def test_nested_widths() -> None:
    assert nested_widths(32) == (4, 8, 16, 32), "F/8, F/4, F/2, F"
    assert nested_widths(4) == (1, 2, 4), "each width once, none below 1"


def test_widths_out_of_range() -> None:
    layer = MatFormerFFN(8, dtype="float64")
    for width in (0, 33):
        with pytest.raises(ValueError, match="from 1 to 32"):
            layer(X, width)


def test_the_attribute_is_the_default_width() -> None:
    layer = MatFormerFFN(8, dtype="float64")
    expected = layer(X, 4)
    layer.width = 4
    assert np.array_equal(layer(X).data, expected.data), "layer.width = 4 must act like layer(x, 4)"


def test_a_small_width_leaves_later_neurons_alone() -> None:
    layer = MatFormerFFN(8, gated=True, act="silu", dtype="float64")
    layer(X, 8).sum().backward()
    for w in (layer.w1.weight, layer.wg.weight, layer.w2.weight.mT):
        grad = w.grad if w.grad is not None else layer.w2.weight.grad.mT
        assert not np.any(grad.data[:, 8:]), "neurons from 8 on are not in the network of width 8"
        assert np.any(grad.data[:, :8]), "the first neurons are"


def test_joint_loss_sums_and_restores() -> None:
    layers = [MatFormerFFN(8, seed=s, dtype="float64") for s in (0, 1)]
    layers[0].width = 16

    def loss() -> mt.Tensor:
        return layers[1](layers[0](X)).sum()

    total, expected = joint_loss(layers, loss), 0.0
    assert layers[0].width == 16 and layers[1].width == 32, "widths must be as they were"
    for m in layers[0].widths:
        expected += float(layers[1](layers[0](X, m), m).sum())
    assert abs(float(total) - expected) <= 1e-12, "losses are summed over widths, not averaged"

    with pytest.raises(ZeroDivisionError):
        joint_loss(layers, lambda: mt.tensor(1 / 0))
    assert layers[0].width == 16, "widths must be restored after an error too"


def test_sampled_and_growing_widths() -> None:
    rng = np.random.default_rng(0)
    drawn = [sampled_width((4, 8, 16, 32), rng) for _ in range(4000)]
    counts = np.unique(drawn, return_counts=True)[1]
    # Six standard deviations of a binomial count.
    assert len(counts) == 4 and np.all(np.abs(counts - 1000) <= 6 * 27.4), f"not uniform: {counts}"
    assert growing_widths((4, 8, 16, 32), 6) == [4, 4, 8, 16, 16, 32], "even steps that never fall"
    assert growing_widths((4, 8, 16, 32), 2) == [4, 16], "also with fewer layers than widths"

"""LoRA: what is trained, the two scales, dropout, a given layer, errors."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.adapt.lora import LoRA
from minitf.engine import Tensor
from minitf.nn import Linear


def test_only_the_adapter_is_trained() -> None:
    layer = LoRA(8, r=2)
    assert {p.shape for p in layer.parameters()} == {(8, 2), (2, 8)}
    assert set(layer.state_dict()) == {"a", "b", "weight", "bias"}


def test_the_two_scales() -> None:
    assert LoRA(64, r=16, alpha=8.0).scale == 0.5
    assert LoRA(64, r=16, alpha=8.0, stabilised=True).scale == 2.0


def test_the_given_layer_is_copied() -> None:
    base = Linear(3, 5, False, 0, dtype="float64")
    layer = LoRA(base=base, r=3, start="pissa")
    kept = base.weight.data.copy()
    layer.b.data = layer.b.data + 1.0
    assert np.array_equal(base.weight.data, kept) and layer.bias is None
    assert layer.merged().bias is None
    # Of full rank, the principal part is all of W.
    error = np.max(np.abs(LoRA(base=base, r=3, start="pissa").weight.data))
    assert error <= 1e-12, f"nothing of W must be left beside a PiSSA adapter of full rank, not {error:.2g}"


def test_dropout_acts_on_the_adapter_in_training_only() -> None:
    layer = LoRA(8, r=2, dropout=0.5, dtype="float64")
    layer.b.data = np.ones_like(layer.b.data)
    x = Tensor(np.ones((1, 4, 8)))
    first, second = (layer(x, np.random.default_rng(seed)).data for seed in (0, 1))
    assert np.any(first != second), "two draws must differ"
    layer.eval()
    error = np.max(np.abs(layer(x).data - layer.merged()(x).data))
    assert error <= 1e-12, f"without dropout the merged layer is the same, not off by {error:.2g}"


def test_errors() -> None:
    with pytest.raises(ValueError, match="from 1 to 3"):
        LoRA(base=Linear(3, 5), r=4)
    with pytest.raises(ValueError, match="kaiming"):
        LoRA(8, start="zero")

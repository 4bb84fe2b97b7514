"""ViT block: parameters, the two forms of GELU, masks, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.blocks.vit_block import ViTBlock
from minitf.nn import Case


def test_parameters_and_their_first_values() -> None:
    block = ViTBlock(32, heads=4, layer_scale=1e-5)
    assert block.count_parameters() == 12 * 32**2 + 13 * 32 + 2 * 32
    bias = block.ffn.w1.bias
    assert bias is not None and 0.0 < np.max(np.abs(bias.data)) <= 1e-5, "biases of the MLP start near 0"
    assert block.g1 is not None and np.all(block.g1.data == np.float32(1e-5))
    x = Case(2, 5, 4, 8).tokens().astype("float32")
    error = np.max(np.abs(block(x).data - x.data))
    assert 0.0 < error <= 1e-3, "with a small LayerScale the block starts close to the identity"


def test_forms_of_gelu_are_close_but_not_equal() -> None:
    x = Case(2, 5, 2, 4).tokens()
    erf, tanh = (ViTBlock(8, heads=2, approximate=a, dtype="float64")(x).data for a in ("none", "tanh"))
    error = np.max(np.abs(erf - tanh))
    assert 0.0 < error <= 5e-3, f"the forms differ by {error:.2g}"


def test_hidden_keys_do_not_matter() -> None:
    block, x = ViTBlock(8, heads=2, dtype="float64"), Case(1, 4, 2, 4).tokens()
    mask = np.array([True, True, False, True])[None, None, None]
    kept = block(x[:, [0, 1, 3]]).data
    error = np.max(np.abs(block(x, mask=mask).data[:, [0, 1, 3]] - kept))
    assert error <= 1e-12, f"a hidden token changes the others by {error:.2g}"


def test_errors_say_what_to_do() -> None:
    with pytest.raises(mt.ShapeError, match=r"\(B, N, D\)"):
        ViTBlock(8)(mt.zeros((1, 2, 2, 8)))
    with pytest.raises(ValueError, match="divide"):
        ViTBlock(9, heads=2)

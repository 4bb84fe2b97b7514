"""The Mamba block: shapes, errors, and that its state does not grow."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.blocks.mamba_block import MambaBlock
from minitf.engine import ShapeError


def test_shapes_of_the_paper() -> None:
    block = MambaBlock(40)
    shapes = {name: p.shape for name, p in block.named_parameters()}
    assert shapes == {
        "norm.weight": (40,), "mixer.win.weight": (40, 160), "mixer.conv.weight": (4, 1, 80),
        "mixer.conv.bias": (80,), "mixer.wx.weight": (80, 3 + 32), "mixer.wdt.weight": (3, 80),
        "mixer.scan.a_log": (80, 16), "mixer.scan.d": (80,), "mixer.scan.bias": (80,),
        "mixer.wo.weight": (80, 40),
    }, "R = ceil(D / 16), E = 2 D, n = 16"  # fmt: skip
    bound = np.max(np.abs(block.mixer.wdt.weight.data))
    assert bound <= 3**-0.5, "W_dt starts within 1/sqrt(R)"


def test_state_has_one_size() -> None:
    block, x = MambaBlock(6), mt.tensor(np.zeros((2, 50, 6), dtype="float32"))
    for n in (1, 2, 50):
        _, state = block.prefill(x[:, :n], block.start(2))
        assert state.inputs.shape == (2, 3, 12) and state.x.shape == (2, 12, 16)


def test_errors() -> None:
    for options in ({"expand": 0}, {"rank": 0}, {"states": 0}, {"width": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            MambaBlock(8, **options)
    with pytest.raises(ShapeError, match=r"must be \(B, N, D\)"):
        MambaBlock(8)(mt.tensor(np.zeros((5, 8), dtype="float32")))

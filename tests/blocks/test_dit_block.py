"""DiT: noise levels, classes, what the first step can change, errors."""

from __future__ import annotations

import numpy as np
import pytest

from minitf.blocks.dit_block import DiTBlock, TimestepEmbedding
from minitf.engine import ShapeError, Tensor
from minitf.nn import Case


def test_only_the_modulation_learns_at_first() -> None:
    block = DiTBlock(8, heads=2, dtype="float64")
    block(*DiTBlock.example_inputs(Case())).sum().backward()
    for name, p in block.named_parameters():
        moved = p.grad is not None and np.any(p.grad.data != 0.0)
        assert moved == name.startswith("wc."), f"the first gradient of {name}"


def test_timestep_waves() -> None:
    embed = TimestepEmbedding(4, classes=3, width=6, dtype="float64")
    embed.w1.load_state_dict({"weight": np.eye(6, 4), "bias": np.zeros(4)})
    seen = {}
    embed.w2.register_forward_pre_hook(lambda module, args: seen.update(h=args[0].data))
    c = embed([2.0, 5.0], [0, 3])
    assert c.shape == (2, 4), "class 3 is 'no class'"
    f = 10000.0 ** (-np.arange(3) / 3)
    waves = np.concatenate([np.cos(np.outer([2.0, 5.0], f)), np.sin(np.outer([2.0, 5.0], f))], axis=-1)[:, :4]
    error = np.max(np.abs(seen["h"] - waves / (1.0 + np.exp(-waves))))
    assert error <= 1e-12, f"waves(t) are off by {error:.2g}"


def test_classes_are_dropped_in_training() -> None:
    embed, t, rng = TimestepEmbedding(4, classes=3, dtype="float64"), np.ones(2000), np.random.default_rng(0)
    none = embed(t[:1], [3]).data

    def without(c: np.ndarray) -> np.ndarray:
        return np.max(np.abs(c - none), axis=-1) <= 1e-12

    gone = without(embed(t, np.zeros(2000, int), rng).data)
    # Six standard errors of a share of a tenth.
    assert abs(gone.mean() - 0.1) <= 6 * (0.09 / 2000) ** 0.5, f"a tenth has no class, not {gone.mean()}"
    kept = [embed(t, np.zeros(2000, int)).data, embed.eval()(t, np.zeros(2000, int), rng).data]
    assert not np.any(without(np.stack(kept))), "without a generator, or in eval mode, none"


def test_errors() -> None:
    with pytest.raises(ShapeError, match=r"condition must be \(B, D\)"):
        DiTBlock(8, heads=2)(Tensor(np.ones((2, 3, 8), "float32")), Tensor(np.ones((3, 8), "float32")))

"""Rotary extensions and ALiBi: limits, YaRN in attention, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

import minitf as mt
from minitf.attention.softmax import SoftmaxAttention
from minitf.nn import ALiBi, Case, RoPE
from minitf.nn.positions.alibi import slopes
from minitf.nn.positions.rope import frequencies, yarn_frequencies


def test_yarn_frequencies_fall_from_all_to_one_in_s() -> None:
    ratio = yarn_frequencies(64, 10000.0, 8.0, 4096) / frequencies(64)
    assert np.all(np.diff(ratio) <= 0.0) and ratio[0] == 1.0 and abs(ratio[-1] - 1 / 8) <= 1e-15
    # Half way between pair 10 and pair 23: j = 16 or 17, m = 1 - 6/13 or 1 - 7/13.
    for j in (16, 17):
        m = 1.0 - (j - 10) / 13
        assert abs(ratio[j] - (m + (1.0 - m) / 8)) <= 1e-12


def test_yarn_sharpens_attention() -> None:
    x = Case(1, 6, 2, 4).tokens()
    position = RoPE(extension="yarn", factor=16.0)
    layer = SoftmaxAttention(8, heads=2, position=position, dtype="float64")
    plain = SoftmaxAttention(8, heads=2, dtype="float64")
    n = np.zeros(6)
    scale = (0.1 * math.log(16.0) + 1.0) ** 2
    plain.wq.weight.data = plain.wq.weight.data * scale
    error = np.max(np.abs(layer(x, positions=n).data - plain(x).data))
    assert error <= 1e-12, f"scores should be {scale:.3f} times as large: {error:.2g}"


def test_rope_errors_say_what_to_do() -> None:
    for options, words in (
        ({"rotary_dim": 3}, "even"),
        ({"rotary_dim": 0}, "even"),
        ({"extension": "dynamic"}, "none, linear, ntk, yarn"),
        ({"factor": 2.0}, "needs an extension"),
        ({"extension": "linear", "factor": 0.5}, "1 or more"),
    ):
        with pytest.raises(ValueError, match=words):
            RoPE(**options)
    with pytest.raises(mt.ShapeError, match="rotary_dim=8 is more"):
        RoPE(rotary_dim=8)(mt.zeros((1, 1, 2, 4)), np.arange(2))


@pytest.mark.parametrize("heads", [3, 5, 6, 7, 9, 24])
def test_alibi_slopes_of_other_numbers_of_heads(heads: int) -> None:
    m, power = slopes(heads), 2 ** int(math.log2(heads))
    assert len(m) == len(set(m)) == heads, "every head needs a slope of its own"
    assert np.array_equal(m[:power], slopes(power))
    expected = [2.0 ** (-8 * h / (2 * power)) for h in range(1, 2 * (heads - power), 2)]
    assert np.max(np.abs(m[power:] - expected)) <= 1e-15


def test_alibi_is_symmetric_without_a_causal_mask() -> None:
    bias = ALiBi(heads=3).bias(np.arange(5), np.arange(5))
    assert np.array_equal(bias, bias.swapaxes(1, 2)) and np.all(bias[:, range(5), range(5)] == 0.0)

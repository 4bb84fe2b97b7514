"""Grouped-query attention: converting checkpoints, the default number of groups, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.gqa import GQA, pool_heads, repeat_heads
from minitf.attention.softmax import SoftmaxAttention


def test_heads_of_a_group_are_neighbours() -> None:
    # Columns of heads 0..3, each of width 2.
    w = np.arange(8.0)[None]
    assert np.array_equal(pool_heads(w, 4, 2), [[1, 2, 5, 6]]), "heads 0, 1 and heads 2, 3 form the groups"
    assert np.array_equal(repeat_heads(np.array([[1.0, 2, 5, 6]]), 4, 2), [[1, 2, 1, 2, 5, 6, 5, 6]])
    assert np.array_equal(pool_heads(w[0], 4, 1), [3, 4]), "a bias is pooled like a row"


def test_conversion_keeps_all_options() -> None:
    many = SoftmaxAttention(
        12, heads=4, head_dim=2, context_dim=5, causal=False, bias=True, dropout=0.1, position="alibi", seed=1
    )
    few = GQA.from_multi_head(many, 2)
    assert (few.heads, few.kv_heads, few.head_dim, few.causal) == (4, 2, 2, False)
    assert few.dropout.rate == 0.1 and few.position is many.position
    assert few.wk.weight.shape == (5, 4) and few.wk.bias is not None and few.wk.bias.shape == (4,)
    assert np.array_equal(few.wq.weight.data, many.wq.weight.data)
    again = GQA.from_multi_head(few, 1)
    direct = GQA.from_multi_head(many, 1)
    error = np.max(np.abs(again.wk.weight.data - direct.wk.weight.data))
    assert error <= 1e-7, f"pooling twice differs from pooling once by {error:.2g}"


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (2, 1), (3, 1), (4, 2), (6, 3), (8, 4), (9, 3)])
def test_default_groups(heads: int, groups: int) -> None:
    layer = GQA(2 * heads, heads=heads)
    assert layer.kv_heads == groups
    assert layer.cache_size() == 2 * groups * 2
    assert layer.start(3).k.shape == (3, groups, 0, 2)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="must divide the 4 key heads"):
        GQA.from_multi_head(SoftmaxAttention(8, heads=4), 3)
    with pytest.raises(ValueError, match="must divide heads"):
        GQA(8, heads=4, kv_heads=3)
    assert mt.build("gqa", 6).heads == 2

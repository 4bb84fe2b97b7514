"""Score and mask functions beyond the checks: what is computed, what is trained, streaming, options."""

from typing import Any

import numpy as np
import pytest

from minitf import Tensor
from minitf.attention.score_mod import (
    ScoreModAttention,
    alibi,
    causal,
    dense,
    document,
    everything,
    relative_bias,
    sliding_window,
    tiled,
    unchanged,
)
from minitf.engine import ShapeError, check_grad
from minitf.nn import Module, Parameter
from minitf.profile import profile


def heads(n: int, dtype: str = "float64") -> list[Tensor]:
    rng = np.random.default_rng(n)
    return [Tensor(rng.standard_normal((1, 2, n, 4)).astype(dtype)) for _ in range(3)]


def test_empty_tiles_are_never_computed_and_full_ones_never_masked() -> None:
    asked: list[tuple[int, int]] = []

    def score_mod(s: Tensor, b: Any, h: Any, i: Any, j: Any) -> Tensor:
        asked.append((int(i.min()), int(j.min())))
        return s

    tiled(*heads(16), score_mod, sliding_window(3), 4)
    assert asked == [(0, 0), (4, 0), (4, 4), (8, 4), (8, 8), (12, 8), (12, 12)], (
        "a window of 3 tokens back touches two tiles of 4 in a row"
    )


def test_the_cost_is_that_of_the_tiles() -> None:
    flops = []
    for n in (256, 512):
        with profile() as p:
            tiled(*heads(n), unchanged, sliding_window(15), 16)
        flops.append(p.flops)
    assert abs(flops[1] / flops[0] - 2.0) <= 0.1, f"a window costs {flops} at N = 256 and 512, not twice"


def test_gradients_reach_heads_and_tables() -> None:
    q, k, v = (x.data for x in heads(7))
    table = np.random.default_rng(0).standard_normal((2, 5))

    def f(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        return tiled(q, k, v, relative_bias(table), document(np.array([0, 0, 0, 1, 1, 1, 1])), 3)[0]

    check_grad(f, q, k, v, table)


def test_gradients_of_the_log_sum_exp() -> None:
    q, k, v = (x.data for x in heads(5))
    check_grad(lambda q, k, v: tiled(q, k, v, unchanged, causal, 2)[1], q, k, v)


class Distance(Module):
    """A learned slope for each head."""

    def __init__(self) -> None:
        self.slope = Parameter(np.array([0.5, 0.25]))

    def forward(self, s: Tensor, b: Any, h: Any, i: Any, j: Any) -> Tensor:
        return s - self.slope[h] * abs(i - j)


def test_a_module_is_trained_with_the_rest() -> None:
    layer = ScoreModAttention(8, heads=2, score_mod=Distance(), dtype="float64")
    assert "score_mod.slope" in layer.state_dict(), "its parameter is not one of the layer"
    layer(Tensor(np.random.default_rng(0).standard_normal((2, 5, 8)))).sum().backward()
    grad = layer.score_mod.slope.grad
    assert grad is not None and np.all(grad.data != 0.0), "no gradient reaches it"


def test_functions_keep_float32() -> None:
    for mod in (alibi(2), relative_bias(Tensor(np.ones((2, 3), dtype="float32")))):
        o, lse = tiled(*heads(5, "float32"), mod, causal, 2)
        assert o.dtype == lse.dtype == "float32", "the scores became float64 on the way"


def test_large_scores_stay_finite_over_tiles() -> None:
    q, k, v = heads(9)
    o, lse = tiled(q * 1e3, k, v, unchanged, everything, 2)
    expected, sums = dense(q * 1e3, k, v, unchanged, everything)
    assert np.max(np.abs(o.data - expected.data)) <= 1e-12, "tiles and the whole differ under large scores"
    assert np.max(np.abs(lse.data - sums.data)) <= 1e-9, "their log-sum-exp differs"


def test_documents_may_come_in_any_order() -> None:
    """Ids need not be sorted: a document is all tokens of one id, with places counted among them."""
    q, ids = heads(6)[0], np.array([4, 4, 1, 1, 1, 4])
    mine = q[:, :, [0, 1, 5]]
    for inner in (causal, sliding_window(1)):
        o, _ = dense(q, q, q, unchanged, document(ids, inner))
        alone, _ = dense(mine, mine, mine, unchanged, inner)
        error = np.max(np.abs(o.data[:, :, [0, 1, 5]] - alone.data))
        assert error <= 1e-12, f"a document among others differs from itself alone by {error:.2g}"


def test_only_causal_attention_streams() -> None:
    layer = ScoreModAttention(8, causal=False)
    with pytest.raises(ValueError, match="causal=True"):
        layer.step(Tensor(np.zeros((1, 8), dtype="float32")), layer.start(1))


@pytest.mark.parametrize("options", [{"heads": 3}, {"kv_heads": 3}, {"kv_heads": 0}, {"tile": 0}])
def test_options_out_of_range(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ScoreModAttention(8, **options)


def test_grids_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(B, N, D\)"):
        ScoreModAttention(8)(Tensor(np.zeros((1, 2, 3, 8), dtype="float32")))

"""Multi-head latent attention: sizes, the price of a step, the cache, positions, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.mla import MLA, absorbed, naive, parts_of
from minitf.nn import Case


def test_sizes_follow_the_width_of_a_head() -> None:
    layer = MLA(64, heads=8)
    assert (layer.dn, layer.dr, layer.dv, layer.rank) == (8, 4, 8, 32)
    shapes = {name: p.shape for name, p in layer.named_parameters()}
    assert shapes == {
        "wq.weight": (64, 96),
        "wkva.weight": (64, 36),
        "kv_norm.weight": (32,),
        "wkvb.weight": (32, 128),
        "wo.weight": (64, 64),
    }
    compressed = {name: p.shape for name, p in MLA(64, heads=8, q_rank=10).named_parameters()}
    assert compressed["wqa.weight"] == (64, 10) and compressed["wqb.weight"] == (10, 96)
    assert "wq.weight" not in compressed


def test_the_cache_holds_one_latent_and_one_key_for_all_heads() -> None:
    layer = MLA(64, heads=8, kv_rank=16, rope_dim=4)
    _, state = layer.prefill(mt.zeros((2, 5, 64)), layer.start(2))
    assert state.c.shape == (2, 5, 16) and state.k_r.shape == (2, 5, 4)


def test_a_step_is_cheaper_absorbed() -> None:
    # One query against n cached tokens.
    n, h, dn, dr, r = 512, 8, 16, 8, 32
    rng = np.random.default_rng(0)
    shapes = ((1, h, 1, dn), (1, h, 1, dr), (1, n, r), (1, n, dr), (r, h * 2 * dn))
    parts = [mt.tensor(rng.standard_normal(s)) for s in shapes]
    flops = {}
    for form in (naive, absorbed):
        with mt.profile() as p:
            form(*parts)
        flops[form] = p.flops
    stated = 2 * h * n * (2 * r + dr)
    assert flops[absorbed] <= 1.3 * stated, f"a step took {flops[absorbed]} operations, not about {stated}"
    assert flops[absorbed] <= flops[naive] / 4, "the absorbed step must not form keys and values"


def test_absorbed_gradients_equal_naive_ones() -> None:
    parts = parts_of(Case(2, 5, 2, 4))
    found = []
    for form in (naive, absorbed):
        inputs = [mt.tensor(p.data, requires_grad=True) for p in parts]
        mt.ops.square(form(*inputs, causal=True)).sum().backward()
        found.append([p.grad.data for p in inputs])
    for i, (a, b) in enumerate(zip(*found)):
        error = np.max(np.abs(a - b))
        assert error <= 1e-10, f"the gradients of input {i} differ by {error:.2g}"


@pytest.mark.parametrize("position", ["nope", "rope", "alibi"])
def test_streams_with_every_position_scheme(position: str) -> None:
    case = Case(2, 6, 2, 4)
    layer, x = MLA(8, heads=2, position=position, dtype="float64"), case.tokens()
    whole, state = layer(x).data, layer.start(2)
    y, state = layer.prefill(x[:, :2], state)
    rows = [y.data]
    for t in range(2, 6):
        y, state = layer.step(x[:, t], state)
        rows.append(y.data[:, None])
    error = np.max(np.abs(np.concatenate(rows, axis=1) - whole))
    assert error <= 1e-12, f"{position}: steps differ from the whole by {error:.2g}"


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="rope_dim even"):
        MLA(8, heads=2, rope_dim=3)
    with pytest.raises(ValueError, match="must be 1 or more"):
        MLA(8, heads=2, kv_rank=0)
    with pytest.raises(mt.ShapeError, match=r"\(B, N, D\)"):
        MLA(8)(mt.zeros((3, 8)))
    with pytest.raises(ValueError, match="causal=True"):
        layer = MLA(8, causal=False)
        layer.step(mt.zeros((1, 8)), layer.start(1))

"""Native sparse attention: small blocks under the checks, what is selected, the caches, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.nsa import NSA, Sizes, importance, select
from minitf.attention.softmax import SoftmaxAttention
from minitf.testing import check_variant

SMALL = {"length": 2, "stride": 1, "block": 2, "picks": 3, "window": 2}


@pytest.mark.parametrize(
    "options",
    [
        SMALL | {"position": "rope", "kv_heads": 1},
        SMALL | {"compress": "mean", "length": 1},
    ],
)
def test_small_blocks_pass_the_checks(options: dict) -> None:
    def make(dim: int, heads: int, seed: int, dtype: str) -> NSA:
        return NSA(dim, heads=heads, seed=seed, dtype=dtype, **options)

    checks = ["causal", "streams", "gradients", "full_jacobian", "finite", "batch_independent"]
    checks += ["every_parameter_learns", "state_dict_round_trip"]
    check_variant(make, kind="token_mixer", claims=("causal", "streams"), checks=checks, examples=8)


def test_selection_by_hand() -> None:
    sizes = Sizes(block=2, picks=4)
    # One query at token 11, block 5 of 7: block 6 is in the future, 0, 4 and 5 are forced, 2 is the best.
    a = mt.tensor(np.array([0.0, 0.3, 0.9, 0.5, 0.0, 0.0, 7.0]).reshape(1, 1, 1, 7))
    chosen = select(a, np.array([11]), sizes)
    assert chosen.ravel().tolist() == [0, 4, 5, 2], f"selected {chosen.ravel()}"


def test_ties_go_to_the_lower_block() -> None:
    chosen = select(mt.tensor(np.zeros((1, 1, 1, 9))), np.array([17]), Sizes(block=2, picks=5))
    assert sorted(chosen.ravel().tolist()) == [0, 1, 2, 7, 8], f"selected {chosen.ravel()}"


def test_importance_by_hand() -> None:
    # l = 4, s = 2, l' = 4: block j takes p_{2j} twice, and p_{2j-1}, p_{2j+1} once.
    p = mt.tensor(np.array([1.0, 10.0, 100.0, 1000.0]).reshape(1, 1, 1, 4))
    a = importance(p, 3, 1, Sizes(length=4, stride=2, block=4)).data.ravel()
    assert a.tolist() == [12.0, 1210.0, 1000.0], f"importance {a}"


def test_every_query_head_of_a_group_sees_the_same_blocks() -> None:
    """With two gates shut, the tokens that reach a head are those of its blocks."""
    layer = NSA(8, heads=4, kv_heads=2, dtype="float64", **(SMALL | {"picks": 4}))
    layer.wg.weight.data[...] = 0.0
    layer.wg.bias.data[...] = np.tile([-400.0, 400.0, -400.0], 4)
    layer.wo.weight.data[...] = np.eye(8)
    x = np.random.default_rng(0).standard_normal((1, 20, 8))
    x = mt.tensor(x, requires_grad=True)
    reached = []
    for h in range(4):
        x.grad = None
        layer(x)[0, -1, 2 * h : 2 * h + 2].sum().backward()
        rows = np.abs(x.grad.data[0]).max(axis=-1)
        reached.append({int(i) // 2 for i in np.flatnonzero(rows > 1e-12)})
    assert reached[0] == reached[1] and reached[2] == reached[3], f"blocks by head: {reached}"
    assert all(len(seen) == 4 and {0, 8, 9} < seen for seen in reached), f"forced and one more: {reached}"


def test_prompts_in_pieces_equal_the_whole() -> None:
    layer = NSA(
        8, heads=2, kv_heads=1, position="rope", dtype="float64", **(SMALL | {"length": 4, "stride": 2})
    )
    x = mt.tensor(np.random.default_rng(0).standard_normal((2, 23, 8)))
    whole, state, rows, at = layer(x).data, layer.start(2), [], 0
    for n in (1, 2, 7, 1, 12):
        y, state = layer.prefill(x[:, at : at + n], state)
        rows.append(y.data)
        at += n
    error = np.max(np.abs(np.concatenate(rows, axis=1) - whole))
    assert error <= 1e-12, f"pieces differ from the whole by {error:.2g}"
    assert state[1].length == (23 - 4) // 2 + 1, f"{state[1].length} compressed blocks were kept"


def test_gates_start_at_the_window() -> None:
    bias = NSA(8, heads=2).wg.bias.data
    assert bias.tolist() == [-2.0, -2.0, 2.0] * 2, f"gates start at {bias}"


def test_the_quadratic_part_is_a_share_of_full_attention() -> None:
    """What grows with N^2 is f(2 N) - 2 f(N): the card's reason why it does not lead at 512 tokens."""

    def flops(make: type, n: int) -> float:
        layer = make(8, heads=1)
        with mt.no_grad(), mt.profile() as p:
            layer(mt.tensor(np.ones((1, n, 8), "float32")))
        return p.flops

    part, full = (flops(make, 1024) - 2 * flops(make, 512) for make in (NSA, SoftmaxAttention))
    # One key in 4, and adding up its weights for the selection.
    assert 0.2 * full <= part <= 0.3 * full, f"the quadratic part is {part / full:.2f} of full attention"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, "must divide"),
        ({"kv_heads": 3}, "must divide heads"),
        ({"stride": 3}, "must divide length"),
        ({"length": 4, "stride": 4, "block": 6}, "must divide length"),
        ({"picks": 2}, "3 or more"),
        ({"window": 0}, "1 or more"),
        ({"compress": "max"}, "'mlp' or 'mean'"),
        ({"position": "alibi"}, "rotate"),
    ],
)
def test_errors(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NSA(8, **options)

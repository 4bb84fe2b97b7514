"""Big Bird: the drawing of blocks, small blocks under the checks, masks, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.attention.bigbird import BigBird, block_mask, draw
from minitf.testing import check_variant


@pytest.mark.parametrize(("blocks", "count"), [(3, 2), (5, 1), (8, 0), (8, 2), (9, 20)])
def test_what_is_drawn(blocks: int, count: int) -> None:
    r = draw(7, 2, blocks, count)
    assert r.shape == (2, blocks, count), f"R must be (H, nb, r), not {r.shape}"
    for h, i in np.ndindex(2, blocks):
        drawn = [j for j in r[h, i] if j >= 0]
        listed = {0, blocks - 1, i - 1, i, i + 1}
        free = 0 if i in (0, blocks - 1) else blocks - len(listed)
        assert len(drawn) == len(set(drawn)) == min(count, free), (
            f"row {i} drew {drawn} of {free} free blocks"
        )
        assert not listed & set(drawn), f"row {i} drew {drawn}, which it sees anyway"


def test_seeds_and_heads() -> None:
    assert np.array_equal(draw(3, 4, 20, 2), draw(3, 4, 20, 2)), "one seed must give one drawing"
    assert not np.array_equal(draw(3, 4, 20, 2), draw(4, 4, 20, 2)), "two seeds must differ"
    r = draw(3, 4, 20, 2)
    assert len({r[h].tobytes() for h in range(4)}) == 4, "every head must draw for itself"


def test_every_free_block_can_be_drawn() -> None:
    mask = np.mean([block_mask(draw(seed, 1, 9, 1))[0, 4] for seed in range(200)], axis=0)
    assert np.all(mask[[0, 3, 4, 5, 8]] == 1.0), "ends and neighbours must always be seen"
    # 4 free blocks: each in 1/4 of 200 seeds, standard deviation 0.031; five of those.
    assert np.all(np.abs(mask[[1, 2, 6, 7]] - 0.25) <= 0.16), f"blocks are not drawn alike: {mask}"


def test_the_mask_by_hand() -> None:
    seen = block_mask(np.full((1, 6, 0), -1))[0].astype(int)
    expected = np.array(
        [
            [1, 1, 1, 1, 1, 1],
            [1, 1, 1, 0, 0, 1],
            [1, 1, 1, 1, 0, 1],
            [1, 0, 1, 1, 1, 1],
            [1, 0, 0, 1, 1, 1],
            [1, 1, 1, 1, 1, 1],
        ]
    )
    assert np.array_equal(seen, expected), f"six blocks without random ones must see\n{expected}\nnot\n{seen}"


@pytest.mark.parametrize("options", [{"block": 1, "random": 1}, {"block": 2, "random": 0, "bias": True}])
def test_small_blocks_pass_the_checks(options: dict) -> None:
    # Not padding_invariant: hidden tokens behind the sequence move the last block.
    def make(dim: int, heads: int, seed: int, dtype: str) -> BigBird:
        return BigBird(dim, heads=heads, seed=seed, dtype=dtype, **options)

    checks = ["gradients", "full_jacobian", "mask_rule", "row_stochastic", "finite", "state_dict_round_trip"]
    check_variant(make, kind="token_mixer", claims=("row_stochastic",), checks=checks, examples=5)


def test_hidden_keys_in_both_forms() -> None:
    layer = BigBird(8, heads=2, block=2, random=1, dtype="float64")
    x = mt.tensor(np.random.default_rng(0).standard_normal((2, 15, 8)))
    keys = np.random.default_rng(1).random((2, 1, 1, 15)) < 0.5
    gathered, dense = layer(x, mask=keys).data, layer(x, mask=np.broadcast_to(keys, (2, 1, 15, 15))).data
    error = np.max(np.abs(gathered - dense))
    assert error <= 1e-12, f"hiding keys in the gather form and in the mask differ by {error:.2g}"


@pytest.mark.parametrize(
    ("options", "words"),
    [({"heads": 3}, "must divide"), ({"block": 0}, "1 or more"), ({"random": -1}, "0 or more")],
)
def test_errors(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BigBird(8, **options)

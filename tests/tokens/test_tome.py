"""Token merging: schedules, protected tokens, limits, what order means, errors."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.engine import ShapeError, Tensor
from minitf.nn import Case
from minitf.tokens.tome import ToMe, match, schedule, size_bias


def test_schedules() -> None:
    assert schedule(5, 3) == [5, 5, 5]
    assert schedule([4, 2], 4) == [4, 2, 0, 0]
    assert schedule((8, -1.0), 5) == [16, 12, 8, 4, 0], "inflection -1 falls from 2 r to 0"
    assert schedule((8, 1.0), 5) == [0, 4, 8, 12, 16]
    assert sum(schedule((8, 0.0), 4)) == 32


def test_nothing_to_merge_is_the_input_itself() -> None:
    x = Case().tokens()
    merged = ToMe(r=0)(x)
    assert merged.x is x and merged.matching is None and np.all(merged.size.data == 1.0)


@pytest.mark.parametrize(("n", "r", "left"), [(9, 2, 7), (9, 100, 5), (2, 1, 1), (1, 3, 1)])
def test_at_most_half_the_tokens_go(n: int, r: int, left: int) -> None:
    assert ToMe(r=r)(Case(t=n).tokens()).x.shape[1] == left


def test_special_tokens_are_protected() -> None:
    metric = Tensor(np.ones((1, 8, 3)))
    found = match(metric, 8, class_token=True, distill_token=True)
    assert found.src.shape[1] == 3 and 0 not in found.src, "the class token must stay"
    assert 0 not in found.into, "nothing may be merged into the distillation token"
    assert np.all(np.diff(found.unm) > 0), "with a class token the others keep their order"


def test_ties_go_to_the_lower_index() -> None:
    found = match(Tensor(np.ones((1, 6, 2))), 2)
    assert found.src.tolist() == [[0, 2]] and found.into.tolist() == [[0, 0]]


def test_the_place_of_a_token_matters() -> None:
    x = Case(t=6).tokens()
    moved = x[:, [1, 0, 2, 3, 4, 5]]
    sums = [np.sort(ToMe(r=2)(v).x.data.sum(axis=-1), axis=-1) for v in (x, moved)]
    assert np.any(np.abs(sums[0] - sums[1]) > 1e-6), "even and odd places play different parts"


@pytest.mark.parametrize(("n", "k", "left"), [(9, 3, 3), (10, 3, 3), (2, 3, 2), (5, 1, 5), (6, 2, 3)])
def test_every_kth_token_stays(n: int, k: int, left: int) -> None:
    assert ToMe(split="kth", k=k)(Case(t=n).tokens()).x.shape[1] == left


def test_random_tokens_go() -> None:
    x = Case(t=9).tokens()
    drawn = [ToMe(r=4, split="random", seed=seed)(x).matching.src.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2], "the seed draws who goes"
    given = ToMe(r=4, split="random")(x, rng=np.random.default_rng(5)).matching.src.tolist()
    assert given != drawn[0], "a generator given to the call draws instead"
    assert ToMe(r=100, split="random")(x).x.shape[1] == 1, "one token is left at least"


def test_size_bias_and_errors() -> None:
    assert np.allclose(size_bias(Tensor(np.full((2, 3, 1), 4.0))).data, np.log(4.0))
    assert size_bias(Tensor(np.ones((2, 3, 1)))).shape == (2, 1, 1, 3)
    with pytest.raises(ValueError, match="0 or more"):
        ToMe(r=-1)
    for options in ({"split": "thirds"}, {"split": "kth", "k": 0}):
        with pytest.raises(ValueError, match="half, kth or random"):
            ToMe(**options)
    with pytest.raises(ValueError, match="protects no class"):
        ToMe(split="kth", class_token=True)
    with pytest.raises(ShapeError, match=r"\(B, N, D\)"):
        ToMe()(Tensor(np.ones((3, 4))))


def test_matching_is_counted() -> None:
    counted = []
    for n in (64, 128, 256):
        with mt.profile() as p:
            ToMe(r=4)(Case(b=1, t=n).tokens())
        counted.append(p.flops)
    # N^2 d / 2 leads, linear terms beside it.
    assert counted[2] / counted[1] >= 3.0 and counted[1] / counted[0] >= 2.5, f"operations {counted}"

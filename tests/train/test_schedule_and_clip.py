"""The learning rate at its corners; the norm of gradients."""

import math
from itertools import pairwise

import numpy as np
import pytest

import minitf as mt
from minitf.nn import Parameter
from minitf.train import TrainConfig, clip_grad_norm, warmup_cosine


def test_corners_of_the_schedule() -> None:
    def lr(step: int) -> float:
        return warmup_cosine(step, steps=100, warmup=20, peak=1.0, floor=0.1)

    for step, want in [(0, 1 / 21), (19, 20 / 21), (20, 1.0), (60, 0.55), (100, 0.1), (1000, 0.1)]:
        assert abs(lr(step) - want) <= 1e-15, f"step {step}: {lr(step)} is not {want}"
    rates = [lr(s) for s in range(101)]
    assert all(a < b for a, b in pairwise(rates[:21])), "warm-up rises"
    assert all(a > b for a, b in pairwise(rates[20:])), "the cosine falls"


def test_schedules_of_unusual_lengths() -> None:
    assert warmup_cosine(0, steps=1, warmup=0, peak=1.0) == 1.0, "no warm-up starts at the peak"
    assert warmup_cosine(5, steps=5, warmup=5, peak=1.0) == 0.0, "a run that is all warm-up ends at the floor"
    assert warmup_cosine(3, steps=2, warmup=8, peak=9.0) == 4.0, "warm-up may be longer than the run"
    for options in [{"warmup": -1}, {"steps": -1}, {"floor": 2.0}, {"floor": -0.1}, {"peak": math.nan}]:
        with pytest.raises(ValueError, match="0 <= floor <= peak"):
            warmup_cosine(0, **{"steps": 10, "warmup": 2, "peak": 1.0, **options})  # type: ignore[arg-type]


def test_defaults_of_the_configuration() -> None:
    config = TrainConfig(steps=50, lr=0.1)
    assert config.lr_at(5) == 0.1, "warm-up is a tenth of the run"
    assert abs(config.lr_at(50) - 0.01) <= 1e-15, "the floor is a tenth of the peak"
    assert TrainConfig(steps=5000, lr=0.1).lr_at(100) == 0.1, "warm-up is at most 100 steps"
    assert TrainConfig(steps=50, lr=0.1, warmup=0).lr_at(0) == 0.1, "an explicit warm-up counts"


def test_configuration_errors_name_the_field() -> None:
    for options in [
        {"steps": 0},
        {"batch": 0},
        {"accumulate": 0},
        {"lr": 0.0},
        {"warmup": -1},
        {"floor": 1.0},
        {"clip": 0.0},
        {"eval_every": -1},
        {"eval_batches": -1},
        {"save_every": -1},
        {"seed": -1},
    ]:
        (name,) = options
        with pytest.raises(ValueError, match=f"^{name} must be"):
            TrainConfig(**{"steps": 10, **options})  # type: ignore[arg-type]


def gradients(*arrays: np.ndarray) -> list[Parameter]:
    params = [Parameter(np.zeros_like(a)) for a in arrays]
    for p, a in zip(params, arrays, strict=True):
        p.grad = mt.tensor(a)
    return params


def test_clipping_scales_all_gradients_by_one_factor() -> None:
    params = gradients(np.array([3.0, 0.0]), np.array([[4.0]]))
    assert clip_grad_norm(params, 1.0) == 5.0, "the norm before clipping: sqrt(9 + 16)"
    for p, want in zip(params, ([0.6, 0.0], [[0.8]]), strict=True):
        assert p.grad is not None
        err = np.abs(p.grad.data - want).max()
        assert err <= 1e-15, f"clipped gradient {p.grad.data}, wanted {want}"


def test_gradients_within_the_limit_are_not_touched() -> None:
    params = gradients(np.array([3.0, 4.0]))
    for limit in (5.0, math.inf, None):
        assert clip_grad_norm(params, limit) == 5.0
        assert params[0].grad is not None and params[0].grad.data.tolist() == [3.0, 4.0], f"limit {limit}"


def test_norms_of_nothing_and_of_zeros() -> None:
    assert clip_grad_norm([], 1.0) == 0.0, "no parameters"
    assert clip_grad_norm([Parameter(np.ones(2))], 1.0) == 0.0, "no gradients"
    params = gradients(np.zeros(3), np.zeros((0, 2)))
    assert clip_grad_norm(params, 0.0) == 0.0, "zeros: no division by zero"
    assert params[0].grad is not None and params[0].grad.data.tolist() == [0.0] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norms_that_are_not_finite_are_reported(bad: float) -> None:
    params = gradients(np.array([1.0, bad]), np.array([2.0]))
    norm = clip_grad_norm(params, 1.0)
    assert not math.isfinite(norm), f"the norm of a gradient with {bad} is {norm}"
    assert params[1].grad is not None and params[1].grad.data[0] == 2.0, "other gradients are not touched"


def test_the_norm_is_computed_in_float64() -> None:
    # In float32 the square of 1e30 is infinite, and a million small squares are lost beside a big one.
    big = gradients(np.array([1e30], dtype="float32"))
    assert abs(clip_grad_norm(big, None) / 1e30 - 1.0) <= 1e-6, "no overflow in float32"
    many = gradients(np.full(2**20, 1e-4, dtype="float32"), np.array([1.0], dtype="float32"))
    want = math.sqrt(1.0 + 2**20 * float(np.float32(1e-4)) ** 2)
    err = abs(clip_grad_norm(many, None) / want - 1.0)
    assert err <= 1e-12, f"relative error of the norm: {err}"


def test_a_negative_limit_is_refused() -> None:
    for limit in (-1.0, math.nan):
        with pytest.raises(ValueError, match="must be at least 0"):
            clip_grad_norm([], limit)

"""AdamW, SGD and clipping against torch.optim, over 200 steps."""

from typing import Any

import numpy as np
import pytest

import minitf as mt
from minitf.nn import Parameter
from minitf.train import SGD, AdamW, clip_grad_norm

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

SHAPES = [(7, 5), (5,), (2, 3, 4), ()]
CASES: list[tuple[Any, str, dict[str, Any]]] = [
    (AdamW, "AdamW", {"lr": 1e-2}),
    (AdamW, "AdamW", {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}),
    (AdamW, "AdamW", {"lr": 1e-2, "betas": (0.3, 0.5), "eps": 1e-3, "weight_decay": 0.0}),
    (AdamW, "AdamW", {"lr": 1e-2, "betas": (0.0, 0.0)}),
    (SGD, "SGD", {"lr": 1e-2}),
    (SGD, "SGD", {"lr": 1e-2, "weight_decay": 0.1}),
    (SGD, "SGD", {"lr": 1e-2, "momentum": 0.9}),
    (SGD, "SGD", {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.05}),
    (SGD, "SGD", {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
]
# 200 steps each round once or twice per operation; float32 rounds at 6e-8.
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("ours", "name", "options"), CASES)
def test_200_steps(ours: Any, name: str, options: dict[str, Any], dtype: str) -> None:
    rng = np.random.default_rng(0)
    start = [np.asarray(rng.standard_normal(shape), dtype=dtype) for shape in SHAPES]
    mine = [Parameter(a.copy()) for a in start]
    theirs = [torch.tensor(a, requires_grad=True) for a in start]
    # Two groups, the second with its own learning rate, as in training.
    a = ours([{"params": mine[:2]}, {"params": mine[2:], "lr": 5e-3}], **options)
    b = getattr(torch.optim, name)([{"params": theirs[:2]}, {"params": theirs[2:], "lr": 5e-3}], **options)
    for step in range(200):
        if step == 100:
            for group, other in zip(a.groups, b.param_groups, strict=True):
                group["lr"] = other["lr"] = 2e-3
        for i, (p, q) in enumerate(zip(mine, theirs, strict=True)):
            # The last parameter is left out now and then: it has fewer updates, and its own bias correction.
            g = (
                None
                if i == 3 and step % 3 == 0
                else np.asarray(rng.standard_normal(p.shape) + p.data, dtype=dtype)
            )
            p.grad = None if g is None else mt.tensor(g)
            q.grad = None if g is None else torch.tensor(g)
        a.step()
        b.step()
    for p, q in zip(mine, theirs, strict=True):
        err = relative(p.data, q.detach().numpy())
        assert err <= TOLERANCE[dtype], f"{name} {options} {dtype}: parameter {p.shape} differs by {err}"


def test_the_moments_are_those_of_torch() -> None:
    p, q = Parameter(np.ones(3)), torch.ones(3, dtype=torch.float64, requires_grad=True)
    a, b = AdamW([p], lr=0.1), torch.optim.AdamW([q], lr=0.1)
    for step in range(10):
        g = np.array([1.0, -2.0, step])
        p.grad, q.grad = mt.tensor(g), torch.tensor(g)
        a.step()
        b.step()
    for ours, theirs in (("m", "exp_avg"), ("v", "exp_avg_sq")):
        err = relative(a.state[p][ours], b.state[q][theirs].numpy())
        assert err <= 1e-14, f"{ours} and {theirs} differ by {err}"


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping(limit: float) -> None:
    rng = np.random.default_rng(1)
    mine = [Parameter(np.zeros(shape)) for shape in SHAPES]
    theirs = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in SHAPES]
    for p, q in zip(mine, theirs, strict=True):
        g = np.asarray(rng.standard_normal(p.shape))
        p.grad, q.grad = mt.tensor(g), torch.tensor(g)
    ours, want = clip_grad_norm(mine, limit), float(torch.nn.utils.clip_grad_norm_(theirs, limit))
    assert abs(ours / want - 1.0) <= 1e-14, f"norm {ours}, torch {want}"
    for p, q in zip(mine, theirs, strict=True):
        assert p.grad is not None
        # torch divides by norm + 1e-6.
        err = relative(p.grad.data, q.grad.numpy())
        assert err <= 1e-6, f"clipped gradients {p.shape} differ by {err}"

"""Modules: names, state, hooks, modes, conversion."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.nn import Buffer, Dropout, Embedding, Linear, Module, Parameter, StateError, init


class Net(Module):
    def __init__(self) -> None:
        self.first = Linear(3, 4, seed=0)
        self.rest = [Linear(4, 4, bias=False, seed=1), Linear(4, 2, seed=2)]
        self.named = {"a": Linear(1, 1, seed=3)}
        self.scale = Parameter(np.ones(2, dtype="float32"))
        self.count = Buffer(np.zeros((), dtype="int64"))

    def forward(self, x: mt.Tensor) -> mt.Tensor:
        h = self.first(x)
        for layer in self.rest:
            h = layer(h)
        return h * self.scale


NAMES = [
    "scale", "count", "first.weight", "first.bias", "rest.0.weight", "rest.1.weight", "rest.1.bias",
    "named.a.weight", "named.a.bias",
]  # fmt: skip


def test_names_are_those_of_pytorch() -> None:
    net = Net()
    assert list(net.state_dict()) == NAMES
    assert [n for n, _ in net.named_parameters()] == [n for n in NAMES if n != "count"]
    assert net.count_parameters() == 2 + 16 + 16 + 10 + 2


def test_shared_parameters_count_once() -> None:
    net = Net()
    net.rest[0].weight = net.rest[1].weight = Parameter(np.ones((4, 4), dtype="float32"))
    assert len({id(p) for p in net.parameters()}) == len(net.parameters())
    assert {"rest.0.weight", "rest.1.weight"} <= set(net.state_dict())


def test_state_round_trip_is_exact_and_copies() -> None:
    one, two = Net(), Net()
    state = one.state_dict()
    state["scale"][:] = 7.0
    assert np.all(one.scale.data == 1.0), "a state dictionary must be a copy"
    assert two.load_state_dict(state) == ([], [])
    assert np.all(two.scale.data == 7.0)
    state["scale"][:] = 8.0
    assert np.all(two.scale.data == 7.0), "loading must copy"


def test_loading_refuses_what_does_not_fit_and_changes_nothing() -> None:
    net = Net()
    before = net.state_dict()
    bad = net.state_dict()
    bad["first.weight"] = np.zeros((3, 5))
    bad["scale"] = np.full(2, 9.0)
    with pytest.raises(StateError, match=r"first.weight has shape \(3, 5\), the module needs \(3, 4\)"):
        net.load_state_dict(bad)
    missing = {k: v for k, v in before.items() if k != "scale"}
    with pytest.raises(StateError, match="missing: scale"):
        net.load_state_dict(missing)
    with pytest.raises(StateError, match="unexpected: other"):
        net.load_state_dict({**before, "other": np.zeros(1)})
    assert net.load_state_dict({**missing, "other": np.zeros(1)}, strict=False) == (["scale"], ["other"])
    for name, value in net.state_dict().items():
        assert np.array_equal(value, before[name]), f"{name} was changed"


def test_hooks_see_and_replace() -> None:
    net, seen = Net(), []
    x = mt.ones((1, 3))
    plain = net(x).data
    look = net.first.register_forward_hook(
        lambda module, args, y: seen.append((type(module).__name__, y.shape))
    )
    double = net.first.register_forward_hook(lambda module, args, y: y * 2.0)
    zero = net.register_forward_pre_hook(lambda module, args: (args[0] * 0.0,))
    assert not np.array_equal(net(x).data, plain)
    assert seen == [("Linear", (1, 4))]
    for hook in (look, double, zero, zero):
        hook.remove()
    assert np.array_equal(net(x).data, plain), "removed hooks must not act"


def test_modes_reach_every_module() -> None:
    net = Net()
    net.rest.append(Dropout(0.5))
    assert not any(m.training for m in net.eval().modules())
    assert all(m.training for m in net.train().modules())


def test_conversion() -> None:
    net = Net().to("float64")
    assert net.first.weight.dtype == np.float64
    assert net.count.dtype == np.int64, "integers keep their type"
    assert net(mt.ones((1, 3), dtype="float64")).dtype == np.float64
    with pytest.raises(mt.DTypeError, match="do not mix"):
        net(mt.ones((1, 3)))


def test_zero_grad() -> None:
    net = Net()
    net(mt.ones((1, 3))).sum().backward()
    assert net.scale.grad is not None
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_parameters_are_floating_point() -> None:
    with pytest.raises(mt.DTypeError, match="cannot require a gradient"):
        Parameter(np.arange(3))


def test_linear_embedding_dropout() -> None:
    layer = Linear(3, 2, seed=0)
    x = np.random.default_rng(0).standard_normal((4, 3)).astype("float32")
    assert np.max(np.abs(layer(mt.tensor(x)).data - (x @ layer.weight.data + layer.bias.data))) <= 1e-6
    with pytest.raises(mt.ShapeError, match="must end in 3"):
        layer(mt.zeros((4, 2)))
    table = Embedding(5, 3, seed=0)
    assert np.array_equal(table(np.array([[1, 4]])).data, table.weight.data[[[1, 4]]])
    with pytest.raises(ValueError, match=r"token ids must lie in 0\.\.4, found 0\.\.5"):
        table(np.array([0, 5]))
    with pytest.raises(TypeError, match="integers"):
        table(np.array([0.5]))
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Dropout(1.0)
    drop, ones = Dropout(0.25), mt.ones((100, 100))
    y = drop(ones, np.random.default_rng(0)).data
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(1.0 / 0.75)}
    # 10,000 draws: the mean of y has standard deviation sqrt(1/3)/100 = 0.0058; five of them.
    assert abs(float(y.mean()) - 1.0) <= 0.03


def test_initialisers_have_the_variance_they_promise() -> None:
    shape = (200, 300)
    for values, variance in (
        (init.xavier_uniform(0, shape), 2.0 / 500),
        (init.fan_in_uniform(0, shape), 1.0 / 600),
        (init.kaiming_normal(0, shape), 2.0 / 200),
        (init.normal(0, shape, 0.02), 0.0004),
    ):
        # 60,000 samples: two deviations of a variance are 1.3 %; 4 % is far outside.
        assert abs(float(values.var()) / variance - 1.0) <= 0.04
        assert values.dtype == np.float32
    assert np.array_equal(init.normal(3, (4,)), init.normal(np.random.default_rng(3), (4,))), (
        "seed and generator agree"
    )

"""Optimisers against steps computed by hand, their groups, their state and their errors."""

import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import minitf as mt
from minitf.nn import Parameter, StateError
from minitf.train import SGD, AdamW, clip_grad_norm


def parameter(*values: float) -> Parameter:
    return Parameter(np.array(values))


def give_gradient(p: Parameter, *values: float) -> None:
    p.grad = mt.tensor(np.array(values))


def close(name: str, got: Any, want: Any, tol: float = 1e-14) -> None:
    err = float(np.max(np.abs(np.asarray(got) - np.asarray(want))))
    assert err <= tol, f"{name}: {got} differs from {want} by {err}"


def test_adamw_two_steps_by_hand() -> None:
    p = parameter(1.0, -2.0)
    opt = AdamW([p], lr=0.1, betas=(0.5, 0.75), eps=0.01, weight_decay=0.2)
    give_gradient(p, 4.0, 0.0)
    opt.step()
    # Decay by 1 - 0.1 * 0.2; the corrected moments are g and g^2 at the first step.
    close("p after one step", p.data, [0.98 - 0.1 * 4.0 / (4.0 + 0.01), -1.96])
    first = p.data.copy()
    give_gradient(p, 2.0, 1.0)
    opt.step()
    # m = 0.5 * 2 + 0.5 * 2 = 2, corrected by 1 - 0.25; v = 0.75 * 4 + 0.25 * 4 = 4, corrected by 1 - 0.5625.
    m, v = np.array([2.0, 0.5]) / 0.75, np.array([4.0, 0.25]) / 0.4375
    close("p after two steps", p.data, first * 0.98 - 0.1 * m / (np.sqrt(v) + 0.01))


def test_sgd_with_momentum_by_hand() -> None:
    p = parameter(1.0)
    opt = SGD([p], lr=0.1, momentum=0.5)
    for want in (1.0 - 0.1 * 2.0, 0.8 - 0.1 * 3.0, 0.5 - 0.1 * 3.5):
        give_gradient(p, 2.0)
        opt.step()
        close("p", p.data, [want])


def test_sgd_with_nesterov_and_decay_by_hand() -> None:
    p = parameter(1.0)
    opt = SGD([p], lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.5)
    give_gradient(p, 2.0)
    opt.step()
    # g = 2 + 0.5 * 1 = 2.5, u = 2.5, step 0.1 (2.5 + 0.5 * 2.5)
    close("p after one step", p.data, [0.625])
    give_gradient(p, 2.0)
    opt.step()
    # g = 2.3125, u = 0.5 * 2.5 + 2.3125 = 3.5625
    close("p after two steps", p.data, [0.625 - 0.1 * (2.3125 + 0.5 * 3.5625)])


def test_plain_sgd_moves_against_the_gradient() -> None:
    p = parameter(1.0)
    give_gradient(p, 2.0)
    SGD([p], lr=0.25).step()
    close("p", p.data, [0.5])


def test_the_array_is_changed_in_place() -> None:
    p = parameter(1.0, 2.0)
    array = p.data
    give_gradient(p, 1.0, 1.0)
    AdamW([p]).step()
    assert p.data is array, "a step must keep the parameter's memory"


def test_the_fused_update_has_the_bits_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    numba_backend = pytest.importorskip("minitf_numba")
    if numba_backend.unavailable():
        pytest.skip(numba_backend.unavailable())
    monkeypatch.setitem(mt.ops.kernels.backends(), "numba", numba_backend)
    fused = numba_backend.update("AdamW")
    assert fused is not None and numba_backend.update("SGD") is None
    for dtype, taken in (("float32", 4), ("float64", 4), ("float16", 0)):
        found = []
        for mode in ("reference", "numba"):
            rng = np.random.default_rng(0)
            # The last one is no block of memory, so the plain update moves it.
            arrays = [rng.standard_normal(s).astype(dtype) for s in ((), (3, 5), (0, 2), (300, 101), (5, 4))]
            params = [Parameter(a.T if i == 4 else a) for i, a in enumerate(arrays)]
            opt = AdamW(params, lr=0.1, eps=1e-4, weight_decay=0.3)
            with mt.use(mode):
                for _ in range(3):
                    for p in params:
                        p.grad = mt.tensor(rng.standard_normal(p.shape).astype(dtype))
                    opt.step()
            found.append([p.data for p in params] + [opt.state[p][k] for p in params for k in ("m", "v")])
        assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True)), f"{dtype}: other bits"
        items = [(p.data, p.data, opt.state[p]) for p in params]
        assert len(items) - len(fused(items, opt.groups[0])) == taken, f"{dtype}: another number of arrays"


def test_training_reaches_the_minimum() -> None:
    target = np.array([3.0, -1.0])
    p = parameter(0.0, 0.0)
    opt = AdamW([p], lr=0.1, weight_decay=0.0)
    for _ in range(400):
        opt.zero_grad()
        ((p - target) ** 2).sum().backward()
        opt.step()
    close("the minimum of a parabola", p.data, target, 1e-3)


@pytest.mark.parametrize("optimizer", [AdamW, SGD])
def test_parameters_without_gradient_stay(optimizer: Any) -> None:
    p, q = parameter(1.0), parameter(1.0)
    opt = optimizer([p, q], lr=0.1, weight_decay=0.5)
    give_gradient(p, 1.0)
    opt.step()
    assert q.data[0] == 1.0, "no gradient: not even the decay acts"
    assert q not in opt.state and p in opt.state, "only updated parameters are remembered"
    opt.zero_grad()
    assert p.grad is None, "zero_grad forgets gradients"


def test_bias_correction_counts_the_updates_of_each_parameter() -> None:
    p, q = parameter(1.0), parameter(1.0)
    opt = AdamW([p, q], lr=0.1, weight_decay=0.0)
    give_gradient(p, 1.0)
    opt.step()
    give_gradient(p, 1.0)
    give_gradient(q, 5.0)
    opt.step()
    close("the first update of q has size lr", q.data, [0.9], 1e-8)


def test_groups_have_their_own_options() -> None:
    p, q = parameter(1.0), parameter(1.0)
    opt = SGD([{"params": [p]}, {"params": [q], "lr": 0.5, "weight_decay": 1.0}], lr=0.1)
    give_gradient(p, 1.0)
    give_gradient(q, 1.0)
    opt.step()
    close("p", p.data, [0.9])
    close("q", q.data, [0.0])
    assert opt.lr == 0.1, "lr reads the first group"
    opt.lr = 0.2
    assert [g["lr"] for g in opt.groups] == [0.2, 0.2], "setting lr sets all groups"


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_shapes_and_precisions(shape: tuple[int, ...], dtype: str) -> None:
    p = Parameter(np.ones(shape, dtype=dtype))
    opt = AdamW([p], lr=0.25, eps=1e-4, weight_decay=0.0)
    p.grad = mt.tensor(np.full(shape, 2.0, dtype=dtype))
    opt.step()
    assert p.dtype == dtype and p.shape == shape, "a step keeps shape and precision"
    close("p", p.data.sum(dtype="float64"), 0.75 * p.size, 2e-3 * max(p.size, 1))


def test_parameters_that_are_views_and_transposed() -> None:
    base = np.arange(12.0).reshape(3, 4)
    p, q = Parameter(base.T[::2]), Parameter(base.T[::2].copy())
    opt = AdamW([p, q], lr=0.1)
    g = np.random.default_rng(0).standard_normal(p.shape)
    for _ in range(3):
        p.grad, q.grad = mt.tensor(g), mt.tensor(g)
        opt.step()
    assert np.array_equal(p.data, q.data), "memory layout must not matter"


def test_a_graph_recorded_before_the_step_notices_the_change() -> None:
    p = parameter(1.0, 2.0)
    y = (p * p).sum()
    give_gradient(p, 1.0, 1.0)
    AdamW([p]).step()
    with pytest.raises(mt.engine.GraphError, match="changed in place"):
        y.backward()


def test_moments_follow_a_converted_parameter() -> None:
    p = Parameter(np.ones(2, dtype="float32"))
    opt = AdamW([p], lr=0.1)
    for dtype in ("float32", "float64"):
        p.data = p.data.astype(dtype)
        p.grad = mt.tensor(np.ones(2, dtype=dtype))
        opt.step()
    assert opt.state[p]["m"].dtype == "float64", "moments take the precision of their parameter"


@pytest.mark.parametrize(("optimizer", "options"), [(AdamW, {}), (SGD, {"momentum": 0.9})])
def test_state_round_trip_continues_bit_for_bit(optimizer: Any, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((6, 3))

    def steps(p: Parameter, opt: Any, rows: Any) -> None:
        for row in rows:
            give_gradient(p, *row)
            opt.step()

    p = parameter(1.0, 2.0, 3.0)
    opt = optimizer([p], lr=0.1, **options)
    steps(p, opt, grads[:3])
    q, saved = Parameter(p.data.copy()), opt.state_dict()
    before = {k: np.copy(v) for k, v in saved["state"][0].items()}
    steps(p, opt, grads[3:])
    for k, v in before.items():
        assert np.array_equal(saved["state"][0][k], v), f"state_dict must copy {k}"
    other = optimizer([q], lr=7.0, **options)
    other.load_state_dict(saved)
    assert other.lr == 0.1, "options are part of the state"
    steps(q, other, grads[3:])
    assert np.array_equal(p.data, q.data), "a loaded optimiser must continue bit for bit"


def test_state_that_does_not_fit_changes_nothing() -> None:
    p = parameter(1.0, 2.0)
    opt = AdamW([p])
    give_gradient(p, 1.0, 1.0)
    opt.step()
    good = opt.state_dict()
    before = opt.state[p]

    def refused(words: str, **changes: Any) -> None:
        with pytest.raises(StateError, match=words):
            opt.load_state_dict({**good, **changes})
        assert opt.state[p] is before, f"{words}: the state was changed"

    refused("has shape", state={0: {"step": 1, "m": np.zeros(3), "v": np.zeros(2)}})
    refused("remembers step, m, v", state={0: {"step": 1, "u": np.zeros(2)}})
    refused("entry for parameter 5", state={5: good["state"][0]})
    refused("1 parameter groups, the state 2", groups=good["groups"] * 2)
    refused("another optimiser", groups=SGD([parameter(1.0)]).state_dict()["groups"])


def test_errors_say_what_is_allowed() -> None:
    p = parameter(1.0)
    for options, words in [
        ({"lr": -1.0}, "lr must be at least 0, not -1"),
        ({"lr": math.nan}, "lr must be at least 0, not nan"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\)"),
        ({"betas": (-0.1, 0.9)}, r"betas must be two numbers in \[0, 1\)"),
        ({"betas": (0.9,)}, r"betas must be two numbers in \[0, 1\)"),
        ({"eps": -1e-8}, "eps must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            AdamW([p], **options)
    with pytest.raises(ValueError, match="lr must be at least 0"):
        AdamW([p]).lr = -1.0
    with pytest.raises(ValueError, match="momentum must be at least 0"):
        SGD([p], momentum=-0.5)
    with pytest.raises(ValueError, match="nesterov needs momentum > 0"):
        SGD([p], nesterov=True)
    for empty in ([], iter(())):
        with pytest.raises(ValueError, match="at least one parameter"):
            AdamW(empty)
    with pytest.raises(ValueError, match="nothing to optimise"):
        AdamW([{"params": []}])
    with pytest.raises(ValueError, match="given twice"):
        AdamW([p, p])
    with pytest.raises(ValueError, match="a parameter group needs the key 'params'"):
        AdamW([{"params": [p], "learning_rate": 1.0}])
    for wrong, kind in [(np.ones(2), "ndarray"), ("weight", "str")]:
        with pytest.raises(TypeError, match=f"takes parameters, not {kind}"):
            AdamW([wrong])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="does not require a gradient"):
        AdamW([mt.tensor([1.0])])
    with pytest.raises(TypeError, match="is the result of multiply"):
        AdamW([p * 2.0])
    with pytest.raises(TypeError, match="real parameters"):
        AdamW([Parameter(np.ones(2, dtype=complex))])


def test_leaf_tensors_that_require_a_gradient_are_parameters_too() -> None:
    x = mt.tensor([1.0], requires_grad=True)
    (x * 3.0).sum().backward()
    SGD([x], lr=1.0).step()
    close("x", x.data, [-2.0])


@pytest.mark.parametrize("optimizer", [AdamW, SGD])
def test_arrays_are_handled_by_the_library_that_owns_them(
    optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class GPUArray(np.ndarray):
        def get(self) -> np.ndarray:
            return np.asarray(self)

    class Loopback(ModuleType):
        """Stands in for CuPy: its arrays are NumPy's under another type; its functions refuse all others."""

        ndarray = GPUArray

        def __getattr__(self, name: str) -> Any:
            def function(*args: Any, **options: Any) -> Any:
                for a in () if name == "asarray" else (*args, *options.values()):
                    assert not isinstance(a, np.ndarray) or isinstance(a, GPUArray), (
                        f"{name} got an array of NumPy"
                    )
                return np.asarray(getattr(np, name)(*args, **options)).view(GPUArray)

            return function

    def run(kind: type) -> np.ndarray:
        p = Parameter(np.array([[1.0, 2.0], [3.0, 4.0]]).view(kind))
        opt = optimizer([p], lr=0.1, weight_decay=0.1)
        for _ in range(3):
            p.grad = mt.engine.Tensor(np.array([[1.0, -2.0], [3.0, 40.0]]).view(kind))
            clip_grad_norm([p], 5.0)
            opt.step()
        saved = opt.state_dict()
        opt.load_state_dict(saved)
        arrays = [a for a in saved["state"][0].values() if isinstance(a, np.ndarray)]
        assert arrays and all(type(a) is np.ndarray for a in arrays), "what is saved are NumPy arrays"
        return np.asarray(p.data)

    want = run(np.ndarray)
    monkeypatch.setitem(sys.modules, "cupy", Loopback("cupy"))
    assert np.array_equal(run(GPUArray), want), "the loopback library must give the same numbers"

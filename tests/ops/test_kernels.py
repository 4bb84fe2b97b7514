"""Dispatch, through a loopback backend whose kernels call the plain definitions."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minitf import ops
from minitf.engine import Tensor, check_grad, detect_anomaly, grad, tensor, vjp
from minitf.ops import kernels
from minitf.ops.kernels import BackendError, Kernel, explain, kernelized, use

RNG = np.random.default_rng(0)
X, W, B = RNG.standard_normal((2, 3)), RNG.standard_normal(3), RNG.standard_normal(3)
CALLS: list[str] = []


def loopback(name: str, positions: tuple[int, ...]) -> Kernel:
    """A kernel made of the plain definition; `positions` are the arguments that may need a gradient."""
    body = kernels.DEFINITIONS[name][0]

    def forward(*args: Any) -> tuple[Any, Any]:
        CALLS.append(f"{name} forward")
        assert not any(isinstance(a, Tensor) for a in args), "kernels work on plain arrays"
        return body(*args), args

    def backward(residuals: Any, g: Any) -> tuple[Any, ...]:
        CALLS.append(f"{name} vjp")
        args = list(residuals)
        chosen = [i for i in positions if isinstance(args[i], np.ndarray)]

        def plain(*given: Any) -> Any:
            full = list(args)
            for i, a in zip(chosen, given, strict=True):
                full[i] = a
            out = body(*full)
            if not isinstance(out, tuple):
                return out
            return sum((part * gi).sum() for part, gi in zip(out, g, strict=True) if gi is not None)

        _, pull = vjp(plain, *(args[i] for i in chosen))
        found = dict(zip(chosen, pull(1.0 if isinstance(g, list) else g), strict=True))
        return tuple(found[i].data if i in found else None for i in range(len(args)))

    def supports(*args: Any) -> str | None:
        return "only for two axes" if args[0].ndim != 2 else None

    return Kernel(forward, backward, supports)


@kernelized("halves_of_a_test")
def halves(x: Any, scale: float = 2.0) -> Any:
    return x[:, :1] * scale, ops.exp(x[:, 1:])


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The only backend while a test runs: installed ones would answer too."""
    monkeypatch.setattr(kernels, "_backends", {})
    monkeypatch.setattr(kernels, "_failures", {})
    monkeypatch.setattr(kernels, "_ready", {})
    monkeypatch.setattr(kernels, "_discovered", True)
    module = SimpleNamespace(unavailable=lambda: None)
    module.KERNELS = {
        "layer_norm": loopback("layer_norm", (0, 1, 2)),
        "halves_of_a_test": loopback("halves_of_a_test", (0,)),
    }
    kernels.register_backend("loopback", module)
    before = kernels.active()
    # Also where the whole suite runs with another backend.
    kernels._mode = "reference"
    CALLS.clear()
    yield module
    kernels._mode = before


def test_values_and_gradients_equal_the_definition() -> None:
    exact = [g.numpy() for g in vjp(ops.layer_norm, X, W, B)[1](X)]
    value = ops.layer_norm(X, W, B)
    with use("loopback"):
        args = [tensor(a, requires_grad=True) for a in (X, W, B)]
        y = ops.layer_norm(*args)
        y.backward(X)
    assert CALLS == ["layer_norm forward", "layer_norm vjp"], (
        f"the kernel should have run once each way: {CALLS}"
    )
    assert np.array_equal(y.numpy(), value), "the kernel's value differs from the definition's"
    for a, g in zip(args, exact, strict=True):
        error = np.max(np.abs(a.grad.numpy() - g))
        assert error <= 1e-14, f"the gradient through the kernel is off by {error:.1e}"


def test_first_and_second_order_by_differences() -> None:
    with use("loopback"):
        check_grad(lambda x, b: ops.layer_norm(x, None, b), X, B)
        check_grad(lambda x: halves(x, 3.0), X)
    assert "layer_norm forward" in CALLS and "halves_of_a_test forward" in CALLS


def test_keywords_and_defaults_reach_the_kernel() -> None:
    with use("loopback"):
        y = ops.layer_norm(X, bias=tensor(B), eps=0.1)
    assert CALLS == ["layer_norm forward"]
    assert np.array_equal(y.numpy(), ops.layer_norm(X, None, B, 0.1))
    with use("loopback"), pytest.raises(TypeError, match="x"):
        ops.layer_norm()


def test_several_outputs_of_which_some_are_used() -> None:
    with use("loopback"):
        x = tensor(X, requires_grad=True)
        first, second = halves(x)
        second.sum().backward()
    expected = np.exp(X) * [[0, 1, 1]]
    error = np.max(np.abs(x.grad.numpy() - expected))
    assert error <= 1e-14, f"gradient of one of two outputs is off by {error:.1e}"
    assert first.shape == (2, 1)


def test_gradients_while_a_watcher_looks_on() -> None:
    exact = grad(lambda x: (ops.layer_norm(x, W) * X).sum())(X).numpy()
    with use("loopback"), detect_anomaly():
        g = grad(lambda x: (ops.layer_norm(x, W) * X).sum())(X).numpy()
    error = np.max(np.abs(g - exact))
    assert error <= 1e-14, f"under detect_anomaly the gradient of a kernel is off by {error:.1e}"


def test_auto_falls_back_and_explicit_refuses() -> None:
    wide = RNG.standard_normal((2, 2, 3))
    with use("auto"):
        assert np.array_equal(ops.layer_norm(wide, W), _reference(wide))
        assert not CALLS, "a kernel that does not support its arguments must not run"
        ops.layer_norm(X, W)
        assert CALLS == ["layer_norm forward"]
    with use("loopback"):
        with pytest.raises(BackendError, match=r"layer_norm: backend 'loopback' .* only for two axes"):
            ops.layer_norm(wide, W)
        # Operations that the backend has no kernel for run their definition.
        ops.rms_norm(wide, W)


def _reference(x: np.ndarray) -> np.ndarray:
    with use("reference"):
        return ops.layer_norm(x, W)


def test_use_as_function_and_as_context() -> None:
    use("auto")
    assert kernels.active() == "auto"
    with use("reference"):
        ops.layer_norm(X, W)
        assert kernels.active() == "reference" and not CALLS
    assert kernels.active() == "auto"
    with pytest.raises(RuntimeError), use("loopback"):
        raise RuntimeError
    assert kernels.active() == "auto", "leaving by an exception must restore the mode"
    with pytest.raises(BackendError, match=r"no backend 'fast'.*reference, auto.*loopback"):
        use("fast")


def test_a_backend_that_cannot_run(backend: SimpleNamespace) -> None:
    backend.unavailable = lambda: "its compiler is missing"
    with pytest.raises(BackendError, match="its compiler is missing"):
        use("loopback")
    with use("auto"):
        ops.layer_norm(X, W)
    assert not CALLS


def test_explain_says_who_runs_and_why() -> None:
    wide = np.ones((1, 1, 3))
    assert "because the mode is 'reference'" in explain("layer_norm", X)
    with use("loopback"):
        assert "the kernel of 'loopback' runs" in explain("layer_norm", X, eps=0.1)
        text = explain("layer_norm", tensor(wide))
        assert "no kernel fits" in text and "loopback: only for two axes" in text
        assert "loopback: no kernel for rms_norm" in explain("rms_norm", X)
    with pytest.raises(KeyError, match="not a kernelized operation"):
        explain("add", X, X)


def test_backends_come_and_go() -> None:
    kernels.unregister_backend("loopback")
    assert "loopback" not in kernels.backends()
    kernels.unregister_backend("loopback")


def test_import_errors_are_kept_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ImportError("no module named fastlib")

    point = SimpleNamespace(name="broken", load=broken)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point])
    monkeypatch.setattr(kernels, "_discovered", False)
    assert "broken: failed to import: ImportError: no module named fastlib" in explain("layer_norm", X)
    with pytest.raises(BackendError, match="it failed to import: ImportError"):
        use("broken")

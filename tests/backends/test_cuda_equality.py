"""Every CuPy kernel against its definition: emulated on the CPU, and on a card where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import minitf_cupy
import numpy as np
import pytest

import minitf as mt
from minitf import ops
from minitf.engine import Tensor
from minitf.nn import Parameter
from minitf.ops.kernels import DEFINITIONS
from minitf.testing.kernels import cast, computed
from minitf.train import AdamW

from .cases import CASES
from .cuda.compared import arguments_of, check_on_card, refused
from .emulator import stand_in

NAMES = sorted(set(minitf_cupy.KERNELS) & set(CASES))
# Asked before any test puts the stand-in in CuPy's place.
NO_CARD = minitf_cupy.unavailable()
# The emulation is slow: cases with more numbers than this are for a card.
MOST = 6000


def size(args) -> int:
    return sum(a.size for a in args.values() if isinstance(a, np.ndarray))


def every_case(most: float):
    for name in NAMES:
        for i, (label, args) in enumerate(CASES[name](np.random.default_rng(0))):
            if size(args) <= most:
                yield pytest.param(name, i, id=f"{name}-{label}".replace(" ", "_"))


def arguments(name: str, i: int):
    return list(CASES[name](np.random.default_rng(0)))[i][1]


@pytest.fixture(scope="module")
def emulated() -> Iterator[None]:
    if why := stand_in.missing():
        pytest.skip(why)
    with stand_in.installed():
        yield


@contextmanager
def backwards() -> Iterator[None]:
    """Blocks and threads run in the opposite order: a race would show."""
    os.environ["MINITF_EMULATOR_REVERSE"] = "1"
    try:
        yield
    finally:
        del os.environ["MINITF_EMULATOR_REVERSE"]


@pytest.mark.parametrize(("name", "i"), list(every_case(MOST)))
def test_emulated(emulated, name, i):
    args = arguments(name, i)
    # Every case in float32, the first few also in float64 and in other memory layouts.
    for dtype in ("float32", "float64") if i < 3 else ("float32",):
        if why := refused(name, args, dtype):
            assert len(why.split()) > 3, f"{name}: {why!r} is no sentence"
            fallen_back(name, args, dtype)
        else:
            check_on_card(name, args, dtype, views=i < 2, otherwise=backwards)


def fallen_back(name, args, dtype) -> None:
    """What the kernel does not take, the definition computes on the card."""
    import cupy

    given = {
        k: Tensor(cupy.asarray(a)) if isinstance(a, np.ndarray) else a for k, a in cast(args, dtype).items()
    }
    found = computed(name, "auto", given, dtype, 0)["output 0"]
    right = computed(name, "reference", cast(args, dtype), dtype, 0)["output 0"]
    assert np.allclose(found, right, rtol=1e-4, atol=1e-5, equal_nan=True), (
        f"{name}: the definition on the card"
    )


@pytest.mark.parametrize("name", NAMES)
def test_some_case_is_emulated(emulated, name):
    """A kernel whose every case is refused, or too large, would be a kernel without proof."""
    small = [args for _, args in CASES[name](np.random.default_rng(0)) if size(args) <= MOST]
    assert any(refused(name, args, "float32") is None for args in small), f"{name}: nothing was computed"


@pytest.mark.parametrize("name", NAMES)
def test_half_precision(emulated, name):
    """float16: within a few of its roundings of the definition in float64, or refused in words."""
    import cupy

    for _, args in CASES[name](np.random.default_rng(0)):
        if not 8 <= size(args) <= 2000 or refused(name, args, "float32"):
            continue
        if why := refused(name, args, "float16"):
            assert "float16" in why, f"{name}: {why}"
            return
        half = cast(args, "float16")
        given = {k: cupy.asarray(a) if isinstance(a, np.ndarray) else a for k, a in half.items()}
        found = computed(name, "cupy", given, "float16", 0)
        right = computed(name, "reference", cast(half, "float64"), "float64", 0)
        for key, value in found.items():
            scale = np.abs(right[key]).max(initial=1.0)
            err = np.abs(value - right[key]).max(initial=0.0)
            assert err <= 32 * np.finfo("float16").eps * scale, f"{name} float16: {key} is off by {err:.3g}"
        return


@pytest.mark.parametrize("name", NAMES)
def test_one_gradient_for_each_argument(emulated, name):
    import cupy

    for _, args in CASES[name](np.random.default_rng(0)):
        if size(args) > MOST or refused(name, args, "float32"):
            continue
        single = cast(args, "float32")
        given = {k: cupy.asarray(a) if isinstance(a, np.ndarray) else a for k, a in single.items()}
        kernel, values = minitf_cupy.KERNELS[name], arguments_of(name, given)
        out, residuals = kernel.forward(*values)
        # Of several outputs, only the first matters to what follows.
        up = (
            [cupy.asarray(np.ones(out[0].shape, "float32"))] + [None] * (len(out) - 1)
            if isinstance(out, tuple)
            else None
        )
        grads = kernel.vjp(residuals, cupy.asarray(np.ones(out.shape, "float32")) if up is None else up)
        names = list(DEFINITIONS[name][1].parameters)
        assert len(grads) == len(names), f"{name}: {len(grads)} gradients for {names}"
        for key, value, grad in zip(names, values, grads):
            assert grad is None or (grad.shape, grad.dtype) == (value.shape, value.dtype), f"{name}: {key}"
        return


def test_a_wrong_id_is_an_error(emulated):
    """An id out of range gives the definition's error, also on the card."""
    import cupy

    table, ids = cupy.asarray(np.ones((3, 2), "float32")), cupy.asarray(np.array([0, 3]))
    with ops.kernels.use("auto"), pytest.raises(ValueError, match=r"0\.\.2"):
        ops.embedding(Tensor(ids), table)


def test_a_wrong_target_is_an_error(emulated):
    import cupy

    logits, targets = cupy.asarray(np.ones((2, 2), "float32")), cupy.asarray(np.array([0, 3]))
    with ops.kernels.use("auto"), pytest.raises(ValueError, match=r"0\.\.1"):
        ops.cross_entropy(logits, Tensor(targets))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adamw(emulated, dtype):
    """One launch for all parameters moves them as the optimiser's own code does, several steps long."""
    import cupy

    def trained(move, mode):
        rng = np.random.default_rng(3)
        shapes = ((3, 5), (1,), (4096,), (4097,), (2, 0))
        params = [Parameter(move(rng.standard_normal(s).astype(dtype))) for s in shapes]
        opt = AdamW(params, lr=0.1, weight_decay=0.2)
        for _ in range(3):
            for p in params:
                p.grad = Tensor(move(rng.standard_normal(p.shape).astype(dtype)))
            with ops.kernels.use(mode):
                opt.step()
        return [p.numpy() for p in params]

    for a, b in zip(trained(cupy.asarray, "cupy"), trained(np.asarray, "reference")):
        err = np.abs(a - b).max(initial=0.0)
        assert err <= 8 * np.finfo(dtype).eps * np.abs(b).max(initial=1.0), f"{a.shape}: off by {err:.3g}"


@pytest.mark.parametrize("variant", ["softmax", "gla"])
def test_a_model_on_the_card(emulated, variant):
    """Everything between the kernels runs on CuPy arrays too, and gives the gradients of the CPU."""

    def gradients(device, mode):
        layer = mt.build(variant, dim=16, heads=2, seed=0)
        x = Tensor(np.random.default_rng(0).standard_normal((2, 5, 16)).astype("float32"))
        if device == "cuda":
            layer.to("cuda")
            x = x.to("cuda")
        with ops.kernels.use(mode):
            y = layer(x)
            (y * y).sum().backward()
        return {name: p.grad.numpy() for name, p in layer.named_parameters()}

    right, found = gradients("cpu", "reference"), gradients("cuda", "auto")
    for name, g in right.items():
        err = np.abs(found[name] - g).max()
        assert err <= 1e-4 * max(1.0, np.abs(g).max()), (
            f"{variant}: the gradient of {name} is off by {err:.3g}"
        )


@pytest.mark.gpu
@pytest.mark.skipif(NO_CARD is not None, reason="not run: no GPU")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "i"), list(every_case(np.inf)))
def test_on_a_card(name, i, dtype):
    known = "cupy" in ops.kernels.backends()
    ops.kernels.register_backend("cupy", minitf_cupy)
    try:
        args = arguments(name, i)
        if refused(name, args, dtype):
            fallen_back(name, args, dtype)
        else:
            check_on_card(name, args, dtype)
    finally:
        if not known:
            ops.kernels.unregister_backend("cupy")

"""Random programs, drawn from the whole operation table, against an independent oracle.

A program is a chain of lines `v3 = ops.matmul(v0, v2)`, each with its twin in torch. Where torch is
installed, values, gradients and second derivatives are compared with it; elsewhere gradients are compared
with central differences. The test's id says which. A failure prints the program as code that reproduces it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitf import ops
from minitf.engine import STATE, ShapeError, Tensor, check_grad, tensor, walk
from minitf.engine.rules import RULES

try:
    import torch
except ImportError:
    torch = None
ORACLE = "torch" if torch is not None else "differences"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """One kind of line: code for minitf and for torch, and where it fits.

    {a} and {b} are variables; what `fill` returns fills the other braces, None where the shapes do not fit.
    """

    ours: str
    theirs: str
    fill: Callable[[np.random.Generator, Shape], dict[str, Any] | None] = lambda rng, shape: {}
    # False: by intention not the derivative of its value.
    differentiable: bool = True


def axis(rng: np.random.Generator, shape: Shape) -> dict[str, Any] | None:
    if not shape:
        return None
    i = int(rng.integers(-len(shape), len(shape)))
    one = [1 if j == i % len(shape) else n for j, n in enumerate(shape)]
    count = [1] * len(shape)
    count[i] = shape[i]
    held = [1.0 + (0 < j < shape[i] - 1) for j in range(shape[i])]
    return dict(
        axis=i,
        n=shape[i],
        keep=bool(rng.integers(2)),
        one=tuple(one),
        shape=shape,
        held=held,
        count=tuple(count),
    )


def wide(rng: np.random.Generator, shape: Shape) -> dict[str, Any] | None:
    """An axis of at least two elements."""
    found = axis(rng, shape)
    return found if found and found["n"] > 1 else None


def matrix(rng: np.random.Generator, shape: Shape) -> dict[str, Any] | None:
    return dict(n=shape[-2], m=shape[-1]) if len(shape) > 1 else None


def square(rng: np.random.Generator, shape: Shape) -> dict[str, Any] | None:
    return matrix(rng, shape) if len(shape) > 1 and shape[-1] == shape[-2] else None


def tall(rng: np.random.Generator, shape: Shape) -> dict[str, Any] | None:
    return matrix(rng, shape) if len(shape) > 1 and shape[-1] <= shape[-2] else None


def some(rng: np.random.Generator, shape: Shape) -> dict[str, Any] | None:
    """Any shape: a permutation, another shape of the same size, widths."""
    width = [(int(a), int(b)) for a, b in rng.integers(0, 2, (len(shape), 2))]
    flat = [n for pair in reversed(width) for n in pair]
    perm = tuple(int(i) for i in rng.permutation(len(shape)))
    dims = tuple(range(len(shape)))
    return dict(
        perm=perm, other=(*shape[::-1], 1), more=(2, *shape), width=width, flat=flat, shape=shape, dims=dims
    )


def longer(rng: np.random.Generator, shape: Shape) -> dict[str, Any] | None:
    return some(rng, shape) if shape else None


def same(call: str, fill: Any = lambda rng, shape: {}) -> Line:
    """The same words in both languages."""
    return Line(call.replace("lib.", "ops."), call.replace("lib.", "torch."), fill)


NEAR_ONE = "ops.tanh({a}) * 0.1 + np.eye({n}, {m}) * np.arange(1.0, {m} + 1)"
NEAR_ONE_TORCH = "torch.tanh({a}) * 0.1 + torch.eye({n}, {m}) * torch.arange(1.0, {m} + 1)"

LINES = [
    *(same(s) for s in (
        "{a} + {b}", "{a} - {b}", "{a} * {b}", "{a} / (1.5 + {b} * {b})", "-{a}", "{a} ** 3",
        "{a} ** 2.0 - {a} ** 0",
        "({a} * {a} + 0.5) ** lib.tanh({b})", "lib.reciprocal(1.5 + {a} * {a})", "lib.square({a})",
        "lib.sqrt(lib.abs({a}) + 0.5)", "lib.rsqrt({a} * {a} + 0.5)", "lib.abs({a})", "lib.maximum({a}, {b})",
        "lib.minimum({a}, {b})", "lib.where({a} > 0.1, {a}, {b})", "lib.clip({a}, -0.5, 1.5)",
        "lib.exp(lib.tanh({a}))",
        "lib.expm1(lib.tanh({a}))", "lib.log(lib.abs({a}) + 0.5)", "lib.log1p({a} * {a})",
        "lib.log2({a} * {a} + 0.5)",
        "lib.logaddexp({a}, {b})", "lib.sin({a})", "lib.cos({a})", "lib.tan(0.5 * lib.tanh({a}))",
        "lib.asin(0.9 * lib.tanh({a}))", "lib.acos(0.9 * lib.tanh({a}))", "lib.atan({a})",
        "lib.atan2({a}, {b} * {b} + 0.5)", "lib.sinh(lib.tanh({a}))", "lib.cosh(lib.tanh({a}))",
        "lib.tanh({a})",
        "lib.erf({a})", "lib.sigmoid({a})", "lib.relu({a})",
        "lib.abs(lib.complex({a} + {b} * 0.0, 2.0 + {b} + {a} * 0.0))",
    )),
    Line("ops.softplus({a})", "torch.nn.functional.softplus({a})"),
    Line("ops.gelu({a})", "torch.nn.functional.gelu({a})"),
    Line("ops.silu({a})", "torch.nn.functional.silu({a})"),
    Line("ops.copy({a})", "{a}.clone()"),
    Line("ops.straight_through(ops.round({a}), {a})",
    "{a} + (torch.round({a}) - {a}).detach()", differentiable=False),
    Line("ops.stop_gradient({a}) * {a}", "{a}.detach() * {a}", differentiable=False),
    Line("ops.real(ops.astype({a}, 'complex128') * (1.0 + 2.0j))",
    "({a}.to(torch.complex128) * (1.0 + 2.0j)).real"),
    Line("ops.to_device({a}, 'cpu') * 1.5", "{a}.to('cpu') * 1.5"),
    # Reductions and scans.
    *(Line(f"ops.{o}({{a}}, axis={{axis}}, keepdims={{keep}})",
           f"torch.{t}({{a}}, dim={{axis}}, keepdim={{keep}})", axis)
      for o, t in [("sum", "sum"), ("mean", "mean"), ("prod", "prod"), ("max", "amax"), ("min", "amin"),
                   ("logsumexp", "logsumexp")]),
    *(Line(f"ops.{o}({{a}})", f"torch.{o}({{a}})") for o in ("sum", "mean", "prod", "max", "min")),
    *(Line(f"ops.{o}({{a}}, axis={{axis}})", f"torch.{o}({{a}}, dim={{axis}})", axis)
      for o in ("softmax", "log_softmax", "cumsum", "cumprod")),
    Line("ops.var({a}, axis={axis}, correction=1.0)", "torch.var({a}, dim={axis}, correction=1)", wide),
    # Shape.
    same("{a}.reshape({other})", some),
    Line("ops.permute_dims({a}, {perm})", "torch.permute({a}, {perm})", some),
    same("{a}.mT", matrix),
    same("lib.broadcast_to({a}, {more})", some),
    Line("ops.flip({a})", "torch.flip({a}, {dims})", some),
    Line("ops.roll({a}, 2, axis={axis})", "torch.roll({a}, 2, dims={axis})", axis),
    Line("ops.concat([{a}, {a} * {a}], axis={axis})", "torch.cat([{a}, {a} * {a}], dim={axis})", axis),
    Line("ops.stack([{a}, ops.sin({a})], axis={axis})",
    "torch.stack([{a}, torch.sin({a})], dim={axis})", axis),
    Line("ops.split({a}, [1, {n} - 1], axis={axis})[1]",
    "{a}.narrow({axis}, 1, {n} - 1)", wide),
    Line("ops.pad({a}, {width}, value=0.5)", "torch.nn.functional.pad({a}, {flat}, value=0.5)", longer),
    Line("ops.unfold({a}, 2, axis={axis})", "{a}.unfold({axis}, 2, 1)", wide),
    Line("ops.fold(ops.unfold({a}, 2, {axis}), {shape}, {axis})",
    "{a} * torch.tensor({held}).reshape({count})", wide),
    # Picking and putting.
    same("{a}[..., ::2]", longer),
    same("{a}[-1]", longer),
    Line("{a}[..., np.array([0, -1, 0])]", "{a}[..., torch.tensor([0, -1, 0])]", longer),
    same("{a}[{a} > 0]", longer),
    Line("ops.sort({a}, axis={axis})", "torch.sort({a}, dim={axis}, stable=True).values", axis),
    Line("ops.topk({a}, 1, axis={axis})[0]",
    "torch.sort({a}, dim={axis}, descending=True, stable=True).values"
         ".narrow({axis}, 0, 1)", axis),
    Line("ops.put_along_axis({a}, np.zeros({one}, int), ops.sum({b}), axis={axis})",
         "{a}.scatter({axis}, torch.zeros({one}, dtype=torch.int64), torch.sum({b}).expand({one}))", axis),
    Line("ops.scatter_add({a}, np.zeros({shape}, int), {a} * {a}, axis={axis})",
         "{a}.scatter_add({axis}, torch.zeros({shape}, dtype=torch.int64), {a} * {a})", axis),
    # Linear algebra.
    same("lib.matmul({a}, {b})", longer),
    same("lib.matmul({a}, {a}.mT)", matrix),
    same("lib.einsum('...i,...j->...ij', {a}, {b})", longer),
    same("lib.einsum('...ij,...kj->...ik', {a}, {b})", matrix),
    same("lib.einsum('...ii->...i', {a})", square),
    Line(f"ops.inv({NEAR_ONE})", f"torch.linalg.inv({NEAR_ONE_TORCH})", square),
    Line(f"ops.solve({NEAR_ONE}, {{a}})", f"torch.linalg.solve({NEAR_ONE_TORCH}, {{a}})", square),
    Line("ops.cholesky(ops.matmul({a}, {a}.mT) + 2.0 * np.eye({n}))",
         "torch.linalg.cholesky(torch.matmul({a}, {a}.mT) + 2.0 * torch.eye({n}))", matrix),
    Line(f"ops.matmul(*ops.qr({NEAR_ONE}))", f"torch.matmul(*torch.linalg.qr({NEAR_ONE_TORCH}))", tall),
    Line(f"ops.qr({NEAR_ONE})[1]", f"torch.linalg.qr({NEAR_ONE_TORCH})[1]", tall),
    Line(f"ops.svd({NEAR_ONE})[1]", f"torch.linalg.svd({NEAR_ONE_TORCH}, full_matrices=False)[1]", tall),
    Line(f"(lambda u, s, v: ops.matmul(u, v))(*ops.svd({NEAR_ONE}))",
         f"(lambda u, s, v: torch.matmul(u, v))(*torch.linalg.svd({NEAR_ONE_TORCH}, full_matrices=False))",
         tall),
    # Fourier transforms and complex numbers.
    Line("ops.real(ops.fft({a}, axis={axis}) * (1.0 + 0.5j))",
    "(torch.fft.fft({a}, dim={axis}) * (1.0 + 0.5j)).real", axis),
    Line("ops.imag(ops.conj(ops.ifft({a}, axis={axis})))",
    "torch.imag(torch.conj(torch.fft.ifft({a}, dim={axis})))", axis),
    Line("ops.irfft(ops.rfft({a}, axis={axis}) * (0.5 + 1.0j), {n}, axis={axis})",
         "torch.fft.irfft(torch.fft.rfft({a}, dim={axis}) * (0.5 + 1.0j), n={n}, dim={axis})", axis),
]  # fmt: skip


@dataclass
class Program:
    """Lines of code with their twins; `leaves` are the arrays that v0, v1, ... start from."""

    seed: int
    leaves: list[np.ndarray] = field(default_factory=list)
    ours: list[str] = field(default_factory=list)
    theirs: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)

    def run(self, leaves: list[Any]) -> dict[str, Any]:
        names: dict[str, Any] = {"ops": ops, "np": np, **{f"v{i}": x for i, x in enumerate(leaves)}}
        for line in self.ours:
            exec(line, names)
        return names

    def loss(self, *leaves: Any) -> Any:
        return self.run(list(leaves))["loss"]

    def __str__(self) -> str:
        start = ["import numpy as np", "from minitf import ops, tensor"]
        for i, a in enumerate(self.leaves):
            draw = f"np.random.default_rng([{self.seed}, {i}]).standard_normal({a.shape})"
            start.append(f"v{i} = tensor({draw}, requires_grad=True)")
        return "\n".join([*start, *self.ours, "loss.backward()"])


def program(seed: int, size: int, differentiable: bool = True) -> Program:
    """The first `size` lines of the endless program that `seed` stands for, and the sum of all loose ends."""
    rng = np.random.default_rng(seed)
    p = Program(seed)
    for i in range(3):
        shape = tuple(int(n) for n in rng.choice([1, 2, 3], size=rng.integers(0, 4)))
        p.leaves.append(np.asarray(np.random.default_rng([seed, i]).standard_normal(shape)))
    values = {f"v{i}": a for i, a in enumerate(p.leaves)}
    p.loose = list(values)
    while len(p.ours) < size:
        kind = LINES[rng.integers(len(LINES))]
        a, b = (list(values)[i] for i in rng.integers(len(values), size=2))
        filled = kind.fill(rng, values[a].shape)
        if filled is None or (differentiable and not kind.differentiable):
            continue
        name = f"v{len(values)}"
        ours, theirs = (f"{name} = {code.format(a=a, b=b, **filled)}" for code in (kind.ours, kind.theirs))
        names = {"ops": ops, "np": np, **values}
        try:
            exec(ours, names)
        except (ShapeError, ValueError):
            continue
        value = np.asarray(names[name])
        if not 0 < value.size <= 200:
            continue
        if np.abs(value).max() > 4.0:
            factor = f" * {2.0 ** -math.ceil(math.log2(np.abs(value).max() / 4.0))}"
            ours, theirs = f"{ours}\n{name} = {name}{factor}", f"{theirs}\n{name} = {name}{factor}"
            exec(ours, names)
        values[name] = np.asarray(names[name])
        p.ours.append(ours)
        p.theirs.append(theirs)
        used = {a, b} if "{b}" in kind.ours else {a}
        p.loose = [v for v in p.loose if v not in used] + [name]
    p.ours.append("loss = " + " + ".join(f"ops.sum(ops.sin({v}))" for v in p.loose))
    p.theirs.append("loss = " + " + ".join(f"torch.sum(torch.sin({v}))" for v in p.loose))
    return p


def derivatives(loss: Tensor, leaves: list[Tensor]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Gradients of the loss, and of the sum of their sines."""
    first = walk([loss], [np.ones(())], leaves, create_graph=True)
    bent = [ops.sum(ops.sin(g)) for g in first if g is not None]
    second = [None] * len(leaves)
    if any(g.requires_grad for g in bent):
        roots = [g for g in bent if g.requires_grad]
        second = walk(roots, [np.ones(())] * len(roots), leaves)
    return filled(first, leaves), filled(second, leaves)


def filled(grads: list[Any], leaves: list[Any]) -> list[np.ndarray]:
    arrays = [np.zeros(x.shape) if g is None else g for g, x in zip(grads, leaves, strict=True)]
    return [np.asarray(getattr(g, "detach", lambda g=g: g)()) for g in arrays]


def torch_run(p: Program) -> tuple[dict[str, Any], list[np.ndarray], list[np.ndarray]]:
    leaves = [torch.tensor(a, requires_grad=True) for a in p.leaves]
    names: dict[str, Any] = {"torch": torch, **{f"v{i}": x for i, x in enumerate(leaves)}}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        for line in p.theirs:
            exec(line, names)
        first = torch.autograd.grad(names["loss"], leaves, create_graph=True, allow_unused=True)
        bent = sum(torch.sum(torch.sin(g)) for g in first if g is not None)
        second: Any = [None] * len(leaves)
        if bent.requires_grad:
            second = torch.autograd.grad(bent, leaves, allow_unused=True)
    finally:
        torch.set_default_dtype(before)
    return names, filled(list(first), leaves), filled(list(second), leaves)


def close(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> bool:
    scale = max(1.0, float(np.max(np.abs(theirs), initial=0.0)))
    return ours.shape == theirs.shape and bool(
        np.max(np.abs(ours - theirs), initial=0.0) <= tolerance * scale
    )


def compare(p: Program) -> None:
    """Check one program against the oracle.

    Raises:
        AssertionError: with the program as code, and what differs.
    """
    if torch is None:
        try:
            check_grad(p.loss, *p.leaves, order=1, tolerance=1e-5)
        except Exception as error:
            raise AssertionError(f"{error}\nThe program:\n{p}") from error
        return
    leaves = [tensor(a, requires_grad=True) for a in p.leaves]
    names = p.run(leaves)
    expected, *orders = torch_run(p)
    for name, v in names.items():
        if isinstance(v, Tensor):
            theirs = np.asarray(expected[name].detach())
            assert close(v.numpy(), theirs, 1e-9), (
                f"{name} is {v.numpy()}, torch says {theirs}\nThe program:\n{p}"
            )
    for order, (ours, theirs) in enumerate(zip(derivatives(names["loss"], leaves), orders, strict=True), 1):
        for i, (g, h) in enumerate(zip(ours, theirs, strict=True)):
            # Every order loses some digits where functions bend sharply.
            good = close(g, h, 1e-8 * 100 ** (order - 1))
            assert good, f"derivative {order} by v{i} is {g}, torch says {h}\nThe program:\n{p}"


@pytest.mark.parametrize("oracle", [ORACLE])
@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 12))
def test_random_programs(oracle: str, seed: int, size: int) -> None:
    compare(program(seed, size, differentiable=oracle == "differences"))


def test_programs_cover_the_table_of_derivatives() -> None:
    seen: set[str] = set()
    STATE.watch = lambda name, *_: seen.add(name)
    try:
        for seed in range(150):
            p = program(seed, 12, differentiable=False)
            p.loss(*[tensor(a, requires_grad=True) for a in p.leaves]).backward()
    finally:
        STATE.watch = None
    missing = sorted(set(RULES) - seen)
    assert not missing, f"operations that no line of the fuzz test draws: {missing}"


def test_a_wrong_rule_is_caught_and_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle can fail: with a sine whose slope is 1 % off, some program differs, and is shown as code."""
    from minitf.engine import OPS

    monkeypatch.setattr(OPS["sin"], "rule", (lambda g, y, x: 1.01 * g * ops.cos(x),))
    with pytest.raises(
        AssertionError, match=r"(?s)The program:.*import numpy as np.*v0 = tensor.*loss\.backward\(\)"
    ):
        for seed in range(5):
            compare(program(seed, 3))

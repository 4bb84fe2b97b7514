"""Tensor, record, walk: reverse-mode differentiation on a tape of recipes.

Every operation that touches a tensor needing a gradient leaves a *recipe* on its output: which operation,
with which arguments. `walk` goes through the recipes from the last to the first and asks one table
(`rules.py`) for the derivative of each. No closure is stored, so the same table serves two modes:

    plain     rules are called with arrays and give arrays: a fast ordinary backward
    recorded  rules are called with tensors and give tensors: their own recipes can be walked again,
              which gives derivatives of any order

Shapes: the gradient that reaches a tensor has the tensor's shape. Operations broadcast as NumPy does, and the
walk undoes that in one place (`match`), so no rule mentions it.

Complex numbers: inside the walk a cotangent is dL/dRe - i dL/dIm, which lets rules of analytic functions stay
as they are for real ones. What enters and leaves (`x.grad`) is dL/dRe + i dL/dIm, the steepest ascent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count
from sys import getrefcount
from types import NoneType
from typing import Any

import numpy as np

from .arrays import SMALL, Array, array_module, device_of, fingerprint, to_device
from .errors import DTypeError, GraphError
from .guards import agree, already_walked, changed_in_place, check_cotangent, explained
from .state import STATE, Each, F, Op, Together
from .surface import Surface

# Arguments that are certainly not arrays.
NOT_ARRAYS = frozenset((int, float, bool, complex, str, tuple, NoneType))

# Outputs get smaller numbers than their inputs, so that a heap hands them out first.
next_order = count(-1, -1).__next__


# Takes one output from an operation with several. `walk` knows how to undo it.
PICK = Op("pick", lambda outputs, i: outputs[i])
# The recipe of a tensor whose graph has been walked and let go.
FREED: tuple[Any, ...] = (Op("freed", lambda: None), (), {}, (), (), None)


class Tensor(Surface):
    """An array that remembers how it was made. Build one with `tensor`.

    Attributes:
        data: the NumPy or CuPy array.
        grad: after `backward`, the gradient of a leaf as a Tensor of the same shape, else None.
        requires_grad: whether a backward pass should reach this tensor.
    """

    __slots__ = ("__weakref__", "data", "grad", "order", "recipe", "requires_grad")

    def __init__(self, data: Array, requires_grad: bool = False):
        self.data = data
        self.grad: Tensor | None = None
        self.order = 0
        self.recipe: tuple[Any, ...] | None = None
        self.requires_grad = requires_grad
        if requires_grad and data.dtype.kind not in "fc":
            raise DTypeError(
                f"a tensor of {data.dtype} cannot require a gradient: only floating-point tensors "
                "differentiate. Convert it first: mt.tensor(a, dtype='float32', requires_grad=True)"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def device(self) -> str:
        return device_of(self.data)

    def __len__(self) -> int:
        if not self.data.shape:
            raise TypeError("a 0-d tensor has no length")
        return self.data.shape[0]

    def __repr__(self) -> str:
        made = f", made by {self.recipe[0].name}" if self.recipe else ""
        flag = ", requires_grad=True" if self.requires_grad else ""
        return f"tensor({np.array2string(self.numpy(), separator=', ', prefix='tensor(')}{flag}{made})"

    def item(self) -> Any:
        """Return the only element as a Python number."""
        return self.data.item()

    def __float__(self) -> float:
        return float(self.data)

    def __int__(self) -> int:
        return int(self.data)

    def __bool__(self) -> bool:
        return bool(self.data)

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return the values as a NumPy array (the tensor's own memory if it lives on the CPU)."""
        return to_device(self.data, "cpu")

    def detach(self) -> Tensor:
        """Return a tensor of the same array that no gradient passes through."""
        return Tensor(self.data)

    def to(self, device: str) -> Tensor:
        """Return the tensor on "cpu" or "cuda". Moving is an operation: gradients flow back through it."""
        return self if device == self.device else F.to_device(self, device)

    def backward(
        self, grad: Any = None, create_graph: bool = False, retain_graph: bool | None = None
    ) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf that it was made from.

        Args:
            grad: the gradient of the final scalar with respect to this tensor, of this tensor's shape. Only a
                scalar may leave it out.
            create_graph: make the gradients differentiable too, for higher orders.
            retain_graph: keep the recipes for another backward. Default: the value of `create_graph`.

        Raises:
            GraphError: not a scalar, nothing to differentiate, the recipes were freed by an earlier
                backward, or an array that a rule needs was changed in place.
        """
        if not self.requires_grad:
            raise GraphError(
                "backward() on a tensor that needs no gradient: make an input with "
                "mt.tensor(a, requires_grad=True), and compute outside mt.no_grad()"
            )
        walk([self], [cotangent_for(self, grad)], None, create_graph, retain_graph)


def tensor(a: Any, requires_grad: bool = False, dtype: Any = None, device: str | None = None) -> Tensor:
    """Copy `a` into a new tensor.

    Args:
        a: an array, number, nested list, or tensor, of any shape.
        requires_grad: whether gradients should be computed for it.
        dtype: element type; default is NumPy's choice (Python floats become float64).
        device: "cpu" or "cuda"; default is where `a` lives.

    Raises:
        DTypeError: a gradient for integers or booleans, or elements that are not numbers.
    """
    a = a.data if isinstance(a, Tensor) else a
    data = array_module(a).array(a, dtype=dtype)
    if data.dtype.kind not in "biufcV":
        raise DTypeError(f"elements of type {data.dtype} are not numbers")
    return Tensor(data if device is None else to_device(data, device), requires_grad)


def record(op: Op, args: Sequence[Any], options: dict[str, Any]) -> Any:
    """Run `op` on the arrays inside `args`; leave a recipe on the output if a gradient may pass through it.

    A recipe is the tuple (op, values, options, parents, seals, seal):
        values   the arguments as plain arrays and numbers
        parents  in the same order, the tensors that need a gradient, None for the others
        seals    pairs (array, fingerprint) of the arguments that no operation made
        seal     the output's fingerprint
    Fingerprints notice arrays that change in place. What an operation made is sealed once, as its output.
    """
    values: list[Any] = []
    parents: list[Tensor | None] = []
    seals: list[tuple[Array, bytes | None]] = []
    dtype = None
    mixed = False
    needed = False
    for a in args:
        value, parent = a, None
        if isinstance(a, Tensor):
            value = a.data
            if value.dtype is not dtype:
                mixed = mixed or dtype is not None
                dtype = value.dtype
            if a.requires_grad:
                parent = a
                needed = True
            if a.recipe is None:
                seals.append((value, fingerprint(value)))
        elif type(a) not in NOT_ARRAYS:
            mixed = True
            seals.append((a, fingerprint(a)))
        values.append(value)
        parents.append(parent)
    precision = agree(op, args, values) if mixed else None
    try:
        out = op.body(*values, **options)
    except (ValueError, IndexError, TypeError) as error:
        agree(op, args, values)
        better = explained(op, values, error)
        if better is None:
            raise
        raise better from error
    tape = needed and op.rule is not None and STATE.grad
    if type(out) is tuple:
        if STATE.watch is not None:
            STATE.watch(op.name, values, options, out)
        bundle = new_tensor(out, (op, values, options, parents, seals, None) if tape else None)
        return tuple(None if part is None else pick(bundle, i) for i, part in enumerate(out))
    if isinstance(out, np.generic):
        out = np.asarray(out)
    kind = out.dtype.kind
    if precision is not None and kind in "fc" and out.real.dtype != precision:
        out = out.astype(np.result_type(precision, np.complex64) if kind == "c" else precision)
    if STATE.watch is not None:
        STATE.watch(op.name, values, options, out)
    tape = tape and kind in "fc"
    return new_tensor(out, (op, values, options, parents, seals, fingerprint(out)) if tape else None)


def new_tensor(data: Any, recipe: tuple[Any, ...] | None) -> Tensor:
    y = Tensor.__new__(Tensor)
    y.data = data
    y.grad = None
    y.recipe = recipe
    y.requires_grad = recipe is not None
    y.order = next_order() if recipe is not None else 0
    return y


def pick(bundle: Tensor, i: int) -> Tensor:
    """Return output `i` of an operation with several outputs."""
    part = bundle.data[i]
    if not bundle.requires_grad or part.dtype.kind not in "fc":
        return new_tensor(part, None)
    return new_tensor(part, (PICK, (bundle.data, i), {}, (bundle, None), (), fingerprint(part)))


def cotangent_for(y: Tensor, grad: Any) -> Any:
    """Return the gradient that starts a backward pass at `y`: `grad`, checked, or 1 for a scalar."""
    if grad is None:
        if y.data.size != 1:
            raise GraphError(
                f"backward() without an argument needs a scalar, not shape {y.shape}: reduce it first, "
                "for example y.sum().backward(), or pass the gradient: y.backward(grad)"
            )
        return array_module(y.data).ones_like(y.data)
    raw = grad.data if isinstance(grad, Tensor) else array_module(y.data).asarray(grad, dtype=y.dtype)
    check_cotangent(y, raw)
    g = grad if isinstance(grad, Tensor) else raw
    return F.conj(g) if raw.dtype.kind == "c" else g


def walk(
    roots: Sequence[Tensor],
    cotangents: Sequence[Any],
    inputs: Sequence[Tensor] | None = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Any]:
    """Carry `cotangents` from `roots` back through the recipes.

    Args:
        roots: tensors to start from; cotangents: an array or Tensor of the same shape for each.
        inputs: tensors to stop at and return the gradients of, in order (None where nothing arrives).
            If None, gradients are added to `.grad` of every leaf instead.
        create_graph: call the rules with tensors, so that what is returned can be differentiated again.
        retain_graph: do not free the recipes. Default: the value of `create_graph`.
    """
    retain = create_graph if retain_graph is None else retain_graph
    # Rules get tensors when their own operations must be recorded, or watched.
    on_tensors = create_graph or STATE.watch is not None
    stop = frozenset(inputs or ())
    # What has arrived at each tensor so far. Tensors with a recipe also wait in `heap`, the last made first:
    # when one is taken out, everything that used it has been walked, so its gradient is complete.
    grads: dict[Tensor, Any] = {}
    heap: list[tuple[int, Tensor]] = []
    for t, g in zip(roots, cotangents, strict=True):
        if isinstance(g, Tensor) is not on_tensors:
            g = Tensor(g) if on_tensors else g.data
        if t in grads:
            g = grads[t] + g
        elif t.recipe is not None and t not in stop:
            heappush(heap, (t.order, t))
        grads[t] = g

    grad_mode, walking = STATE.grad, STATE.walking
    STATE.grad = create_graph
    try:
        while heap:
            t = heappop(heap)[1]
            g = grads.pop(t)
            recipe: Any = t.recipe
            # Freed here, so that nothing outlives its use.
            if not retain:
                t.recipe = FREED
            op, values, options, parents, seals, seal = recipe
            y = t.data
            if seal is not None and seal != (y.tobytes() if y.nbytes <= SMALL else fingerprint(y)):
                raise changed_in_place(op, y)
            for array, seal in seals:
                if seal is not None and seal != (
                    array.tobytes() if array.nbytes <= SMALL else fingerprint(array)
                ):
                    raise changed_in_place(op, array)
            rules = op.rule
            if on_tensors or type(rules) is not tuple:
                if recipe is FREED:
                    raise already_walked()
                if op is PICK:
                    bundle, i = parents[0], values[1]
                    if bundle not in grads:
                        grads[bundle] = [None] * len(bundle.data)
                        heappush(heap, (bundle.order, bundle))
                    parts = grads[bundle]
                    parts[i] = g if parts[i] is None else parts[i] + g
                    continue
                STATE.walking = op.name
                if on_tensors:
                    y, values = as_tensors(t, values, parents)
                rules = rule_for_each(op.rule, g, y, values, options, parents)
            for a, rule in zip(parents, rules):
                if a is None or rule is None:
                    continue
                ga = rule(g, y, *values, **options) if options else rule(g, y, *values)
                if ga is None:
                    continue
                like = a.data
                if ga.shape != like.shape or ga.dtype is not like.dtype:
                    ga = match(ga, like)
                earlier = grads.get(a)
                if earlier is not None:
                    grads[a] = earlier + ga
                else:
                    grads[a] = ga
                    if a.recipe is not None and a not in stop:
                        heappush(heap, (a.order, a))
    finally:
        STATE.grad, STATE.walking = grad_mode, walking
    if inputs is not None:
        return [grads.get(t) for t in inputs]
    # What the last rules left would count as another holder of the gradients, and they would be copied.
    g = ga = rule = rules = None
    while grads:
        t, g = grads.popitem()
        deposit(t, g)
    return []


def as_tensors(t: Tensor, values: Sequence[Any], parents: Sequence[Tensor | None]) -> tuple[Any, list[Any]]:
    """The output and the arguments of a recipe, as tensors where a gradient may pass."""
    y = tuple(pick(t, i) for i in range(len(t.data))) if type(t.data) is tuple else t
    return y, [v if a is None else a for v, a in zip(values, parents, strict=True)]


def rule_for_each(
    rule: Any, g: Any, y: Any, values: Sequence[Any], options: dict[str, Any], parents: Sequence[Any]
) -> Sequence[Any]:
    """Write `Each` and `Together` as the table writes simple operations: one rule for each argument."""
    if isinstance(rule, Each):
        return [partial(rule.rule, i) for i in range(len(parents))]
    if isinstance(rule, Together):
        needed = {i for i, a in enumerate(parents) if a is not None}
        gradients = rule.rule(needed, g, y, *values, **options)
        return [None if gi is None else (lambda *_, gi=gi, **__: gi) for gi in gradients]
    return rule


def match(g: Any, like: Array) -> Any:
    """Undo broadcasting and promotion: sum `g` down to the shape of `like`, in the dtype of `like`."""
    if g.shape != like.shape:
        extra = g.ndim - like.ndim
        axes = tuple(range(extra)) + tuple(
            extra + i for i, n in enumerate(like.shape) if n == 1 and g.shape[extra + i] != 1
        )
        g = g.sum(axis=axes, keepdims=True).reshape(like.shape)
    if g.dtype != like.dtype:
        if g.dtype.kind == "c" and like.dtype.kind != "c":
            g = F.real(g)
        g = F.astype(g, like.dtype) if g.dtype != like.dtype else g
    return g


def deposit(leaf: Tensor, g: Any) -> None:
    """Add `g` to `leaf.grad`."""
    if type(g) is np.ndarray and g.flags.owndata and getrefcount(g) <= 3:
        # Nobody else has this array: only `walk`, this function and the count itself.
        g = Tensor(g)
    else:
        # A copy: rules may hand the same array to two arguments, or a view of it.
        g = F.copy(g) if isinstance(g, Tensor) else Tensor(array_module(g).array(g))
    if g.dtype.kind == "c":
        g = F.conj(g)
    leaf.grad = g if leaf.grad is None else leaf.grad + g

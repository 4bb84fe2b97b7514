"""Tensor, record, walk: reverse-mode differentiation on a tape of recipes.

Every operation that touches a tensor needing a gradient leaves a *recipe* on its output: which operation,
with which arguments. `walk` goes through the recipes from the last to the first and asks one table (`rules.py`)
for the derivative of each. No closure is stored, so the same table serves two modes:

    plain     rules are called with arrays and give arrays: a fast ordinary backward
    recorded  rules are called with tensors and give tensors: their own recipes can be walked again,
              which gives derivatives of any order

Shapes: the gradient that reaches a tensor has the tensor's shape. Operations broadcast as NumPy does, and the
walk undoes that in one place (`match`), so no rule mentions it.

Complex numbers: inside the walk a cotangent is dL/dRe - i dL/dIm, which lets rules of analytic functions stay
as they are for real ones. What enters and leaves (`x.grad`) is dL/dRe + i dL/dIm, the steepest ascent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count
from types import NoneType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .arrays import SMALL, Array, array_module, device_of, fingerprint, to_device
from .errors import DTypeError, GraphError
from .guards import agree, already_walked, changed_in_place, check_cotangent, explained

# The operations by name, filled by `minitf.ops`. Rules look operations up here, so the engine imports nothing
# that stands on it.
F: Any = SimpleNamespace()

# grad: whether recipes are recorded. walking: name of the operation whose rule is running, else None.
# watch: None, or called as watch(name, values, options, output) after every operation.
STATE = SimpleNamespace(grad=True, walking=None, watch=None)

# Arguments that are certainly not arrays.
NOT_ARRAYS = frozenset((int, float, bool, complex, str, tuple, NoneType))

# Outputs get smaller numbers than their inputs, so that a heap hands them out first.
next_order = count(-1, -1).__next__


class Op:
    """One operation: its name, its body on plain arrays, and its rule from the table (None: a constant)."""

    __slots__ = ("body", "name", "rule")

    def __init__(self, name: str, body: Callable[..., Any], rule: Any = None):
        self.name, self.body, self.rule = name, body, rule


class Each(NamedTuple):
    """A rule for any number of arguments, called as rule(i, g, y, *arguments) for each argument i in need."""

    rule: Callable[..., Any]


class Together(NamedTuple):
    """A rule that gives all gradients at once, as a tuple: rule(needed, g, y, *arguments).

    `needed` is the set of positions that want a gradient. If the operation has several outputs, `g` is a list,
    `y` a tuple, and g[i] is None for an output that nothing depends on.
    """

    rule: Callable[..., Any]


# Takes one output from an operation with several. `walk` knows how to undo it.
PICK = Op("pick", lambda outputs, i: outputs[i])
# The recipe of a tensor whose graph has been walked and let go.
FREED = (Op("freed", lambda: None), (), {}, (), None, None)


class Tensor:
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

    if TYPE_CHECKING:
        # `minitf.ops.methods` attaches the operators and methods: x + y, x[0], x.sum(axis=-1) and so on.
        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __iter__(self) -> Iterator[Tensor]: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __invert__(self) -> Tensor: ...

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

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "tensors are values and cannot be assigned into: build a new one with mt.ops.where or "
            "mt.ops.put_along_axis, or write to x.data before x is used"
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if self.requires_grad:
            raise TypeError(
                "NumPy asked for the array of a tensor that requires a gradient, which would cut the graph "
                "silently: use the function of the same name in mt.ops, or x.detach().numpy()"
            )
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        # `array + tensor` arrives here; other NumPy functions would lose the gradient.
        if method == "__call__" and not options and ufunc.__name__ in ARRAY_OPERATORS:
            return getattr(F, ARRAY_OPERATORS[ufunc.__name__])(*inputs)
        if any(isinstance(a, Tensor) and a.requires_grad for a in inputs):
            raise TypeError(
                f"np.{ufunc.__name__} on a tensor would cut the graph silently: use "
                f"mt.ops.{ufunc.__name__}(x), or x.detach().numpy() for the plain array"
            )
        return getattr(ufunc, method)(
            *[a.numpy() if isinstance(a, Tensor) else a for a in inputs], **options
        )


# NumPy's own operators, for `array * tensor`: they record like `tensor * array`.
ARRAY_OPERATORS = {
    name: name
    for name in "add subtract multiply divide matmul equal not_equal less less_equal greater greater_equal "
    "floor_divide remainder bitwise_and bitwise_or bitwise_xor".split()
} | {"power": "pow", "true_divide": "divide"}


def tensor(
    a: Any, requires_grad: bool = False, dtype: Any = None, device: str | None = None
) -> Tensor:
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
        seals    None, or in the same order fingerprints, to notice arrays that change in place
        seal     the output's fingerprint
    """
    values, parents, seals = [], [], []
    dtype = None
    mixed = False
    needed = False
    for a in args:
        value, parent, seal = a, None, None
        if isinstance(a, Tensor):
            value = a.data
            if value.dtype is not dtype:
                mixed = mixed or dtype is not None
                dtype = value.dtype
            if a.requires_grad:
                parent = a
                needed = True
            # The output of an operation is sealed once, where it is made.
            if a.recipe is None:
                seal = fingerprint(value)
        elif type(a) not in NOT_ARRAYS:
            mixed = True
            seal = fingerprint(a)
        values.append(value)
        parents.append(parent)
        seals.append(seal)
    precision = agree(op, args, values) if mixed else None
    try:
        out = op.body(*values, **options)
    except (ValueError, IndexError) as error:
        raise explained(op, values, error) from error
    if STATE.watch is not None:
        STATE.watch(op.name, values, options, out)
    tape = needed and op.rule is not None and STATE.grad
    if type(out) is tuple:
        recipe = (op, values, options, parents, seals, None) if tape else None
        bundle = new_tensor(out, recipe)
        return tuple(None if part is None else pick(bundle, i) for i, part in enumerate(out))
    if isinstance(out, np.generic):
        out = np.asarray(out)
    if precision is not None and out.dtype.kind in "fc" and out.real.dtype != precision:
        out = out.astype(np.result_type(precision, np.complex64) if out.dtype.kind == "c" else precision)
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
    differentiable = bundle.requires_grad and part.dtype.kind in "fc"
    return new_tensor(part, (PICK, (bundle.data, i), {}, (bundle, None), None, None) if differentiable else None)


def agree(op: Op, args: Sequence[Any], values: list[Any]) -> np.dtype[Any] | None:
    """Check that the tensors among `args` may meet; return the precision of the result.

    Tensors must agree in precision and device. Plain arrays are constants: they follow the tensors.
    """
    tensors = [a for a in args if isinstance(a, Tensor)]
    devices = {a.device for a in tensors}
    if len(devices) > 1:
        raise DeviceError(
            f"{op.name}: tensors on {' and '.join(sorted(devices))}; move them together with x.to('cpu') or x.to('cuda')"
        )
    floats = [a.data.dtype for a in tensors if a.data.dtype.kind in "fc"]
    precisions = {np.finfo(d).dtype for d in floats}
    if len(precisions) > 1:
        raise DTypeError(
            f"{op.name}: tensors of {' and '.join(d.name for d in floats)} do not mix; "
            "convert one of them, for example x.astype('float32')"
        )
    for i, a in enumerate(args):
        if isinstance(a, np.ndarray) and devices and device_of(a) not in devices:
            values[i] = to_device(a, "cuda")
    return precisions.pop() if precisions else None


def explained(op: Op, values: Sequence[Any], error: Exception) -> MinitfError:
    """Turn NumPy's complaint into one that names the operation and every shape."""
    shapes = [v.shape for v in values if hasattr(v, "shape")]
    reason = str(error)
    if isinstance(error, IndexError):
        return PositionError(f"{op.name}: shape {', '.join(map(str, shapes[:1]))}: {reason}")
    if isinstance(op.body, np.ufunc) and op.name != "matmul" and len(shapes) == 2:
        bad = [
            -i
            for i, (m, n) in enumerate(zip(shapes[0][::-1], shapes[1][::-1], strict=False), 1)
            if m != n and 1 not in (m, n)
        ]
        reason = f"sizes differ on axis {', '.join(map(str, bad))} (counted from the last) and neither is 1"
    elif len(shapes) == 2 and op.name == "matmul" and all(shapes):
        left, right = shapes[0][-1], shapes[1][-2 if len(shapes[1]) > 1 else 0]
        if left != right:
            reason = f"the last axis of the first has size {left}, axis -2 of the second has size {right}"
    return ShapeError(f"{op.name}: shapes {' and '.join(map(str, shapes)) or '()'} do not fit: {reason}")


def cotangent_for(y: Tensor, grad: Any) -> Any:
    """Return the gradient that starts a backward pass at `y`: `grad` checked against `y`, or 1 for a scalar."""
    if grad is None:
        if y.data.size != 1:
            raise GraphError(
                f"backward() without an argument needs a scalar, not shape {y.shape}: reduce it first, "
                "for example y.sum().backward(), or pass the gradient: y.backward(grad)"
            )
        return array_module(y.data).ones_like(y.data)
    raw = grad.data if isinstance(grad, Tensor) else array_module(y.data).asarray(grad, dtype=y.dtype)
    if raw.shape != y.shape:
        raise ShapeError(f"the gradient has shape {raw.shape}, the tensor {y.shape}: they must be equal")
    if raw.dtype != y.dtype:
        raise DTypeError(f"the gradient has dtype {raw.dtype}, the tensor {y.dtype}: they must be equal")
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

    # Every tensor on the way, sorted by when it was made: outputs come after their inputs.
    reached = set(roots)
    stack = list(reached)
    while stack:
        t = stack.pop()
        recipe = t.recipe
        if recipe is None or t in stop:
            continue
        if recipe is FREED:
            raise GraphError(
                "this graph was already walked and its recipes freed: compute the output again, or pass "
                "retain_graph=True to the first backward"
            )
        for a in recipe[3]:
            if a is not None and a not in reached:
                reached.add(a)
                stack.append(a)
    pending = sorted(reached, key=_by_order)
    reached.clear()

    grads: dict[Tensor, Any] = {}
    for t, g in zip(roots, cotangents, strict=True):
        if isinstance(g, Tensor) is not on_tensors:
            g = Tensor(g) if on_tensors else g.data
        grads[t] = grads[t] + g if t in grads else g
    found: dict[Tensor, Any] = {}

    grad_mode, walking = STATE.grad, STATE.walking
    STATE.grad = create_graph
    try:
        while pending:
            # Popped here and freed below, so that nothing outlives its use.
            t = pending.pop()
            g = grads.pop(t, None)
            recipe = t.recipe
            if recipe is None or t in stop:
                if g is not None:
                    found[t] = g
                continue
            if not retain:
                t.recipe = FREED
            if g is None:
                continue
            op, values, options, parents, seals, seal = recipe
            y = t.data
            if seal is not None and seal != (y.tobytes() if y.nbytes <= 2048 else fingerprint(y)):
                raise changed_in_place(op, y)
            if seals is not None:
                for array, seal in zip(values, seals, strict=True):
                    if seal is not None and seal != fingerprint(array):
                        raise changed_in_place(op, array)
            if op is PICK:
                bundle, i = parents[0], values[1]
                parts = grads.setdefault(bundle, [None] * len(bundle.data))
                parts[i] = g if parts[i] is None else parts[i] + g
                continue
            if on_tensors:
                STATE.walking = op.name
                y, values = as_tensors(t, values, parents)
            rule = op.rule
            if type(rule) is not tuple:
                rule = every_rule(rule, g, y, values, options, parents)
            for i, a in enumerate(parents):
                if a is None:
                    continue
                ga = rule[i]
                if ga is None:
                    continue
                ga = ga(g, y, *values, **options) if options else ga(g, y, *values)
                like = a.data
                if ga.shape != like.shape or ga.dtype is not like.dtype:
                    ga = match(ga, like)
                if a in grads:
                    ga = grads[a] + ga
                grads[a] = ga
    finally:
        STATE.grad, STATE.walking = grad_mode, walking
    if inputs is not None:
        return [found.get(t) for t in inputs]
    for t, g in found.items():
        deposit(t, g, create_graph)
    return []


def as_tensors(t: Tensor, values: Sequence[Any], parents: Sequence[Tensor | None]) -> tuple[Any, list[Any]]:
    """The output and the arguments of a recipe, as tensors where a gradient may pass."""
    y = tuple(pick(t, i) for i in range(len(t.data))) if type(t.data) is tuple else t
    return y, [v if a is None else a for v, a in zip(values, parents, strict=True)]


def every_rule(
    rule: Each | Together, g: Any, y: Any, values: Sequence[Any], options: dict[str, Any], parents: Sequence[Any]
) -> list[Any]:
    """Write `Each` and `Together` as the table writes simple operations: one rule for each argument."""
    if isinstance(rule, Each):
        return [partial(rule.rule, i) for i in range(len(parents))]
    needed = {i for i, a in enumerate(parents) if a is not None}
    gradients = [*rule.rule(needed, g, y, *values, **options)]
    return [None if gi is None else (lambda *_, gi=gi, **__: gi) for gi in gradients]


def changed_in_place(op: Op, array: Array) -> GraphError:
    return GraphError(
        f"{op.name}: an array of shape {array.shape} that the backward pass needs was changed in place after it "
        "was used; make a new array instead, or change it after backward()"
    )


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


def deposit(leaf: Tensor, g: Any, create_graph: bool) -> None:
    """Add `g` to `leaf.grad`."""
    if not create_graph:
        # A copy: rules may hand the same array to two arguments, or a view of it.
        g = Tensor(array_module(leaf.data).array(g.data if isinstance(g, Tensor) else g))
    if g.dtype.kind == "c":
        g = F.conj(g)
    leaf.grad = g if leaf.grad is None else leaf.grad + g

"""What may not meet, and how the errors say it.

The engine runs first and asks questions here only where something is unusual: types that differ, an operation
that NumPy refused, an array that is not what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import Array, device_of, to_device
from .errors import DeviceError, DTypeError, GraphError, MinitfError, PositionError, ShapeError
from .state import Op

if TYPE_CHECKING:
    from .tape import Tensor


# What users call, for operations whose recorded part has a name of its own.
PUBLIC = {
    "concat_parts": "concat",
    "stack_parts": "stack",
    "einsum_pairs": "einsum",
    "softmax_rows": "softmax",
    "pad_constant": "pad",
    "getitem": "x[index]",
}


def agree(op: Op, args: Sequence[Any], values: list[Any]) -> np.dtype[Any] | None:
    """Check that the tensors among `args` may meet; return the precision of the result, None for no floats.

    Tensors must agree in precision and device. Plain arrays are constants: they follow the tensors, and those
    in `values` are moved to the tensors' device.

    Args:
        op: the operation.
        args: its arguments.
        values: the same with the array of each tensor in the tensor's place.
    """
    of_tensors = [value for a, value in zip(args, values, strict=True) if a is not value]
    devices = {device_of(value) for value in of_tensors}
    if len(devices) > 1:
        raise DeviceError(
            f"{op.name}: tensors on {' and '.join(sorted(devices))} do not mix; "
            "move one of them, with x.to('cpu') or x.to('cuda')"
        )
    floats = [value.dtype for value in of_tensors if value.dtype.kind in "fc"]
    precisions = {np.finfo(d).dtype for d in floats}
    if len(precisions) > 1:
        raise DTypeError(
            f"{op.name}: tensors of {' and '.join(d.name for d in floats)} do not mix; "
            "convert one of them, for example x.astype('float32')"
        )
    for i, value in enumerate(values):
        if isinstance(value, np.ndarray) and "cuda" in devices:
            values[i] = to_device(value, "cuda")
    return precisions.pop() if precisions else None


def explained(op: Op, values: Sequence[Any], error: Exception) -> MinitfError | None:
    """Turn NumPy's complaint about shapes into one that names the operation, every shape and the axes.

    None: the complaint is about something else and says so itself.
    """
    if isinstance(error, MinitfError | TypeError | np.linalg.LinAlgError):
        return None
    shapes = [v.shape for v in values if hasattr(v, "shape")]
    reason = str(error)
    name = PUBLIC.get(op.name, op.name)
    if isinstance(error, IndexError):
        return PositionError(f"{name}: shape {', '.join(map(str, shapes[:1]))}: {reason}")
    if len(shapes) == 2 and op.name == "matmul" and all(shapes):
        left, right = shapes[0][-1], shapes[1][-2 if len(shapes[1]) > 1 else 0]
        if left != right:
            reason = f"axis -1 of the first has size {left}, axis -2 of the second has size {right}"
        else:
            reason = f"batch {axes_that_differ(shapes[0][:-2], shapes[1][:-2], 3)}"
    elif len(shapes) == 2 and isinstance(op.body, np.ufunc):
        reason = axes_that_differ(*shapes) or reason
    return ShapeError(f"{name}: shapes {' and '.join(map(str, shapes)) or '()'} do not fit: {reason}")


def axes_that_differ(left: tuple[int, ...], right: tuple[int, ...], last: int = 1) -> str:
    """Name the axes, counted from the last, that do not broadcast; `last` is the number of the last."""
    pairs = enumerate(zip(left[::-1], right[::-1], strict=False), last)
    bad = [str(-i) for i, (m, n) in pairs if m != n and 1 not in (m, n)]
    return f"sizes differ on axis {', '.join(bad)} (counted from the last) and neither is 1" if bad else ""


def check_cotangent(y: Tensor, raw: Array) -> None:
    """Check that the array `raw` can be the gradient of `y`."""
    if raw.shape != y.shape:
        raise ShapeError(f"the gradient has shape {raw.shape}, the tensor {y.shape}: they must be equal")
    if raw.dtype != y.dtype:
        raise DTypeError(f"the gradient has dtype {raw.dtype}, the tensor {y.dtype}: they must be equal")
    if device_of(raw) != y.device:
        raise DeviceError(f"the gradient is on {device_of(raw)}, the tensor on {y.device}: move one of them")


def already_walked() -> GraphError:
    return GraphError(
        "this graph was already walked and its recipes freed: compute the output again, or pass "
        "retain_graph=True to the first backward"
    )


def changed_in_place(op: Op, array: Array) -> GraphError:
    return GraphError(
        f"{op.name}: an array of shape {array.shape} that the backward pass needs was changed in place after "
        "it was used; make a new array instead, or change it after backward()"
    )

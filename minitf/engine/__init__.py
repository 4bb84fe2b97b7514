"""The autograd engine: tensors, the tape, the table of derivatives."""

from .arrays import Array, array_module, device_of, to_device
from .check import GradientError, check_grad
from .errors import AnomalyError, DeviceError, DTypeError, GraphError, MinitfError, ShapeError
from .primitive import OPS, primitive, ufunc_operation
from .state import STATE, F, Op, Together
from .tape import Tensor, record, tensor, walk
from .transforms import (
    checkpoint,
    detect_anomaly,
    grad,
    hvp,
    jacobian,
    no_grad,
    stop_gradient,
    value_and_grad,
    vjp,
)

__all__ = [
    "OPS", "STATE", "AnomalyError", "Array", "DTypeError", "DeviceError", "F", "GradientError", "GraphError",
    "MinitfError", "Op", "ShapeError", "Tensor", "Together", "array_module", "check_grad", "checkpoint",
    "detect_anomaly", "device_of", "ufunc_operation", "grad", "hvp", "jacobian", "no_grad", "primitive",
    "record", "stop_gradient", "tensor", "to_device", "value_and_grad", "vjp", "walk",
]  # fmt: skip

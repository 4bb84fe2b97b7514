"""minitf: transformers that a person can read from top to bottom, on a small autograd engine over NumPy.

    import minitf as mt
    layer = mt.build("softmax_attention", dim=64, heads=4, seed=0)
    y = layer(mt.tensor(x))

The engine and the operations are here at once; everything else is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import ops
from .engine import (
    AnomalyError,
    DeviceError,
    DTypeError,
    GradientError,
    GraphError,
    MinitfError,
    ShapeError,
    Tensor,
    check_grad,
    checkpoint,
    detect_anomaly,
    grad,
    hvp,
    jacobian,
    no_grad,
    stop_gradient,
    tensor,
    value_and_grad,
    vjp,
)
from .ops import arange, eye, full, linspace, ones, straight_through, zeros
from .ops.kernels import BackendError, active, explain, use
from .profile import profile

if TYPE_CHECKING:
    from . import attention, blocks, catalogue, decode, ffn, models, nn, tasks, testing, train, viz
    from .models.files import load, save
    from .registry import build

__version__ = "0.1.0"

__all__ = [
    "AnomalyError", "BackendError", "DTypeError", "DeviceError", "GradientError", "GraphError",
    "MinitfError", "ShapeError", "Tensor", "active", "arange", "attention", "blocks", "build",
    "catalogue", "check_grad", "checkpoint", "decode", "detect_anomaly", "explain", "eye", "ffn", "full",
    "grad", "hvp", "jacobian", "linspace", "load", "models", "nn", "no_grad", "ones", "ops", "profile",
    "save", "stop_gradient", "straight_through", "tasks", "tensor", "testing", "train", "use",
    "value_and_grad", "viz", "vjp", "zeros",
]  # fmt: skip

# Rooms, and names from rooms, that are imported on first use.
_ROOMS = (
    "attention", "blocks", "catalogue", "decode", "ffn", "models", "nn", "tasks", "testing", "train",
    "viz",
)  # fmt: skip
_NAMES = {"build": "registry", "load": "models.files", "save": "models.files"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"minitf.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"minitf.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'minitf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

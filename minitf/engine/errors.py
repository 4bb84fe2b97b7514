"""The engine's exceptions. Each message names the operation, what it was given, and what to do."""


class MinitfError(Exception):
    """Base class of every error that minitf raises on purpose."""


class ShapeError(MinitfError, ValueError):
    """Shapes that do not fit an operation."""


class PositionError(MinitfError, IndexError):
    """A position outside an axis."""


class DTypeError(MinitfError, TypeError):
    """Element types that do not mix, or that cannot carry a gradient."""


class DeviceError(MinitfError, TypeError):
    """Arrays that live on different devices."""


class GraphError(MinitfError, RuntimeError):
    """A backward pass that cannot run: not a scalar, already freed, or a saved array was changed."""


class AnomalyError(MinitfError, ArithmeticError):
    """An operation made the first NaN or infinity (see `detect_anomaly`)."""

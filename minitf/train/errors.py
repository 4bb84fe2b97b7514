"""What goes wrong in training."""

from minitf.engine import MinitfError


class TrainingError(MinitfError):
    """Training cannot start, continue or resume. The message says why, and what is intact."""

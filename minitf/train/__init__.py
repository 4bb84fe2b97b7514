"""Training: optimisers, schedules, data, the loop, checkpoints and the log."""

from .checkpoint import Progress, holds_run, load_checkpoint, read_checkpoint, write_checkpoint
from .clip import clip_grad_norm
from .config import TrainConfig
from .data import ArrayData, TaskData, TextData
from .errors import TrainingError
from .log import read_rows
from .loop import History, evaluate, fit
from .optim import SGD, AdamW, Optimizer
from .schedule import warmup_cosine

__all__ = [
    "SGD",
    "AdamW",
    "ArrayData",
    "History",
    "Optimizer",
    "Progress",
    "TaskData",
    "TextData",
    "TrainConfig",
    "TrainingError",
    "clip_grad_norm",
    "evaluate",
    "fit",
    "holds_run",
    "load_checkpoint",
    "read_checkpoint",
    "read_rows",
    "warmup_cosine",
    "write_checkpoint",
]

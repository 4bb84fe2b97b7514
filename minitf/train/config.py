"""The numbers that describe a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .schedule import warmup_cosine


@dataclass(frozen=True)
class TrainConfig:
    """A training run, from its first step to its last.

    Args:
        steps: updates of the parameters.
        batch: windows in one forward pass.
        accumulate: forward and backward passes in one step; a step sees batch * accumulate windows.
        lr: the highest learning rate.
        warmup: steps until it is reached; None for a tenth of the run, at most 100.
        floor: the learning rate at the end; None for lr / 10.
        betas, eps, weight_decay: of AdamW. Only matrices decay: parameters with two or more axes.
        clip: the largest norm of the gradient, or None.
        eval_every: steps between validations, 0 for only one after the last step.
        eval_batches: batches in one validation, 0 to never validate.
        save_every: steps between checkpoints, 0 for only one after the last step.
        seed: of the batches and of dropout. The model has its own.

    Raises:
        ValueError: a number out of range.
    """

    steps: int
    batch: int = 16
    accumulate: int = 1
    lr: float = 1e-3
    warmup: int | None = None
    floor: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0
    eval_every: int = 100
    eval_batches: int = 8
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "accumulate": 1, "warmup": 0, "eval_every": 0}
        least |= {"eval_batches": 0, "save_every": 0, "seed": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise ValueError(f"{name} must be at least {bound}, not {value}")
        if not self.lr > 0.0:
            raise ValueError(f"lr must be above 0, not {self.lr}")
        if self.floor is not None and not 0.0 <= self.floor <= self.lr:
            raise ValueError(f"floor must be between 0 and lr={self.lr}, not {self.floor}")
        if self.clip is not None and not self.clip > 0.0:
            raise ValueError(f"clip must be above 0, or None for no clipping; it is {self.clip}")
        object.__setattr__(self, "betas", tuple(self.betas))

    def lr_at(self, step: int) -> float:
        """The learning rate after `step` steps, by `warmup_cosine`."""
        warmup = min(100, self.steps // 10) if self.warmup is None else self.warmup
        return warmup_cosine(
            step, self.steps, warmup, self.lr, self.lr / 10 if self.floor is None else self.floor
        )

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        return {**asdict(self), "betas": list(self.betas)}

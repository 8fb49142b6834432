"""Schedules of the learning rate that know how long the run is."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class RunSchedule(LambdaLR):
    """A schedule in proportion to the run, about which the composer tells it before the first step.

    Args:
        optimizer: Its rate is multiplied by `factor`.
        total_steps: Steps of the run; the composer takes them from the trainer if None.
        steps_per_epoch: Steps of an epoch; likewise.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int | None = None, steps_per_epoch: int | None = None
    ) -> None:
        stated = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
        if found := [f"{name} is {steps}" for name, steps in stated.items() if steps is not None and steps < 1]:
            raise ValueError(f"{found[0]}; it counts from 1.")
        self.total_steps: float | None = total_steps
        self.steps_per_epoch: float | None = steps_per_epoch
        super().__init__(optimizer, self.factor)

    @abstractmethod
    def factor(self, step: int) -> float:
        """Return what the rate is multiplied by at a step, counted from 0."""

    def tell(self, total_steps: float, steps_per_epoch: float) -> None:
        """Take the length of the run, infinite if it has no end, where it was not given."""
        self.total_steps = self.total_steps or total_steps
        self.steps_per_epoch = self.steps_per_epoch or steps_per_epoch

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run stopped, with the arguments and over the length of this run, which may be others."""
        own = ("last_epoch", "_step_count", "_last_lr", "lr_lambdas")
        super().load_state_dict({key: value for key, value in state_dict.items() if key in own})


class WarmupCosine(RunSchedule):
    """Rises linearly over the first steps, then falls along a half cosine to zero at the end of the run.

    Args:
        optimizer: Its rate is the highest.
        warmup_steps: Steps of the rise, at least 1.
        total_steps: Steps of the run; the composer takes them from the trainer if None.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 100, total_steps: int | None = None) -> None:
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps is {warmup_steps}; it counts from 1.")
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, total_steps)

    def factor(self, step: int) -> float:
        """Return what the rate is multiplied by at a step.

        Example:
            >>> import torch
            >>> schedule = WarmupCosine(torch.optim.SGD([torch.zeros(1)], lr=1.0), warmup_steps=10, total_steps=100)
            >>> [round(schedule.factor(step), 3) for step in (0, 9, 55, 100)]
            [0.1, 1.0, 0.5, 0.0]
        """
        if step < self.warmup_steps or self.total_steps is None:
            return min(1.0, (step + 1) / self.warmup_steps)
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class EpochWarmup(RunSchedule):
    """Rises linearly from zero over some epochs, or a part of one, then stays (the meta-learned models of FFHQ, as published).

    Reference: as in the released code the rise starts at zero, so that the first step changes nothing.

    Args:
        optimizer: Its rate is the highest.
        warmup_epochs: Epochs of the rise, positive; half of one as published.
        steps_per_epoch: Steps of an epoch; the composer takes them from the trainer if None.

    Raises:
        ValueError: If a number is out of range; after the first step, if nobody said how many steps an epoch has.
    """

    def __init__(self, optimizer: Optimizer, warmup_epochs: float = 0.5, steps_per_epoch: int | None = None) -> None:
        if not 0 < warmup_epochs < math.inf:
            raise ValueError(f"warmup_epochs is {warmup_epochs}; it must be positive and finite.")
        self.warmup_epochs = warmup_epochs
        super().__init__(optimizer, steps_per_epoch=steps_per_epoch)

    def factor(self, step: int) -> float:
        """Return what the rate is multiplied by at a step.

        Example:
            >>> import torch
            >>> schedule = EpochWarmup(torch.optim.SGD([torch.zeros(1)], lr=1.0), warmup_epochs=0.5, steps_per_epoch=100)
            >>> [schedule.factor(step) for step in (0, 1, 25, 50, 100)]
            [0.0, 0.02, 0.5, 1.0, 1.0]
        """
        if step == 0:
            return 0.0
        if self.steps_per_epoch is None:
            raise ValueError(
                "EpochWarmup does not know the steps of an epoch: outside a trainer, give steps_per_epoch."
            )
        return min(1.0, step / (self.warmup_epochs * self.steps_per_epoch))

"""Learning rate schedules that depend on the length of the run."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class RunSchedule(LambdaLR):
    """Base of schedules that depend on the length of the run, which the composer sets before the first step.

    Args:
        optimizer: Optimizer, whose learning rates are multiplied by `factor`.
        total_steps: Number of steps of the run; taken from the trainer if None.
        steps_per_epoch: Number of steps per epoch; taken from the trainer if None.

    Raises:
        ValueError: If a number is less than 1.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int | None = None, steps_per_epoch: int | None = None
    ) -> None:
        for name, steps in (("total_steps", total_steps), ("steps_per_epoch", steps_per_epoch)):
            if steps is not None and steps < 1:
                raise ValueError(f"{name} is {steps}; it must be at least 1.")
        self.total_steps: float | None = total_steps
        self.steps_per_epoch: float | None = steps_per_epoch
        super().__init__(optimizer, self.factor)

    @abstractmethod
    def factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step, counted from 0."""

    def set_length(self, total_steps: float, steps_per_epoch: float) -> None:
        """Set the length of the run, which may be infinite, unless it was passed to the constructor."""
        self.total_steps = self.total_steps or total_steps
        self.steps_per_epoch = self.steps_per_epoch or steps_per_epoch

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the progress of a run, but keep the arguments and the length of this run."""
        progress = ("last_epoch", "_step_count", "_last_lr", "lr_lambdas")
        super().load_state_dict({key: value for key, value in state_dict.items() if key in progress})


class WarmupCosine(RunSchedule):
    """Increase the learning rate linearly over the first steps, then decay it along a half cosine to zero.

    Args:
        optimizer: Optimizer with the maximum learning rate.
        warmup_steps: Number of warm-up steps, at least 1.
        total_steps: Number of steps of the run; taken from the trainer if None.

    Raises:
        ValueError: If a number is less than 1.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 100, total_steps: int | None = None) -> None:
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps is {warmup_steps}; it must be at least 1.")
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, total_steps)

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step, counted from 0.

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
    """Increase the learning rate linearly from zero over a number of epochs, then keep it constant.

    This is the schedule of the published meta-learned models of FFHQ.

    Reference: as in the released code, the learning rate of the first step is zero, so that this step changes nothing.

    Args:
        optimizer: Optimizer with the final learning rate.
        warmup_epochs: Number of warm-up epochs, positive, may be a fraction; 0.5 as published.
        steps_per_epoch: Number of steps per epoch; taken from the trainer if None.

    Raises:
        ValueError: If a number is out of range; after the first step, if the number of steps per epoch is unknown.
    """

    def __init__(self, optimizer: Optimizer, warmup_epochs: float = 0.5, steps_per_epoch: int | None = None) -> None:
        if not 0 < warmup_epochs < math.inf:
            raise ValueError(f"warmup_epochs is {warmup_epochs}; it must be positive and finite.")
        self.warmup_epochs = warmup_epochs
        super().__init__(optimizer, steps_per_epoch=steps_per_epoch)

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step, counted from 0.

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
                "steps_per_epoch of EpochWarmup is None; pass it when the schedule is used without a trainer."
            )
        return min(1.0, step / (self.warmup_epochs * self.steps_per_epoch))


class EpochDecay(RunSchedule):
    """Multiply the learning rate by a factor after every few epochs, as DeepSDF and MetaSDF do.

    Args:
        optimizer: Optimizer with the first learning rate.
        epochs: Number of epochs between two changes, at least 1; 500 in DeepSDF, 350 in MetaSDF.
        decay: Factor of every change, in (0, 1].
        steps_per_epoch: Number of steps per epoch; taken from the trainer if None.

    Raises:
        ValueError: If a number is out of range; after the first step, if the number of steps per epoch is unknown.
    """

    def __init__(
        self, optimizer: Optimizer, epochs: int = 500, decay: float = 0.5, steps_per_epoch: int | None = None
    ) -> None:
        if epochs < 1 or not 0 < decay <= 1:
            raise ValueError(f"epochs is {epochs} and decay {decay}; they must be at least 1 and in (0, 1].")
        self.epochs = epochs
        self.decay = decay
        super().__init__(optimizer, steps_per_epoch=steps_per_epoch)

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step, counted from 0.

        Example:
            >>> import torch
            >>> schedule = EpochDecay(torch.optim.SGD([torch.zeros(1)], lr=1.0), epochs=2, steps_per_epoch=100)
            >>> [schedule.factor(step) for step in (0, 199, 200, 400)]
            [1.0, 1.0, 0.5, 0.25]
        """
        if step == 0:
            return 1.0
        if self.steps_per_epoch is None:
            raise ValueError(
                "steps_per_epoch of EpochDecay is None; pass it when the schedule is used without a trainer."
            )
        return float(self.decay ** (step // (self.epochs * self.steps_per_epoch)))

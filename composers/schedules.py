"""Schedules of the learning rate that know how long the run is."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupCosine(LambdaLR):
    """Rises linearly over the first steps, then falls along a half cosine to zero at the end of the run.

    Args:
        optimizer: Its rate is the highest.
        warmup_steps: Steps of the rise, at least 1.
        total_steps: Steps of the run; the composer takes them from the trainer if None.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 100, total_steps: int | None = None) -> None:
        if warmup_steps < 1 or (total_steps is not None and total_steps < 1):
            raise ValueError(f"warmup_steps is {warmup_steps}, total_steps {total_steps}; both count from 1.")
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        super().__init__(optimizer, self.factor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run stopped, over the length of this run: a resumed run may be longer than the first."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "total_steps"})

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

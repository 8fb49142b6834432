"""Hyperband as Weights & Biases applies it to the runs of a sweep: stop runs that are worse than others at the same length.

Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization" (JMLR 2018), in the form that W&B documents
for ``early_terminate`` of a sweep. An iteration is a validation that logs the metric of the sweep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_MAX_BRACKETS = 100


@dataclass(frozen=True)
class Hyperband:
    """Early termination of runs.

    Args:
        min_iter: First iteration at which runs are compared; the next ones are ``min_iter * eta``, ``min_iter * eta**2``, ...
        max_iter: Iterations of a complete run, in place of ``min_iter``; runs are compared at ``max_iter / eta``,
            ``max_iter / eta**2``, ... down to ``max_iter / eta**s``.
        s: Number of comparisons, with ``max_iter``.
        eta: The best ``1 / eta`` of the runs continue after a comparison.
        strict: Compare the value at the iteration of the comparison. Otherwise, a run also continues if any of its values,
            before or after, is good enough.

    Raises:
        ValueError: If an argument is out of range, or no iteration is left at which runs are compared.
    """

    min_iter: int | None = None
    max_iter: int | None = None
    s: int | None = None
    eta: float = 3.0
    strict: bool = True

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must be greater than 1.")
        if (self.min_iter is None) == (self.max_iter is None):
            raise ValueError("exactly one of min_iter and max_iter must be set, and max_iter needs s.")
        if self.min_iter is not None and self.min_iter < 1:
            raise ValueError(f"min_iter is {self.min_iter}; it must be at least 1.")
        if self.max_iter is not None and self.s is None:
            raise ValueError("max_iter needs s, the number of comparisons.")
        if not self.brackets:
            raise ValueError(
                f"max_iter {self.max_iter} with eta {self.eta:g} and s {self.s} leaves no iteration at which runs are "
                "compared: increase max_iter or s, or reduce eta."
            )

    @property
    def brackets(self) -> list[int]:
        """Return the iterations at which runs are compared, in ascending order.

        Example:
            >>> Hyperband(min_iter=3).brackets[:4]
            [3, 9, 27, 81]
            >>> Hyperband(max_iter=27, s=2).brackets
            [3, 9]
        """
        if self.min_iter is not None:
            return [int(self.min_iter * self.eta**power) for power in range(_MAX_BRACKETS)]
        assert self.max_iter is not None
        assert self.s is not None
        lengths = [self.max_iter / self.eta**power for power in range(1, self.s + 1)]
        return sorted(int(length) for length in lengths if length >= 1)

    def stops(self, losses: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        """Return whether a run is to be stopped.

        Args:
            losses: Values of the metric of the run, one per iteration; lower is better.
            others: The values of all other runs, whether complete, stopped or in progress.
        """
        bracket = max((length for length in self.brackets if length <= len(losses)), default=None)
        if bracket is None:
            return False
        reached = sorted(values[bracket - 1] for values in (losses, *others) if len(values) >= bracket)
        threshold = reached[int(len(reached) / self.eta)]
        value = losses[bracket - 1] if self.strict else min(losses)
        return value > threshold


def losses_of(values: Sequence[float], goal: str) -> list[float]:
    """Return finite values of a metric, negated if it is maximised, so that lower is better."""
    sign = -1.0 if goal == "maximize" else 1.0
    return [sign * value for value in values if math.isfinite(value)]

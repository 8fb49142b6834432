"""Refinement: gradient steps on latents that only evaluation takes, and what a test compares them with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, Literal

from composers.inference.gradient_steps import GradientSteps
from composers.inference.rules import Rule, TorchOptimizer
from composers.losses import Loss

STARTS = ("prediction", "mean", "random")
NETWORK = "network"
INNER = "inner"
CURVES = (*STARTS, NETWORK, INNER)


class Refinement(GradientSteps):
    """Gradient steps on the predicted latents of given instances, in evaluation only.

    Args:
        steps: Gradient steps, 0 for none.
        rule: How latents move; Adam with ``lr`` 0.01 if None.
        report: Steps after which the latents are kept, for the curve; 0 and ``steps`` always are.
        stages: Stages that refine, among ``val``, ``test`` and ``predict``.
        starts: Where the curves of a test begin: ``prediction``, which is required, the ``mean`` of the training codes, and
            ``random`` numbers of their scale. Other stages begin at the prediction only.
        samples_per_step: Samples that a step uses, drawn anew with replacement, the same for all instances, or ``all``.
        loss: What the steps minimise; the loss of the composer if None.
        network: A second refinement that a test measures beside this one: of all weights and biases of the network, from those
            of the prediction (TransINR section 3.4, test-time optimisation); none if None. As published, Adam with ``lr``
            1e-4 and 100 steps of 1,024 samples. Its ``starts``, ``stages`` and ``network`` are not used.

    Raises:
        ValueError: If a number, a stage or a start is out of range, or the rule has learned factors.
    """

    address: ClassVar[str] = "refinement"

    def __init__(
        self,
        steps: int = 100,
        rule: Rule | None = None,
        report: Sequence[int] = (1, 3, 10, 30),
        stages: Sequence[str] = ("test", "predict"),
        starts: Sequence[str] = STARTS,
        samples_per_step: int | Literal["all"] = "all",
        loss: Loss | None = None,
        network: Refinement | None = None,
    ) -> None:
        super().__init__(steps, rule, samples_per_step=samples_per_step, loss=loss, report=report)
        if learned := getattr(self.rule, "learned_lr", ()):
            raise ValueError(
                f"learned_lr of a refinement is {list(learned)}; no training would reach it: leave it empty."
            )
        if unknown := set(stages) - {"val", "test", "predict"}:
            raise ValueError(f"stages names {sorted(unknown)}; allowed are val, test and predict.")
        if unknown := set(starts) - set(STARTS):
            raise ValueError(f"starts names {sorted(unknown)}; allowed are prediction, mean and random.")
        if "prediction" not in starts:
            raise ValueError(f"starts is {list(starts)}; prediction is required, mean and random are optional.")
        self.test_steps = steps
        self.report = tuple(sorted({0, steps, *(step for step in report if step < steps)}))
        self.stages = tuple(stages)
        self.starts = tuple(start for start in STARTS if start in starts)
        self.network = network

    def with_steps(self, steps: int) -> Refinement:
        """Return the same refinement with another number of steps, of which only the first and last latents are kept."""
        changed = copy.copy(self)
        changed.steps = changed.test_steps = steps
        changed.report = tuple(sorted({0, steps}))
        return changed

    @staticmethod
    def _check_steps(steps: int, test_steps: int | None, report: Sequence[int]) -> None:
        """Refuse numbers of steps that are out of range."""
        if steps < 0 or any(step < 0 for step in report):
            raise ValueError(f"steps is {steps} and report {list(report)}; steps count from 0.")

    @staticmethod
    def _default_rule() -> Rule:
        """Return Adam."""
        return TorchOptimizer()

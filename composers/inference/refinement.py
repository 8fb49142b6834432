"""Refinement: gradient steps on latents in evaluation, and the initialisations that a test compares."""

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
    """Refine predicted latents by gradient steps, in evaluation only.

    Args:
        steps: Number of gradient steps; 0 for no refinement.
        rule: Update rule; Adam with ``lr`` 0.01 if None.
        report: Numbers of steps after which to measure, for the curve; always includes 0 and ``steps``.
        stages: Stages with refinement, any of ``val``, ``test`` and ``predict``.
        starts: Initialisations that a test compares, with one curve each: ``prediction`` (required), ``mean`` of the training
            codes, and ``random`` latents of the same scale. Other stages refine the prediction only.
        samples_per_step: Number of samples per step, or ``all``. Samples are drawn anew for every step, with replacement and
            the same for all instances.
        loss: Loss that the steps minimise; the loss of the composer if None.
        network: Settings of test-time optimisation (TransINR section 3.4), which a test reports separately: it adapts all
            weights and biases of the network, from the predicted ones. Disabled if None. The paper uses Adam with ``lr`` 1e-4
            and 100 steps of 1,024 samples. ``starts``, ``stages`` and ``network`` of these settings are ignored.

    Raises:
        ValueError: If an argument is out of range, or the rule has learned factors.
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
        if learned := self.rule.learned_lr:
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
        """Return the same refinement with another number of steps, which reports only the first and the last latents."""
        changed = copy.copy(self)
        changed.steps = changed.test_steps = steps
        changed.report = tuple(sorted({0, steps}))
        return changed

    @staticmethod
    def _check_steps(steps: int, test_steps: int | None, report: Sequence[int]) -> None:
        """Raise an error if numbers of steps are out of range."""
        if steps < 0 or any(step < 0 for step in report):
            raise ValueError(f"steps is {steps} and report {list(report)}; steps count from 0.")

    @staticmethod
    def _default_rule() -> Rule:
        """Return Adam."""
        return TorchOptimizer()

"""Gradient steps on latents: the inner loop that training differentiates through, and the basis of refinement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from composers.inference.rules import DifferentiableSGD, Rule, Scales, Trajectory
from composers.latents import Latents
from composers.losses import Loss
from composers.networks import TensorSpec
from composers.rendering import Reconstruction
from datamodules.batch import Samples
from datamodules.domain import exact
from datamodules.randomness import generator_at, global_seed

Reconstruct = Callable[[Latents, Tensor], Reconstruction]


class GradientSteps(nn.Module):
    """Fit the latents of every instance to its observed samples by gradient steps, independently of other instances.

    Args:
        steps: Number of steps in training, at least 1.
        rule: Update rule; `DifferentiableSGD` with its defaults if None.
        test_steps: Number of steps in validation, test and prediction, at least 1; as in training if None.
        samples_per_step: Number of samples per step in training, or ``all``.
        test_samples_per_step: The same in validation, test and prediction; as in training if None.
        choose: Selection of these samples. ``random`` draws them anew for every step, with replacement and the same for all
            instances; ``error`` takes those with the largest current error of every instance (GradNCP uses the gradient).
        loss: Loss that the steps minimise; the loss of the composer if None.
        report: Numbers of steps after which a test measures, for the curve of the inner loop; no curve if empty.

    Raises:
        ValueError: If an argument is out of range, or ``loss`` has parameters that the rule does not train.
    """

    address: ClassVar[str] = "inner loop"  # of random draws

    def __init__(
        self,
        steps: int = 2,
        rule: Rule | None = None,
        test_steps: int | None = None,
        samples_per_step: int | Literal["all"] = "all",
        test_samples_per_step: int | Literal["all"] | None = None,
        choose: Literal["random", "error"] = "random",
        loss: Loss | None = None,
        report: Sequence[int] = (0, 1, 2, 3, 4, 5, 10, 30),
    ) -> None:
        super().__init__()
        self._check_steps(steps, test_steps, report)
        if any(
            count != "all" and count is not None and count < 1 for count in (samples_per_step, test_samples_per_step)
        ):
            raise ValueError(
                f"samples_per_step is {samples_per_step} and test_samples_per_step {test_samples_per_step}; they must be at "
                "least 1, or all."
            )
        if choose not in ("random", "error"):
            raise ValueError(f"choose is {choose}; allowed are random and error.")
        self.rule = rule or self._default_rule()
        if loss is not None and any(True for _ in loss.parameters()) and self.rule.outer != "second_order":
            raise ValueError(
                f"{type(loss).__name__} has parameters, which only gradients of second order train: set outer of the rule to "
                "second_order."
            )
        self.steps = steps
        self.test_steps = test_steps or steps
        self.samples_per_step = samples_per_step
        self.test_samples_per_step = samples_per_step if test_samples_per_step is None else test_samples_per_step
        self.choose = choose
        self.loss = loss
        self.report = tuple(sorted(set(report)))

    @staticmethod
    def _check_steps(steps: int, test_steps: int | None, report: Sequence[int]) -> None:
        """Raise an error if numbers of steps are out of range."""
        if steps < 1 or (test_steps is not None and test_steps < 1):
            raise ValueError(f"steps is {steps} and test_steps {test_steps}; an inner loop has at least 1 step.")
        if any(step < 0 for step in report):
            raise ValueError(f"report is {list(report)}; steps count from 0.")

    @staticmethod
    def _default_rule() -> Rule:
        """Return the rule that is used if None is passed."""
        return DifferentiableSGD()

    def connect(self, latents: Mapping[str, TensorSpec]) -> None:
        """Create the learned factors of the rule; `Composer` calls this once."""
        self.rule.connect(latents, self.steps)

    def forward(
        self,
        latents: Latents,
        samples: Samples,
        reconstruct: Reconstruct,
        loss: Loss,
        scales: Scales,
        *,
        training: bool = False,
        steps: int | None = None,
        report: Collection[int] = (),
        address: Sequence[int] = (),
    ) -> Trajectory:
        """Take the steps; also works under ``no_grad`` and in inference mode.

        Args:
            latents: Initial latents ``(B, ...)``, which are not modified.
            samples: Coordinates and values of the same instances.
            reconstruct: Return the reconstruction of latents at coordinates.
            loss: Loss of the composer, used if these steps have no loss of their own.
            scales: Return the factors of the steps for latents.
            training: Whether to use the settings of training, and to keep the graph unless gradients are disabled.
            steps: Overrides the number of steps.
            report: Numbers of steps after which latents are returned, in addition to the last.
            address: Additional address of random draws, which otherwise depend only on the seed of the run and the step.

        Raises:
            ValueError: If the loss does not depend on a latent.
        """
        count = steps if steps is not None else self.steps if training else self.test_steps
        graph = training and torch.is_grad_enabled() and self.rule.outer != "reptile"

        def take() -> Trajectory:
            begin = {name: exact(latent) if graph else _copied(latent) for name, latent in latents.items()}
            observed = samples if graph else outside_inference(samples)
            objective = self._objective(observed, reconstruct, self.loss or loss, count, training, address)
            return self.rule.take(objective, begin, count, report, scales, graph)

        if graph:
            return take()
        with torch.inference_mode(False), torch.no_grad():
            return take()

    def _objective(
        self, samples: Samples, reconstruct: Reconstruct, loss: Loss, steps: int, training: bool, address: Sequence[int]
    ) -> Callable[[Latents, int], Tensor]:
        """Return the function from latents and step to losses ``(B,)``."""
        drawn = self.draws(samples, steps + 1, training=training, address=address)

        def objective(latents: Latents, step: int) -> Tensor:
            with torch.no_grad():
                chosen = self.chosen(
                    samples, lambda coords: reconstruct(latents, coords).values, training=training, drawn=drawn[step]
                )
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no double backward on CPUs
                losses: Tensor = loss(reconstruct(latents, chosen.coords), chosen)
            return losses

        return objective

    def draws(
        self, samples: Samples, steps: int, *, training: bool, address: Sequence[int] = ()
    ) -> list[Tensor | None]:
        """Return the indices ``(K,)`` of the random samples of every step, or None for steps without random samples.

        They are drawn before the loop, because compiled graphs do not support seeded generators.
        """
        count = self._count(training)
        if count == "all" or self.choose == "error":
            return [None] * steps
        total, device = samples.coords.shape[-2], samples.coords.device
        generators = [generator_at(global_seed(), self.address, *address, step, device=device) for step in range(steps)]
        return [torch.randint(total, (count,), generator=generator, device=device) for generator in generators]

    def chosen(
        self, samples: Samples, predict: Callable[[Tensor], Tensor], *, training: bool, drawn: Tensor | None
    ) -> Samples:
        """Return the samples of a step.

        Args:
            samples: Samples of all instances, with values.
            predict: Return current values at coordinates; called only if samples are selected by error.
            training: Whether to use the settings of training.
            drawn: Result of `draws` for this step.
        """
        if drawn is not None:
            return subset_of(samples, drawn)
        count = self._count(training)
        if count == "all" or count >= samples.coords.shape[-2]:
            return samples
        return _worst(samples, predict(samples.coords), count)

    def outer_losses(self, losses: Tensor, start: Latents, adapted: Latents) -> Tensor:
        """Return the training losses ``(B,)``: the losses after the steps, unless the rule is Reptile.

        For Reptile the values are the losses and the gradient with respect to the start is ``start - adapted``.
        """
        if self.rule.outer != "reptile":
            return losses
        pull = torch.zeros_like(losses)
        for name, latent in start.items():
            pull = pull + (latent * (latent - adapted[name]).detach()).flatten(1).sum(1)
        return losses.detach() + (pull - pull.detach())  # the difference is exactly 0

    def describe(self) -> str:
        """Return the settings as text, for the summary of a run."""
        steps = f"{self.steps:,} inner step{'' if self.steps == 1 else 's'}"
        used, used_at_test = (
            _used(self.choose, count) for count in (self.samples_per_step, self.test_samples_per_step)
        )
        parts = [
            steps + ("" if self.test_steps == self.steps else f" in training, {self.test_steps} at test"),
            *self.rule.describe(),
            f"{used} per step" + ("" if used == used_at_test else f", {used_at_test} at test"),
        ]
        return "; ".join(parts)

    def _count(self, training: bool) -> int | Literal["all"]:
        """Return the number of samples per step."""
        return self.samples_per_step if training else self.test_samples_per_step


def outside_inference(samples: Samples) -> Samples:
    """Return a copy of samples that supports autograd, which tensors created in inference mode do not."""
    with torch.inference_mode(False):
        return samples._replace(**{name: part.clone() for name, part in samples._asdict().items() if part is not None})


def subset_of(samples: Samples, indices: Tensor) -> Samples:
    """Return the samples at indices ``(K,)`` of all instances."""
    return Samples(
        samples.coords[..., indices, :],
        None if samples.values is None else samples.values[:, indices],
        None if samples.mask is None else samples.mask[:, indices],
        None if samples.normals is None else samples.normals[:, indices],
    )


def _copied(latent: Tensor) -> Tensor:
    """Return a copy in at least float32, because bfloat16 loses small steps."""
    return latent.detach().to(torch.promote_types(latent.dtype, torch.float32), copy=True)


def _worst(samples: Samples, predicted: Tensor, count: int) -> Samples:
    """Return the samples with the largest squared errors of every instance."""
    assert samples.values is not None
    errors = (exact(predicted) - exact(samples.values)).square().mean(-1)  # (B, N)
    if samples.mask is not None:
        errors = errors.masked_fill(~samples.mask, -1)
    indices = errors.topk(count).indices  # (B, K)
    coords = samples.coords.expand(len(indices), -1, -1)
    return Samples(
        coords.take_along_dim(indices[..., None], 1),
        samples.values.take_along_dim(indices[..., None], 1),
        None if samples.mask is None else samples.mask.take_along_dim(indices, 1),
        None if samples.normals is None else samples.normals.take_along_dim(indices[..., None], 1),
    )


def _used(choose: str, count: int | Literal["all"]) -> str:
    """Return the samples per step as text."""
    if count == "all":
        return "all samples"
    return f"{count:,} random samples" if choose == "random" else f"the {count:,} samples of largest error"

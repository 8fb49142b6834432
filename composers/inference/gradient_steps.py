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
    """Fit latents to the observed samples of their instances by gradient steps; instances never mix.

    Args:
        steps: Steps in training, at least 1.
        rule: How latents move; `DifferentiableSGD` with its defaults if None.
        test_steps: Steps in validation, test and prediction, at least 1; as in training if None.
        samples_per_step: Samples that a step uses in training, or ``all``.
        test_samples_per_step: The same in validation, test and prediction; as in training if None.
        choose: How they are chosen: ``random``, drawn with replacement anew for every step, the same for all instances, or
            ``error``, for every instance those of largest error at the time (after GradNCP, by error instead of gradient).
        loss: What the steps minimise; the loss of the composer if None.
        report: Numbers of steps after which a test measures, for the curve of the inner loop; none if empty.

    Raises:
        ValueError: If a number or a name is out of range, or ``loss`` has parameters that the rule would not train.
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
        """Refuse numbers of steps that are out of range."""
        if steps < 1 or (test_steps is not None and test_steps < 1):
            raise ValueError(f"steps is {steps} and test_steps {test_steps}; an inner loop has at least 1 step.")
        if any(step < 0 for step in report):
            raise ValueError(f"report is {list(report)}; steps count from 0.")

    @staticmethod
    def _default_rule() -> Rule:
        """Return the rule used where none is given."""
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
        """Take the steps; works under ``no_grad`` and in inference mode, too.

        Args:
            latents: Where to begin, ``(B, ...)``; left unchanged.
            samples: Coordinates and values of the same instances.
            reconstruct: From latents and coordinates to a reconstruction.
            loss: The loss of the composer, used where this has none.
            scales: From latents to the factors of steps.
            training: Whether the settings of training apply, and the graph is kept unless gradients are disabled.
            steps: Overrides the number of steps.
            report: Numbers of steps after which latents are kept besides the last.
            address: Of random draws, which otherwise depend on the seed of the run and the step only.

        Raises:
            ValueError: If the loss does not depend on a latent.
        """
        count = steps if steps is not None else self.steps if training else self.test_steps
        graph = training and torch.is_grad_enabled() and self.rule.outer != "reptile"

        def take() -> Trajectory:
            begin = {name: exact(latent) if graph else _copied(latent) for name, latent in latents.items()}
            seen = samples if graph else outside_inference(samples)
            objective = self._objective(seen, reconstruct, self.loss or loss, count, training, address)
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
        """Return for every step the indices ``(K,)`` of the samples drawn for it, None where none are drawn.

        They are drawn before the loop, because a compiled graph cannot draw at an address.
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
        """Return the samples that a step uses.

        Args:
            samples: Of all instances, with values.
            predict: From coordinates to current values; called only where samples are chosen by error.
            training: Whether the settings of training apply.
            drawn: What `draws` returned for this step.
        """
        if drawn is not None:
            return subset_of(samples, drawn)
        count = self._count(training)
        if count == "all" or count >= samples.coords.shape[-2]:
            return samples
        return _worst(samples, predict(samples.coords), count)

    def outer_losses(self, losses: Tensor, start: Latents, adapted: Latents) -> Tensor:
        """Return ``(B,)``, whose mean training minimises: the losses after the steps, unless the rule is Reptile.

        For Reptile the values are the losses and the gradient with respect to the start is ``start - adapted``.
        """
        if self.rule.outer != "reptile":
            return losses
        pull = torch.zeros_like(losses)
        for name, latent in start.items():
            pull = pull + (latent * (latent - adapted[name]).detach()).flatten(1).sum(1)
        return losses.detach() + (pull - pull.detach())  # the difference is exactly 0

    def describe(self) -> str:
        """Return the settings in words, for the summary of a run."""
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
        """Return how many samples a step uses."""
        return self.samples_per_step if training else self.test_samples_per_step


def outside_inference(samples: Samples) -> Samples:
    """Return a copy of samples that gradients may flow through, which they may not where inference mode made them."""
    with torch.inference_mode(False):
        return samples._replace(**{name: part.clone() for name, part in samples._asdict().items() if part is not None})


def subset_of(samples: Samples, indices: Tensor) -> Samples:
    """Return the same samples ``(K,)`` of all instances."""
    return Samples(
        samples.coords[..., indices, :],
        None if samples.values is None else samples.values[:, indices],
        None if samples.mask is None else samples.mask[:, indices],
    )


def _copied(latent: Tensor) -> Tensor:
    """Return a copy in float32 at least: bfloat16 loses small steps."""
    return latent.detach().to(torch.promote_types(latent.dtype, torch.float32), copy=True)


def _worst(samples: Samples, predicted: Tensor, count: int) -> Samples:
    """Return the samples of largest squared error, for every instance its own."""
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
    )


def _used(choose: str, count: int | Literal["all"]) -> str:
    """Return which samples a step uses, in words."""
    if count == "all":
        return "all samples"
    return f"{count:,} random samples" if choose == "random" else f"the {count:,} samples of largest error"

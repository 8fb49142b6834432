"""Base of the composers whose latents an inner loop finds, from a learned start (paper section 3.3, meta-learning)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from composers.base import Composer
from composers.evaluation import Evaluation
from composers.inference.inner_loop import DivergenceError, LossFunction, adapt, check_finite
from composers.inference.inner_settings import InnerLoop
from composers.inference.refinement import INNER, Latents, outside_inference
from composers.networks import CoordinateMLP
from datamodules.batch import CoordinateBatch, Observation, Samples
from datamodules.domain import exact
from datamodules.spec import FromData, signal_shape


class MetaLearned(Composer):
    """Generalizable INR whose latents are found by gradient steps on the samples observed, from a learned start.

    A subclass says where the loop starts (`start`) and how latents become modulations (`compose`), and ends its constructor
    with `begin`. It may say what a step is multiplied by (`step_scales`). Everything else is here: training differentiates
    through the steps, evaluation takes them without keeping a graph, in inference mode too. The loss compares in the inner and
    in the outer loop; optimizer and schedule are those of the outer loop.

    Args:
        inr: The coordinate network; its ``modulated_layers`` are adapted.
        inner_loop: Steps, step size and samples of the inner loop.
        signal_shape: ``(C, *shape)`` of the signals of training, which prediction takes as well; under the command line, the
            data module states it. The method itself takes any.
        kwargs: Arguments of `Composer`.

    Raises:
        ValueError: If the network has no modulated layers.
    """

    from_data: ClassVar[FromData] = {"signal_shape": signal_shape}
    inner_loop: InnerLoop

    def __init__(
        self,
        inr: CoordinateMLP,
        inner_loop: InnerLoop | None = None,
        signal_shape: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(inr, **kwargs)
        if not inr.modulated_layers:
            raise ValueError(
                f"{type(self).__name__} adapts the modulated layers of its network, which has none: give it modulated_layers."
            )
        self.inner_loop = inner_loop or InnerLoop()
        self.signal_shape = None if signal_shape is None else tuple(signal_shape)

    @abstractmethod
    def start(self) -> Latents:
        """Return where the inner loop starts, the same for all instances: latents without a batch dimension."""

    def step_scales(self, latents: Latents) -> dict[str, Tensor]:
        """Return what the step on each of the latents ``(B, ...)`` is multiplied by; 1, unless a subclass knows better."""
        return {name: torch.ones((), device=latent.device) for name, latent in latents.items()}

    def begin(self) -> None:
        """Make the learned step sizes, and refuse a method that cannot adapt; constructors end with it.

        Raises:
            ValueError: If what is composed does not depend on a latent, which is named.
        """
        start = {name: latent.detach()[None].requires_grad_() for name, latent in self.start().items()}
        with torch.enable_grad():
            values = self.inr.bind(self.compose(start))(torch.zeros(1, self.inr.coord_dim))
            found = torch.autograd.grad(values.sum(), list(start.values()), allow_unused=True)
        if unused := [name for name, gradient in zip(start, found, strict=True) if gradient is None]:
            raise ValueError(
                f"{type(self).__name__} starts its inner loop from {', '.join(unused)} too, on which nothing that it composes "
                "depends: compose modulations of all latents, or leave these out of start."
            )
        self.inner_loop.learn_step_sizes(self.start())

    def encode(self, observation: Observation) -> Latents:
        """Return the latents after the inner loop on the observed samples.

        In training they depend on the learned start, differentiably; in evaluation they have no graph.

        Raises:
            ValueError: If nothing was observed, or the loop diverged.
        """
        samples = _observed(observation)
        if self.training and torch.is_grad_enabled():
            return self.adapted(samples)
        with torch.inference_mode(False), torch.no_grad():
            latents, losses = self._continue(
                self._starts(samples), outside_inference(samples), 0, self.inner_loop.test_steps
            )
        check_finite(losses)
        return latents

    def adapted(self, samples: Samples) -> Latents:
        """Return the latents after the inner loop of training, attached to all that they depend on unless under ``no_grad``."""
        settings = self.inner_loop
        latents, losses = adapt(
            self._losses(samples, range(settings.steps + 1), training=True),
            self._starts(samples),
            steps=settings.steps,
            step_size=lambda latents, step: settings.step_sizes(self.step_scales(latents), step),
            create_graph=torch.is_grad_enabled() and not settings.first_order,
            recompute=settings.recompute,
        )
        check_finite(losses)
        return latents

    def trajectory(self, observation: Observation, steps: Sequence[int]) -> Iterator[tuple[int, Latents]]:
        """Yield the latents after some numbers of inner steps, with the settings of evaluation.

        Args:
            observation: With samples and their values.
            steps: In ascending order; 0 is the learned start.

        Yields:
            The number of steps, and the latents ``(B, ...)`` without a graph.
        """
        samples, done = outside_inference(_observed(observation)), 0
        with torch.inference_mode(False), torch.no_grad():
            latents = self._starts(samples)
        for step in steps:
            with torch.inference_mode(False), torch.no_grad():
                latents, _ = self._continue(latents, samples, done, step)
            done = step
            yield step, latents

    def facts(self) -> dict[str, str]:
        """Return the settings of the inner loop."""
        loop = self.inner_loop
        learned = f", factors learned per {' and '.join(loop.learned_lr)}" if loop.learned_lr else ""
        seen, seen_at_test = (_seen(loop, count) for count in (loop.samples_per_step, loop.test_samples_per_step))
        steps = f"{loop.steps:,} inner step{'' if loop.steps == 1 else 's'}"
        parts = [
            steps + ("" if loop.test_steps == loop.steps else f" in training, {loop.test_steps} at test"),
            f"step size {loop.lr:g}{learned}",
            self.outer_update,
            f"{seen} per step" + ("" if seen == seen_at_test else f", {seen_at_test} at test"),
        ]
        if loop.recompute and self.outer_update == "second order":  # else there is nothing to store
            parts.append("recomputed in the backward pass")
        return {"inner loop": "; ".join(parts)}

    @property
    def outer_update(self) -> str:
        """How training differentiates through the inner loop, in words."""
        return "first order" if self.inner_loop.first_order else "second order"

    def setup(self, stage: str) -> None:
        """Refuse data whose sizes do not fit this model, and a precision in which inner loops fail.

        Raises:
            ValueError: If they do.
        """
        super().setup(stage)
        if str(self.trainer.precision).startswith("16"):
            raise ValueError(
                f"precision is {self.trainer.precision}: the gradients of inner loops are not scaled, and many of them are too "
                "small for float16. Train in bf16-mixed or 32-true."
            )

    def _evaluate(self, batch: CoordinateBatch, stage: str) -> Evaluation:
        """Evaluate as every composer, and name the instance on which the inner loop diverged."""
        try:
            return super()._evaluate(batch, stage)
        except DivergenceError as error:
            raise ValueError(
                f"The inner loop diverged on {batch.names[error.instance]}: after {error.step} steps its loss is no finite "
                f"number. Lower inner_loop.lr ({self.inner_loop.lr:g}), or the rate of the optimizer if training went well "
                "before."
            ) from error

    def _curves(
        self, batch: CoordinateBatch, predicted: Latents, refined: bool
    ) -> dict[str, dict[int, dict[str, Tensor]]]:
        """Add the curve of the inner loop, which goes on beyond the steps of training."""
        curves = super()._curves(batch, predicted, refined)
        if self.inner_loop.report:
            curves[INNER] = {
                step: self._measure(batch, self.render(self.compose(latents), batch.query.coords))
                for step, latents in self.trajectory(batch.observation, self.inner_loop.report)
            }
        return curves

    def _starts(self, samples: Samples) -> Latents:
        """Return the learned start once for every instance ``(B, ...)``."""
        assert samples.values is not None
        instances = len(samples.values)
        return {name: latent.expand(instances, *latent.shape) for name, latent in self.start().items()}

    def _losses(self, samples: Samples, steps: Sequence[int], *, training: bool) -> LossFunction:
        """Return the loss of an inner loop whose steps have these numbers."""
        settings = self.inner_loop
        drawn = settings.draws(samples, steps, training=training, address=(self.global_step,) if training else ())

        def losses(latents: Latents, step: int) -> Tensor:
            field = self.inr.bind(self.compose(latents))
            with torch.no_grad():
                seen = settings.chosen(
                    samples, lambda coords: self.renderer(field, coords), training=training, drawn=drawn[step]
                )
            found: Tensor = self.loss(self.renderer(field, seen.coords), seen)
            return found

        return losses

    def _continue(self, latents: Latents, samples: Samples, done: int, until: int) -> tuple[Latents, Tensor]:
        """Take the steps of evaluation from one number of steps to another."""
        return adapt(
            self._losses(samples, range(done, until + 1), training=False),
            latents,
            steps=until - done,
            step_size=lambda latents, step: self.inner_loop.step_sizes(self.step_scales(latents), done + step),
        )


def squared_norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the squared Frobenius norm ``(B, 1, 1)`` of every weight ``(B, I, O)``.

    A network that normalises weights does not change when they are scaled, so that gradients fall as their norm grows; steps
    times the squared norm have a relative length that does not depend on it (paper section 3.3; facts of the released code).
    """
    return {name: exact(weight).square().sum((1, 2), keepdim=True) for name, weight in weights.items()}


def _seen(loop: InnerLoop, count: int | Literal["all"]) -> str:
    """Return in words which samples an inner step looks at."""
    if count == "all":
        return "all samples"
    return f"{count:,} random samples" if loop.choose == "random" else f"the {count:,} samples of largest error"


def _observed(observation: Observation) -> Samples:
    """Return the samples of an observation, if there are any to adapt to."""
    if observation.samples is None or observation.samples.values is None:
        raise ValueError("An inner loop adapts to samples: give an Observation whose samples have coords and values.")
    return observation.samples

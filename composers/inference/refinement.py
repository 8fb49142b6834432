"""Refinement: gradient steps on the latents of given instances, from wherever they were predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from composers.inference.inner_loop import Latents
from datamodules.batch import Samples
from datamodules.randomness import generator_at, global_seed

STARTS = ("prediction", "mean", "random")
NETWORK = "network"
INNER = "inner"
CURVES = (*STARTS, NETWORK, INNER)


def outside_inference(samples: Samples) -> Samples:
    """Return a copy of samples that gradients may flow through, which they may not where inference mode made them."""
    with torch.inference_mode(False):
        return samples._replace(**{name: part.clone() for name, part in samples._asdict().items() if part is not None})


class Refinement:
    """Settings of the refinement, and the loop itself.

    Args:
        steps: Gradient steps, 0 for none.
        optimizer: Makes an optimizer of latents; Adam with a rate of 0.01 if None.
        report: Steps after which the latents are kept, for the curve; 0 and ``steps`` always are.
        stages: Stages that refine: of ``val``, ``test``, ``predict``.
        starts: Where the curves of a test start: ``prediction``, which must be among them, the ``mean`` of the training
            codes, and ``random`` numbers of their scale. Other stages start from the prediction only.
        warmup_steps: First steps, over which the rate rises linearly to what the optimizer says; Adam's first steps are
            as long as its later ones, but know their direction worse.
        samples_per_step: Samples that a step looks at, drawn anew with replacement, the same for all instances; all if None.
        network: Another refinement, which a test measures beside this one: of all weights and biases of the network, from
            where the prediction put them (TransINR section 3.4, test-time optimisation); none if None. As published, Adam
            with a rate of 1e-4, 100 steps of 1,024 samples. Its ``starts``, ``stages`` and ``network`` count for nothing.

    Raises:
        ValueError: If a number, a stage or a start is out of range.
    """

    def __init__(
        self,
        steps: int = 100,
        optimizer: OptimizerCallable | None = None,
        report: Sequence[int] = (1, 3, 10, 30),
        stages: Sequence[str] = ("test", "predict"),
        starts: Sequence[str] = STARTS,
        warmup_steps: int = 0,
        samples_per_step: int | None = None,
        network: Refinement | None = None,
    ) -> None:
        if samples_per_step is not None and samples_per_step < 1:
            raise ValueError(f"samples_per_step is {samples_per_step}; it must be at least 1, or null for all.")
        if steps < 0 or warmup_steps < 0 or any(step < 0 for step in report):
            raise ValueError(
                f"steps is {steps}, warmup_steps {warmup_steps} and report {list(report)}; steps count from 0."
            )
        if unknown := set(stages) - {"val", "test", "predict"}:
            raise ValueError(f"stages names {sorted(unknown)}; allowed are val, test and predict.")
        if unknown := set(starts) - set(STARTS):
            raise ValueError(f"starts names {sorted(unknown)}; allowed are prediction, mean and random.")
        if "prediction" not in starts:
            raise ValueError(f"starts is {list(starts)}; prediction must be among them, mean and random may be.")
        self.steps = steps
        self.optimizer = optimizer
        self.report = sorted({0, steps, *(step for step in report if step < steps)})
        self.stages = tuple(stages)
        self.starts = tuple(start for start in STARTS if start in starts)
        self.warmup_steps = warmup_steps
        self.samples_per_step = samples_per_step
        self.network = network

    def with_steps(self, steps: int) -> Refinement:
        """Return the same refinement with another number of steps, of which only the ends are kept."""
        return Refinement(
            steps,
            self.optimizer,
            report=(),
            stages=self.stages,
            starts=self.starts,
            warmup_steps=self.warmup_steps,
            samples_per_step=self.samples_per_step,
            network=self.network,
        )

    def seen(self, samples: Samples, step: int) -> Samples:
        """Return the samples that a step looks at; which, depends on the seed of the run and the step alone.

        Args:
            samples: Of all instances.
            step: Counted from 0.
        """
        if self.samples_per_step is None:
            return samples
        device = samples.coords.device
        generator = generator_at(global_seed(), "refinement", step, device=device)
        total = samples.coords.shape[-2]
        return taken(samples, torch.randint(total, (self.samples_per_step,), generator=generator, device=device))

    def __call__(self, loss_fn: Callable[[Latents, int], Tensor], latents: Latents) -> dict[int, Latents]:
        """Refine latents; works under ``no_grad`` and in inference mode too.

        Args:
            loss_fn: From latents and the step to one loss per instance ``(B,)``; their sum is differentiated, so instances
                never mix as long as the optimizer works number by number, as SGD and Adam do.
            latents: Where to start; left as they are.

        Returns:
            The latents after every reported step, detached.
        """
        with torch.inference_mode(False), torch.enable_grad():
            moving = {  # in float32 at least: bfloat16 loses small steps
                name: latent.detach().to(torch.promote_types(latent.dtype, torch.float32), copy=True).requires_grad_()
                for name, latent in latents.items()
            }
            parameters = list(moving.values())
            optimizer = self.optimizer(parameters) if self.optimizer else torch.optim.Adam(parameters, lr=0.01)
            rates = [group["lr"] for group in optimizer.param_groups]
            kept: dict[int, Latents] = {}
            for step in range(self.steps + 1):
                if step in self.report:
                    kept[step] = {name: latent.detach().clone() for name, latent in moving.items()}
                if step < self.steps:
                    gradients = torch.autograd.grad(loss_fn(moving, step).sum(), parameters)
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter.grad = gradient
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * min(1.0, (step + 1) / max(1, self.warmup_steps))
                    optimizer.step()
        return kept


def taken(samples: Samples, indices: Tensor) -> Samples:
    """Return the same samples ``(K,)`` of all instances."""
    return Samples(
        samples.coords[..., indices, :],
        None if samples.values is None else samples.values[:, indices],
        None if samples.mask is None else samples.mask[:, indices],
    )

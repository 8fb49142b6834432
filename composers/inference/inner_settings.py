"""Settings of an inner loop: how many steps, how long, on which samples; and learned step sizes (Meta-SGD, Li et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from composers.inference.inner_loop import Latents
from composers.inference.refinement import taken
from datamodules.batch import Samples
from datamodules.domain import exact
from datamodules.randomness import generator_at, global_seed


class InnerLoop(nn.Module):
    """Settings of the inner loop, and its learned step sizes.

    Args:
        steps: Steps in training, at least 1.
        lr: Step size before any learned factor, positive. `MetaIPC` and `LearnedInit` multiply it by the squared norm of
            the weight where the network normalises weights, which makes the relative step independent of the scale.
        test_steps: Steps in validation, test and prediction, at least 1; as in training if None.
        learned_lr: What factors of the step size are learned for: every ``step``, every ``parameter`` (Meta-SGD), or both;
            for none if empty. They start at 1; steps beyond those of training take the factor of the last.
        first_order: Whether gradients count as constants in training (first-order MAML); exact second order if not.
        samples_per_step: Samples that a step looks at in training, or ``all``.
        test_samples_per_step: The same in validation, test and prediction; as in training if None.
        choose: How they are chosen: ``random``, drawn with replacement anew for every step, the same for all instances, or
            ``error``, of every instance those of largest error at the time (GradNCP's idea, by error rather than gradient).
        recompute: Whether the backward pass computes steps again instead of storing them.
        report: Numbers of steps after which a test measures, for the curve from the learned start; none if empty.

    Raises:
        ValueError: If a number or a name is out of range.
    """

    def __init__(
        self,
        steps: int = 2,
        lr: float = 0.003,
        test_steps: int | None = None,
        learned_lr: Sequence[Literal["step", "parameter"]] = (),
        first_order: bool = False,
        samples_per_step: int | Literal["all"] = "all",
        test_samples_per_step: int | Literal["all"] | None = None,
        choose: Literal["random", "error"] = "random",
        recompute: bool = False,
        report: Sequence[int] = (0, 1, 2, 3, 4, 5, 10, 30),
    ) -> None:
        super().__init__()
        if steps < 1 or (test_steps is not None and test_steps < 1):
            raise ValueError(f"steps is {steps} and test_steps {test_steps}; an inner loop has at least 1 step.")
        if not 0 < lr < float("inf"):
            raise ValueError(f"lr is {lr}; the step size of the inner loop must be positive and finite.")
        if any(
            count != "all" and count is not None and count < 1 for count in (samples_per_step, test_samples_per_step)
        ):
            raise ValueError(
                f"samples_per_step is {samples_per_step} and test_samples_per_step {test_samples_per_step}; they must be at "
                "least 1, or all."
            )
        if unknown := set(learned_lr) - {"step", "parameter"}:
            raise ValueError(f"learned_lr names {sorted(unknown)}; allowed are step and parameter.")
        if choose not in ("random", "error"):
            raise ValueError(f"choose is {choose}; allowed are random and error.")
        if any(step < 0 for step in report):
            raise ValueError(f"report is {list(report)}; steps count from 0.")
        self.steps = steps
        self.lr = lr
        self.test_steps = test_steps or steps
        self.learned_lr = tuple(learned_lr)
        self.first_order = first_order
        self.samples_per_step = samples_per_step
        self.test_samples_per_step = samples_per_step if test_samples_per_step is None else test_samples_per_step
        self.choose = choose
        self.recompute = recompute
        self.report = tuple(sorted(set(report)))
        self.factors = nn.ParameterDict()

    def learn_step_sizes(self, start: Latents) -> None:
        """Make the factors that are learned, for latents that start like these, without a batch dimension."""
        for name, latent in start.items():
            if self.learned_lr:
                own = latent.shape if "parameter" in self.learned_lr else (1,) * latent.dim()
                turns = self.steps if "step" in self.learned_lr else 1
                self.factors[_key(name)] = nn.Parameter(torch.ones(turns, *own))

    def step_sizes(self, scales: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """Return the step size of every latent, a tensor that broadcasts with it.

        Args:
            scales: Of every latent, what its method multiplies the step size by.
            step: Counted from 0.
        """
        sizes = {}
        for name, scale in scales.items():
            sizes[name] = self.lr * scale
            if self.learned_lr:
                factors = self.factors[_key(name)]
                sizes[name] = sizes[name] * factors[min(step, len(factors) - 1)]
        return sizes

    def draws(
        self, samples: Samples, steps: Sequence[int], *, training: bool, address: Sequence[int] = ()
    ) -> list[Tensor | None]:
        """Return for every step the indices ``(K,)`` of the samples drawn for it, None where samples are not drawn.

        They are drawn before the loop, because nothing can draw at an address within a graph that is compiled.

        Args:
            samples: Of all instances.
            steps: Numbers of the steps.
            training: Whether the settings of training count.
            address: Of the draws, which besides depend on the seed of the run and the step alone.
        """
        count = self._count(training)
        if count == "all" or self.choose == "error":
            return [None] * len(steps)
        total, device = samples.coords.shape[-2], samples.coords.device
        generators = [generator_at(global_seed(), "inner loop", *address, step, device=device) for step in steps]
        return [torch.randint(total, (count,), generator=generator, device=device) for generator in generators]

    def chosen(
        self, samples: Samples, predict: Callable[[Tensor], Tensor], *, training: bool, drawn: Tensor | None
    ) -> Samples:
        """Return the samples that a step looks at.

        Args:
            samples: Of all instances, with values.
            predict: From coordinates to values as the latents are now; asked only where samples are chosen by error.
            training: Whether the settings of training count.
            drawn: What `draws` returned for this step.
        """
        if drawn is not None:
            return taken(samples, drawn)
        count = self._count(training)
        if count == "all" or count >= samples.coords.shape[-2]:
            return samples
        return _worst(samples, predict(samples.coords), count)

    def _count(self, training: bool) -> int | Literal["all"]:
        """Return how many samples a step looks at."""
        return self.samples_per_step if training else self.test_samples_per_step


def _key(name: str) -> str:
    """Return the name of a latent as modules allow it."""
    return name.replace(".", "_")


def _worst(samples: Samples, predicted: Tensor, count: int) -> Samples:
    """Return of every instance the samples of largest squared error."""
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

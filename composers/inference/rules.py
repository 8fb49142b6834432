"""Update rules of gradient steps: differentiable SGD, or any PyTorch optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from composers.inference.adapt import LossFunction, adapt
from composers.latents import Latents, module_key
from composers.networks import TensorSpec

Scales = Callable[[Latents], Mapping[str, Tensor]]


def unit_scales(latents: Latents) -> dict[str, Tensor]:
    """Return a scale of 1 for every latent."""
    return {name: torch.ones((), device=latent.device) for name, latent in latents.items()}


class Trajectory(NamedTuple):
    """Latents and losses along gradient steps.

    Attributes:
        latents: The latents after each reported number of steps, and after the last.
        losses: Losses ``(steps + 1, B)`` before every step and after the last, detached.
    """

    latents: dict[int, Latents]
    losses: Tensor

    @property
    def last(self) -> Latents:
        """Return the latents after the last step."""
        return self.latents[max(self.latents)]


class Rule(nn.Module, ABC):
    """Base class of update rules, which take gradient steps on latents.

    Attributes:
        differentiable: Whether training can differentiate through the steps.
        outer: How training uses the steps, see `DifferentiableSGD`; empty for rules of evaluation only.
        learned_lr: Axes along which step sizes are learned; empty if none are.
    """

    differentiable: ClassVar[bool] = False
    outer: str = ""
    learned_lr: tuple[str, ...] = ()

    def connect(self, latents: Mapping[str, TensorSpec], steps: int) -> None:
        """Create the learned factors for the given latents and number of training steps."""

    @abstractmethod
    def take(
        self,
        loss_fn: LossFunction,
        latents: Latents,
        steps: int,
        report: Collection[int],
        scales: Scales,
        training: bool,
    ) -> Trajectory:
        """Take gradient steps.

        Args:
            loss_fn: Return one loss per instance ``(B,)``, given latents and the step, counted from 0.
            latents: Initial latents ``(B, ...)``.
            steps: Number of steps.
            report: Numbers of steps after which latents are returned; always includes ``steps``.
            scales: Return the factors of the steps for latents; see `composers.latents.Parametrization.step_scales`.
            training: Whether to keep a graph for training.
        """

    def describe(self) -> list[str]:
        """Return the settings as text, for the summary of a run."""
        return []


class DifferentiableSGD(Rule):
    """Gradient descent that training differentiates through (MAML, Finn et al. 2017; Meta-SGD, Li et al. 2017).

    A step is the product of ``lr``, the scale of the parametrization, the learned factor, and the gradient.

    Args:
        lr: Step size before scale and factor, positive.
        learned_lr: Learn a factor of the step size per ``tensor`` of the latents, per ``step`` and tensor, per ``parameter``
            (Meta-SGD), or per step and parameter; no factors if empty. Factors are initialised to 1. Steps beyond the number
            of training steps use the last factor.
        outer: Gradient of the outer loop: ``second_order`` differentiates through the steps exactly, ``first_order`` treats
            inner gradients as constants (first-order MAML), and ``reptile`` moves the initialisation towards the adapted
            latents, independently of the loss (Nichol et al. 2018).
        recompute: Whether to recompute the steps in the backward pass instead of storing their activations.
        learned_as: What the optimizer trains where ``learned_lr`` is not empty: the ``factor`` of ``lr``, initialised to 1, or
            the step size itself (``lr``), initialised to ``lr`` (MetaSDF); both may become negative. With Adam, whose steps do
            not depend on the scale of a gradient, a factor changes the step size ``lr`` times as much per step.

    Raises:
        ValueError: If an argument is out of range.
    """

    differentiable = True

    def __init__(
        self,
        lr: float = 0.003,
        learned_lr: Sequence[Literal["step", "parameter", "tensor"]] = (),
        outer: Literal["second_order", "first_order", "reptile"] = "second_order",
        recompute: bool = False,
        learned_as: Literal["factor", "lr"] = "factor",
    ) -> None:
        super().__init__()
        if not 0 < lr < float("inf"):
            raise ValueError(f"lr is {lr}; the step size must be positive and finite.")
        if unknown := set(learned_lr) - {"step", "parameter", "tensor"}:
            raise ValueError(f"learned_lr names {sorted(unknown)}; allowed are step, parameter and tensor.")
        if {"parameter", "tensor"} <= set(learned_lr):
            raise ValueError(
                f"learned_lr names {' and '.join(learned_lr)}; parameter learns a step size for every element of a tensor, so "
                "name parameter or tensor, not both."
            )
        if outer not in ("second_order", "first_order", "reptile"):
            raise ValueError(f"outer is {outer}; allowed are second_order, first_order and reptile.")
        if learned_as not in ("factor", "lr"):
            raise ValueError(f"learned_as is {learned_as}; allowed are factor and lr.")
        if learned_as == "lr" and not learned_lr:
            raise ValueError(
                "learned_as is lr, but learned_lr is empty: name step, parameter or tensor, or leave learned_as out."
            )
        self.lr = lr
        self.learned_lr = tuple(learned_lr)
        self.outer = outer
        self.recompute = recompute
        self.learned_as = learned_as
        self.factors = nn.ParameterDict()

    def connect(self, latents: Mapping[str, TensorSpec], steps: int) -> None:
        """Create the learned factors, all 1, or the learned step sizes, all ``lr``."""
        initial = 1.0 if self.learned_as == "factor" else self.lr
        for name, spec in latents.items() if self.learned_lr else ():
            shape = [max(size, 1) if "parameter" in self.learned_lr else 1 for size in spec.shape]
            turns = steps if "step" in self.learned_lr else 1
            self.factors[module_key(name)] = nn.Parameter(torch.full((turns, *shape), initial))

    def take(
        self,
        loss_fn: LossFunction,
        latents: Latents,
        steps: int,
        report: Collection[int],
        scales: Scales,
        training: bool,
    ) -> Trajectory:
        """Take gradient steps; see `Rule.take`."""
        second_order = training and self.outer == "second_order"
        kept, losses, done = {0: latents}, [], 0
        for until in sorted({*(step for step in report if 0 < step < steps), steps}):
            latents, part = adapt(
                lambda moved, step, done=done: loss_fn(moved, done + step),  # type: ignore[misc]
                latents,
                steps=until - done,
                step_size=lambda moved, step, done=done: self.step_sizes(scales(moved), done + step),  # type: ignore[misc]
                create_graph=second_order and torch.is_grad_enabled(),
                recompute=self.recompute,
            )
            kept[until], done = latents, until
            losses.append(part if until == steps else part[:-1])
        return Trajectory(kept, torch.cat(losses))

    def step_sizes(self, scales: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """Return the step size of every latent, a tensor that broadcasts with it.

        Args:
            scales: Scale of every latent.
            step: Index of the step, from 0.
        """
        sizes = {}
        for name, scale in scales.items():
            sizes[name] = scale if self.learned_as == "lr" else self.lr * scale
            if self.learned_lr:
                factors = self.factors[module_key(name)]
                sizes[name] = sizes[name] * factors[min(step, len(factors) - 1)]
        return sizes

    def describe(self) -> list[str]:
        """Return step size and order as text."""
        learned = "factors learned" if self.learned_as == "factor" else "learned"
        learned = f", {learned} per {' and '.join(self.learned_lr)}" if self.learned_lr else ""
        order = {"second_order": "second order", "first_order": "first order", "reptile": "Reptile"}[self.outer]
        lines = [f"step size {self.lr:g}{learned}", order]
        if self.recompute and self.outer == "second_order":
            lines.append("recomputed in the backward pass")
        return lines


class TorchOptimizer(Rule):
    """Take steps with a PyTorch optimizer. For evaluation only, because training cannot differentiate through the steps.

    Args:
        optimizer: Optimizer of the latents; Adam with ``lr`` 0.01 if None. It must update every element independently, as SGD
            and Adam do, so that instances do not affect each other.
        warmup_steps: Number of steps of a linear warm-up of the learning rate. Adam's first steps are as large as later ones,
            but their direction is less reliable.

    Raises:
        ValueError: If ``warmup_steps`` is negative.
    """

    def __init__(self, optimizer: OptimizerCallable | None = None, warmup_steps: int = 0) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps is {warmup_steps}; it must be at least 0.")
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps

    def take(
        self,
        loss_fn: LossFunction,
        latents: Latents,
        steps: int,
        report: Collection[int],
        scales: Scales,
        training: bool,
    ) -> Trajectory:
        """Take gradient steps; see `Rule.take`. ``scales`` are not used."""
        with torch.enable_grad():
            moving = {name: latent.detach().clone().requires_grad_() for name, latent in latents.items()}
            parameters = list(moving.values())
            optimizer = self.optimizer(parameters) if self.optimizer else torch.optim.Adam(parameters, lr=0.01)
            lrs = [group["lr"] for group in optimizer.param_groups]
            kept: dict[int, Latents] = {}
            losses = []
            for step in range(steps + 1):
                if step in report or step in (0, steps):
                    kept[step] = {name: latent.detach().clone() for name, latent in moving.items()}
                if step == steps:
                    with torch.no_grad():
                        losses.append(loss_fn(moving, step))
                    break
                instance_losses = loss_fn(moving, step)
                losses.append(instance_losses.detach())
                for parameter, gradient in zip(
                    parameters, torch.autograd.grad(instance_losses.sum(), parameters), strict=True
                ):
                    parameter.grad = gradient
                for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                    group["lr"] = lr * min(1.0, (step + 1) / max(1, self.warmup_steps))
                optimizer.step()
        return Trajectory(kept, torch.stack(losses))

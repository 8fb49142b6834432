"""Losses of training and gradient steps, one value per instance."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers.metrics import instance_mse
from composers.rendering import Reconstruction
from datamodules.batch import Samples
from datamodules.domain import exact

Objective = Callable[[Reconstruction, Samples], Tensor]
"""From a reconstruction and its target to losses ``(B,)``, as `Loss.forward`."""


class Loss(nn.Module, ABC):
    """Base class of losses, which compare a reconstruction with measured values."""

    @abstractmethod
    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return ``(B,)`` for a reconstruction at the coordinates of the target; it may evaluate the field elsewhere."""

    def at(self, step: int) -> Objective:
        """Return the loss of a training step; the same in every step by default.

        A loss that changes in training depends on the step alone, so that a resumed run continues it. Validation, test, inner
        loops and refinement use the final loss, which is `forward`.

        Args:
            step: Number of optimizer steps that are done.
        """
        return self

    @property
    def needs_order(self) -> tuple[str, ...]:
        """Return the names of the losses in this one that compare neighbouring samples: all, in order, without noise."""
        return ()


class MeanAbsoluteError(Loss):
    """Absolute error, averaged over the unmasked samples and the channels of an instance (LIIF and its descendants)."""

    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return the mean absolute error of every instance, in float32."""
        errors = (exact(reconstruction.values) - exact(target.measured)).abs().mean(-1)
        return _mean(errors, target.mask)


class MeanSquaredError(Loss):
    """Squared error, averaged over the unmasked samples and channels of an instance (IPC, TransINR, Learned Init, functa)."""

    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return the mean squared error of every instance, in float32."""
        return instance_mse(reconstruction.values, target)


class WeightedLoss(Loss):
    """A loss times a weight, which training can ramp in linearly.

    In training, the weight is 0 up to step ``start``, grows linearly, and is ``weight`` from step ``start + ramp`` on. While it
    is 0, the loss is not computed. Validation, test, inner loops and refinement use ``weight``.

    Args:
        loss: The loss.
        weight: Its final weight.
        start: Optimizer steps of training before the weight grows.
        ramp: Optimizer steps over which it grows; with 0, it is ``weight`` at once.

    Raises:
        ValueError: If ``weight`` is not positive and finite, or a number of steps is negative.

    Example:
        >>> loss = WeightedLoss(MeanSquaredError(), 0.5, start=100, ramp=200)
        >>> [loss.weight_at(step) for step in (0, 100, 150, 300, 1000)]
        [0.0, 0.0, 0.125, 0.5, 0.5]
    """

    def __init__(self, loss: Loss, weight: float = 1.0, start: int = 0, ramp: int = 0) -> None:
        super().__init__()
        if not 0 < weight < math.inf:
            raise ValueError(f"weight is {weight}; it must be positive and finite. Remove a loss without weight.")
        if start < 0 or ramp < 0:
            raise ValueError(f"start is {start} and ramp {ramp}; numbers of steps must be at least 0.")
        self.loss = loss
        self.weight = weight
        self.start = start
        self.ramp = ramp

    @property
    def needs_order(self) -> tuple[str, ...]:
        """Return the names of `loss.needs_order`."""
        return self.loss.needs_order

    def weight_at(self, step: int) -> float:
        """Return the weight of a training step, counted from 0."""
        done = step - self.start
        return self.weight * min(max(done / self.ramp if self.ramp else float(done >= 0), 0.0), 1.0)

    def at(self, step: int) -> Objective:
        """Return the loss of a training step."""
        return partial(self._weighted, self.loss.at(step), self.weight_at(step))

    def _weighted(self, loss: Objective, weight: float, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return a loss times a weight; without the loss if the weight is 0, unless it has parameters to train."""
        if not weight and next(self.parameters(), None) is None:
            values = exact(reconstruction.values)
            return 0 * values.nan_to_num(0, 0, 0).flatten(1).sum(-1)  # with a gradient, where there is no other loss
        return weight * loss(reconstruction, target)

    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return the loss of every instance times the final weight."""
        return self._weighted(self.loss, self.weight, reconstruction, target)


class LossSum(Loss):
    """The sum of losses, by name; `WeightedLoss` gives a part a weight and a ramp.

    Names make each part an option of the command line, such as ``--model.loss.init_args.parts.stft.init_args.weight``.

    Args:
        parts: Losses by name.

    Raises:
        ValueError: If there are none, or a name contains a dot or is that of an attribute of a module.
    """

    def __init__(self, parts: Mapping[str, Loss]) -> None:
        super().__init__()
        if not parts or any("." in name or not name or hasattr(nn.ModuleDict, name) for name in parts):
            raise ValueError(
                f"parts is {list(parts)}; give at least one loss, and names without dots that are no attributes of a module, "
                "as type and keys are."
            )
        self.parts = nn.ModuleDict(parts)

    @property
    def needs_order(self) -> tuple[str, ...]:
        """Return those of all parts."""
        return tuple(name for part in self._losses() for name in part.needs_order)

    def at(self, step: int) -> Objective:
        """Return the sum in a training step."""
        return partial(_total, [part.at(step) for part in self._losses()])

    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return the sum of all parts for every instance."""
        return _total(self._losses(), reconstruction, target)

    def _losses(self) -> list[Loss]:
        """Return the parts."""
        return list(self.parts.values())  # type: ignore[arg-type]


class ClampedAbsoluteError(Loss):
    """Absolute error of signed distances that are clamped to ``[-limit, limit]`` (Park et al., DeepSDF, CVPR 2019, equation 4).

    Args:
        limit: Distance from the surface beyond which errors do not count; 0.1 in DeepSDF.

    Raises:
        ValueError: If ``limit`` is not positive.
    """

    def __init__(self, limit: float = 0.1) -> None:
        super().__init__()
        if not limit > 0:
            raise ValueError(f"limit is {limit}; it must be a positive distance.")
        self.limit = limit

    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return the mean clamped error of every instance, in float32."""
        values, measured = (
            exact(part).clamp(-self.limit, self.limit) for part in (reconstruction.values, target.measured)
        )
        return _mean((values - measured).abs().mean(-1), target.mask)


class TruncatedSquaredError(Loss):
    """Squared error of signed distances that are truncated at ``limit``, in units of it.

    Only the target is truncated, so that the error has a gradient wherever the reconstruction is, unlike that of
    `ClampedAbsoluteError`; a field learns a plateau away from the surface.

    Args:
        limit: Largest distance in magnitude.

    Raises:
        ValueError: If ``limit`` is not positive.
    """

    def __init__(self, limit: float = 0.1) -> None:
        super().__init__()
        if not limit > 0:
            raise ValueError(f"limit is {limit}; it must be a positive distance.")
        self.limit = limit

    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return the mean squared error of every instance, in float32."""
        truncated = exact(target.measured).clamp(-self.limit, self.limit)
        errors = ((exact(reconstruction.values) - truncated) / self.limit).square()
        return _mean(errors.mean(-1), target.mask)


class SignAndDistance(Loss):
    """Cross-entropy of the sign and absolute error of the distance, with learned weights (Sitzmann et al., MetaSDF, 2020).

    With ``BCE`` of the logit against "outside" and ``L1`` of the distance, both means over the samples of an instance, the
    loss is ``BCE / (2 s0^2) + L1 / (2 s1^2) + log(s0 s1)``. The uncertainties ``s0`` and ``s1`` are parameters that begin at 1
    (Kendall et al., CVPR 2018). An inner loop and the outer loss have separate ones if each has its own `SignAndDistance`.
    The field has two outputs, as with `composers.rendering.SignedDistance` of ``both`` heads.

    Args:
        surface: What the sign of a sample with distance 0 counts as. With surface points only, the cross-entropy compares one
            class: ``inside`` is the reference, which drives the logit to minus infinity there. ``half`` asks for probability
            1/2, a logit of 0 on the surface. ``ignored`` leaves these samples out of the cross-entropy.
        unknown: Distance of samples whose distance is unknown, which are left out of ``L1``; in the reference, -1 in the outer
            loss. None if all are known.

    Raises:
        ValueError: If ``surface`` is unknown, or ``unknown`` is 0 or not finite.
    """

    def __init__(self, surface: Literal["inside", "half", "ignored"] = "inside", unknown: float | None = None) -> None:
        super().__init__()
        if surface not in ("inside", "half", "ignored"):
            raise ValueError(f"surface is {surface}; allowed are inside, half and ignored.")
        if unknown is not None and (unknown == 0 or not math.isfinite(unknown)):
            raise ValueError(
                f"unknown is {unknown}; it must be a finite distance other than 0, which is the surface, or null."
            )
        self.surface = surface
        self.unknown = unknown
        self.uncertainties = nn.Parameter(torch.ones(2))  # of the sign and of the distance

    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return the loss of every instance, in float32.

        Raises:
            ValueError: If the field does not have two outputs.
        """
        raw = reconstruction.raw
        if raw is None or raw.shape[-1] != 2:
            outputs = "no outputs" if raw is None else f"{raw.shape[-1]} outputs"
            raise ValueError(
                f"SignAndDistance compares a logit and a distance, and the field has {outputs}: set renderer to SignedDistance "
                "with heads both."
            )
        logit, distance = exact(raw).unbind(-1)
        measured = exact(target.measured)[..., 0]
        cross_entropy = functional.binary_cross_entropy_with_logits(logit, self._outside(measured), reduction="none")
        sign = _mean(cross_entropy, _both(target.mask, measured != 0 if self.surface == "ignored" else None))
        known = None if self.unknown is None else measured != self.unknown
        error = _mean((distance - measured).abs(), _both(target.mask, known))
        weights = 0.5 / self.uncertainties.square()
        # |s0 s1| equals the reference, and remains defined where an optimizer of the inner loop's weights changes a sign
        return weights[0] * sign + weights[1] * error + self.uncertainties.prod().abs().log()

    def _outside(self, measured: Tensor) -> Tensor:
        """Return the probability that samples are outside."""
        outside = (measured > 0).to(measured.dtype)
        return torch.where(measured == 0, 0.5, outside) if self.surface == "half" else outside


def _total(losses: Sequence[Objective], reconstruction: Reconstruction, target: Samples) -> Tensor:
    """Return the sum of losses."""
    first, *others = (loss(reconstruction, target) for loss in losses)
    return sum(others, start=first)


def _mean(errors: Tensor, mask: Tensor | None) -> Tensor:
    """Return the means ``(B,)`` of errors ``(B, N)`` over the samples that a mask ``(B, N)`` leaves."""
    return errors.mean(-1) if mask is None else (errors * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return the samples that both masks leave; None leaves all."""
    return second if first is None else first if second is None else first & second

"""Log gradient norms and learned step sizes."""

from __future__ import annotations

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from composers.base import Composer
from composers.inference import DifferentiableSGD, Rule
from composers.training import sharding


class GradientNorms(Callback):
    """Log the norm of the gradient: ``grad_norm/total``, and ``grad_norm/<attribute>`` for every part of the composer.

    The norms are measured before the optimizer step: after accumulation, averaging over devices and unscaling (fused
    optimizers unscale by themselves, later), and before clipping.

    Args:
        every_n_steps: Number of optimizer steps between two measurements; ``log_every_n_steps`` of the trainer if None.

    Raises:
        ValueError: If ``every_n_steps`` is not positive.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be at least 1, or null.")
        self.every_n_steps = every_n_steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise a `ValueError` if the gradients are sharded: one process alone cannot measure them."""
        if sharding.is_sharded(trainer.strategy):
            raise ValueError("GradientNorms cannot measure sharded gradients: remove it from trainer.callbacks.")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log the gradient norms of this step."""
        every = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.is_global_zero and every and (trainer.global_step + 1) % every == 0:
            norms = {f"grad_norm/{part}": norm for part, norm in gradient_norms(pl_module).items()}
            for logger in trainer.loggers:
                logger.log_metrics(norms, step=trainer.global_step)


def gradient_norms(module: nn.Module) -> dict[str, float]:
    """Return the Euclidean norms of the gradients of a module in float32: of every attribute, and in ``total``.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> layer.weight.grad, layer.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
        >>> gradient_norms(layer)
        {'weight': 3.0, 'bias': 4.0, 'total': 5.0}
    """
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            parts.setdefault(name.split(".")[0], []).append(parameter.grad.float())
    norms = {part: get_total_norm(gradients) for part, gradients in parts.items()}
    norms["total"] = get_total_norm(list(norms.values()))
    numbers: list[float] = torch.stack(list(norms.values())).tolist()  # synchronises with the device once
    return dict(zip(norms, numbers, strict=True))


class LearnedStepSizes(Callback):
    """Log the learned step sizes of an inner loop after every validation, as the mean factor of every latent.

    The keys are ``inner_lr_factor/<latent>/step_<k>`` for every inner step of training, counted from 1, or
    ``inner_lr_factor/<latent>`` if all steps share a factor. Factors are initialised to 1; learned step sizes are logged
    relative to ``lr``. Factors per parameter are averaged over the latent. Without learned step sizes, nothing is logged.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the factors at the step of the validation metrics."""
        inner = pl_module.inner if isinstance(pl_module, Composer) else None
        if trainer.sanity_checking or not trainer.is_global_zero or inner is None:
            return
        factors = mean_factors(inner.rule)
        if factors:
            for logger in trainer.loggers:
                logger.log_metrics(factors, step=max(trainer.global_step - 1, 0))


def mean_factors(rule: Rule) -> dict[str, float]:
    """Return the mean learned factor of the step size of every latent and step, with the keys of `LearnedStepSizes`.

    Example:
        >>> from composers.networks import TensorSpec
        >>> rule = DifferentiableSGD(learned_lr=["step"])
        >>> rule.connect({"latent": TensorSpec((5,), torch.zeros)}, steps=2)
        >>> mean_factors(rule)
        {'inner_lr_factor/latent/step_1': 1.0, 'inner_lr_factor/latent/step_2': 1.0}
    """
    result: dict[str, float] = {}
    if not isinstance(rule, DifferentiableSGD):
        return result
    for latent, factors in rule.factors.items():
        relative = factors / rule.lr if rule.learned_as == "lr" else factors
        means = relative.detach().float().flatten(1).mean(1).tolist()
        names = [f"/step_{step}" for step in range(1, len(means) + 1)] if "step" in rule.learned_lr else [""]
        result |= {f"inner_lr_factor/{latent}{name}": mean for name, mean in zip(names, means, strict=True)}
    return result

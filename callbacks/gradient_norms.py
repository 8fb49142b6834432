"""What training logs of its gradients and learned step sizes."""

from __future__ import annotations

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from composers.base import Composer
from composers.inference import DifferentiableSGD, Rule


class GradientNorms(Callback):
    """Logs the norm of the gradient, ``grad_norm/total`` and one number for each part of the composer, by attribute name.

    Measured where the optimizer is about to step: after accumulation, averaging over devices and unscaling (not by fused
    optimizers, which unscale themselves), before clipping.

    Args:
        every_n_steps: Optimizer steps from one to the next; the trainer's ``log_every_n_steps`` if None.

    Raises:
        ValueError: If the number is not positive.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be at least 1, or null.")
        self.every_n_steps = every_n_steps

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log the norms of this step."""
        every = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.is_global_zero and every and (trainer.global_step + 1) % every == 0:
            norms = {f"grad_norm/{part}": norm for part, norm in gradient_norms(pl_module).items()}
            for logger in trainer.loggers:
                logger.log_metrics(norms, step=trainer.global_step)


def gradient_norms(module: nn.Module) -> dict[str, float]:
    """Return the Euclidean norms of the gradients of a module, in float32: of each attribute of it, then ``total``.

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
    numbers: list[float] = torch.stack(list(norms.values())).tolist()  # the only wait for the device
    return dict(zip(norms, numbers, strict=True))


class LearnedStepSizes(Callback):
    """Logs after every validation what an inner loop has learned of its step sizes: the mean factor of every latent.

    ``inner_lr_factor/<latent>/step_<k>`` for every step of training, the first is 1, and ``inner_lr_factor/<latent>`` where all
    steps share it. Factors start at 1 and are means over the numbers of the latent where each has its own. Nothing is
    logged where nothing is learned.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the factors, where Lightning puts what it validates."""
        inner = pl_module.inner if isinstance(pl_module, Composer) else None
        if trainer.sanity_checking or not trainer.is_global_zero or inner is None:
            return
        factors = mean_factors(inner.rule)
        if factors:
            for logger in trainer.loggers:
                logger.log_metrics(factors, step=max(trainer.global_step - 1, 0))


def mean_factors(rule: Rule) -> dict[str, float]:
    """Return the mean learned factor of the step size of every latent, and every step, as `LearnedStepSizes` names them.

    Example:
        >>> rule = DifferentiableSGD(learned_lr=["step"])
        >>> rule.connect({"latent": TensorSpec((5,), torch.zeros)}, steps=2)
        >>> mean_factors(rule)
        {'inner_lr_factor/latent/step_1': 1.0, 'inner_lr_factor/latent/step_2': 1.0}
    """
    found: dict[str, float] = {}
    if not isinstance(rule, DifferentiableSGD):
        return found
    for latent, factors in rule.factors.items():
        means = factors.detach().float().flatten(1).mean(1).tolist()
        names = [f"/step_{step}" for step in range(1, len(means) + 1)] if "step" in rule.learned_lr else [""]
        found |= {f"inner_lr_factor/{latent}{name}": mean for name, mean in zip(names, means, strict=True)}
    return found

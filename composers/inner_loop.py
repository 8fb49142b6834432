"""The inner loop: gradient steps on the latents of each instance, differentiable and free of side effects.

Meta-learned composers find latents so (paper section 3.3; MAML, Finn et al. 2017; CAVIA, Zintgraf et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Latents = dict[str, Tensor]
LossFunction = Callable[[Latents, int], Tensor]
StepSize = float | Mapping[str, Tensor] | Callable[[Latents, int], Mapping[str, Tensor]]


def adapt(
    loss_fn: LossFunction,
    latents: Latents,
    *,
    steps: int,
    step_size: StepSize,
    create_graph: bool = False,
    recompute: bool = False,
) -> tuple[Latents, Tensor]:
    """Take gradient steps on latents: ``latent - step size * gradient``, every instance on its own.

    A pure function: nothing that goes in is changed, and the same goes out again. It works under ``no_grad``, and inside
    ``torch.compile``; in inference mode it must be called under ``torch.inference_mode(False)``, on tensors made outside.

    Args:
        loss_fn: From latents and the step, counted from 0, to one loss per instance ``(B,)``; the sum is differentiated, so
            that instances never mix.
        latents: Where to start, ``(B, ...)`` by name. Where they have a graph, what comes out is attached to it.
        steps: How many, at least 0.
        step_size: A number, one tensor per latent that broadcasts with it, or a function of the latents and the step that
            returns such tensors.
        create_graph: Whether to keep the graph of the gradients and the step sizes, for exact gradients of second order.
            Without it, gradients count as constants (first order), and step sizes do not depend on the latents.
        recompute: Whether to compute every step again in the backward pass rather than to store what it needs: memory then
            hardly depends on the number of steps, for about a third more time. Inside ``torch.compile`` it counts for
            nothing: the compiler chooses itself what to store.

    Returns:
        The latents after the last step, and the losses ``(steps + 1, B)`` before every step and after the last, detached.

    Raises:
        ValueError: If the loss does not depend on a latent, which is named.

    Example:
        >>> found, losses = adapt(
        ...     lambda at, step: (at["x"] - 3).square(), {"x": torch.zeros(1)}, steps=2, step_size=0.25
        ... )
        >>> found["x"].tolist(), losses.flatten().tolist()
        ([2.25], [9.0, 2.25, 0.5625])
    """
    losses = []
    for step in range(steps):
        if recompute and create_graph and not torch.compiler.is_compiling():
            latents, loss = checkpoint(_step, loss_fn, latents, step, step_size, create_graph, use_reentrant=False)
        else:
            latents, loss = _step(loss_fn, latents, step, step_size, create_graph)
        losses.append(loss)
    with torch.no_grad():
        losses.append(loss_fn(latents, steps))
    return latents, torch.stack(losses)


def _step(
    loss_fn: LossFunction, latents: Latents, step: int, step_size: StepSize, create_graph: bool
) -> tuple[Latents, Tensor]:
    """Return the latents after one step, and the losses before it."""
    gradients, losses = _gradients(loss_fn, latents, step, create_graph)
    if callable(step_size):
        own = latents if create_graph else {name: latent.detach() for name, latent in latents.items()}
        step_size = step_size(own, step)
    sizes = step_size if isinstance(step_size, Mapping) else dict.fromkeys(latents, step_size)
    return {name: latent - sizes[name] * gradients[name] for name, latent in latents.items()}, losses


def _gradients(loss_fn: LossFunction, latents: Latents, step: int, create_graph: bool) -> tuple[Latents, Tensor]:
    """Return the gradients of the summed losses, and the losses, detached."""
    if torch.compiler.is_compiling():  # which knows gradients of gradients in this form only
        return _gradients_in_compilation(loss_fn, latents, step, create_graph)
    attached = (
        torch.is_grad_enabled()
    )  # without it a view of a parameter says that it requires gradients, and gets none
    with torch.enable_grad():
        tracked = {
            name: latent if attached and latent.requires_grad else latent.detach().requires_grad_()
            for name, latent in latents.items()
        }
        losses = loss_fn(tracked, step)
        found = torch.autograd.grad(losses.sum(), list(tracked.values()), create_graph=create_graph, allow_unused=True)
    if unused := [name for name, gradient in zip(tracked, found, strict=True) if gradient is None]:
        raise ValueError(f"The loss does not depend on {', '.join(unused)}: compose what is rendered of every latent.")
    return dict(zip(tracked, found, strict=True)), losses.detach()


def _gradients_in_compilation(
    loss_fn: LossFunction, latents: Latents, step: int, create_graph: bool
) -> tuple[Latents, Tensor]:
    """Return what `_gradients` does, written with ``torch.func``."""

    def summed(moved: Latents) -> tuple[Tensor, Tensor]:
        losses = loss_fn(moved, step)
        return losses.sum(), losses.detach()

    with torch.set_grad_enabled(create_graph):
        gradients, losses = torch.func.grad(summed, has_aux=True)(latents)
    return gradients, losses


class DivergenceError(ValueError):
    """An inner loop that left the numbers.

    Attributes:
        step: After so many steps the loss was no number.
        instance: Of this instance, counted from 0.
    """

    def __init__(self, step: int, instance: int) -> None:
        super().__init__(f"The inner loop diverged after {step} steps on instance {instance} of the batch.")
        self.step = step
        self.instance = instance


def check_finite(losses: Tensor) -> None:
    """Refuse losses ``(steps + 1, B)`` of an inner loop that are no numbers.

    Raises:
        DivergenceError: With the first step, and the first instance in it.
    """
    finite = losses.isfinite()
    if not bool(finite.all()):
        step, instance = (~finite).nonzero()[0].tolist()
        raise DivergenceError(step, instance)

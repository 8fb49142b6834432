"""Differentiable gradient steps on the latents of every instance, as a pure function.

Meta-learned composers adapt latents this way (paper section 3.3; MAML, Finn et al. 2017; CAVIA, Zintgraf et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from composers.latents import Latents

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
    """Take gradient steps ``latent - step size * gradient``, independently for every instance.

    The arguments are not modified. The function works under ``torch.no_grad`` and inside ``torch.compile``. In inference mode,
    call it under ``torch.inference_mode(False)``, with tensors created outside of inference mode.

    Args:
        loss_fn: Return one loss per instance ``(B,)``, given latents and the step, counted from 0. Gradients are those of the
            sum, so that instances do not interact.
        latents: Initial latents ``(B, ...)`` by name. If they have a graph, the result is attached to it.
        steps: Number of steps, at least 0.
        step_size: A number, one tensor per latent that broadcasts with it, or a function that returns such tensors, given
            latents and the step.
        create_graph: Whether to keep the graph of gradients and step sizes, for exact second-order gradients. If False,
            gradients are constants (first order), and step sizes do not depend on the latents.
        recompute: Whether to recompute every step in the backward pass instead of storing its activations. Memory is then
            almost independent of the number of steps, at the cost of about a quarter more time. The loss must be
            deterministic, so draw random numbers before the loop, and may depend on leaves such as parameters, but not on
            tensors computed from them before the loop. Has no effect inside ``torch.compile``, which decides what to store.

    Returns:
        The latents after the last step, and the losses ``(steps + 1, B)`` before every step and after the last, detached.

    Raises:
        ValueError: If the loss does not depend on one of the latents.

    Example:
        >>> latents, losses = adapt(
        ...     lambda at, step: (at["x"] - 3).square(), {"x": torch.zeros(1)}, steps=2, step_size=0.25
        ... )
        >>> latents["x"].tolist(), losses.flatten().tolist()
        ([2.25], [9.0, 2.25, 0.5625])
    """
    losses = []
    recompute = recompute and create_graph and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    for step in range(steps):
        if recompute:
            latents, loss = _recomputed_step(loss_fn, latents, step, step_size)
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
    constants = latents if create_graph else {name: latent.detach() for name, latent in latents.items()}
    return _updated(latents, gradients, _sizes(step_size, constants, step)), losses


def _updated(latents: Latents, gradients: Latents, sizes: Mapping[str, Tensor | float]) -> Latents:
    """Return the latents after a step."""
    return {name: latent - sizes[name] * gradients[name] for name, latent in latents.items()}


def _sizes(step_size: StepSize, latents: Latents, step: int) -> Mapping[str, Tensor | float]:
    """Return the step size of every latent."""
    if callable(step_size):
        return step_size(latents, step)
    return step_size if isinstance(step_size, Mapping) else dict.fromkeys(latents, step_size)


def _gradients(loss_fn: LossFunction, latents: Latents, step: int, create_graph: bool) -> tuple[Latents, Tensor]:
    """Return the gradients of the summed losses, and the detached losses."""
    if torch.compiler.is_compiling():  # which supports gradients of gradients in this form only
        return _gradients_in_compilation(loss_fn, latents, step, create_graph)
    attached = torch.is_grad_enabled()  # otherwise, a view of a parameter requires gradients but has no graph
    with torch.enable_grad():
        tracked = {
            name: latent if attached and latent.requires_grad else latent.detach().requires_grad_()
            for name, latent in latents.items()
        }
        losses = loss_fn(tracked, step)
        return _differentiated(losses, tracked, create_graph), losses.detach()


def _differentiated(losses: Tensor, latents: Latents, create_graph: bool) -> Latents:
    """Return the gradients of the summed losses; raise if they do not depend on a latent."""
    gradients = torch.autograd.grad(losses.sum(), list(latents.values()), create_graph=create_graph, allow_unused=True)
    if unused := [name for name, gradient in zip(latents, gradients, strict=True) if gradient is None]:
        raise ValueError(f"The loss does not depend on {', '.join(unused)}: compose the modulations from all latents.")
    return dict(zip(latents, gradients, strict=True))


def _gradients_in_compilation(
    loss_fn: LossFunction, latents: Latents, step: int, create_graph: bool
) -> tuple[Latents, Tensor]:
    """Return the same as `_gradients`, using ``torch.func``."""

    def total(tracked: Latents) -> tuple[Tensor, Tensor]:
        losses = loss_fn(tracked, step)
        return losses.sum(), losses.detach()

    with torch.set_grad_enabled(create_graph):
        gradients, losses = torch.func.grad(total, has_aux=True)(latents)
    return gradients, losses


def _recomputed_step(loss_fn: LossFunction, latents: Latents, step: int, step_size: StepSize) -> tuple[Latents, Tensor]:
    """Return the same as `_step` with a graph that stores only the latents and recomputes the step in the backward pass.

    `torch.utils.checkpoint` does not fit: a gradient inside it recomputes the forward pass immediately, and the activations
    before the latents, which that gradient does not need, stay in memory for every step.
    """
    tracked = {name: latent.detach().requires_grad_() for name, latent in latents.items()}
    losses = loss_fn(tracked, step)
    sizes = _sizes(step_size, tracked, step)
    tensors = [size for size in sizes.values() if isinstance(size, Tensor)]
    leaves = [leaf for leaf in _leaves([losses, *tensors]) if all(leaf is not latent for latent in tracked.values())]
    gradients = _differentiated(losses, tracked, create_graph=False)
    with torch.no_grad():
        updated = _updated(tracked, gradients, sizes)

    def recompute(inputs: Iterable[Tensor]) -> list[Tensor]:
        return list(
            _step(loss_fn, dict(zip(latents, inputs, strict=True)), step, step_size, create_graph=True)[0].values()
        )

    attached = _Recomputed.apply(recompute, list(updated.values()), *latents.values(), *leaves)  # type: ignore[no-untyped-call]
    return dict(zip(latents, attached, strict=True)), losses.detach()


def _leaves(outputs: Iterable[Tensor]) -> list[Tensor]:
    """Return the parameters and other leaves of the graph of some outputs."""
    queue = [get_gradient_edge(output).node for output in outputs if output.requires_grad]
    leaves: dict[object, Tensor | None] = {}  # by node; None for inner nodes
    while queue:
        node = queue.pop()
        if node not in leaves:
            leaves[node] = getattr(node, "variable", None)
            queue += [earlier for earlier, _ in node.next_functions if earlier is not None]
    return [leaf for leaf in leaves.values() if leaf is not None]


class _Recomputed(torch.autograd.Function):
    """Attach the result of a step without a graph to one that recomputes the step in the backward pass.

    ``apply`` takes the step as a function of latents, its result, the latents, and all other leaves that it reads.
    """

    @staticmethod
    def forward(
        ctx: Any, recompute: Callable[[Iterable[Tensor]], list[Tensor]], updated: list[Tensor], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the latents after the step."""
        device = inputs[0].device.type
        ctx.recompute = recompute
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.save_for_backward(*inputs)
        return tuple(updated)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Recompute the step, and differentiate it."""
        latents = [latent.detach().requires_grad_() for latent in ctx.saved_tensors[: len(gradients)]]
        leaves = ctx.saved_tensors[len(gradients) :]
        with torch.enable_grad(), torch.autocast(*ctx.autocast):
            updated = ctx.recompute(latents)
        return (None, None, *torch.autograd.grad(updated, [*latents, *leaves], gradients, allow_unused=True))


class DivergenceError(ValueError):
    """Raised when a loss of the inner loop is not finite.

    Attributes:
        step: Number of steps taken before the loss.
        instance: Index of the instance in the batch.
    """

    def __init__(self, step: int, instance: int) -> None:
        super().__init__(f"The inner loop diverged after {step} steps on instance {instance} of the batch.")
        self.step = step
        self.instance = instance


def check_finite(losses: Tensor) -> None:
    """Raise if losses ``(steps + 1, B)`` of an inner loop are not finite.

    Raises:
        DivergenceError: At the first step, for its first instance, that is not finite.
    """
    finite = losses.isfinite()
    if not bool(finite.all()):
        step, instance = (~finite).nonzero()[0].tolist()
        raise DivergenceError(step, instance)

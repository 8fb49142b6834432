"""The inner loop: gradient steps on the latents of each instance, differentiable and free of side effects.

Meta-learned composers find latents so (paper section 3.3; MAML, Finn et al. 2017; CAVIA, Zintgraf et al. 2019).
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
            hardly depends on the number of steps, for about a quarter more time. The loss must then return the same again, so
            that draws belong before the loop, and depend on leaves besides, such as parameters, not on what was computed of
            them before. Inside ``torch.compile`` it counts for nothing: the compiler chooses itself what to store.

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
    again = recompute and create_graph and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    for step in range(steps):
        if again:
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
    own = latents if create_graph else {name: latent.detach() for name, latent in latents.items()}
    return _moved(latents, gradients, _sizes(step_size, own, step)), losses


def _moved(latents: Latents, gradients: Latents, sizes: Mapping[str, Tensor | float]) -> Latents:
    """Return the latents after a step against their gradients."""
    return {name: latent - sizes[name] * gradients[name] for name, latent in latents.items()}


def _sizes(step_size: StepSize, latents: Latents, step: int) -> Mapping[str, Tensor | float]:
    """Return the size of the step on every latent."""
    if callable(step_size):
        return step_size(latents, step)
    return step_size if isinstance(step_size, Mapping) else dict.fromkeys(latents, step_size)


def _gradients(loss_fn: LossFunction, latents: Latents, step: int, create_graph: bool) -> tuple[Latents, Tensor]:
    """Return the gradients of the summed losses, and the losses, detached."""
    if torch.compiler.is_compiling():  # which knows gradients of gradients in this form only
        return _gradients_in_compilation(loss_fn, latents, step, create_graph)
    attached = torch.is_grad_enabled()  # else a view of a parameter says that it requires gradients, and gets none
    with torch.enable_grad():
        tracked = {
            name: latent if attached and latent.requires_grad else latent.detach().requires_grad_()
            for name, latent in latents.items()
        }
        losses = loss_fn(tracked, step)
        return _differentiated(losses, tracked, create_graph), losses.detach()


def _differentiated(losses: Tensor, latents: Latents, create_graph: bool) -> Latents:
    """Return the gradients of the summed losses, or refuse latents that they do not depend on."""
    found = torch.autograd.grad(losses.sum(), list(latents.values()), create_graph=create_graph, allow_unused=True)
    if unused := [name for name, gradient in zip(latents, found, strict=True) if gradient is None]:
        raise ValueError(f"The loss does not depend on {', '.join(unused)}: compose what is rendered of every latent.")
    return dict(zip(latents, found, strict=True))


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


def _recomputed_step(loss_fn: LossFunction, latents: Latents, step: int, step_size: StepSize) -> tuple[Latents, Tensor]:
    """Return what `_step` does with a graph, which however keeps nothing but the latents and takes the step again.

    `torch.utils.checkpoint` cannot serve: a gradient taken inside of it has it compute the forward pass a second time at once,
    and what comes before the latents, which that gradient does not ask for, stays in memory for every step.
    """
    tracked = {name: latent.detach().requires_grad_() for name, latent in latents.items()}
    losses = loss_fn(tracked, step)
    sizes = _sizes(step_size, tracked, step)
    tensors = [size for size in sizes.values() if isinstance(size, Tensor)]
    leaves = [leaf for leaf in _leaves([losses, *tensors]) if all(leaf is not own for own in tracked.values())]
    gradients = _differentiated(losses, tracked, create_graph=False)
    with torch.no_grad():
        moved = _moved(tracked, gradients, sizes)

    def again(starts: Iterable[Tensor]) -> list[Tensor]:
        return list(
            _step(loss_fn, dict(zip(latents, starts, strict=True)), step, step_size, create_graph=True)[0].values()
        )

    found = _Recomputed.apply(again, list(moved.values()), *latents.values(), *leaves)  # type: ignore[no-untyped-call]
    return dict(zip(latents, found, strict=True)), losses.detach()


def _leaves(outputs: Iterable[Tensor]) -> list[Tensor]:
    """Return the parameters, and other leaves of the graph, that these depend on."""
    waiting = [get_gradient_edge(output).node for output in outputs if output.requires_grad]
    known: dict[object, Tensor | None] = {}
    while waiting:
        node = waiting.pop()
        if node not in known:
            known[node] = getattr(node, "variable", None)
            waiting += [earlier for earlier, _ in node.next_functions if earlier is not None]
    return [leaf for leaf in known.values() if leaf is not None]


class _Recomputed(torch.autograd.Function):
    """A step that was taken without a graph; the backward pass takes it again with one.

    Args of ``apply``: from latents to those after the step, what it returned, the latents, and all other leaves it depends on.
    """

    @staticmethod
    def forward(
        ctx: Any, again: Callable[[Iterable[Tensor]], list[Tensor]], moved: list[Tensor], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """Return what the step returned."""
        device = inputs[0].device.type
        ctx.again = again
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.save_for_backward(*inputs)
        return tuple(moved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Take the step again, and differentiate it."""
        latents = [latent.detach().requires_grad_() for latent in ctx.saved_tensors[: len(gradients)]]
        leaves = ctx.saved_tensors[len(gradients) :]
        with torch.enable_grad(), torch.autocast(*ctx.autocast):
            found = ctx.again(latents)
        return (None, None, *torch.autograd.grad(found, [*latents, *leaves], gradients, allow_unused=True))


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

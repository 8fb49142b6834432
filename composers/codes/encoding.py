"""From what was observed to the latents of a code: predicted, by a hypernetwork or an inner loop, then refined."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from composers.base import Composer
from composers.inference.refinement import Latents, Refinement
from datamodules.batch import Observation
from datamodules.spec import declared


def encoded(composer: Composer, observations: Iterable[Observation], refinement: Refinement | None = None) -> Latents:
    """Return the latents of all instances: predicted, then refined.

    Args:
        composer: The model.
        observations: Batches of signals and their samples, on the device of the model, at least one.
        refinement: Steps and rate; the model's own if None, ``Refinement(steps=0)`` for the prediction alone.

    Returns:
        ``(T, ...)`` by name, on the device of the model.
    """
    steps, parts = refinement or composer.refinement, []
    for observation in observations:
        assert observation.samples is not None
        with torch.no_grad():
            predicted = composer.encode(observation)
        parts.append(composer.refine(predicted, observation.samples, steps)[steps.steps])
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def stated_shape(composer: Composer) -> tuple[int, ...] | None:
    """Return ``(C, *shape)`` of the signals that a model takes; None if it states none.

    That is what its tokenizer was built for, or of a model without one, which looks at samples of any signal, the signals of
    its training. An axis that is open is -1.
    """
    parts: list[Any] = [*(module for child in composer.children() for module in child.modules()), composer]
    shapes = [part.signal_shape for part in parts if "signal_shape" in declared(part)]
    return next((tuple(shape) for shape in shapes if shape is not None), None)


def steps_taken(composer: Composer, refinement: int) -> dict[str, str]:
    """Return the steps behind a code as facts of it: of the inner loop where a model has one, and of the refinement."""
    loop = composer.inner_loop
    inner = {} if loop is None else {"inner steps": str(loop.test_steps)}
    return inner | {"refinement steps": str(refinement)}

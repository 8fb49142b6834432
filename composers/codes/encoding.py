"""From what was observed to the latents of a code: predicted, by a hypernetwork or an inner loop, then refined."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from composers.base import Composer
from composers.inference.refinement import Refinement
from composers.latents import Latents
from datamodules.batch import Observation


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
        layout = composer.layout(observation)
        parts.append(composer.refine(predicted, observation.samples, steps, layout)[steps.steps])
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def steps_taken(composer: Composer, refinement: int) -> dict[str, str]:
    """Return the steps behind a code as facts of it: of the inner loop where a model has one, and of the refinement."""
    inner = {} if composer.inner is None else {"inner steps": str(composer.inner.test_steps)}
    return inner | {"refinement steps": str(refinement)}

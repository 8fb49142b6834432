"""From what was observed to the latents of a code: predicted, then refined."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from composers.base import Composer
from composers.refinement import Latents, Refinement
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
        parts.append(composer.refine(predicted, observation.samples, steps)[steps.steps])
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

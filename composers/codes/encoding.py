"""Encoding: predicted and refined latents of observations."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from composers.base import Composer
from composers.inference.refinement import Refinement
from composers.latents import Latents
from datamodules.batch import Observation


def encoded(composer: Composer, observations: Iterable[Observation], refinement: Refinement | None = None) -> Latents:
    """Predict and refine the latents of all instances.

    Args:
        composer: The model.
        observations: At least one batch of signals and their samples, on the device of the model.
        refinement: Refinement of the latents; that of the model if None. ``Refinement(steps=0)`` disables it.

    Returns:
        ``(T, ...)`` by name, on the device of the model.
    """
    refinement, batches = refinement or composer.refinement, []
    for observation in observations:
        assert observation.samples is not None
        with torch.no_grad():
            predicted = composer.encode(observation)
        layout = composer.layout(observation)
        batches.append(composer.refine(predicted, observation.samples, refinement, layout)[refinement.steps])
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def takes_any_size(composer: Composer) -> bool:
    """Return whether a model encodes signals of any size at their own resolution: its start leaves the axes open.

    An encoder with a fixed number of tokens takes signals of one size, even if it does not state which.
    """
    shape, encoder = composer.start.signal_shape, composer.start.encoder
    return shape is not None and -1 in shape[1:] and (encoder is None or encoder.num_tokens is None)


def steps_taken(composer: Composer, refinement: int) -> dict[str, str]:
    """Return the numbers of inner and refinement steps as facts of a code; only the latter without an inner loop."""
    inner = {} if composer.inner is None else {"inner steps": str(composer.inner.test_steps)}
    return inner | {"refinement steps": str(refinement)}

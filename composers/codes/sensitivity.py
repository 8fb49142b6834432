"""Sensitivity of decoded values to latents, by which tables distribute bits over channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from composers.base import Composer
from composers.codes.quantization import latent_shapes
from composers.latents import Latents, Layout

_DRAWS = 4
Sensitivities = Mapping[str, NDArray[np.float64]]


class Example(NamedTuple):
    """Latents of training signals, and where they are decoded.

    Attributes:
        latents: ``(T, ...)`` by name.
        layout: Layout of the latents.
        coords: ``(N, D)`` or ``(T, N, D)``.
    """

    latents: Latents
    layout: Layout
    coords: Tensor


def sensitivities(composer: Composer, examples: Iterable[Example]) -> dict[str, NDArray[np.float64]]:
    """Return the root mean square derivative of decoded values with respect to every channel of the latents of a model.

    The sum of squared derivatives over all values is estimated by the gradients of sums of the values with random signs
    (Hutchinson). Only the ratios of the results matter.

    Args:
        composer: The model.
        examples: At least one.

    Returns:
        ``(C,)`` for every latent that is not constant and has several numbers per channel.
    """
    shapes = {
        name: latent
        for name, latent in latent_shapes(composer.parametrization.latents).items()
        if latent.repeats and not latent.constant
    }
    sums, generator = dict[str, NDArray[np.float64]](), torch.Generator().manual_seed(0)
    for latents, layout, coords in examples if shapes else ():
        with torch.inference_mode(False), torch.enable_grad():
            moved = {name: latent.detach().clone().to(composer.device) for name, latent in latents.items()}
            leaves = [moved[name].requires_grad_() for name in shapes]
            values = composer.reconstruct(composer.compose(moved, layout), coords.to(composer.device).clone()).values
            for draw in range(_DRAWS):
                signs = torch.randint(0, 2, values.shape, generator=generator).to(values) * 2 - 1
                gradients = torch.autograd.grad((values * signs).sum(), leaves, retain_graph=draw < _DRAWS - 1)
                for name, gradient in zip(shapes, gradients, strict=True):
                    squares = shapes[name].to_channels(gradient.cpu().double().numpy()) ** 2
                    sums[name] = sums.get(name, np.zeros(len(squares))) + squares.mean(1)
    return {name: np.sqrt(total) for name, total in sums.items()}

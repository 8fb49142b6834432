"""A model under study: what it was built for, and the codes that it finds for pictures."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from composers.base import Composer
from composers.hypernet import Patches
from composers.inr import CoordinateMLP, Modulations
from composers.refinement import Latents, Refinement
from datamodules.batch import Observation, Samples
from datamodules.coordinates import grid

_PICTURES_AT_ONCE = 16


class Subject(NamedTuple):
    """A model and how it is called.

    Attributes:
        name: What sheets and tables call it.
        composer: The model, in evaluation mode.
        shape: ``(H, W)``, pixels of the pictures that it takes.
    """

    name: str
    composer: Composer
    shape: tuple[int, int]

    @property
    def inr(self) -> CoordinateMLP:
        """Its coordinate network."""
        return self.composer.inr

    def samples(self, pixels: Tensor) -> Samples:
        """Return the pixels of pictures ``(B, 3, H, W)`` uint8 as samples on its device."""
        device = self.composer.device
        values = pixels.to(device).flatten(2).mT.float() / 255
        return Samples(grid(self.shape, device=device), values)

    def codes(self, pixels: Tensor, steps: int = 0) -> Latents:
        """Return the codes of pictures.

        Args:
            pixels: ``(B, 3, H, W)`` uint8.
            steps: Gradient steps that refine what was predicted, with the optimizer of the model's own refinement.
        """
        refinement = Refinement(steps, self.composer.refinement.optimizer, report=())
        parts = [self._codes(some, refinement) for some in pixels.split(_PICTURES_AT_ONCE)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _codes(self, pixels: Tensor, refinement: Refinement) -> Latents:
        """Return the codes of a few pictures."""
        with torch.no_grad():
            signal = pixels.to(self.composer.device).float() / 255
            predicted = self.composer.encode(Observation(signal))
        return self.composer.refine(predicted, self.samples(pixels), refinement)[refinement.steps]

    @torch.no_grad()
    def modulations(self, latents: Latents) -> Modulations:
        """Return the modulations of codes."""
        return self.composer.compose(latents)


def look_at(name: str, composer: Composer) -> Subject:
    """Return a model as a subject, if it is one of pictures.

    Raises:
        ValueError: If it takes or makes something else than pictures of three colours, or if their size is open.
    """
    patches = next((module for module in composer.modules() if isinstance(module, Patches)), None)
    made = (composer.inr.coord_dim, composer.inr.value_dim)
    taken = None if patches is None else patches.signal_shape
    if patches is None or taken is None or len(taken) != 3 or taken[0] != 3 or made != (2, 3):
        raise ValueError(
            f"{name} is a model of signals {taken} with {made[0]}-dimensional coordinates and {made[1]} values each; "
            "here are looked at models of pictures in colour: signals (3, height, width), 2 dimensions, 3 values."
        )
    return Subject(name, composer.eval(), _picture_shape(name, patches))


def _picture_shape(name: str, patches: Patches) -> tuple[int, int]:
    """Return the pixels that a tokenizer takes; where it leaves them open, those of a square picture with its tokens."""
    height, width = patches.signal_shape[1:]
    if -1 not in (height, width):
        return height, width
    side = math.isqrt(patches.num_tokens)
    if side**2 != patches.num_tokens:
        raise ValueError(
            f"{name} takes pictures of any shape with {patches.num_tokens} patches, which make no square: "
            "build it with the signal_shape that it was trained on."
        )
    pixels = side * patches.patch_size - 2 * patches.padding
    return pixels, pixels

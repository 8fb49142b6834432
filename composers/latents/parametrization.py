"""What a parametrization is: named latents, and the modulations they make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from composers.latents.layout import Latents, Layout
from composers.networks import CoordinateNetwork, TensorSpec
from datamodules.domain import exact

M = TypeVar("M")


class Parametrization(nn.Module, ABC, Generic[M]):
    """What is adapted per instance: latents, and the modulations of type ``M`` that they make.

    Attributes:
        latents: The latents by name; known after `connect`.
    """

    latents: Mapping[str, TensorSpec]

    @abstractmethod
    def connect(self, network: CoordinateNetwork[M]) -> None:
        """Set ``latents``, and create the parameters whose sizes depend on the network; `Composer` calls this once.

        Raises:
            ValueError: If the network does not take the modulations that this parametrization makes.
        """

    @abstractmethod
    def compose(self, latents: Latents, layout: Layout) -> M:
        """Return the modulations of latents ``(B, ...)``."""

    def step_scales(self, latents: Latents) -> dict[str, Tensor]:
        """Return the factor of a gradient step on each of the latents ``(B, ...)``.

        That is the squared Frobenius norm of an instance where the network normalises what the latent makes, else 1. A network
        that normalises weights does not change when they are scaled, so gradients shrink as the norm grows; a step times the
        squared norm has a relative length independent of it (paper section 3.3; facts of the released code).
        """
        scales = {}
        for name, latent in latents.items():
            if self.latents[name].normalized:
                axes = tuple(range(1, latent.dim()))
                scales[name] = exact(latent).square().sum(axes, keepdim=True)
            else:
                scales[name] = torch.ones((), device=latent.device)
        return scales

    def _weights(self, network: CoordinateNetwork[M]) -> dict[str, TensorSpec]:
        """Return the weight slots ``(I, O)`` of a network, by layer, which must be all of its slots.

        Raises:
            ValueError: If there are none, or others.
        """
        weights = {
            name.removeprefix("weight."): spec for name, spec in network.slots.items() if name.startswith("weight.")
        }
        if not weights or len(weights) != len(network.slots):
            raise ValueError(
                f"{type(self).__name__} composes weights; this {type(network).__name__} takes {_listed(network)}: set its "
                "modulates to weights and name its modulated_layers."
            )
        return weights


def _listed(network: CoordinateNetwork[M]) -> str:
    """Return the slots of a network for a message."""
    return ", ".join(network.slots) or "no modulations by name"

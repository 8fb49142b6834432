"""Latents that are used as modulations directly: all weights (Learned Init, MetaSDF), tokens or feature maps."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from composers.latents.layout import Latents, Layout
from composers.latents.parametrization import Parametrization
from composers.networks import CoordinateNetwork, Modulations, TensorSpec


class Direct(Parametrization[Modulations]):
    """Use the latents as the modulations of the network, under the same names.

    With a `CoordinateMLP`, the latents are its weights ``weight.<layer> (B, I, O)`` and, depending on its ``modulates``, its
    biases: Learned Init (Tancik et al., CVPR 2021) and MetaSDF. With other networks, they are for example tokens or a feature
    map.

    Reference: as in the released code of IPC, a weight that is normalised is initialised as ``N(0, 1) / sqrt I``.
    """

    def connect(self, network: CoordinateNetwork[Modulations]) -> None:
        """Take the latents from the slots of the network.

        Raises:
            ValueError: If the network has none.
        """
        if not network.slots:
            raise ValueError(
                f"{type(self).__name__} adapts the modulations of a network; this {type(network).__name__} has none: name its "
                "modulated_layers."
            )
        self.latents = {
            name: spec._replace(initial=partial(_unit_columns, spec)) if spec.normalized else spec
            for name, spec in network.slots.items()
        }

    def compose(self, latents: Latents, layout: Layout) -> dict[str, Tensor]:
        """Return the latents."""
        return latents


def _unit_columns(spec: TensorSpec) -> Tensor:
    """Return a random weight ``(I, O)`` whose columns have unit norm on average."""
    return torch.randn(spec.shape) / math.sqrt(spec.shape[0])

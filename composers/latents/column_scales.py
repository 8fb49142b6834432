"""Scales of the columns of weights (Chen and Wang, TransINR, ECCV 2022, section 3)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from composers.latents.layout import Latents, Layout
from composers.latents.parametrization import Parametrization
from composers.networks import CoordinateNetwork, Modulations, TensorSpec


class ColumnScales(Parametrization[Modulations]):
    """TransINR: column ``j`` of a weight is a learned base column, multiplied elementwise by the scales of its group.

    The latents are ``scales.<layer> (B, I, G)``. Columns are assigned to groups in turn, ``j mod G``, as in both published
    implementations; the paper groups neighbours instead.

    Args:
        num_groups: Number of groups ``G`` per layer, a divisor of its number of outputs; a layer with fewer outputs has one
            group per output.
    """

    def __init__(self, num_groups: int = 64) -> None:
        super().__init__()
        self.num_groups = num_groups

    def connect(self, network: CoordinateNetwork[Modulations]) -> None:
        """Create the base weights of all modulated layers.

        Raises:
            ValueError: If ``num_groups`` does not divide the outputs of a layer.
        """
        self.base_weights = nn.ParameterDict()
        self.latents = {}
        for layer, weight in self._weights(network).items():
            fan_in, fan_out = weight.shape
            groups = min(self.num_groups, fan_out)
            if groups < 1 or fan_out % groups:
                raise ValueError(
                    f"num_groups {self.num_groups} does not divide the {fan_out} outputs of layer {layer}: choose a divisor."
                )
            self.latents[f"scales.{layer}"] = TensorSpec(
                (fan_in, groups), partial(torch.ones, fan_in, groups), weight.normalized
            )
            self.base_weights[layer] = nn.Parameter(weight.initial())

    def compose(self, latents: Latents, layout: Layout) -> dict[str, Tensor]:
        """Return the scaled base weight of every modulated layer."""
        return {
            name.replace("scales", "weight"): self._weight(name.removeprefix("scales."), scales)
            for name, scales in latents.items()
        }

    def _weight(self, layer: str, scales: Tensor) -> Tensor:
        """Return the weight ``(B, I, O)`` of a layer."""
        base = self.base_weights[layer]
        return torch.mul(base, scales.repeat(1, 1, base.shape[1] // scales.shape[2]))

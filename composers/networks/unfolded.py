"""The whole network of every instance as free numbers: what test-time optimisation of all weights and biases moves."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from composers.networks.coordinate_mlp import CoordinateMLP, Field, Modulations, num_instances


class UnfoldedMLP:
    """A `CoordinateMLP` whose layers all belong to one instance each, without normalisation.

    Attributes:
        latents: Where it starts: of every layer its weight ``(B, I, O)``, normalised if the network normalises, as
            ``weight.<layer>``, and its bias ``(B, O)`` as ``bias.<layer>``. At these it is the field of the modulations.

    Args:
        inr: The network.
        modulations: What a composer made for ``B`` instances.

    Raises:
        ValueError: If nothing is modulated, so that the number of instances is unknown.
    """

    latents: dict[str, Tensor]

    def __init__(self, inr: CoordinateMLP, modulations: Modulations) -> None:
        if not modulations:
            raise ValueError("The network has no modulated_layers: its weights are the same for all instances.")
        self._inr = CoordinateMLP(
            inr.coord_dim,
            inr.value_dim,
            [fan_out for _, fan_out in inr.layer_sizes[:-1]],
            inr.num_layers,
            "all",
            inr.encoding,
            inr.activation,
            normalize_weights=False,
            output_offset=inr.output_offset,
        )
        instances = num_instances(modulations)
        self.latents = {}
        for layer in range(inr.num_layers):
            weight, bias = inr.weight_and_bias(layer, modulations)
            self.latents[f"weight.{layer}"] = weight.expand(instances, -1, -1)
            self.latents[f"bias.{layer}"] = bias.reshape(-1, bias.shape[-1]).expand(instances, -1)

    def field(self, latents: Mapping[str, Tensor]) -> Field:
        """Return the field of weights and biases, shaped as ``latents``."""
        layers = range(self._inr.num_layers)
        return self._inr.bind({layer: (latents[f"weight.{layer}"], latents[f"bias.{layer}"]) for layer in layers})

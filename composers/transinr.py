"""TransINR: a transformer predicts scales of the columns of every layer's weight (Chen and Wang, ECCV 2022, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from composers.base import Composer
from composers.encoders import Tokenizer, Transformer
from composers.inference import Columns, Hypernetwork
from composers.inference.inner_loop import Latents
from composers.networks import CoordinateMLP, Modulations
from datamodules.batch import Observation


class TransINR(Composer):
    """Generalizable INR that scales all weights: column ``j`` of a layer is its learned base times the scales of its group.

    Columns are assigned to groups in turn, ``j mod G``, as both public codes do; the paper groups neighbours instead.

    Args:
        inr: The coordinate network, as published with every layer modulated (``modulated_layers: all``).
        tokenizer: From the signal to tokens.
        transformer: Over data and weight tokens.
        num_groups: ``G``, groups and weight tokens of a layer, a divisor of its outputs; at most one per output is used.
        kwargs: Arguments of `Composer`.

    Raises:
        ValueError: If sizes are out of range or do not fit each other.
    """

    def __init__(
        self,
        inr: CoordinateMLP,
        tokenizer: Tokenizer,
        transformer: Transformer | None = None,
        num_groups: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(inr, **kwargs)
        columns = {}
        self.base_weights = nn.ParameterDict()
        for layer in inr.modulated_layers:
            fan_in, fan_out = inr.layer_sizes[layer]
            groups = min(num_groups, fan_out)
            if groups < 1 or fan_out % groups:
                raise ValueError(
                    f"num_groups {num_groups} does not divide the {fan_out} outputs of layer {layer}: choose a divisor."
                )
            columns[layer] = Columns(groups, fan_in, groups)
            self.base_weights[str(layer)] = nn.Parameter(inr.initial_weight(layer))
        self.hypernet = Hypernetwork(tokenizer, transformer or Transformer(), columns)

    def encode(self, observation: Observation) -> Latents:
        """Return the scales ``(B, I, G)`` of every modulated layer as ``scales.<layer>``."""
        assert observation.signal is not None
        return {f"scales.{layer}": scales for layer, scales in self.hypernet(observation.signal).items()}

    def compose(self, latents: Latents) -> Modulations:
        """Return the scaled base weight of every modulated layer; biases stay the network's own."""
        return {
            layer: (self._weight(str(layer), latents[f"scales.{layer}"]), None) for layer in self.inr.modulated_layers
        }

    def _weight(self, layer: str, scales: Tensor) -> Tensor:
        """Return the weight ``(B, I, O)`` of a layer."""
        base = self.base_weights[layer]
        return torch.mul(base, scales.repeat(1, 1, base.shape[1] // scales.shape[2]))

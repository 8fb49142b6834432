"""TransformerIPC: a transformer hypernetwork predicts the instance pattern composer (Kim et al., CVPR 2023, section 3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from composers.base import Composer
from composers.encoders import Tokenizer, Transformer
from composers.inference import Columns, Hypernetwork
from composers.inference.inner_loop import Latents
from composers.networks import CoordinateMLP, Modulations
from datamodules.batch import Observation


class TransformerIPC(Composer):
    """Generalizable INR by instance pattern composers: one early layer is adapted, everything else is a rule for all.

    The weight of a modulated layer is ``V @ U``: the instance patterns ``V (B, I, R)``, predicted column by column by the
    transformer, times a learned basis ``U (R, O)`` shared by all instances.

    Args:
        inr: The coordinate network; its ``modulated_layers`` say which layers are adapted, as published the second.
        tokenizer: From the signal to tokens.
        transformer: Over data and weight tokens.
        rank: ``R``, columns of the instance patterns; as wide as the layer's output if None, as published.
        factorized: Whether the weight is ``V @ U``; if not, the transformer predicts the columns of ``W`` itself.
        num_weight_tokens: Weight tokens of each modulated layer, a divisor of the columns; one per column if None.
        base_weight: Whether a learned weight, shared by all instances, is added, and the instance part starts at zero.
            The published form has none; with it, training leaves the mean colour sooner.
        kwargs: Arguments of `Composer`.

    Raises:
        ValueError: If sizes are out of range or do not fit each other.
    """

    def __init__(
        self,
        inr: CoordinateMLP,
        tokenizer: Tokenizer,
        transformer: Transformer | None = None,
        rank: int | None = None,
        factorized: bool = True,
        num_weight_tokens: int | None = None,
        base_weight: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(inr, **kwargs)
        if rank is not None and (rank < 1 or not factorized):
            raise ValueError(
                f"rank is {rank} with factorized {factorized}: give a positive rank, and only to a factorized composer."
            )
        sizes = {layer: inr.layer_sizes[layer] for layer in inr.modulated_layers}
        ranks = {layer: rank or fan_out for layer, (_, fan_out) in sizes.items()}
        columns = {
            layer: Columns(ranks[layer], fan_in, ranks[layer] if num_weight_tokens is None else num_weight_tokens)
            for layer, (fan_in, _) in sizes.items()
        }
        self.hypernet = Hypernetwork(tokenizer, transformer or Transformer(), columns, zero_start=base_weight)
        self.bases = nn.ParameterDict()
        self.base_weights = nn.ParameterDict()
        for layer, (fan_in, fan_out) in sizes.items():
            if factorized:
                spread = 1 / math.sqrt(ranks[layer] * fan_in)
                self.bases[str(layer)] = nn.Parameter(torch.randn(ranks[layer], fan_out) * spread)
            if base_weight:
                self.base_weights[str(layer)] = nn.Parameter(inr.initial_weight(layer))

    def encode(self, observation: Observation) -> Latents:
        """Return the instance patterns ``(B, I, R)`` as ``patterns.<layer>``."""
        assert observation.signal is not None
        return {f"patterns.{layer}": patterns for layer, patterns in self.hypernet(observation.signal).items()}

    def compose(self, latents: Latents) -> Modulations:
        """Return ``V @ U`` for every modulated layer; biases stay the network's own."""
        return {
            layer: (self._weight(str(layer), latents[f"patterns.{layer}"]), None) for layer in self.inr.modulated_layers
        }

    def _weight(self, layer: str, patterns: Tensor) -> Tensor:
        """Return the weight ``(B, I, O)`` of a layer."""
        part = patterns @ self.bases[layer] if layer in self.bases else patterns
        return torch.add(part, self.base_weights[layer]) if layer in self.base_weights else part

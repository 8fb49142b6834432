"""LearnedInit: all weights adapted from a meta-learned start (Tancik et al., CVPR 2021; as compared in Kim et al., 2023)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from composers.evaluation import Evaluation
from composers.inference.inner_loop import Latents
from composers.inference.inner_settings import InnerLoop
from composers.meta_learned import MetaLearned, squared_norms
from composers.networks import CoordinateMLP, Modulations
from datamodules.batch import Samples


class LearnedInit(MetaLearned):
    """Generalizable INR that adapts all weights of the network by a few gradient steps from a learned start.

    Two forms are published. That of the IPC paper: a network with unit columns, weights adapted by steps times their squared
    norms, biases learned but not adapted. The original: a SIREN without normalisation (``normalize_weights: false``), weights
    and biases adapted (``adapt_biases``), the outer update that of MAML or of Reptile.

    Args:
        inr: The coordinate network, with every layer modulated (``modulated_layers: all``).
        inner_loop: Steps, step size and samples of the inner loop; 2 steps of 0.003 if None, as in the IPC paper.
        adapt_biases: Whether the biases of the modulated layers are adapted too, from those of the network.
        outer: ``maml`` differentiates the loss after the inner loop; ``reptile`` moves the start towards the adapted weights:
            its gradient is the start minus them, whatever the loss.
        kwargs: Arguments of `MetaLearned`.

    Raises:
        ValueError: If the network has no modulated layers, ``outer`` has another name, or Reptile is to learn what the inner
            loop does not adapt.
    """

    def __init__(
        self,
        inr: CoordinateMLP,
        inner_loop: InnerLoop | None = None,
        adapt_biases: bool = False,
        outer: Literal["maml", "reptile"] = "maml",
        **kwargs: Any,
    ) -> None:
        super().__init__(inr, inner_loop, **kwargs)
        if outer not in ("maml", "reptile"):
            raise ValueError(f"outer is {outer}; allowed are maml and reptile.")
        self.adapt_biases = adapt_biases
        self.outer = outer
        self.weights = nn.ParameterDict(
            {str(layer): nn.Parameter(_initial_weight(inr, layer)) for layer in inr.modulated_layers}
        )
        self.begin()
        if outer == "reptile" and {id(one) for one in self.parameters()} != {id(one) for one in self.start().values()}:
            raise ValueError(
                "Reptile learns only what the inner loop adapts: set adapt_biases to true, modulated_layers to all and "
                "learned_lr of the inner loop to []."
            )

    @property
    def outer_update(self) -> str:
        """How training goes through the inner loop, in words."""
        return "Reptile" if self.outer == "reptile" else super().outer_update

    def start(self) -> Latents:
        """Return the learned weights ``(I, O)`` as ``weight.<layer>``, and ``bias.<layer>`` where biases are adapted."""
        start = {f"weight.{layer}": self.weights[str(layer)] for layer in self.inr.modulated_layers}
        if self.adapt_biases:
            start |= {f"bias.{layer}": self.inr.biases[str(layer)] for layer in self.inr.modulated_layers}
        return start

    def step_scales(self, latents: Latents) -> dict[str, Tensor]:
        """Return ``||W||^2 (B, 1, 1)`` of every instance where weights are normalised, else 1."""
        scales = super().step_scales(latents)
        if self.inr.normalize_weights:
            scales |= squared_norms({name: latent for name, latent in latents.items() if name.startswith("weight.")})
        return scales

    def compose(self, latents: Latents) -> Modulations:
        """Return the weights, and the biases where they are adapted."""
        return {
            layer: (latents[f"weight.{layer}"], latents.get(f"bias.{layer}")) for layer in self.inr.modulated_layers
        }

    def adapted(self, samples: Samples) -> Latents:
        """Return the latents after the inner loop of training; for Reptile without a graph."""
        if self.outer == "maml":
            return super().adapted(samples)
        with torch.no_grad():
            return super().adapted(samples)

    def training_losses(self, evaluation: Evaluation) -> Tensor:
        """Return the losses; for Reptile with the gradient ``start - adapted``, per instance, in place of their own."""
        losses = super().training_losses(evaluation)
        if self.outer == "maml":
            return losses
        pull = torch.zeros_like(losses)
        for name, start in self.start().items():
            pull = pull + (start * (start - evaluation["latents"][0][name]).detach()).flatten(1).sum(1)
        return losses.detach() + (pull - pull.detach())  # the difference is exactly 0


def _initial_weight(inr: CoordinateMLP, layer: int) -> Tensor:
    """Return a first weight ``(I, O)``: that of the activation, or normal with unit columns where they are normalised.

    Reference: as in the released code of IPC, ``N(0, 1) / sqrt I`` where weights are normalised.
    """
    fan_in, fan_out = inr.layer_sizes[layer]
    return torch.randn(fan_in, fan_out) / math.sqrt(fan_in) if inr.normalize_weights else inr.initial_weight(layer)

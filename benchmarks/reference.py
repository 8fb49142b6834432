"""Plain formulation of the published composers, a reference for speed, memory and correctness.

Such models are commonly written this way: every weight is repeated for every instance, a column of ones multiplies the bias,
every layer is a batched product, coordinates are encoded per instance, attention stores its scores, and the last block computes
all tokens. The plain formulation shares the parameters of a composer, so that values and gradients can be compared.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers import Composer, GradientSteps
from composers.encoders import Patches, WeightTokens
from composers.encoders.transformer import Attention, Block
from composers.inference import DifferentiableSGD, Hypernetwork, LearnedStart, Start
from composers.latents import ColumnScales, Direct, Latents, LowRank, module_key
from composers.networks import CoordinateMLP, CoordinateNetwork, FourierFeatures, ReLU
from datamodules.batch import Observation, Samples


class PlainComposer(nn.Module):
    """From an observation and coordinates to values, in the plain formulation.

    Args:
        composer: The composer whose parameters and training mode are shared.
        keep_history: Whether every inner step stores copies of the reconstruction and the latents, as for logging.

    Raises:
        TypeError: If the composer has a part without a plain formulation.
        ValueError: If its inner loop has settings beyond the published ones.
    """

    def __init__(self, composer: Composer, keep_history: bool = True) -> None:
        super().__init__()
        self.network = PlainCoordinateMLP(composer.network)
        self.parametrization = _plain_parametrization(composer.parametrization)
        self.start = _plain_start(composer.start)
        self.inner: PlainInnerLoop | None = None
        if composer.inner is not None:
            if not all(spec.normalized for spec in composer.parametrization.latents.values()):
                raise ValueError(
                    "The plain inner loop supports latents of normalised weights only: set normalize_weights to true and "
                    "modulates to weights."
                )
            self.inner = PlainInnerLoop(composer.inner, keep_history)
        self.train(composer.training)

    def forward(self, observation: Observation, coords: Tensor) -> Tensor:
        """Return values ``(B, N, C)`` at ``coords``, ``(N, D)`` or ``(B, N, D)``."""
        return self.reconstruct(self.encode(observation), coords)

    def encode(self, observation: Observation) -> Latents:
        """Return the latents ``(B, ...)`` by name, after the inner loop if there is one."""
        latents: Latents = self.start(observation)
        if self.inner is not None:
            assert observation.samples is not None
            latents = self.inner(latents, observation.samples, self.reconstruct)
        return latents

    def reconstruct(self, latents: Latents, coords: Tensor) -> Tensor:
        """Return values ``(B, N, C)`` of latents at ``coords``."""
        weights = {
            int(name.rpartition(".")[2]): self.parametrization.weight(name.rpartition(".")[2], latent)
            for name, latent in latents.items()
        }
        values: Tensor = self.network(coords, weights)
        return values


class PlainParametrization(nn.Module, ABC):
    """From latents to weights, in the plain formulation.

    Args:
        parametrization: The parametrization whose parameters are shared.
    """

    def __init__(self, parametrization: nn.Module) -> None:
        super().__init__()
        self.parametrization = parametrization

    @abstractmethod
    def weight(self, layer: str, latent: Tensor) -> Tensor:
        """Return the weight ``(B, I, O)`` of a layer."""


class PlainLowRank(PlainParametrization):
    """Instance pattern composers in the plain formulation."""

    parametrization: LowRank

    def weight(self, layer: str, latent: Tensor) -> Tensor:
        """Return patterns ``(B, I, R)`` times the repeated basis, plus the repeated base weight if there is one."""
        bases, base_weights = self.parametrization.bases, self.parametrization.base_weights
        product = torch.bmm(latent, _repeat(bases[layer], len(latent))) if layer in bases else latent
        return _repeat(base_weights[layer], len(product)) + product if layer in base_weights else product


class PlainColumnScales(PlainParametrization):
    """TransINR in the plain formulation."""

    parametrization: ColumnScales

    def weight(self, layer: str, latent: Tensor) -> Tensor:
        """Return the repeated base weight, its column ``j`` times the scales ``(B, I, G)`` of group ``j mod G``."""
        base = _repeat(self.parametrization.base_weights[layer], len(latent))
        return base * torch.cat([latent] * (base.shape[2] // latent.shape[2]), dim=2)


class PlainDirect(PlainParametrization):
    """Learned Init in the plain formulation."""

    def weight(self, layer: str, latent: Tensor) -> Tensor:
        """Return the latent."""
        return latent


def _plain_parametrization(parametrization: nn.Module) -> PlainParametrization:
    """Return the plain formulation of a parametrization."""
    for kind, plain in ((LowRank, PlainLowRank), (ColumnScales, PlainColumnScales), (Direct, PlainDirect)):
        if isinstance(parametrization, kind):
            return plain(parametrization)
    raise TypeError(
        f"There is no plain formulation of {type(parametrization).__name__}: use LowRank, ColumnScales or Direct."
    )


class PlainHypernetwork(nn.Module):
    """Transformer hypernetwork on images or audio that computes every token in every block.

    Args:
        start: The hypernetwork whose parameters are shared. Its encoder must be `Patches`, its readout `WeightTokens`.

    Raises:
        TypeError: If it has another encoder or readout.
    """

    start: Hypernetwork

    def __init__(self, start: Hypernetwork) -> None:
        super().__init__()
        if not isinstance(start.encoder, Patches) or not isinstance(start.readout, WeightTokens):
            raise TypeError(
                f"The encoder is {type(start.encoder).__name__} and the readout {type(start.readout).__name__}; the plain "
                "formulation supports Patches and WeightTokens only."
            )
        self.start = start
        self.patch_size, self.padding = start.encoder.patch_size[0], start.encoder.padding[0]

    def forward(self, observation: Observation) -> Latents:
        """Return the latents ``(B, I, R)`` by name from signals ``(B, C, H, W)`` or ``(B, C, N)``."""
        readout, signal, size, padding = self.start.readout, observation.signal, self.patch_size, self.padding
        assert isinstance(readout, WeightTokens)
        assert isinstance(signal, Tensor)
        if signal.dim() == 3:  # as an image with one row
            patches = functional.unfold(signal.unsqueeze(2), (1, size), padding=(0, padding), stride=(1, size)).mT
        else:
            patches = functional.unfold(signal, size, padding=padding, stride=size).mT  # (B, T, C p p)
        data_tokens = readout.embedding(patches) + readout.positions
        tokens = torch.cat((data_tokens, _repeat(readout.weight_tokens, len(signal))), dim=1)
        for block in readout.transformer.blocks:
            assert isinstance(block, Block)
            tokens = _plain_block(block, tokens)
        weight_tokens = tokens[:, data_tokens.shape[1] :].split(readout.tokens_per_latent, dim=1)
        return {
            name: readout.heads[module_key(name)](part).reshape(len(part), -1, height).mT
            for name, (height, _), part in zip(readout.names, readout.shapes, weight_tokens, strict=True)
        }


class PlainLearnedStart(nn.Module):
    """Learned initialisation, repeated for every instance.

    Args:
        start: The start whose parameters are shared.
    """

    start: LearnedStart

    def __init__(self, start: LearnedStart) -> None:
        super().__init__()
        self.start = start

    def forward(self, observation: Observation) -> Latents:
        """Return the latents ``(B, ...)`` by name."""
        return {
            name: _repeat(self.start.latents[module_key(name)], observation.num_instances) for name in self.start.specs
        }


def _plain_start(start: Start) -> PlainHypernetwork | PlainLearnedStart:
    """Return the plain formulation of a start."""
    if isinstance(start, Hypernetwork):
        return PlainHypernetwork(start)
    if isinstance(start, LearnedStart):
        return PlainLearnedStart(start)
    raise TypeError(f"There is no plain formulation of {type(start).__name__}: use Hypernetwork or LearnedStart.")


class PlainInnerLoop(nn.Module):
    """The published inner loop: second order, on all samples, with steps times the squared norm of the latents.

    Every step composes all weights and encodes all coordinates again, and training stores the graph of all steps.

    Args:
        inner: The inner loop whose number of steps and learning rate are used.
        keep_history: Whether every step appends copies of the reconstruction and the latents to ``history``.

    Raises:
        ValueError: If the inner loop has other settings.
    """

    def __init__(self, inner: GradientSteps, keep_history: bool) -> None:
        super().__init__()
        rule = inner.rule
        if (
            not isinstance(rule, DifferentiableSGD)
            or rule.learned_lr
            or rule.outer != "second_order"
            or inner.samples_per_step != "all"
            or inner.loss is not None
        ):
            raise ValueError(
                "The plain inner loop supports the published settings only: DifferentiableSGD with learned_lr [] and outer "
                "second_order, samples_per_step all, and the loss of the composer."
            )
        self.steps, self.lr = inner.steps, rule.lr
        self.keep_history = keep_history
        self.history: list[tuple[Tensor, Latents]] = []

    def forward(self, latents: Latents, samples: Samples, reconstruct: Any) -> Latents:
        """Return the latents after the last step.

        Args:
            latents: Where to begin, ``(B, ...)`` by name.
            samples: Coordinates and values of the same instances.
            reconstruct: From latents and coordinates to values ``(B, N, C)``.
        """
        assert samples.values is not None
        self.history = []
        for _ in range(self.steps):
            latents = self.step(latents, samples.coords, samples.values, reconstruct)
        return latents

    def step(self, latents: Latents, coords: Tensor, target: Tensor, reconstruct: Any) -> Latents:
        """Return the latents after one step."""
        with torch.enable_grad():
            if not self.training:
                latents = {name: latent.detach().requires_grad_() for name, latent in latents.items()}
            values = reconstruct(latents, coords)
            loss = (values - target).square().mean((1, 2)).sum()
            gradients = torch.autograd.grad(loss, list(latents.values()), create_graph=self.training)
        updated = {}
        for (name, latent), gradient in zip(latents.items(), gradients, strict=True):
            updated[name] = latent - self.lr * latent.norm(dim=(1, 2), keepdim=True) ** 2 * gradient
        if self.keep_history:
            copies = {name: latent.detach().clone() for name, latent in updated.items()}
            self.history.append((values.detach().clone(), copies))
        return updated


class PlainCoordinateMLP(nn.Module):
    """Coordinate network with one weight per instance in every layer.

    Args:
        network: The network whose parameters are shared. It must have Fourier features and ReLU, as published.

    Raises:
        TypeError: If it is of another class, or has another encoding or activation.
    """

    network: CoordinateMLP

    def __init__(self, network: CoordinateNetwork[Any]) -> None:
        super().__init__()
        if (
            not isinstance(network, CoordinateMLP)
            or not isinstance(network.encoding, FourierFeatures)
            or not isinstance(network.activation, ReLU)
        ):
            raise TypeError(
                f"The network is {type(network).__name__} with {type(getattr(network, 'encoding', None)).__name__} and "
                f"{type(getattr(network, 'activation', None)).__name__}; the plain formulation supports CoordinateMLP with "
                "FourierFeatures and ReLU only."
            )
        self.network = network

    def forward(self, coords: Tensor, weights: Mapping[int, Tensor]) -> Tensor:
        """Return values ``(B, N, C)`` at ``coords``, with weights ``(B, I, O)`` of the modulated layers."""
        size = len(next(iter(weights.values())))
        hidden = self._encode(coords.expand(size, -1, -1))  # (B, N, F)
        for layer in range(self.network.num_layers):
            weight = weights[layer] if layer in weights else _repeat(self.network.weights[str(layer)], size)
            hidden = self._linear(hidden, weight, _repeat(self.network.biases[str(layer)], size))
            if layer < self.network.num_layers - 1:
                hidden = functional.relu(hidden)
        return hidden + self.network.output_offset

    def _encode(self, coords: Tensor) -> Tensor:
        """Return the Fourier features ``(B, N, F)`` of ``coords (B, N, D)``, computed for every instance."""
        encoding = self.network.encoding
        assert isinstance(encoding, FourierFeatures)
        phases = (coords.unsqueeze(-1) * (encoding.frequencies * encoding.factor)).flatten(-2)  # (B, N, D K)
        return torch.cat((torch.cos(phases), torch.sin(phases)), dim=-1)

    def _linear(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Append ones to ``hidden (B, N, I)`` and ``bias (B, O)`` as a row to ``weight (B, I, O)``, and multiply."""
        if self.network.normalize_weights:
            weight = functional.normalize(weight, dim=1)
        extended = torch.cat((hidden, torch.ones_like(hidden[..., :1])), dim=2)  # (B, N, I + 1)
        return torch.bmm(extended, torch.cat((weight, bias.unsqueeze(1)), dim=1))


def _plain_block(block: Block, tokens: Tensor) -> Tensor:
    """Return all ``tokens (B, T, E)`` after a block."""
    tokens = tokens + block.dropout(_plain_attention(block.attention, block.attention_norm(tokens)))
    mixed: Tensor = tokens + block.dropout(block.mlp(block.mlp_norm(tokens)))
    return mixed


def _plain_attention(attention: Attention, tokens: Tensor) -> Tensor:
    """Return the self-attention of ``tokens (B, T, E)``, with the ``(T, T)`` scores of every head stored."""
    parts = (attention.query(tokens), *attention.key_value(tokens).chunk(2, dim=-1))
    query, key, value = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts)
    scores = query @ key.mT / math.sqrt(query.shape[-1])  # (B, heads, T, T)
    gathered: Tensor = attention.projection((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))
    return gathered


def _repeat(shared: Tensor, size: int) -> Tensor:
    """Return a shared tensor repeated for every instance, ``(B, *shape)``."""
    return shared.expand(size, *shared.shape)

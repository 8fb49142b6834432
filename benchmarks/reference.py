"""Plain formulation of the published composers, a reference for speed, memory and correctness.

Such models are commonly written this way: every weight is repeated for every instance, a column of ones multiplies the bias,
every layer is a batched product, coordinates are encoded per instance, attention stores its scores, the last block computes all
tokens, and volume rendering differentiates all samples. The plain formulation shares the parameters of a composer, so that
values and gradients can be compared.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers import Composer, GradientSteps
from composers.encoders import Patches, ViewPatches, WeightTokens
from composers.encoders.transformer import Attention, Block
from composers.inference import DifferentiableSGD, Hypernetwork, LearnedStart, Start
from composers.latents import ColumnScales, Direct, Latents, LowRank, module_key
from composers.networks import CoordinateMLP, CoordinateNetwork, FourierFeatures, ReLU
from composers.rendering import PointRenderer, Renderer, VolumeRenderer
from datamodules.batch import Observation, Samples, Views


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
        self.renderer = _plain_renderer(composer.renderer)
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
        values: Tensor
        if self.renderer is None:
            values = self.network(coords, weights)
        else:
            values = self.renderer(lambda points: self.network(points, weights), coords)
        return values


class PlainVolumeRenderer(nn.Module):
    """Volume rendering of all samples of all rays, as published, with all of them in the gradient.

    Args:
        renderer: The renderer whose depths, background and density activation are used. It must sample rays from ``near`` to
            ``far``, without a sphere and without importance sampling.

    Raises:
        ValueError: If it has other settings.
    """

    def __init__(self, renderer: VolumeRenderer) -> None:
        super().__init__()
        if renderer.depth_range is None or renderer.importance_samples or renderer.radius is not None:
            raise ValueError(
                f"The renderer has depth range {renderer.depth_range}, importance_samples {renderer.importance_samples} and "
                f"radius {renderer.radius}; the plain formulation supports the published settings only: near and far set, "
                "importance_samples 0 and radius null."
            )
        self.near, self.far = renderer.depth_range
        self.samples_per_ray, self.stratified = renderer.samples_per_ray, renderer.stratified
        self.density, self.background = renderer.density, renderer.background

    def forward(self, field: Callable[[Tensor], Tensor], rays: Tensor) -> Tensor:
        """Return colours ``(B, N, 3)`` of rays ``(N, 6)`` or ``(B, N, 7)``, whose last number is the draw of the ray."""
        steps = self.samples_per_ray
        depths = torch.linspace(self.near, self.far, steps, device=rays.device).expand(*rays.shape[:-1], steps)
        if self.stratified and rays.shape[-1] == 7:
            offsets = (rays[..., 6:] + torch.arange(steps, device=rays.device) * (math.sqrt(5) - 1) / 2) % 1
            depths = depths + offsets * (self.far - self.near) / (steps - 1)
        points = rays[..., None, :3] + depths.unsqueeze(-1) * rays[..., None, 3:6]  # (B, N, S, 3)
        outputs = field(points.flatten(-3, -2)).unflatten(1, points.shape[-3:-1])  # (B, N, S, 4)
        lengths = torch.cat((depths.diff(dim=-1), torch.full_like(depths[..., :1], 1e-3)), dim=-1)
        alpha = 1 - torch.exp(-self.density(outputs[..., 3]) * lengths)
        passed = torch.cat((torch.ones_like(alpha[..., :1]), 1 - alpha[..., :-1] + 1e-10), dim=-1).cumprod(dim=-1)
        weights = alpha * passed
        colours = (weights.unsqueeze(-1) * outputs[..., :3].sigmoid()).sum(dim=-2)
        blended: Tensor = colours + (1 - weights.sum(dim=-1, keepdim=True)) * self.background
        return blended


def _plain_renderer(renderer: Renderer) -> PlainVolumeRenderer | None:
    """Return the plain formulation of a renderer; None for values at points."""
    if isinstance(renderer, PointRenderer):
        return None
    if isinstance(renderer, VolumeRenderer):
        return PlainVolumeRenderer(renderer)
    raise TypeError(f"There is no plain formulation of {type(renderer).__name__}: use PointRenderer or VolumeRenderer.")


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
    """Transformer hypernetwork on images, audio or posed views that computes every token in every block.

    Args:
        start: The hypernetwork whose parameters are shared. Its encoder must be `Patches` or `ViewPatches`, its readout
            `WeightTokens`.

    Raises:
        TypeError: If it has another encoder or readout.
    """

    start: Hypernetwork

    def __init__(self, start: Hypernetwork) -> None:
        super().__init__()
        if not isinstance(start.encoder, Patches | ViewPatches) or not isinstance(start.readout, WeightTokens):
            raise TypeError(
                f"The encoder is {type(start.encoder).__name__} and the readout {type(start.readout).__name__}; the plain "
                "formulation supports Patches or ViewPatches, and WeightTokens only."
            )
        self.start = start
        if isinstance(start.encoder, ViewPatches):
            self.patch_size, self.padding = start.encoder.patch_size, 0
        else:
            self.patch_size, self.padding = start.encoder.patch_size[0], start.encoder.padding[0]

    def forward(self, observation: Observation) -> Latents:
        """Return the latents ``(B, I, R)`` by name from signals ``(B, C, H, W)`` or ``(B, C, N)``, or from posed views."""
        readout, signal = self.start.readout, observation.signal
        assert isinstance(readout, WeightTokens)
        assert signal is not None
        patches = self._view_patches(signal) if isinstance(signal, Views) else self._patches(signal)
        data_tokens = readout.embedding(patches) + readout.positions
        tokens = torch.cat((data_tokens, _repeat(readout.weight_tokens, len(patches))), dim=1)
        for block in readout.transformer.blocks:
            assert isinstance(block, Block)
            tokens = _plain_block(block, tokens)
        weight_tokens = tokens[:, data_tokens.shape[1] :].split(readout.tokens_per_latent, dim=1)
        return {
            name: readout.heads[module_key(name)](part).reshape(len(part), -1, height).mT
            for name, (height, _), part in zip(readout.names, readout.shapes, weight_tokens, strict=True)
        }

    def _patches(self, signal: Tensor) -> Tensor:
        """Return patches ``(B, T, C p p)`` of images, or of audio as images with one row."""
        size, padding = self.patch_size, self.padding
        if signal.dim() == 3:
            return functional.unfold(signal.unsqueeze(2), (1, size), padding=(0, padding), stride=(1, size)).mT
        return functional.unfold(signal, size, padding=padding, stride=size).mT

    def _view_patches(self, views: Views) -> Tensor:
        """Return patches ``(B, V T, 9 p p)`` of the colours and rays of all pixels, view by view."""
        rays = _plain_rays(views.poses, views.intrinsics, views.images.shape[-2:])  # (B, V, 6, H, W)
        patches = self._patches(torch.cat((views.images, rays), dim=2).flatten(0, 1))  # (B V, T, 9 p p)
        tokens: Tensor = patches.unflatten(0, rays.shape[:2]).flatten(1, 2)
        return tokens


def _plain_rays(poses: Tensor, intrinsics: Tensor, size: Sequence[int]) -> Tensor:
    """Return origins and directions ``(B, V, 6, H, W)`` of all pixels of views, in world coordinates."""
    rows, columns = (torch.arange(count, device=poses.device) + 0.5 for count in size)
    fx, fy, cx, cy = intrinsics[..., None, None].unbind(2)  # each (B, V, 1, 1)
    across = ((columns - cx) / fx).expand(*poses.shape[:2], *size)
    down = ((rows.unsqueeze(1) - cy) / fy).expand_as(across)
    directions = torch.stack((across, -down, -torch.ones_like(across)), dim=2)  # in camera axes
    directions = (poses[..., :3] @ directions.flatten(3)).unflatten(3, tuple(size))
    return torch.cat((poses[..., 3, None, None].expand_as(directions), directions), dim=2)


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

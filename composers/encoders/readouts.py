"""Readouts, which convert features to latents."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from composers.encoders.encoder import Encoder, Features
from composers.encoders.transformer import Transformer
from composers.latents import Latents, PatchMixture, module_key
from composers.networks import TensorSpec
from composers.networks.pixel_aligned_mlp import camera_numbers
from datamodules.batch import Views


class Readout(nn.Module, ABC):
    """Base class of readouts, which convert the features of an encoder to the latents of a parametrization.

    Attributes:
        num_weight_tokens: Number of learned tokens that are processed in addition to those of the signal.
    """

    num_weight_tokens: int = 0

    @abstractmethod
    def connect(self, encoder: Encoder, latents: Mapping[str, TensorSpec]) -> None:
        """Create the parameters whose sizes depend on the encoder and on the latents.

        Raises:
            ValueError: If the features do not determine latents of these shapes.
        """

    @abstractmethod
    def forward(self, features: Features) -> Latents:
        """Return the latents ``(B, ...)`` by name."""

    def initialize(self, mixture: PatchMixture) -> None:
        """Set the parameters to the projection of patches to latents, where a readout has one; else do nothing."""


class EmbeddingReadout(Readout):
    """Base class of readouts with a transformer, whose input are embedded tokens."""

    def create_embedding(self, encoder: Encoder, embed_dim: int, scale: float = 1.0) -> None:
        """Create the embedding, and learned positions ``N(0, scale)`` where the encoder's tokens are ordered."""
        self.embedding = nn.Linear(encoder.embed_dim, embed_dim)
        if encoder.num_tokens is not None and encoder.ordered:
            self.positions = nn.Parameter(scale * torch.randn(1, encoder.num_tokens, embed_dim))

    def embed(self, tokens: Tensor) -> Tensor:
        """Return embedded tokens ``(B, T, E)`` with their positions."""
        embedded: Tensor = self.embedding(tokens)
        return embedded + self.positions if hasattr(self, "positions") else embedded


class WeightTokens(EmbeddingReadout):
    """Predict the columns of the latents from learned weight tokens in a transformer (paper section 3; TransINR section 3).

    Data tokens are embedded, and learned positions are added where tokens are ordered. The weight tokens of all latents follow
    them, latent by latent. A head per latent (LayerNorm and Linear, shared by its tokens) maps the outputs at the weight tokens
    to columns. A latent ``(I, R)`` has ``R`` columns of size ``I``; a latent ``(E,)`` has one column.

    Args:
        transformer: Transformer that processes data and weight tokens; default sizes if None.
        num_tokens: Number of weight tokens per latent, a divisor of its number of columns; one per column if None.
        zero_init: Whether to initialise the heads to zero, so that all latents are zero before training.

    Raises:
        ValueError: If ``num_tokens`` is not positive.
    """

    def __init__(
        self, transformer: Transformer | None = None, num_tokens: int | None = None, zero_init: bool = False
    ) -> None:
        super().__init__()
        self.transformer = transformer or Transformer()
        self.num_tokens = num_tokens
        self.zero_init = zero_init

    def connect(self, encoder: Encoder, latents: Mapping[str, TensorSpec]) -> None:
        """Create embedding, positions, weight tokens and heads.

        Raises:
            ValueError: If there are no latents, the shape of a latent depends on the signal, or ``num_tokens`` does not divide
                the number of columns of a latent.
        """
        if not latents:
            raise ValueError("The network has no modulated_layers, so there is nothing to predict: name at least one.")
        embed_dim = self.transformer.embed_dim
        self.names, self.tokens_per_latent, self.shapes = list(latents), [], []
        self.heads = nn.ModuleDict()
        for name, spec in latents.items():
            columns = spec.shape[1] if len(spec.shape) == 2 else 1
            if -1 in spec.shape or len(spec.shape) > 2:
                raise ValueError(
                    f"WeightTokens predicts latents of one or two fixed axes; {name} has shape {spec.shape}: use PerToken."
                )
            count = columns if self.num_tokens is None else self.num_tokens
            if count < 1 or columns % count:
                raise ValueError(
                    f"num_tokens of the weight tokens is {count}; the latent {name} has {columns} columns: choose a divisor."
                )
            self.tokens_per_latent.append(count)
            self.shapes.append((spec.shape[0], len(spec.shape)))
            self.heads[module_key(name)] = _head(embed_dim, math.prod(spec.shape) // count, self.zero_init)
        self.create_embedding(encoder, embed_dim)
        self.num_weight_tokens = sum(self.tokens_per_latent)
        self.weight_tokens = nn.Parameter(torch.randn(self.num_weight_tokens, embed_dim))

    def forward(self, features: Features) -> Latents:
        """Return the latents, each ``(B, I, R)`` or ``(B, E)``."""
        data_tokens = self.embed(features.tokens)  # (B, T, E)
        weight_tokens = self.weight_tokens.expand(data_tokens.shape[0], -1, -1)
        read = self.transformer(data_tokens, weight_tokens).split(self.tokens_per_latent, dim=1)
        latents = {}
        for name, (height, axes), tokens in zip(self.names, self.shapes, read, strict=True):
            columns = (
                self.heads[module_key(name)](tokens).unflatten(-1, (-1, height)).flatten(1, 2).mT
            )  # (B, I, columns)
            latents[name] = columns if axes == 2 else columns.squeeze(-1)
        return latents


class PerToken(EmbeddingReadout):
    """Project every token to the entries of the latents at its position, with one Linear per latent.

    The shape of the latents depends on the signal: ``(C, -1, -1)`` is a feature map, ``(-1, -1, C)`` the same with channels
    last; ``(C, -1)`` and ``(-1, ...)`` have one entry per token.

    With a transformer, a second head per latent (LayerNorm and Linear) adds a function of all tokens: the tokens are embedded,
    learned positions are added where tokens are ordered, and the transformer processes them.

    Args:
        zero_init: Whether to initialise the heads to zero, so that all latents are zero before training.
        transformer: Transformer over the tokens; none if None.
    """

    def __init__(self, zero_init: bool = False, transformer: Transformer | None = None) -> None:
        super().__init__()
        self.zero_init = zero_init
        self.transformer = transformer

    def connect(self, encoder: Encoder, latents: Mapping[str, TensorSpec]) -> None:
        """Create a Linear for every latent; with a transformer, also embedding, positions and second heads.

        Raises:
            ValueError: If there are no latents, or one has no axis for the tokens.
        """
        if not latents or any(-1 not in spec.shape for spec in latents.values()):
            raise ValueError(
                f"PerToken predicts latents with an axis for the tokens (-1); this parametrization has "
                f"{ {name: spec.shape for name, spec in latents.items()} }: use readout WeightTokens."
            )
        self.shapes = {name: spec.shape for name, spec in latents.items()}
        self.heads = nn.ModuleDict()
        numbers = {name: math.prod(size for size in shape if size != -1) for name, shape in self.shapes.items()}
        for name, count in numbers.items():
            head = nn.Linear(encoder.embed_dim, count)
            self.heads[module_key(name)] = _zeroed(head) if self.zero_init else head
        if self.transformer is None:
            return
        embed_dim = self.transformer.embed_dim
        self.create_embedding(encoder, embed_dim, scale=0.02)
        self.contexts = nn.ModuleDict(
            {module_key(name): _head(embed_dim, count, self.zero_init) for name, count in numbers.items()}
        )

    def forward(self, features: Features) -> Latents:
        """Return the latents: ``(B, C, *grid)``, ``(B, C, T)``, ``(B, *grid, ...)`` or ``(B, T, ...)``.

        Raises:
            ValueError: If a latent is a map and the features have no grid.
        """
        latents = {}
        context = None if self.transformer is None else self.transformer.encode(self.embed(features.tokens))
        for name, shape in self.shapes.items():
            values = self.heads[module_key(name)](features.tokens)  # (B, T, numbers)
            if context is not None:
                values = values + self.contexts[module_key(name)](context)
            free = shape.count(-1)
            if free > 1 and features.grid is None:
                raise ValueError(f"The latent {name} is a map {shape}, and the features of this encoder have no grid.")
            grid = features.grid if free > 1 and features.grid else (values.shape[1],)
            if shape[0] == -1:
                latents[name] = values.unflatten(-1, shape[free:]).unflatten(1, grid)
            else:
                latents[name] = values.mT.unflatten(-1, grid)
        return latents


class TokenMap(Readout):
    """Take the tokens as a feature map, channels first, and pass the signal on where it is a latent (LIIF).

    The latent ``map (E, -1, ...)`` holds the tokens, ``image (C, -1, ...)`` the signal, at whose resolution tokens must be.
    """

    def connect(self, encoder: Encoder, latents: Mapping[str, TensorSpec]) -> None:
        """Check the channels of the latents.

        Raises:
            ValueError: If the latents are not a map with the channels of the tokens, and possibly an image.
        """
        shapes = {name: spec.shape for name, spec in latents.items()}
        if "map" not in shapes or not shapes.keys() <= {"map", "image"}:
            raise ValueError(
                f"TokenMap returns latents map and image; this parametrization has {shapes}: use the network LocalMLP with "
                "parametrization Direct, or another readout."
            )
        channels = {"map": encoder.embed_dim, "image": encoder.signal_shape[0] if encoder.signal_shape else None}
        for name, shape in shapes.items():
            if channels[name] not in (None, shape[0]):
                source = "the encoder returns" if name == "map" else "the signal has"
                raise ValueError(
                    f"The latent {name} has {shape[0]} channels, and {source} {channels[name]}: set feature_dim of the network "
                    "to the width of the encoder, and value_dim to the channels of the signal."
                )
        self.names = list(shapes)

    def forward(self, features: Features) -> Latents:
        """Return ``map (B, E, *grid)`` and ``image (B, C, *grid)``.

        Raises:
            ValueError: If the features have no grid, or it is not that of the signal.
        """
        signal = features.signal if isinstance(features.signal, Tensor) else None
        if features.grid is None or signal is None or features.grid != tuple(signal.shape[2:]):
            raise ValueError(
                f"TokenMap needs one token per sample of the signal; the features have the grid {features.grid}: use encoder "
                "EDSR or RDN."
            )
        latents = {"map": features.tokens.mT.unflatten(-1, features.grid)}
        return latents | ({"image": signal} if "image" in self.names else {})


class ViewMaps(Readout):
    """Take the tokens of posed views as feature maps, and pass the cameras on (`composers.networks.PixelAlignedMLP`).

    The latent ``maps (E, -1, -1, -1)`` holds the tokens, with the axes view, row and column; ``cameras (V, 16)`` the cameras.
    """

    def connect(self, encoder: Encoder, latents: Mapping[str, TensorSpec]) -> None:
        """Check the channels of the latents, and create a Linear from tokens to them.

        Raises:
            ValueError: If the latents are not maps and cameras.
        """
        shapes = {name: spec.shape for name, spec in latents.items()}
        if set(shapes) != {"maps", "cameras"}:
            raise ValueError(
                f"ViewMaps returns latents maps and cameras; this parametrization has {shapes}: use the network "
                "PixelAlignedMLP with parametrization Direct, or another readout."
            )
        self.num_views = shapes["cameras"][0]
        self.head = nn.Linear(encoder.embed_dim, shapes["maps"][0])

    def forward(self, features: Features) -> Latents:
        """Return ``maps (B, E, V, H, W)`` and ``cameras (B, V, 16)``.

        Raises:
            ValueError: If the features are not those of as many posed views as the network takes.
        """
        views, grid = features.signal, features.grid
        if not isinstance(views, Views) or grid is None or len(grid) != 3 or grid[0] != views.images.shape[1]:
            raise ValueError(
                f"ViewMaps needs feature maps of posed views, and the grid is {grid}: use encoder ViewFeatures."
            )
        if grid[0] != self.num_views:
            raise ValueError(
                f"There are {grid[0]} support views, and this model takes {self.num_views}: pass as many as in training, "
                "and leave --data.init_args.min_views out."
            )
        height, width = views.images.shape[-2:]
        cameras = camera_numbers(views.poses, views.intrinsics, (height, width))
        return {"maps": self.head(features.tokens).mT.unflatten(-1, grid), "cameras": cameras}


def _head(embed_dim: int, numbers: int, zero_init: bool) -> nn.Sequential:
    """Return the LayerNorm and Linear from a token to its columns."""
    linear = nn.Linear(embed_dim, numbers)
    return nn.Sequential(nn.LayerNorm(embed_dim), _zeroed(linear) if zero_init else linear)


def _zeroed(linear: nn.Linear) -> nn.Linear:
    """Return a layer with all parameters set to zero."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear

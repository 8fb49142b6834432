"""The plain formulation of the transformer and the meta-learned composers, to measure and to test ours against.

This is how such models are commonly written: every weight is repeated for every instance, a column of ones carries the
bias, every layer is a batched product, coordinates are encoded per instance, attention is spelled out and the last block
computes all tokens. It reads the parameters of a composer, the very same tensors, so that values and gradients compare.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers import LearnedInit, MetaIPC, TransformerIPC, TransINR
from composers.encoders import Patches
from composers.encoders.transformer import Attention, Block
from composers.inference import Hypernetwork
from composers.networks import CoordinateMLP, FourierFeatures, ReLU
from datamodules.batch import Observation


def from_composer(composer: TransformerIPC | TransINR) -> PlainComposer:
    """Return the plain formulation of a composer, sharing its parameters and its training mode.

    Raises:
        TypeError: If the composer is of another kind, or has parts that the plain formulation does not know.
    """
    if isinstance(composer, TransformerIPC):
        return PlainIPC(composer)
    if isinstance(composer, TransINR):
        return PlainTransINR(composer)
    raise TypeError(f"There is no plain formulation of {type(composer).__name__}: give TransformerIPC or TransINR.")


class PlainComposer(nn.Module, ABC):
    """From an image and coordinates to values, in the plain formulation.

    Args:
        composer: Whose parameters are used.
    """

    def __init__(self, composer: TransformerIPC | TransINR) -> None:
        super().__init__()
        self.hypernet = PlainHypernetwork(composer.hypernet)
        self.network = PlainCoordinateMLP(composer.network)
        self.base_weights = composer.base_weights

    def forward(self, observation: Observation, coords: Tensor) -> Tensor:
        """Return values ``(B, N, C)`` of the observed images at ``coords``, ``(N, D)`` or ``(B, N, D)``."""
        columns = self.hypernet(observation.signal)
        weights = {layer: self.weight(str(layer), part) for layer, part in columns.items()}
        values: Tensor = self.network(coords, weights)
        return values

    @abstractmethod
    def weight(self, layer: str, columns: Tensor) -> Tensor:
        """Return the weight ``(B, I, O)`` of a layer from its predicted columns."""


class PlainIPC(PlainComposer):
    """Instance pattern composers in the plain formulation.

    Args:
        composer: Whose parameters are used.
    """

    def __init__(self, composer: TransformerIPC) -> None:
        super().__init__(composer)
        self.bases = composer.bases

    def weight(self, layer: str, columns: Tensor) -> Tensor:
        """Return patterns ``(B, I, R)`` times the repeated basis, plus the repeated base weight where there is one."""
        part = torch.bmm(columns, _repeat(self.bases[layer], len(columns))) if layer in self.bases else columns
        return _repeat(self.base_weights[layer], len(part)) + part if layer in self.base_weights else part


class PlainTransINR(PlainComposer):
    """TransINR in the plain formulation."""

    def weight(self, layer: str, columns: Tensor) -> Tensor:
        """Return the repeated base weight, its column ``j`` times the scales ``(B, I, G)`` of group ``j mod G``."""
        base = _repeat(self.base_weights[layer], len(columns))
        return base * torch.cat([columns] * (base.shape[2] // columns.shape[2]), dim=2)


def from_meta_learned(composer: MetaIPC | LearnedInit, history: bool = True) -> PlainMetaLearned:
    """Return the plain formulation of a meta-learned composer, sharing its parameters and its training mode.

    Args:
        composer: With the published inner loop: its steps and its rate are read.
        history: Whether every step keeps copies of the reconstruction and of what is adapted, for logging.

    Raises:
        TypeError: If the composer is of another kind, or has parts that the plain formulation does not know.
        ValueError: If its inner loop has settings beyond the published ones.
    """
    if isinstance(composer, MetaIPC):
        return PlainMetaIPC(composer, history)
    if isinstance(composer, LearnedInit):
        return PlainLearnedInit(composer, history)
    raise TypeError(f"There is no plain inner loop of {type(composer).__name__}: give MetaIPC or LearnedInit.")


class PlainMetaLearned(nn.Module, ABC):
    """From samples and coordinates to values by an inner loop, in the plain formulation.

    Everything that is adapted is repeated for every instance, every step composes all weights anew and encodes all
    coordinates of all instances anew; the graph of all steps is kept in training.

    Args:
        composer: Whose parameters are used.
        history: Whether every step keeps copies of what it saw.

    Raises:
        TypeError: If the network has another encoding or activation.
        ValueError: If the inner loop has settings beyond the published ones, or the network no normalised weights.
    """

    def __init__(self, composer: MetaIPC | LearnedInit, history: bool) -> None:
        super().__init__()
        loop = composer.inner
        if (
            loop.learned_lr
            or loop.first_order
            or loop.samples_per_step != "all"
            or not composer.network.normalize_weights
        ):
            raise ValueError(
                "The plain formulation knows the published inner loop only: learned_lr [], first_order false, "
                "samples_per_step all and normalize_weights true."
            )
        self.network = PlainCoordinateMLP(composer.network)
        self.steps, self.lr = loop.steps, loop.lr
        self.keeps_history = history
        self.history: list[tuple[Tensor, dict[str, Tensor]]] = []
        self.train(composer.training)

    def forward(self, observation: Observation, coords: Tensor) -> Tensor:
        """Return values ``(B, N, C)`` at ``coords``, ``(N, D)`` or ``(B, N, D)``, after the inner loop."""
        factors = self.adapted(observation)
        values: Tensor = self.network(coords, self.weights(factors))
        return values

    def adapted(self, observation: Observation) -> dict[str, Tensor]:
        """Return what is adapted, ``(B, I, R)`` by layer, after the inner loop on the samples observed."""
        samples = observation.samples
        assert samples is not None
        assert samples.values is not None
        size = len(samples.values)
        factors = {layer: _repeat(start, size) for layer, start in self.starts().items()}
        self.history = []
        for _ in range(self.steps):
            factors = self._step(factors, samples.coords, samples.values)
        return factors

    def _step(self, factors: dict[str, Tensor], coords: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return what is adapted after one step."""
        with torch.enable_grad():
            if not self.training:
                factors = {layer: factor.detach().requires_grad_() for layer, factor in factors.items()}
            values = self.network(coords, self.weights(factors))
            loss = (values - target).square().mean((1, 2)).sum()
            gradients = torch.autograd.grad(loss, list(factors.values()), create_graph=self.training)
        moved = {}
        for (layer, factor), gradient in zip(factors.items(), gradients, strict=True):
            moved[layer] = factor - self.lr * factor.norm(dim=(1, 2), keepdim=True) ** 2 * gradient
        if self.keeps_history:
            copies = {layer: factor.detach().clone() for layer, factor in moved.items()}
            self.history.append((values.detach().clone(), copies))
        return moved

    @abstractmethod
    def starts(self) -> nn.ParameterDict:
        """Return where the loop starts, ``(I, R)`` by layer."""

    @abstractmethod
    def weights(self, factors: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """Return the weight ``(B, I, O)`` of every layer that is adapted."""


class PlainMetaIPC(PlainMetaLearned):
    """Meta-learned instance pattern composers in the plain formulation.

    Args:
        composer: Whose parameters are used.
        history: Whether every step keeps copies of what it saw.
    """

    def __init__(self, composer: MetaIPC, history: bool) -> None:
        super().__init__(composer, history)
        self.patterns, self.bases = composer.patterns, composer.bases

    def starts(self) -> nn.ParameterDict:
        """Return the learned patterns."""
        return self.patterns

    def weights(self, factors: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """Return the patterns times the repeated basis."""
        return {
            int(layer): torch.bmm(factor, _repeat(self.bases[layer], len(factor))) for layer, factor in factors.items()
        }


class PlainLearnedInit(PlainMetaLearned):
    """Learned Init, as the IPC paper compares it, in the plain formulation.

    Args:
        composer: Whose parameters are used.
        history: Whether every step keeps copies of what it saw.

    Raises:
        ValueError: If biases are adapted too, or the outer update is Reptile's.
    """

    def __init__(self, composer: LearnedInit, history: bool) -> None:
        super().__init__(composer, history)
        if composer.adapt_biases or composer.outer != "maml":
            raise ValueError("The plain formulation of LearnedInit knows adapt_biases false and outer maml only.")
        self.start_weights = composer.weights

    def starts(self) -> nn.ParameterDict:
        """Return the learned weights."""
        return self.start_weights

    def weights(self, factors: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """Return the weights as they are."""
        return {int(layer): factor for layer, factor in factors.items()}


class PlainCoordinateMLP(nn.Module):
    """The coordinate network with one weight per instance in every layer.

    Args:
        inr: Whose parameters are used, with the published Fourier features and ReLU.

    Raises:
        TypeError: If it has another encoding or activation.
    """

    def __init__(self, inr: CoordinateMLP) -> None:
        super().__init__()
        if not isinstance(inr.encoding, FourierFeatures) or not isinstance(inr.activation, ReLU):
            raise TypeError(
                f"The network has {type(inr.encoding).__name__} and {type(inr.activation).__name__}; "
                "the plain formulation knows FourierFeatures and ReLU only."
            )
        self.network = inr
        self.encoding = inr.encoding

    def forward(self, coords: Tensor, weights: Mapping[int, Tensor]) -> Tensor:
        """Return values ``(B, N, C)`` at ``coords``, given the weights ``(B, I, O)`` of the modulated layers."""
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
        phases = coords.unsqueeze(-1) * (self.encoding.frequencies * self.encoding.factor)  # (B, N, D, K)
        phases = phases.flatten(-2)  # (B, N, D K)
        return torch.cat((torch.cos(phases), torch.sin(phases)), dim=-1)

    def _linear(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Append ones to ``hidden (B, N, I)`` and ``bias (B, O)`` as a row to ``weight (B, I, O)``, and multiply."""
        if self.network.normalize_weights:
            weight = functional.normalize(weight, dim=1)
        extended = torch.cat((hidden, torch.ones_like(hidden[..., :1])), dim=2)  # (B, N, I + 1)
        return torch.bmm(extended, torch.cat((weight, bias.unsqueeze(1)), dim=1))


class PlainHypernetwork(nn.Module):
    """The transformer hypernetwork on images or sound, computing every token in every block.

    Args:
        hypernet: Whose parameters are used; its tokenizer cuts signals into patches.

    Raises:
        TypeError: If its tokenizer is another.
    """

    def __init__(self, hypernet: Hypernetwork) -> None:
        super().__init__()
        if not isinstance(hypernet.tokenizer, Patches):
            raise TypeError(
                f"The tokenizer is {type(hypernet.tokenizer).__name__}; the plain formulation knows Patches only."
            )
        self.hypernet = hypernet
        self.tokenizer = hypernet.tokenizer

    def forward(self, signal: Tensor) -> dict[int, Tensor]:
        """Return the columns ``(B, I, R)`` of every modulated layer from signals ``(B, C, H, W)`` or ``(B, C, N)``."""
        hypernet, size, padding = self.hypernet, self.tokenizer.patch_size[0], self.tokenizer.padding[0]
        if signal.dim() == 3:  # as an image of one row
            patches = functional.unfold(signal.unsqueeze(2), (1, size), padding=(0, padding), stride=(1, size)).mT
        else:
            patches = functional.unfold(signal, size, padding=padding, stride=size).mT  # (B, T, C p p)
        data_tokens = hypernet.embedding(patches) + hypernet.positions
        tokens = torch.cat((data_tokens, _repeat(hypernet.weight_tokens, len(signal))), dim=1)
        for block in hypernet.transformer.blocks:
            assert isinstance(block, Block)
            tokens = _plain_block(block, tokens)
        read = tokens[:, data_tokens.shape[1] :].split(hypernet.tokens_per_layer, dim=1)
        return {
            layer: hypernet.heads[str(layer)](part).reshape(len(part), -1, height).mT
            for (layer, height), part in zip(hypernet.heights.items(), read, strict=True)
        }


def _plain_block(block: Block, tokens: Tensor) -> Tensor:
    """Return all ``tokens (B, T, E)`` after a block."""
    tokens = tokens + block.dropout(_plain_attention(block.attention, block.attention_norm(tokens)))
    mixed: Tensor = tokens + block.dropout(block.mlp(block.mlp_norm(tokens)))
    return mixed


def _plain_attention(attention: Attention, tokens: Tensor) -> Tensor:
    """Return what all ``tokens (B, T, E)`` gather from each other, with the ``(T, T)`` scores of every head stored."""
    parts = (attention.query(tokens), *attention.key_value(tokens).chunk(2, dim=-1))
    query, key, value = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts)
    scores = query @ key.mT / math.sqrt(query.shape[-1])  # (B, heads, T, T)
    gathered: Tensor = attention.projection((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))
    return gathered


def _repeat(shared: Tensor, size: int) -> Tensor:
    """Return a shared tensor once per instance, ``(B, *shape)``."""
    return shared.expand(size, *shared.shape)

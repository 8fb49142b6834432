"""The two halves of a composer, from a signal to latents and from there to values, as torch traces them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from composers.meta_learned import MetaLearned
from torch import Tensor, nn

from composers.base import Composer
from composers.checkpoint import stated_domain
from composers.codes import stated_shape
from composers.latents import Latents
from composers.rendering import PointRenderer
from datamodules.batch import Observation
from datamodules.domain import Domain

_TRACED = (2, 5)  # instances and coordinates; tracing takes sizes of 0 and 1 for constants

Inputs = dict[str, Tensor | Latents]
Program = Callable[..., Tensor | Latents]


class Half(nn.Module, ABC):
    """One of the two programs, as torch traces it and as the composer itself computes it.

    Args:
        composer: What is exported, in float32 on the CPU.
        shape: Sizes of the axes of the signal, or None where the tokenizer states them.

    Attributes:
        example: Inputs that it is traced with.
        outputs: What it makes of them, by name.

    Raises:
        ValueError: If the composer looks at no tensor signal, or its weights are of another type or elsewhere.
    """

    name: str

    def __init__(self, composer: Composer, shape: Sequence[int] | None) -> None:
        super().__init__()
        _check_weights(composer)
        self.composer = composer
        self.signal_shape = _signal_shape(composer, shape)
        self.example = self.inputs(*_TRACED)
        self.outputs = self.call(self, self.example)

    @abstractmethod
    def inputs(self, batch_size: int, num_coords: int) -> Inputs:
        """Return random inputs by name, in the order of `forward`."""

    @abstractmethod
    def eager(self, *inputs: Any) -> Tensor | Latents:
        """Return what the composer makes of these inputs."""

    def encode(self, signal: Tensor) -> Latents:
        """Return the latents of signals ``(B, C, *shape)``."""
        return self.composer.encode(Observation(signal))

    def signals(self, batch_size: int) -> Tensor:
        """Return random signals ``(B, C, *shape)`` in [0, 1]."""
        generator = torch.Generator().manual_seed(batch_size)
        return torch.rand(batch_size, *self.signal_shape, generator=generator)

    def call(self, program: Program, inputs: Inputs) -> Latents:
        """Return the outputs of a program by name, without gradients."""
        with self.evaluating(), torch.no_grad():
            outputs = program(*inputs.values())
        return {"values": outputs} if isinstance(outputs, Tensor) else outputs

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch every module to evaluation, and back; what goes wrong meanwhile is told in one line."""
        training = [module for module in self.composer.modules() if module.training]
        self.composer.eval()
        try:
            with refusing(f"The {self.name} of {type(self.composer).__name__} cannot be exported"):
                yield
        finally:
            for module in training:
                module.training = True


class Encoder(Half):
    """From a signal to latents.

    Raises:
        ValueError: If the composer finds latents by an inner loop, which is an optimisation and no program.
    """

    name = "encoder"

    def __init__(self, composer: Composer, shape: Sequence[int] | None) -> None:
        if isinstance(composer, MetaLearned):
            raise ValueError(
                f"{type(composer).__name__} finds latents by gradient steps, which torch.export cannot trace: it has a decoder "
                "to export, and no encoder. Take latents from the codes that cli.py predict writes."
            )
        super().__init__(composer, shape)

    def inputs(self, batch_size: int, num_coords: int) -> Inputs:
        """Return random signals."""
        return {"signal": self.signals(batch_size)}

    def forward(self, signal: Tensor) -> Latents:
        """Return the latents of signals ``(B, C, *shape)``."""
        return self.encode(signal)

    eager = forward


class Decoder(Half):
    """From latents and coordinates to values: the field itself, because a renderer's chunks would fix ``N``.

    Raises:
        ValueError: If the composer renders otherwise than at points.
    """

    name = "decoder"

    def __init__(self, composer: Composer, shape: Sequence[int] | None) -> None:
        if not isinstance(composer.renderer, PointRenderer):
            raise ValueError(
                f"The renderer is a {type(composer.renderer).__name__}; only values at points (PointRenderer) are exported."
            )
        self.domain = stated_domain(composer)
        super().__init__(composer, shape)

    def inputs(self, batch_size: int, num_coords: int) -> Inputs:
        """Return latents, and random coordinates of the domain."""
        latents = self.latents(batch_size)
        generator = torch.Generator().manual_seed(num_coords)
        return {"latents": latents, "coords": _scattered(self.domain, self._axes, num_coords, generator)}

    @property
    def _axes(self) -> int:
        """The axes of the signal; where the composer does not state its signal, a coordinate has one number for each."""
        return len(self.signal_shape) - 1 if self.signal_shape else self.domain.coord_dim

    def latents(self, batch_size: int) -> Latents:
        """Return the latents of random signals; of a meta-learned composer latents around its learned start."""
        if not isinstance(self.composer, MetaLearned):
            return self.call(self.encode, {"signal": self.signals(batch_size)})
        generator = torch.Generator().manual_seed(batch_size)
        return {name: _around(latent.detach(), batch_size, generator) for name, latent in self.composer.start().items()}

    def forward(self, latents: Latents, coords: Tensor) -> Tensor:
        """Return the values ``(B, N, C)`` at ``coords (N, D)``."""
        values: Tensor = self.composer.network(coords, self.composer.compose(latents))
        return values

    def eager(self, latents: Latents, coords: Tensor) -> Tensor:
        """Return the values ``(B, N, C)`` as the composer renders them."""
        return self.composer.render(self.composer.compose(latents), coords)


def _scattered(domain: Domain, axes: int, number: int, generator: torch.Generator) -> Tensor:
    """Return random ones ``(N, D)`` of the coordinates of a signal that has so many samples along every axis."""
    coords = domain.coords((number,) * axes)
    return coords[torch.randperm(len(coords), generator=generator)[:number]]


def _around(start: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Return random latents ``(B, ...)`` about a tenth of its size away from a start, or a tenth where that is zero."""
    size = start.square().mean().sqrt().item() or 1.0
    return start + 0.1 * size * torch.randn(number, *start.shape, generator=generator)


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Turn what tracing and foreign code raise into one line, with the reason that lies deepest."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # what a tracer raises is not foreseeable
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ValueError(f"{message}: {reason}") from error


def _check_weights(composer: Composer) -> None:
    """Refuse weights that are not in float32 on the CPU."""
    for name, parameter in composer.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            raise ValueError(
                f"{name} is {parameter.dtype} on {parameter.device}; only float32 on the CPU is exported: "
                "call composer.float().cpu() first."
            )


def _signal_shape(composer: Composer, shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return ``(C, *shape)`` of the signals that a composer encodes."""
    stated = stated_shape(composer)
    if stated is None and isinstance(composer, MetaLearned):
        return ()  # its decoder needs no signals
    if stated is None:
        raise ValueError(f"{type(composer).__name__} encodes no tensor signal, so there is no encoder to export.")
    channels, *sizes = stated
    given = sizes if shape is None else list(shape)
    if len(given) != len(sizes) or any(g < 1 or s not in (-1, g) for s, g in zip(sizes, given, strict=True)):
        raise ValueError(
            f"shape is {shape and list(shape)}; this model takes {channels} channels of the sizes {sizes}, where -1 is open: "
            'state all sizes, as in --shape "[178, 178]", or leave shape out where none is open.'
        )
    return channels, *given

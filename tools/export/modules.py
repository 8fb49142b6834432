"""Encoder and decoder of a composer as modules that `torch.export` traces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from composers.base import Composer
from composers.construction import stated_domain
from composers.latents import Latents
from datamodules.batch import Observation, Samples
from datamodules.domain import Domain

_TRACED_SIZES = (2, 5)  # instances and coordinates; torch.export specialises sizes 0 and 1
_DEFAULT_SIZE = 16  # samples along an axis of unknown size, between which coordinates are drawn

Inputs = dict[str, Tensor | Latents]
Program = Callable[..., Tensor | Latents]


def missing_encoder(composer: Composer) -> str | None:
    """Return why a composer has no encoder program; None if it has one."""
    name, start = type(composer).__name__, composer.start
    if composer.inner is not None:
        return f"{name} finds latents by gradient steps, which torch.export cannot trace"
    if start.encoder is None:
        return f"the start of {name}, {type(start).__name__}, reads no signal"
    return None


class ExportModule(nn.Module, ABC):
    """Base class of the two programs of an export.

    Args:
        composer: Composer to export, in float32 on the CPU.
        shape: Sizes of the axes of the signal; None if the composer states them.

    Attributes:
        name: ``encoder`` or ``decoder``.
        layout: Layout of the latents.
        inputs: Random inputs for tracing, by name.
        outputs: Outputs for these inputs, by name.

    Raises:
        ValueError: If a weight is not in float32 on the CPU, or ``shape`` does not fit the composer.
    """

    name: str

    def __init__(self, composer: Composer, shape: Sequence[int] | None) -> None:
        super().__init__()
        _check_weights(composer)
        self.composer = composer
        self.signal_shape = _signal_shape(composer, shape)
        with self.evaluating():
            self.layout = composer.layout(self.random_observation(1))
        self.inputs = self.random_inputs(*_TRACED_SIZES)
        self.outputs = self.call(self, self.inputs)

    @abstractmethod
    def random_inputs(self, batch_size: int, num_coords: int) -> Inputs:
        """Return random inputs by name, in the order of the arguments of `forward`."""

    @abstractmethod
    def expected(self, *inputs: Any) -> Tensor | Latents:
        """Return what the composer itself computes from these inputs."""

    def random_observation(self, batch_size: int) -> Observation:
        """Return random signals in [0, 1] if the start reads signals, and samples that count the instances."""
        generator = torch.Generator().manual_seed(batch_size)
        network = self.composer.network
        samples = Samples(torch.zeros(1, network.coord_dim), torch.zeros(batch_size, 1, network.value_dim))
        if self.signal_shape is None:
            return Observation(samples=samples)
        return Observation(torch.rand(batch_size, *self.signal_shape, generator=generator), samples)

    def call(self, program: Program, inputs: Inputs) -> Latents:
        """Return the outputs of a program by name, without gradients."""
        with self.evaluating(), torch.no_grad():
            outputs = program(*inputs.values())
        return {"values": outputs} if isinstance(outputs, Tensor) else outputs

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Set all modules to evaluation mode, and restore their modes afterwards; errors become one line."""
        training = [module for module in self.composer.modules() if module.training]
        self.composer.eval()
        try:
            with one_line_errors(f"The {self.name} of {type(self.composer).__name__} cannot be exported"):
                yield
        finally:
            for module in training:
                module.training = True


class EncoderModule(ExportModule):
    """Map a signal to latents.

    Raises:
        ValueError: If the latents are not a function of the signal that can be traced; see `missing_encoder`.
    """

    name = "encoder"

    def __init__(self, composer: Composer, shape: Sequence[int] | None) -> None:
        if reason := missing_encoder(composer):
            raise ValueError(
                f"There is no encoder to export: {reason}. Export the decoder, and take latents from the codes that cli.py "
                "predict writes."
            )
        super().__init__(composer, shape)

    def random_inputs(self, batch_size: int, num_coords: int) -> Inputs:
        """Return random signals."""
        signal = self.random_observation(batch_size).signal
        assert isinstance(signal, Tensor)
        return {"signal": signal}

    def forward(self, signal: Tensor) -> Latents:
        """Return the latents of signals ``(B, C, *shape)``, or of point sets ``(B, P, K)``."""
        return self.composer.encode(Observation(signal))

    expected = forward


class DecoderModule(ExportModule):
    """Map latents and coordinates to values.

    Raises:
        ValueError: If the renderer does not render single points of the field.
    """

    name = "decoder"

    def __init__(self, composer: Composer, shape: Sequence[int] | None) -> None:
        try:
            composer.renderer.pointwise(lambda coords: coords)
        except ValueError as error:
            raise ValueError(f"There is no decoder to export: {error}") from error
        self.domain = stated_domain(composer)
        self.axes = _axes(composer, shape, self.domain)
        super().__init__(composer, shape)

    def random_inputs(self, batch_size: int, num_coords: int) -> Inputs:
        """Return latents about a tenth of their size away from the start, and random coordinates of the domain."""
        generator = torch.Generator().manual_seed(batch_size)
        observation = self.random_observation(batch_size)
        with self.evaluating(), torch.no_grad():
            start = self.composer.start(observation, self.layout)
        latents = {name: _disturbed(latent.detach(), generator) for name, latent in start.items()}
        return {"latents": latents, "coords": random_coords(self.domain, self.axes, num_coords)}

    def forward(self, latents: Latents, coords: Tensor) -> Tensor:
        """Return the values ``(B, N, C)`` at ``coords (N, D)``."""
        field = self.composer.bind(latents, self.layout)
        return self.composer.renderer.pointwise(field)(coords)

    def expected(self, latents: Latents, coords: Tensor) -> Tensor:
        """Return the values ``(B, N, C)`` as rendered by the composer."""
        return self.composer.render(self.composer.compose(latents, self.layout), coords)


def random_coords(domain: Domain, shape: Sequence[int], number: int) -> Tensor:
    """Return random coordinates ``(N, D)`` of a domain, between the samples of a signal of this shape."""
    generator = torch.Generator().manual_seed(number)
    positions = torch.rand(number, len(shape), generator=generator, dtype=torch.float64) * torch.tensor(shape)
    steps = (torch.rand(len(shape), generator=generator) + 0.5).tolist()
    return torch.cat([domain.at(position.split(1), shape, steps) for position in positions])


@contextmanager
def one_line_errors(message: str) -> Iterator[None]:
    """Convert exceptions of tracers and exporters to a `ValueError` of one line with the innermost reason."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # tracers raise exceptions of many types
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ValueError(f"{message}: {reason}") from error


def _disturbed(latent: Tensor, generator: torch.Generator) -> Tensor:
    """Return a latent plus noise of a tenth of its root mean square, or of 0.1 if it is zero."""
    size = latent.square().mean().sqrt().item() or 1.0
    return latent + 0.1 * size * torch.randn(latent.shape, generator=generator)


def _check_weights(composer: Composer) -> None:
    """Raise a `ValueError` if a weight is not in float32 on the CPU."""
    for name, parameter in composer.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            raise ValueError(
                f"{name} is {parameter.dtype} on {parameter.device}; only float32 on the CPU can be exported: "
                "call composer.float().cpu() first."
            )


def _signal_shape(composer: Composer, shape: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return ``(C, *shape)`` of the signals that determine the latents; None if neither start nor layout depends on them."""
    start, is_open = composer.start, any(-1 in spec.shape for spec in composer.parametrization.latents.values())
    if start.encoder is None and not is_open:
        return None
    if start.signal_shape is None:
        if start.encoder is None:
            return None
        raise ValueError(
            f"{type(start.encoder).__name__} does not state the shape of its signals: set its signal_shape."
        )
    stated = start.signal_shape
    channels, sizes = (
        ((), stated) if stated[0] == -1 else (stated[:1], stated[1:])
    )  # point sets have open numbers of points
    resolved = sizes if shape is None else tuple(shape)
    if len(resolved) != len(sizes) or any(r < 1 or s not in (-1, r) for s, r in zip(sizes, resolved, strict=True)):
        taken = f"{channels[0]} channels of the sizes {list(sizes)}" if channels else f"the sizes {list(sizes)}"
        raise ValueError(
            f"shape is {shape and list(shape)}; this model takes {taken}, where -1 is open: "
            'state all sizes, as in --shape "[178, 178]", or omit shape if none is open.'
        )
    return *channels, *resolved


def _axes(composer: Composer, shape: Sequence[int] | None, domain: Domain) -> tuple[int, ...]:
    """Return the number of samples along every axis of the signal, between which coordinates are drawn."""
    if domain.scattered:
        return (_DEFAULT_SIZE,) * domain.coord_dim
    stated = composer.start.signal_shape
    sizes = shape or (stated[1:] if stated else (_DEFAULT_SIZE,) * domain.coord_dim)
    return tuple(_DEFAULT_SIZE if size < 1 else size for size in sizes)

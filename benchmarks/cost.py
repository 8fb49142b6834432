"""Training cost of an experiment, counted without its data: ``python -m benchmarks.cost --config FILE``.

The cost is the number of floating-point operations of all matrix products, forward and backward, including the inner loop, on
random signals. They are counted on fake tensors, without computing anything, so that a laptop can count any experiment. Only
networks with patches compute steps, of one and of two instances, because the number of their routes depends on coordinates.
Renderers that can skip samples are counted with all samples.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.fabric.utilities import move_data_to_device
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from application.sizes import state_sizes
from benchmarks.speed import device_name, duration
from composers.base import Composer
from composers.latents import Latents
from composers.rendering import VolumeRenderer
from datamodules.audio.base import RecordingSet
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch
from datamodules.configuration import load_layers
from datamodules.images.base import ImageSet
from datamodules.images.super_resolution import SuperResolution


@dataclass(frozen=True)
class CostSettings:
    """Count the operations of a training step, and of the whole run if the published number of training items is known.

    Args:
        config: Config of an experiment.
        batch_size: Number of instances in a step, on all devices together. If None, that of the config.
        measure: Whether to time training steps on this machine too, with Adam and random signals.
        steps: Number of timed steps, at least 1. One warm-up step is not counted.
        device: Device of the timed steps, for example ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        ValueError: If an argument is out of range.
    """

    config: Path
    batch_size: int | None = None
    measure: bool = False
    steps: int = 3
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise if an argument is out of range."""
        if (self.batch_size is not None and self.batch_size < 1) or self.steps < 1:
            raise ValueError(f"batch_size is {self.batch_size} and steps is {self.steps}; both must be at least 1.")


@dataclass(frozen=True)
class Cost:
    """Training cost of an experiment.

    Attributes:
        parameters: Number of trained parameters.
        tokens: Tokens of the hypernetwork, as in the summary of a run; None without a hypernetwork.
        code_size: Size of the code of one instance.
        coordinates: Number of coordinates of an instance in one step.
        batch_size: Number of instances in a step.
        step_flop: Operations of one training step; a multiplication and an addition count as two.
        epochs: Number of epochs of the run; None if the config does not contain it.
        items: Published number of training items; None if the data module does not state it.
    """

    parameters: int
    tokens: str | None
    code_size: int
    coordinates: int
    batch_size: int
    step_flop: int
    epochs: int | None
    items: int | None

    @property
    def steps(self) -> int | None:
        """Number of steps of the run, without incomplete batches; None if unknown.

        Example:
            >>> Cost(1, None, 1, 1, batch_size=16, step_flop=1, epochs=300, items=162_770).steps
            3051900
        """
        return None if self.epochs is None or self.items is None else self.epochs * (self.items // self.batch_size)


class TrainingStep(nn.Module):
    """Forward pass of a training step as one call, in training mode.

    Args:
        composer: The composer to train.
    """

    def __init__(self, composer: Composer) -> None:
        super().__init__()
        self.composer = composer.train()

    def forward(self, batch: CoordinateBatch) -> tuple[Tensor, Latents]:
        """Return the mean loss of a batch, and its latents."""
        evaluation = self.composer._evaluate(batch, "train")
        assert evaluation["losses"] is not None
        return evaluation["losses"].mean(), evaluation["latents"][0]


class ForwardAndBackward(TrainingStep):
    """Forward and backward pass as one call, because recomputed inner steps need the same parameters in both."""

    def forward(self, batch: CoordinateBatch) -> tuple[Tensor, Latents]:
        """Return the mean loss of a batch, and its latents, after the backward pass."""
        loss, latents = super().forward(batch)
        loss.backward()
        return loss, latents


class AssumeTrue(TorchDispatchMode):
    """Evaluate every condition on fake tensors as true, so that checks of a model pass."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, or return True for a condition."""
        condition = func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool
        return True if condition else func(*args, **(kwargs or {}))


def main(args: list[str] | None = None) -> Cost:
    """Parse command-line arguments, count the operations and print a table."""
    parser = ArgumentParser("python -m benchmarks.cost", description=__doc__)
    parser.add_class_arguments(CostSettings)  # auto_cli reserves --config
    settings = CostSettings(**vars(parser.parse_args(args)))
    cost = count(settings.config, settings.batch_size)
    console = Console(width=120)
    console.print(table(settings.config.stem, cost))
    if settings.measure:
        seconds = measure(settings)
        speed = cost.step_flop / seconds / 1e12
        console.print(f"{seconds:.3g} s per step on {device_name(settings.device)}: {speed:.3g} TFLOP/s")
    return cost


def build(config: Path) -> tuple[Composer, CoordinateDataModule, int | None]:
    """Return the untrained composer, the data module and the number of epochs of an experiment, without its data.

    Raises:
        ValueError: If the file, or one of its base files, is missing.
    """
    config_values = load_layers(f"_base_: {json.dumps(str(config.resolve()))}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Composer, "model")
    parser.add_subclass_arguments(CoordinateDataModule, "data")
    parsed = parser.parse_object({name: config_values[name] for name in ("model", "data")})
    state_sizes(parsed.model, parsed.data)
    parts = parser.instantiate(parsed)
    trainer: Mapping[str, Any] = config_values.get("trainer", {})
    return parts.model, parts.data, trainer.get("max_epochs")


def random_batch(data: CoordinateDataModule, batch_size: int) -> CoordinateBatch:
    """Return a training batch of random items, with the coordinate noise and subset of the data module."""
    return data.to_coordinates(data.random_items(batch_size), training=True)


def count(config: Path, batch_size: int | None = None) -> Cost:
    """Return the training cost of an experiment.

    Args:
        config: Config of the experiment.
        batch_size: Number of instances in a step. If None, that of the config.
    """
    composer, data, epochs = build(config)
    if isinstance(composer.renderer, VolumeRenderer):
        composer.renderer.sparse_gradients, composer.renderer.occupancy, composer.renderer.radius = False, None, None
    batch = random_batch(data, batch_size or data.batch_size)
    step = ForwardAndBackward(composer)
    # Fused attention kernels differ in what they recompute, and are not counted on a CPU.
    with sdpa_kernel(SDPBackend.MATH):
        try:
            latents, step_flop = _count_on_fake_tensors(step, batch)
        except DynamicOutputShapeException:
            latents, step_flop = _count_on_few(step, data, len(batch.names))
    return Cost(
        parameters=sum(parameter.numel() for parameter in composer.parameters()),
        tokens=composer.start.facts().get("tokens"),
        code_size=sum(latent[0].numel() for latent in latents.values()),
        coordinates=batch.query.coords.shape[-2],
        batch_size=len(batch.names),
        step_flop=step_flop,
        epochs=epochs,
        items=published_items(data),
    )


def counter() -> FlopCounterMode:
    """Return a counter of operations; that of torch counts the backward pass of depthwise convolutions as a dense one."""
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _count_convolution_backward}
    )


def _count_convolution_backward(
    grad_shape: torch.Size, signal_shape: torch.Size, weight_shape: torch.Size, *arguments: Any, **_: Any
) -> int:
    """Return twice the operations of a forward pass, or once where only one gradient is needed."""
    transposed, output_mask = arguments[4], arguments[7]
    positions = signal_shape if transposed else grad_shape
    forward = 2 * positions[0] * math.prod(positions[2:]) * math.prod(weight_shape)
    return int(forward * sum(output_mask[:2]))


def _count_on_fake_tensors(step: ForwardAndBackward, batch: CoordinateBatch) -> tuple[Latents, int]:
    """Return the latents of a training step, and its operations, without computing anything."""
    shapes = FakeTensorMode()  # its tensors have a shape and a device, but no values
    state = dict(step.named_parameters()) | dict(step.named_buffers())
    state, fake_batch = tree_map_only(Tensor, shapes.from_tensor, (state, batch))
    conditions = AssumeTrue()  # type: ignore[no-untyped-call]  # of torch
    with shapes, conditions, counter() as counted:
        _, latents = functional_call(step, state, (fake_batch,))
    return latents, counted.get_total_flops()


def _count_on_few(step: ForwardAndBackward, data: CoordinateDataModule, batch_size: int) -> tuple[Latents, int]:
    """Return the latents of a computed training step of one instance, and the operations of one of ``batch_size``.

    Every instance adds as many operations as the second one.
    """
    counts = []
    for instances in (2, 1)[batch_size < 2 :]:
        with counter() as counted:
            _, latents = step(random_batch(data, instances))
        counts.append(counted.get_total_flops())
    return latents, counts[-1] + (batch_size - 1) * (counts[0] - counts[-1])


def published_items(data: CoordinateDataModule) -> int | None:
    """Return the published number of training items; None if the data module does not state it."""
    if isinstance(data, SuperResolution):
        images = published_items(data.images)
        return None if images is None else images * data.repeat
    return data.count("train") if isinstance(data, RecordingSet | ImageSet) else None


def measure(settings: CostSettings) -> float:
    """Return the median time in seconds of a training step on the device: forward, backward, Adam."""
    composer, data, _ = build(settings.config)
    training_step = TrainingStep(composer).to(settings.device)
    batch = random_batch(data, settings.batch_size or data.batch_size)
    batch = move_data_to_device(batch, torch.device(settings.device))
    optimizer = torch.optim.Adam(composer.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        training_step(batch)[0].backward()
        optimizer.step()

    return statistics.median([duration(step, settings.device) for _ in range(settings.steps + 1)][1:])


def table(name: str, cost: Cost) -> Table:
    """Return the cost as a table."""
    rows = Table(title=name, show_header=False, title_justify="left")
    rows.add_row("parameters", f"{cost.parameters / 1e6:.2f} M")
    if cost.tokens is not None:
        rows.add_row("tokens", cost.tokens)
    rows.add_row("code size", f"{cost.code_size:,}")
    rows.add_row("coordinates per instance and step", f"{cost.coordinates:,}")
    rows.add_row(f"training step of {cost.batch_size}", f"{cost.step_flop / 1e12:.3f} TFLOP")
    rows.add_row("per instance", f"{cost.step_flop / cost.batch_size / 1e9:.1f} GFLOP")
    if cost.steps is not None:
        rows.add_row("steps of the run", f"{cost.steps:,}")
        rows.add_row("whole run", f"{cost.steps * cost.step_flop / 1e18:.2f} EFLOP")
    return rows


if __name__ == "__main__":
    main()

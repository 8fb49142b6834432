"""What the training of an experiment costs, counted without its data: ``python -m benchmarks.cost --config FILE``.

Counted are the products of matrices, forward and backward, of the composer as it is, the steps of an inner loop and their
gradients among them, on the coordinates that its data module makes of random images. They are counted without computing
them, so that a laptop counts what it could never train.
"""

from __future__ import annotations

import json
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
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from application.sizes import state_sizes
from benchmarks.speed import device_name, duration
from composers.base import Composer
from composers.evaluation import Evaluation
from composers.inference import Hypernetwork
from composers.latents import Latents
from datamodules.audio.base import RecordingSet
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch
from datamodules.configuration import load_layers
from datamodules.images.base import ImageSet


@dataclass(frozen=True)
class CostSettings:
    """Count what one training step of an experiment costs, and the whole run where the published number of items is known.

    Args:
        config: YAML of an experiment.
        batch_size: Instances of a step, on all devices together; the ``batch_size`` of the config if None.
        measure: Whether to time steps on this machine too, with Adam and random images.
        steps: Timed steps, at least 1; one more goes before them and is not counted.
        device: Where they run: ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        ValueError: If a number is out of range.
    """

    config: Path
    batch_size: int | None = None
    measure: bool = False
    steps: int = 3
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse what cannot be counted."""
        if (self.batch_size is not None and self.batch_size < 1) or self.steps < 1:
            raise ValueError(f"batch_size is {self.batch_size}, steps {self.steps}; both must be at least 1.")


@dataclass(frozen=True)
class Cost:
    """What an experiment costs.

    Attributes:
        parameters: Numbers that are trained.
        data_tokens: Tokens of a signal; 0 without a hypernetwork.
        weight_tokens: Tokens that are read; 0 without a hypernetwork.
        code_numbers: Numbers of the code of one instance.
        coordinates: Coordinates of an instance in one step.
        batch_size: Instances of a step.
        step_flop: Operations of one training step, a multiplication and an addition being two.
        epochs: Epochs of the run; None if the config does not say.
        items: Training items as published; None where the data module does not state them.
    """

    parameters: int
    data_tokens: int
    weight_tokens: int
    code_numbers: int
    coordinates: int
    batch_size: int
    step_flop: int
    epochs: int | None
    items: int | None

    @property
    def steps(self) -> int | None:
        """Steps of the run, items left over at the end of an epoch being dropped; None where that is not known.

        Example:
            >>> Cost(1, 0, 0, 1, 1, batch_size=16, step_flop=1, epochs=300, items=162_770).steps
            3051900
        """
        return None if self.epochs is None or self.items is None else self.epochs * (self.items // self.batch_size)


class TrainingStep(nn.Module):
    """The forward pass of a training step as one call, in training mode.

    Args:
        composer: What is trained.
    """

    def __init__(self, composer: Composer) -> None:
        super().__init__()
        self.composer = composer.train()

    def forward(self, batch: CoordinateBatch) -> tuple[Tensor, Latents]:
        """Return the loss of a batch, and its codes."""
        latents = self.composer.encode(batch.observation)
        values = self.composer.render(self.composer.compose(latents), batch.query.coords)
        losses: Tensor = self.composer.loss(values, batch.query)
        found = Evaluation(losses=losses, latents={0: latents}, values={0: values}, metrics={}, starts={})
        return self.composer.training_losses(found).mean(), latents


class WholeStep(TrainingStep):
    """Both passes as one call: inner steps that are computed again in the backward pass need the same parameters there."""

    def forward(self, batch: CoordinateBatch) -> tuple[Tensor, Latents]:
        """Return the loss of a batch, and its codes, after the backward pass."""
        loss, latents = super().forward(batch)
        loss.backward()
        return loss, latents


class Unknown(TorchDispatchMode):
    """Answers every question about numbers that nobody computed with yes: what a model checks of them holds."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, or answer."""
        asked = func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool
        return True if asked else func(*args, **(kwargs or {}))


def main(args: list[str] | None = None) -> Cost:
    """Count for these command line arguments and print the result."""
    parser = ArgumentParser("python -m benchmarks.cost", description=__doc__)
    parser.add_class_arguments(CostSettings)  # auto_cli would take --config for a file of its own arguments
    settings = CostSettings(**vars(parser.parse_args(args)))
    cost = count(settings.config, settings.batch_size)
    console = Console(width=120)
    console.print(table(settings.config.stem, cost))
    if settings.measure:
        seconds = measure(settings)
        speed = cost.step_flop / seconds / 1e12
        console.print(f"{seconds:.3g} s a step on {device_name(settings.device)}: {speed:.3g} TFLOP/s")
    return cost


def build(config: Path) -> tuple[Composer, CoordinateDataModule, int | None]:
    """Return the untrained composer and the data module of an experiment, whose data need not be there, and its epochs.

    Raises:
        ValueError: If the file, or one that it is laid over, is missing.
    """
    found = load_layers(f"_base_: {json.dumps(str(config.resolve()))}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Composer, "model")
    parser.add_subclass_arguments(CoordinateDataModule, "data")
    parsed = parser.parse_object({name: found[name] for name in ("model", "data")})
    state_sizes(parsed.model, parsed.data)
    made = parser.instantiate(parsed)
    trainer: Mapping[str, Any] = found.get("trainer", {})
    return made.model, made.data, trainer.get("max_epochs")


def random_batch(data: CoordinateDataModule, batch_size: int) -> CoordinateBatch:
    """Return a training batch of random items, with the noise and the subset of coordinates that the data module draws."""
    return data.to_coordinates(data.random_items(batch_size), training=True)


def count(config: Path, batch_size: int | None = None) -> Cost:
    """Return what training an experiment costs, without computing it.

    Args:
        config: YAML of the experiment.
        batch_size: Instances of a step; those of the config if None.
    """
    composer, data, epochs = build(config)
    batch = random_batch(data, batch_size or data.batch_size)
    step = WholeStep(composer)
    shapes = FakeTensorMode()  # its tensors have a shape and a device, but no numbers
    state = dict(step.named_parameters()) | dict(step.named_buffers())
    state, shaped = tree_map_only(Tensor, shapes.from_tensor, (state, batch))
    holding = Unknown()  # type: ignore[no-untyped-call]  # of torch
    # Fused kernels of attention differ in what they compute again, and on a CPU they are not counted.
    with shapes, holding, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, latents = functional_call(step, state, (shaped,))
    hypernets = [module for module in composer.modules() if isinstance(module, Hypernetwork)]
    data_tokens, weight_tokens = hypernets[0].num_tokens if hypernets else (0, 0)
    return Cost(
        parameters=sum(parameter.numel() for parameter in composer.parameters()),
        data_tokens=data_tokens,
        weight_tokens=weight_tokens,
        code_numbers=sum(latent[0].numel() for latent in latents.values()),
        coordinates=batch.query.coords.shape[-2],
        batch_size=len(batch.names),
        step_flop=counter.get_total_flops(),
        epochs=epochs,
        items=published_items(data),
    )


def published_items(data: CoordinateDataModule) -> int | None:
    """Return how many training items are published; None where the data module does not say."""
    return data.count("train") if isinstance(data, RecordingSet | ImageSet) else None


def measure(settings: CostSettings) -> float:
    """Return the median of the seconds of one training step on the device: forward, backward, Adam."""
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
    """Return the cost for people."""
    shown = Table(title=name, show_header=False, title_justify="left")
    shown.add_row("parameters", f"{cost.parameters / 1e6:.2f} M")
    if cost.weight_tokens:
        shown.add_row("tokens", f"{cost.data_tokens:,} data + {cost.weight_tokens:,} weight")
    shown.add_row("instance code", f"{cost.code_numbers:,} numbers")
    shown.add_row("coordinates of an instance and step", f"{cost.coordinates:,}")
    shown.add_row(f"training step of {cost.batch_size}", f"{cost.step_flop / 1e12:.3f} TFLOP")
    shown.add_row("of it, an instance", f"{cost.step_flop / cost.batch_size / 1e9:.1f} GFLOP")
    if cost.steps is not None:
        shown.add_row("steps of the run", f"{cost.steps:,}")
        shown.add_row("whole run", f"{cost.steps * cost.step_flop / 1e18:.2f} EFLOP")
    return shown


if __name__ == "__main__":
    main()

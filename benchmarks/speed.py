"""Ours against the plain formulation, in alternation in one run: ``python -m benchmarks.speed --steps 5``.

Both sides use the same parameters and the same data. Nothing is timed before their values and gradients agree.
"""

from __future__ import annotations

import csv
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from benchmarks.reference import from_composer
from composers import TransformerIPC
from composers.encoders import Patches, Transformer
from composers.networks import CoordinateMLP, FourierFeatures
from datamodules.batch import Observation
from datamodules.domain import Grid, jitter

VALUE_TOLERANCE = 1e-4  # largest difference of a value; values are of order one
GRADIENT_TOLERANCE = 1e-3  # largest difference of a gradient, relative to the largest gradient of the same tensor


@dataclass(frozen=True)
class SpeedSettings:
    """Time ours against the plain formulation. The sizes are the published ones of ImageNette.

    Args:
        axes: Dimensions of a coordinate: 2 for images, 1 for sound.
        channels: Channels of a value.
        size: Samples along every axis of a signal: pixels, or samples of audio.
        batch_size: Signals in a batch.
        patch_size: Samples along every axis of a patch; it divides the padded signal.
        padding: Zeros around the signal, on every side.
        embed_dim: Width of a token.
        num_blocks: Blocks of the transformer.
        num_heads: Heads of every attention, a divisor of ``embed_dim``.
        hidden_dim: Width of the coordinate network, also the rank and the number of weight tokens.
        num_layers: Layers of the coordinate network, of which the second is modulated; at least 2.
        num_frequencies: Frequencies of the Fourier features per axis.
        shared_coords: Whether all signals share their coordinates; if not, each has its own noise, as published.
        steps: Timed runs per side and measurement, at least 2; one more of each goes before them and is not counted.
        device: Where to run: ``cpu``, ``cuda`` or ``cuda:1``.
        threads: Threads of the CPU; as PyTorch chooses if None.
        csv: File that gets one row per measurement, made if missing; none if None.

    Raises:
        ValueError: If a number is out of range.
    """

    axes: int = 2
    channels: int = 3
    size: int = 178
    batch_size: int = 4
    patch_size: int = 9
    padding: int = 1
    embed_dim: int = 768
    num_blocks: int = 6
    num_heads: int = 12
    hidden_dim: int = 256
    num_layers: int = 5
    num_frequencies: int = 64
    shared_coords: bool = True
    steps: int = 5
    device: str = "cpu"
    threads: int | None = None
    csv: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be timed."""
        if self.batch_size < 1 or self.num_layers < 2 or self.steps < 2:
            raise ValueError(
                f"batch_size is {self.batch_size}, num_layers {self.num_layers} and steps {self.steps}; "
                "they must be at least 1, 2 and 2."
            )
        if self.axes not in (1, 2) or self.channels < 1:
            raise ValueError(
                f"axes is {self.axes}, channels {self.channels}: signals have 1 or 2 axes and some channels."
            )


@dataclass(frozen=True)
class Contest:
    """One computation in both formulations.

    Attributes:
        section: What is computed.
        ours: Returns values ``(B, N, C)``.
        reference: Returns the same in the plain formulation.
        parameters: What both differentiate.
        target: Values ``(B, N, C)`` to come close to.
    """

    section: str
    ours: Callable[[], Tensor]
    reference: Callable[[], Tensor]
    parameters: list[Tensor]
    target: Tensor


@dataclass(frozen=True)
class SpeedMeasurement:
    """What one contest came to.

    Attributes:
        section: What was computed.
        work: ``training step`` or ``evaluation``.
        ours_seconds: Median of one run of ours.
        reference_seconds: Median of one run of the plain formulation.
        ratio: Median over neighbouring runs of the reference's time over ours.
        ratio_low: Lower quartile of the same.
        ratio_high: Upper quartile of the same.
        ours_saved_mb: Tensors that ours keeps for the backward pass, in 10^6 bytes; 0 in evaluation.
        reference_saved_mb: Likewise the plain formulation.
    """

    section: str
    work: str
    ours_seconds: float
    reference_seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    ours_saved_mb: float
    reference_saved_mb: float


def main(args: list[str] | None = None) -> list[SpeedMeasurement]:
    """Run the benchmark of these command line arguments, print its table and append to its CSV file."""
    settings = auto_cli(SpeedSettings, args=args)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    context = surroundings(settings)
    if settings.csv is not None:
        check_columns(settings.csv, [*(field.name for field in fields(SpeedMeasurement)), *context])
    console = Console(width=120)  # as wide as the table, also where the output is a file
    console.print(", ".join(f"{name} {value}" for name, value in context.items()))
    composer = build(settings)
    contests = make_contests(composer, settings)
    for contest in contests:
        console.print(f"{contest.section}: {check(composer, contest)}")
    found = [measurement for contest in contests for measurement in measure(composer, contest, settings)]
    console.print(table(found))
    if settings.csv is not None:
        append(settings.csv, [asdict(measurement) | context for measurement in found])
    return found


def build(settings: SpeedSettings) -> TransformerIPC:
    """Return an untrained composer of these sizes on the device."""
    torch.manual_seed(0)
    frequencies = FourierFeatures(settings.num_frequencies)
    sizes = (settings.axes, settings.channels, settings.hidden_dim, settings.num_layers)
    inr = CoordinateMLP(*sizes, encoding=frequencies)
    tokenizer = Patches((settings.channels, *extents(settings)), settings.patch_size, settings.padding)
    transformer = Transformer(settings.embed_dim, settings.num_blocks, settings.num_heads)
    return TransformerIPC(inr, tokenizer, transformer).to(settings.device)


def extents(settings: SpeedSettings) -> tuple[int, ...]:
    """Return the samples along every axis of a signal."""
    return (settings.size,) * settings.axes


def make_contests(composer: TransformerIPC, settings: SpeedSettings) -> list[Contest]:
    """Return the whole model and its coordinate network alone, on random signals."""
    reference = from_composer(composer)
    signal = torch.rand(settings.batch_size, settings.channels, *extents(settings), device=settings.device)
    observation, target = Observation(signal), signal.flatten(2).mT.contiguous()
    coords = make_coords(settings)
    with torch.no_grad():
        modulations = composer.modulate(observation)
    weights = {layer: weight.requires_grad_() for layer, (weight, _) in modulations.items() if weight is not None}
    network = [*composer.network.parameters(), *weights.values()]
    ours = partial(composer.network, coords, {layer: (weight, None) for layer, weight in weights.items()})
    return [
        Contest(
            "whole model",
            partial(composer, observation, coords),
            partial(reference, observation, coords),
            list(composer.parameters()),
            target,
        ),
        Contest("coordinate network", ours, partial(reference.network, coords, weights), network, target),
    ]


def make_coords(settings: SpeedSettings) -> Tensor:
    """Return coordinates ``(N, D)`` that all signals share, or ``(B, N, D)`` with noise."""
    domain = Grid.unit(len(extents(settings)))
    coords = domain.coords(extents(settings))
    if not settings.shared_coords:
        cell = domain.cell(extents(settings))
        coords = jitter(coords.repeat(settings.batch_size, 1, 1), cell, torch.Generator().manual_seed(0))
    return coords.to(settings.device)


def check(composer: TransformerIPC, contest: Contest) -> str:
    """Say how far apart the values and gradients of both sides are, without dropout.

    Raises:
        ValueError: If they differ by more than rounding.
    """
    composer.eval()
    our_values, our_gradients = differentiate(contest, contest.ours)
    values, gradients = differentiate(contest, contest.reference)
    value = (our_values - values).abs().max().item()
    gradient = max(map(relative_difference, our_gradients, gradients))
    said = f"largest difference of a value {value:.1e}, of a gradient {gradient:.1e} (relative)"
    if not (value <= VALUE_TOLERANCE and gradient <= GRADIENT_TOLERANCE):  # so that NaN is refused too
        raise ValueError(
            f"Both sides of the {contest.section} must agree before they are timed: {said}, allowed are "
            f"{VALUE_TOLERANCE:.0e} and {GRADIENT_TOLERANCE:.0e}. One of the formulations is wrong."
        )
    return said


def differentiate(contest: Contest, evaluate: Callable[[], Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the values of one side and the gradients of its loss."""
    values = evaluate()
    loss = functional.mse_loss(values, contest.target)
    gradients = torch.autograd.grad(loss, contest.parameters, materialize_grads=True)  # zeros where one is not used
    return values.detach(), gradients


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference over the largest entry of ``wanted``.

    Example:
        >>> relative_difference(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 4.0]))
        0.125
    """
    smallest = torch.finfo(wanted.dtype).tiny  # a gradient that is zero on both sides agrees
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=smallest)).item()


def measure(composer: TransformerIPC, contest: Contest, settings: SpeedSettings) -> list[SpeedMeasurement]:
    """Time the training step, with dropout, and the evaluation of both sides."""
    sides = (contest.ours, contest.reference)
    optimizer = torch.optim.Adam(contest.parameters, lr=1e-4)  # one for both, so that they share its state too
    composer.train()
    training = alternate([partial(train, contest, side, optimizer) for side in sides], settings)
    saved = [saved_bytes(contest, side) for side in sides]
    composer.eval()
    with torch.no_grad():
        evaluation = alternate(sides, settings)
    return [
        summarise(contest.section, "training step", training, saved),
        summarise(contest.section, "evaluation", evaluation, [0, 0]),
    ]


def train(contest: Contest, evaluate: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Do one training step: forward, mean squared error, backward, Adam."""
    optimizer.zero_grad()
    functional.mse_loss(evaluate(), contest.target).backward()
    optimizer.step()


def alternate(sides: Sequence[Callable[[], object]], settings: SpeedSettings) -> list[list[float]]:
    """Run the sides in turn, and return the seconds of every run after the first, side by side."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(settings.steps + 1):
        for side, kept in zip(sides, seconds, strict=True):
            kept.append(duration(side, settings.device))
    return [kept[1:] for kept in seconds]


def duration(function: Callable[[], object], device: str) -> float:
    """Return the seconds that a call takes, until the device has finished it."""
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def saved_bytes(contest: Contest, evaluate: Callable[[], Tensor]) -> int:
    """Return the bytes that one side keeps for its backward pass, each storage once, without the parameters."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in contest.parameters}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = functional.mse_loss(evaluate(), contest.target)  # holds the graph, so that no address is used twice
    del loss
    return sum(size for address, size in sizes.items() if address not in owned)


def summarise(section: str, work: str, seconds: Sequence[Sequence[float]], saved: Sequence[int]) -> SpeedMeasurement:
    """Return the medians of both sides, and quartiles of the ratio of neighbouring runs."""
    ours, reference = seconds
    ratios = [theirs / own for own, theirs in zip(ours, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return SpeedMeasurement(
        section=section,
        work=work,
        ours_seconds=statistics.median(ours),
        reference_seconds=statistics.median(reference),
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
        ours_saved_mb=saved[0] / 1e6,
        reference_saved_mb=saved[1] / 1e6,
    )


def surroundings(settings: SpeedSettings) -> dict[str, object]:
    """Return where and on which sizes was measured."""
    sizes = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name != "csv"}
    return sizes | {
        "device": device_name(settings.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def device_name(device: str) -> str:
    """Return the name of a GPU, or the kind of CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU with {torch.backends.cpu.get_cpu_capability()}"


def table(found: Sequence[SpeedMeasurement]) -> Table:
    """Return the measurements for people."""
    shown = Table("", "ours, s", "plain, s", "plain / ours", "quartiles", "ours keeps, MB", "plain keeps, MB")
    for one in found:
        kept = (one.ours_saved_mb, one.reference_saved_mb)
        shown.add_row(
            f"{one.section}, {one.work}",
            f"{one.ours_seconds:.4g}",
            f"{one.reference_seconds:.4g}",
            f"{one.ratio:.2f}",
            f"{one.ratio_low:.2f} to {one.ratio_high:.2f}",
            *(f"{megabytes:.4g}" if megabytes else "" for megabytes in kept),
        )
    return shown


def check_columns(path: Path, columns: Sequence[str]) -> None:
    """Make the folder of a CSV file, and refuse a file that holds other columns, before time is spent.

    Raises:
        ValueError: If it does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    with path.open(newline="") as file:
        there = next(csv.reader(file), list(columns))
    if there != list(columns):
        raise ValueError(f"{path} has the columns {there}; these rows have {list(columns)}: give another --csv.")


def append(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Append rows to a CSV file, with the names of their columns at its top."""
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()

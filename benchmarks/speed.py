"""Speed of this implementation relative to the plain formulation: ``python -m benchmarks.speed --steps 5``.

Both use the same parameters and data and alternate in one run. They are timed only once their values and gradients agree.
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

from benchmarks.reference import PlainComposer
from composers import TransformerIPC
from composers.encoders import Patches, Transformer
from composers.networks import CoordinateMLP, FourierFeatures
from datamodules.batch import Observation
from datamodules.domain import Grid, jitter

VALUE_TOLERANCE = 1e-4  # largest absolute difference of values, which are of order one
GRADIENT_TOLERANCE = 1e-3  # largest difference of gradients, relative to the largest gradient of the same tensor


@dataclass(frozen=True)
class SpeedSettings:
    """Compare the speed of this implementation with the plain formulation.

    The default sizes are those published for ImageNette.

    Args:
        axes: Dimensions of a coordinate: 2 for images, 1 for audio.
        channels: Number of value channels.
        size: Number of samples along every axis of a signal.
        batch_size: Number of signals in a batch.
        patch_size: Number of samples along every axis of a patch. Must divide the size of the padded signal.
        padding: Number of zeros added on every side of the signal.
        embed_dim: Embedding dimension of a token.
        num_blocks: Number of transformer blocks.
        num_heads: Number of attention heads. Must divide ``embed_dim``.
        hidden_dim: Width of the coordinate network, and also the rank and the number of weight tokens.
        num_layers: Number of layers of the coordinate network, at least 2. The second is modulated.
        num_frequencies: Number of frequencies of the Fourier features per axis.
        shared_coords: Whether all signals share their coordinates. Otherwise, each has its own coordinate noise, as published.
        steps: Number of timed runs of each implementation per measurement, at least 2. One warm-up run is not counted.
        device: Device, for example ``cpu``, ``cuda`` or ``cuda:1``.
        threads: Number of CPU threads. If None, the default of PyTorch.
        csv: CSV file to which one row per measurement is appended. If None, no file is written.

    Raises:
        ValueError: If an argument is out of range.
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
        """Raise if an argument is out of range."""
        if self.batch_size < 1 or self.num_layers < 2 or self.steps < 2:
            raise ValueError(
                f"batch_size is {self.batch_size}, num_layers {self.num_layers} and steps {self.steps}; "
                "they must be at least 1, 2 and 2."
            )
        if self.axes not in (1, 2) or self.channels < 1:
            raise ValueError(
                f"axes is {self.axes} and channels is {self.channels}; axes must be 1 or 2, and channels positive."
            )


@dataclass(frozen=True)
class Contest:
    """A computation in both formulations.

    Attributes:
        section: Name of the computation.
        ours: Function that returns values ``(B, N, C)``.
        reference: Function that returns the same values in the plain formulation.
        parameters: Parameters with respect to which both are differentiated.
        target: Target values ``(B, N, C)`` of the loss.
    """

    section: str
    ours: Callable[[], Tensor]
    reference: Callable[[], Tensor]
    parameters: list[Tensor]
    target: Tensor


@dataclass(frozen=True)
class SpeedMeasurement:
    """Measurement of one computation.

    Attributes:
        section: Name of the computation.
        work: ``training step`` or ``evaluation``.
        ours_seconds: Median time of this implementation.
        reference_seconds: Median time of the plain formulation.
        ratio: Median over consecutive runs of the time of the plain formulation divided by that of this implementation.
        ratio_low: Lower quartile of this ratio.
        ratio_high: Upper quartile of this ratio.
        ours_saved_mb: Size of the tensors that this implementation saves for backward, in MB (10^6 bytes); 0 in evaluation.
        reference_saved_mb: The same for the plain formulation.
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
    """Parse command-line arguments, run the benchmark, print a table and append it to the CSV file."""
    settings = auto_cli(SpeedSettings, args=args)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    context = surroundings(settings)
    if settings.csv is not None:
        check_columns(settings.csv, [*(field.name for field in fields(SpeedMeasurement)), *context])
    console = Console(width=120)  # the width of the table, also if the output is not a terminal
    console.print(", ".join(f"{name} {value}" for name, value in context.items()))
    composer = build(settings)
    contests = make_contests(composer, settings)
    for contest in contests:
        console.print(f"{contest.section}: {check(composer, contest)}")
    measurements = [measurement for contest in contests for measurement in measure(composer, contest, settings)]
    console.print(table(measurements))
    if settings.csv is not None:
        append(settings.csv, [asdict(measurement) | context for measurement in measurements])
    return measurements


def build(settings: SpeedSettings) -> TransformerIPC:
    """Return an untrained composer on the device."""
    torch.manual_seed(0)
    frequencies = FourierFeatures(settings.num_frequencies)
    sizes = (settings.axes, settings.channels, settings.hidden_dim, settings.num_layers)
    network = CoordinateMLP(*sizes, encoding=frequencies)
    encoder = Patches((settings.channels, *extents(settings)), settings.patch_size, settings.padding)
    transformer = Transformer(settings.embed_dim, settings.num_blocks, settings.num_heads)
    return TransformerIPC(network, encoder, transformer).to(settings.device)


def extents(settings: SpeedSettings) -> tuple[int, ...]:
    """Return the number of samples along every axis of a signal."""
    return (settings.size,) * settings.axes


def make_contests(composer: TransformerIPC, settings: SpeedSettings) -> list[Contest]:
    """Return the computations to compare on random signals: the whole model, and its coordinate network alone."""
    reference = PlainComposer(composer)
    signal = torch.rand(settings.batch_size, settings.channels, *extents(settings), device=settings.device)
    observation, target = Observation(signal), signal.flatten(2).mT.contiguous()
    coords = make_coords(settings)
    with torch.no_grad():
        modulations = composer.modulate(observation)
    weights = {int(name.removeprefix("weight.")): weight.requires_grad_() for name, weight in modulations.items()}
    parameters = [*composer.network.parameters(), *weights.values()]
    ours = partial(composer.network, coords, modulations)
    return [
        Contest(
            "whole model",
            partial(composer, observation, coords),
            partial(reference, observation, coords),
            list(composer.parameters()),
            target,
        ),
        Contest("coordinate network", ours, partial(reference.network, coords, weights), parameters, target),
    ]


def make_coords(settings: SpeedSettings) -> Tensor:
    """Return coordinates ``(N, D)`` shared by all signals, or ``(B, N, D)`` with noise."""
    domain = Grid.unit(len(extents(settings)))
    coords = domain.coords(extents(settings))
    if not settings.shared_coords:
        cell = domain.cell(extents(settings))
        coords = jitter(coords.repeat(settings.batch_size, 1, 1), cell, torch.Generator().manual_seed(0))
    return coords.to(settings.device)


def check(composer: TransformerIPC, contest: Contest) -> str:
    """Compare the values and gradients of both formulations without dropout, and return a summary.

    Raises:
        ValueError: If they differ by more than rounding errors.
    """
    composer.eval()
    our_values, our_gradients = differentiate(contest, contest.ours)
    values, gradients = differentiate(contest, contest.reference)
    value = (our_values - values).abs().max().item()
    gradient = max(map(relative_difference, our_gradients, gradients))
    summary = f"largest difference of values {value:.1e}, of gradients {gradient:.1e} (relative)"
    if not (value <= VALUE_TOLERANCE and gradient <= GRADIENT_TOLERANCE):  # negated, so that NaN fails too
        raise ValueError(
            f"The two formulations of the {contest.section} differ: {summary}; the tolerances are "
            f"{VALUE_TOLERANCE:.0e} and {GRADIENT_TOLERANCE:.0e}. At least one formulation is wrong."
        )
    return summary


def differentiate(contest: Contest, evaluate: Callable[[], Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the values of one formulation and the gradients of its loss."""
    values = evaluate()
    loss = functional.mse_loss(values, contest.target)
    gradients = torch.autograd.grad(loss, contest.parameters, materialize_grads=True)  # zeros for unused parameters
    return values.detach(), gradients


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference divided by the largest absolute value of ``expected``.

    Example:
        >>> relative_difference(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 4.0]))
        0.125
    """
    smallest = torch.finfo(expected.dtype).tiny  # two gradients of zero agree
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=smallest)).item()


def measure(composer: TransformerIPC, contest: Contest, settings: SpeedSettings) -> list[SpeedMeasurement]:
    """Time the training step, with dropout, and the evaluation of both formulations."""
    sides = (contest.ours, contest.reference)
    optimizer = torch.optim.Adam(contest.parameters, lr=1e-4)  # shared, so that both use the same state
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
    """Run one training step: forward, mean squared error, backward, Adam."""
    optimizer.zero_grad()
    functional.mse_loss(evaluate(), contest.target).backward()
    optimizer.step()


def alternate(sides: Sequence[Callable[[], object]], settings: SpeedSettings) -> list[list[float]]:
    """Run the formulations alternately, and return the seconds of all runs but the first of each."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(settings.steps + 1):
        for side, durations in zip(sides, seconds, strict=True):
            durations.append(duration(side, settings.device))
    return [durations[1:] for durations in seconds]


def duration(function: Callable[[], object], device: str) -> float:
    """Return the seconds that a call takes, including the work of the device."""
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    """Wait for the device to finish."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def saved_bytes(contest: Contest, evaluate: Callable[[], Tensor]) -> int:
    """Return the bytes of the storages, other than parameters, that one formulation saves for its backward pass."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in contest.parameters}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = functional.mse_loss(evaluate(), contest.target)  # keeps the graph alive, so that no address is reused
    del loss
    return sum(size for address, size in sizes.items() if address not in owned)


def summarise(section: str, work: str, seconds: Sequence[Sequence[float]], saved: Sequence[int]) -> SpeedMeasurement:
    """Return the median times, and the quartiles of the ratio of consecutive runs."""
    ours, reference = seconds
    ratios = [plain / fast for fast, plain in zip(ours, reference, strict=True)]
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
    """Return the settings, device and versions of a measurement."""
    sizes = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name != "csv"}
    return sizes | {
        "device": device_name(settings.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def device_name(device: str) -> str:
    """Return the name of a GPU, or the architecture of the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU with {torch.backends.cpu.get_cpu_capability()}"


def table(measurements: Sequence[SpeedMeasurement]) -> Table:
    """Return a table of the measurements."""
    result = Table("", "ours, s", "plain, s", "plain / ours", "quartiles", "ours saves, MB", "plain saves, MB")
    for row in measurements:
        kept = (row.ours_saved_mb, row.reference_saved_mb)
        result.add_row(
            f"{row.section}, {row.work}",
            f"{row.ours_seconds:.4g}",
            f"{row.reference_seconds:.4g}",
            f"{row.ratio:.2f}",
            f"{row.ratio_low:.2f} to {row.ratio_high:.2f}",
            *(f"{megabytes:.4g}" if megabytes else "" for megabytes in kept),
        )
    return result


def check_columns(path: Path, columns: Sequence[str]) -> None:
    """Create the folder of a CSV file, and raise if the file exists with other columns.

    Raises:
        ValueError: If the columns differ.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    with path.open(newline="") as file:
        existing = next(csv.reader(file), list(columns))
    if existing != list(columns):
        raise ValueError(
            f"{path} has the columns {existing}, but the new rows have {list(columns)}: use another --csv."
        )


def append(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Append rows to a CSV file, with a header if it is new."""
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()

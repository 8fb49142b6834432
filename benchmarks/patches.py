"""Speed of patch-wise IPC as a share of the machine's matrix rate: ``python -m benchmarks.patches``.

Training steps, encoding and decoding alternate in one run with a large matrix product of the same precision, on the same
threads. The time per sample is compared over sizes, because the cost is meant to be linear in the number of samples.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from jsonargparse import auto_cli
from lightning.fabric.utilities import move_data_to_device
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.cost import TrainingStep, build, counter, random_batch
from benchmarks.inner_loop import Alive
from benchmarks.speed import append, check_columns, device_name, duration
from composers.base import Composer
from datamodules.batch import Observation
from datamodules.domain import Grid

EXPERIMENTS = Path(__file__).resolve().parents[1] / "configs" / "experiments"
Returned = TypeVar("Returned")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PatchSettings:
    """Time patch-wise IPC as a share of the rate of a large matrix product, and over sizes of a signal.

    The models are those of the experiments, before training, on random signals.

    Args:
        images: Config of an experiment on images; None leaves images out.
        audio: Config of an experiment on audio; None leaves audio out.
        batch_size: Number of signals in a training step. Other jobs take one signal.
        sizes: Heights and widths of square images in pixels, the smallest first.
        seconds: Lengths of audio, the smallest first.
        zoomed_size: Size of the image that is decoded at arbitrary coordinates, and at four times its size.
        precisions: Any of ``float32`` and ``bfloat16``; the latter is autocast, as in ``bf16-mixed``.
        matrix_size: Size of the square matrices whose product measures the rate.
        repeats: Number of timed runs of every job, at least 2. One warm-up run is not counted.
        device: Device, for example ``cpu``, ``cuda`` or ``cuda:1``.
        threads: Number of CPU threads. If None, the default of PyTorch.
        csv: CSV file to which one row per measurement is appended. If None, no file is written.

    Raises:
        ValueError: If an argument is out of range.
    """

    images: Path | None = EXPERIMENTS / "photos_patch_ipc.yaml"
    audio: Path | None = EXPERIMENTS / "speech_patch_ipc.yaml"
    batch_size: int = 16
    sizes: tuple[int, ...] = (64, 128, 256, 512, 1024)
    seconds: tuple[float, ...] = (1.0, 4.0, 16.0)
    zoomed_size: int = 256
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    matrix_size: int = 2048
    repeats: int = 5
    device: str = "cpu"
    threads: int | None = None
    csv: Path | None = None

    def __post_init__(self) -> None:
        """Raise if an argument is out of range."""
        numbers = (self.batch_size, self.zoomed_size, self.matrix_size, *self.sizes)
        if min(numbers) < 1 or self.repeats < 2 or min(self.seconds, default=1.0) <= 0:
            raise ValueError(
                f"batch_size is {self.batch_size}, sizes {self.sizes}, seconds {self.seconds}, zoomed_size {self.zoomed_size}, "
                f"matrix_size {self.matrix_size} and repeats {self.repeats}; repeats must be at least 2, and all other numbers "
                "positive."
            )
        if not self.precisions or not (self.images or self.audio):
            raise ValueError(
                f"precisions is {self.precisions}, images {self.images} and audio {self.audio}; give at least one precision, "
                "and one config."
            )


@dataclass(frozen=True)
class Job:
    """A computation to time.

    Attributes:
        case: Name of the computation.
        signal: Size of the signals.
        samples: Number of pixels or samples of audio that are encoded or decoded.
        run: The computation.
        series: Name of the jobs whose time per sample is compared; empty for none.
    """

    case: str
    signal: str
    samples: int
    run: Callable[[], object]
    series: str = ""


@dataclass(frozen=True)
class PatchMeasurement:
    """Measurement of one job.

    Attributes:
        case: Name of the computation.
        signal: Size of the signals.
        precision: ``float32`` or ``bfloat16``.
        seconds: Median time.
        gflop: Operations of matrix products and convolutions, 10^9; a multiplication and an addition count as two.
        matrix_gflops: Median rate of the matrix product, 10^9 operations per second.
        share: Median over runs of the rate of the job, relative to that of the matrix product of the same run.
        share_low: Lower quartile of this ratio.
        share_high: Upper quartile of this ratio.
        seconds_per_million: Median time per 10^6 samples.
        to_linear: Median over runs of the time per sample, relative to that of the smallest size; NaN without one.
        peak_mb: Largest size of all tensors alive during the job, beside parameters and inputs, in MB (10^6 bytes).
    """

    case: str
    signal: str
    precision: str
    seconds: float
    gflop: float
    matrix_gflops: float
    share: float
    share_low: float
    share_high: float
    seconds_per_million: float
    to_linear: float
    peak_mb: float


def main(args: list[str] | None = None) -> list[PatchMeasurement]:
    """Run the benchmark, print a table per precision and append the rows to the CSV file."""
    settings = auto_cli(PatchSettings, args=args)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    context = surroundings(settings)
    if settings.csv is not None:
        check_columns(settings.csv, [*(field.name for field in fields(PatchMeasurement)), *context])
    console = Console(width=140)
    console.print(", ".join(f"{name} {value}" for name, value in context.items()))
    jobs = [*image_jobs(settings), *audio_jobs(settings)]
    measurements = []
    for precision in settings.precisions:
        measured = measure(jobs, precision, settings)
        console.print(table(precision, measured))
        measurements += measured
    if settings.csv is not None:
        append(settings.csv, [asdict(measurement) | context for measurement in measurements])
    return measurements


def image_jobs(settings: PatchSettings) -> list[Job]:
    """Return the jobs on images."""
    if settings.images is None:
        return []
    training, composer = training_job(settings.images, settings)
    jobs = [training]
    for size in settings.sizes:
        jobs += code_jobs(composer, f"{size} x {size}", (size, size), settings)
    size = settings.zoomed_size
    return [*jobs, *zoom_jobs(composer, f"{size} x {size}", (size, size), settings)]


def audio_jobs(settings: PatchSettings) -> list[Job]:
    """Return the jobs on audio."""
    if settings.audio is None:
        return []
    training, composer = training_job(settings.audio, settings)
    _, data, _ = build(settings.audio)
    sample_rate = data.spec.sample_rate
    assert sample_rate is not None
    jobs = [training]
    for seconds in settings.seconds:
        jobs += code_jobs(composer, f"{seconds:g} s", (round(seconds * sample_rate),), settings)
    return jobs


def training_job(config: Path, settings: PatchSettings) -> tuple[Job, Composer]:
    """Return the training step of an experiment - forward, loss, backward, optimizer - and another composer to evaluate."""
    trained, data, _ = build(config)
    composer = build(config)[0].eval().to(settings.device)  # the other one changes from step to step
    step = TrainingStep(trained).to(settings.device)
    batch = move_data_to_device(random_batch(data, settings.batch_size), torch.device(settings.device))
    assert trained.optimizer is not None
    optimizer = trained.optimizer(list(trained.parameters()))

    def run() -> None:
        optimizer.zero_grad()
        loss, _ = step(batch)
        with torch.autocast(settings.device.partition(":")[0], enabled=False):
            loss.backward()
        optimizer.step()

    size = " x ".join(str(count) for count in batch.shape)
    samples = settings.batch_size * math.prod(batch.shape)
    return Job("training step", f"{settings.batch_size} of {size}", samples, run), composer


def code_jobs(composer: Composer, signal: str, shape: tuple[int, ...], settings: PatchSettings) -> list[Job]:
    """Return encoding of a signal, and decoding on its grid."""
    observation, decode = _coded(composer, shape, settings)
    coords = Grid.unit(len(shape)).coords(shape).to(settings.device)
    samples = math.prod(shape)
    return [
        Job("encode", signal, samples, _without_graph(partial(composer.encode, observation)), f"encode {len(shape)}"),
        Job("decode on the grid", signal, samples, partial(decode, coords), f"decode {len(shape)}"),
    ]


def zoom_jobs(composer: Composer, signal: str, shape: tuple[int, ...], settings: PatchSettings) -> list[Job]:
    """Return decoding at as many random coordinates as a signal has samples, and at four times its size."""
    _, decode = _coded(composer, shape, settings)
    generator = torch.Generator().manual_seed(0)
    scattered = 2 * torch.rand(math.prod(shape), len(shape), generator=generator) - 1
    fine = Grid.unit(len(shape)).coords(tuple(4 * size for size in shape))
    return [
        Job(case, signal, len(coords), partial(decode, coords.to(settings.device)))
        for case, coords in (("decode at arbitrary coordinates", scattered), ("decode at 4x", fine))
    ]


def _coded(
    composer: Composer, shape: tuple[int, ...], settings: PatchSettings
) -> tuple[Observation, Callable[[Tensor], Tensor]]:
    """Return a random signal, and the function that decodes its latents at coordinates."""
    channels = composer.network.value_dim
    signal = torch.rand(1, channels, *shape, generator=torch.Generator().manual_seed(0))
    observation = Observation(signal.to(settings.device))
    with torch.no_grad():
        latents = composer.encode(observation)
    layout = composer.layout(observation)
    decode = _without_graph(lambda coords: composer.render(composer.compose(latents, layout), coords))
    return observation, decode


def _without_graph(function: Callable[..., Returned]) -> Callable[..., Returned]:
    """Return the function without gradients."""
    return torch.no_grad()(function)


def measure(jobs: Sequence[Job], precision: str, settings: PatchSettings) -> list[PatchMeasurement]:
    """Count, then time all jobs in one precision, alternating with a matrix product."""
    dtype, device = DTYPES[precision], torch.device(settings.device).type
    matrix = torch.randn(settings.matrix_size, settings.matrix_size, device=settings.device).to(dtype)
    product_flop = 2 * settings.matrix_size**3
    with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        counts = [count(job) for job in jobs]  # also warms up
        seconds: list[list[float]] = [[] for _ in jobs]
        rates: list[list[float]] = [[] for _ in jobs]
        for _ in range(settings.repeats):
            for job, times, products in zip(jobs, seconds, rates, strict=True):
                products.append(product_flop / duration(partial(torch.mm, matrix, matrix), settings.device))
                times.append(duration(job.run, settings.device))
    return [
        summarise(job, precision, counts[index], seconds[index], rates[index], smallest(jobs, index, seconds))
        for index, job in enumerate(jobs)
    ]


def count(job: Job) -> tuple[int, float]:
    """Return the operations of a job, and the largest size of its tensors in MB."""
    with counter() as counted:
        job.run()
    with Alive([]) as alive:
        job.run()
    return counted.get_total_flops(), alive.peak / 1e6


def smallest(jobs: Sequence[Job], index: int, seconds: Sequence[Sequence[float]]) -> list[float]:
    """Return the times per sample of the first job of the same series; NaN without a series."""
    series = jobs[index].series
    if not series:
        return [math.nan] * len(seconds[index])
    first = next(number for number, job in enumerate(jobs) if job.series == series)
    return [time / jobs[first].samples for time in seconds[first]]


def summarise(
    job: Job,
    precision: str,
    counts: tuple[int, float],
    seconds: Sequence[float],
    rates: Sequence[float],
    per_sample: Sequence[float],
) -> PatchMeasurement:
    """Return the medians of a job, and the quartiles of its share of the matrix rate."""
    flop, peak_mb = counts
    shares = [flop / time / rate for time, rate in zip(seconds, rates, strict=True)]
    low, share, high = statistics.quantiles(shares, n=4, method="inclusive")
    return PatchMeasurement(
        case=job.case,
        signal=job.signal,
        precision=precision,
        seconds=statistics.median(seconds),
        gflop=flop / 1e9,
        matrix_gflops=statistics.median(rates) / 1e9,
        share=share,
        share_low=low,
        share_high=high,
        seconds_per_million=statistics.median(seconds) / job.samples * 1e6,
        to_linear=statistics.median(
            time / job.samples / other for time, other in zip(seconds, per_sample, strict=True)
        ),
        peak_mb=peak_mb,
    )


def surroundings(settings: PatchSettings) -> dict[str, object]:
    """Return the settings and the environment of the measurements."""
    omitted = ("csv", "precisions", "images", "audio")
    sizes = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in omitted}
    return sizes | {
        "device": device_name(settings.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def table(precision: str, measurements: Sequence[PatchMeasurement]) -> Table:
    """Return the measurements of one precision as a table."""
    rate = statistics.median(measurement.matrix_gflops for measurement in measurements)
    rows = Table(title=f"{precision}: a matrix product has {rate:.4g} GFLOP/s", title_justify="left")
    for heading in ("", "signal", "s", "GFLOP", "share of it", "quartiles", "s per 10^6", "to linear", "peak, MB"):
        rows.add_column(heading, justify="left" if heading in ("", "signal") else "right")
    for row in measurements:
        rows.add_row(
            row.case,
            row.signal,
            f"{row.seconds:.3g}",
            f"{row.gflop:.3g}",
            f"{row.share:.2f}",
            f"{row.share_low:.2f} to {row.share_high:.2f}",
            f"{row.seconds_per_million:.3g}",
            "" if math.isnan(row.to_linear) else f"{row.to_linear:.2f}",
            f"{row.peak_mb:.0f}",
        )
    return rows


if __name__ == "__main__":
    main()

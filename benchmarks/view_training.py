"""Speed of a training step of views relative to the plain formulation: ``python -m benchmarks.view_training``.

The sizes are those published for cars, chairs and lamps. By default, a step begins with given weights of the modulated layer of
a fitted network, and ends with their gradients. With ``--complete true``, it is that of the complete model, from one support
view to the update by Adam. The plain formulation is that of ``benchmarks.reference``, with all samples in the gradient.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.fitted_scene import chair, fit, solid_field
from benchmarks.reference import PlainComposer, PlainCoordinateMLP
from benchmarks.speed import relative_difference
from composers import TransformerIPC
from composers.encoders import Transformer, ViewPatches
from composers.latents import Latents
from composers.networks import CoordinateMLP, Field, FourierFeatures
from composers.rendering import VolumeRenderer
from datamodules.batch import Observation, Views
from datamodules.cameras import centred_intrinsics, focal_length, orbit
from datamodules.domain import Rays

GRADIENT_TOLERANCE = 1e-5  # relative to the largest gradient of the same tensor
COMPLETE_TOLERANCE = 1e-6  # the same in float64: random weights and high frequencies amplify roundings of float32
PUBLISHED_BATCH = 32


@dataclass(frozen=True)
class ViewTrainingSettings:
    """Compare the speed of a training step of views with the plain formulation.

    Args:
        batch_size: Objects per step; 32 as published.
        rays: Rays per object.
        samples_per_ray: Samples per ray.
        hidden_dim: Width of the six layers.
        complete: Whether to time complete steps, of a model with random weights, by parts.
        size: Height and width of the support view of a complete step in pixels, a multiple of 8.
        embed_dim: Width of a token of the transformer of a complete step, a multiple of 12.
        num_blocks: Number of its blocks.
        fit_steps: Steps of fitting the network to a generated chair; 0 for a network with random weights.
        share: Share of the samples with density, to which the bias of the density is set; as fitted if None.
        repeats: Timed steps per formulation, alternately, after one that is not counted.
        threads: Number of CPU threads. Processor time is that of all threads, including what they wait for each other.

    Raises:
        ValueError: If a number is out of range.
    """

    batch_size: int = 2
    rays: int = 128
    samples_per_ray: int = 128
    hidden_dim: int = 256
    complete: bool = False
    size: int = 128
    embed_dim: int = 768
    num_blocks: int = 6
    fit_steps: int = 60
    share: float | None = 0.1
    repeats: int = 3
    threads: int = 1

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` if a number is out of range."""
        if min(self.batch_size, self.rays, self.hidden_dim, self.repeats, self.threads) < 1 or self.fit_steps < 0:
            raise ValueError(
                f"batch_size is {self.batch_size}, rays {self.rays}, hidden_dim {self.hidden_dim}, repeats {self.repeats}, "
                f"threads {self.threads}, fit_steps {self.fit_steps}: each must be positive, and fit_steps at least 0."
            )
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(
                f"share is {self.share}; it must be positive and less than 1, or null for the fitted density."
            )


@dataclass(frozen=True)
class ViewTrainingMeasurement:
    """Measurement of one formulation.

    Attributes:
        seconds: Median processor time of a step: forward, squared error and backward.
        value_difference: Largest absolute difference of the colours from the plain formulation.
        gradient_difference: Largest difference of gradients, relative to the largest gradient of the same tensor.
    """

    seconds: float
    value_difference: float
    gradient_difference: float


class StepSeconds(NamedTuple):
    """Seconds of processor time of one complete training step.

    Attributes:
        encode: Tokens, transformer and heads, with their gradients.
        render: Composition, network and renderer, with their gradients.
        update: The update by Adam.
    """

    encode: float
    render: float
    update: float


@dataclass(frozen=True)
class Ratio:
    """Time of the plain formulation divided by that of another one, over pairs of consecutive steps.

    Attributes:
        median: Median.
        low: Smallest.
        high: Largest.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the median, and the range in parentheses."""
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class CompleteStepMeasurement:
    """Measurement of complete training steps of one formulation.

    Attributes:
        seconds: Medians of the parts of a step.
        ratio: Ratio of complete steps.
        ratio_without_update: Ratio of encoding and rendering.
        ratio_published: Ratio of complete steps, derived for 32 objects: encoding and rendering grow with their number, the
            update does not.
        value_difference: Largest absolute difference of the colours from the plain formulation, without dropout, in float64.
        gradient_difference: Largest difference of gradients, relative to the largest gradient of the same tensor, in float64.
    """

    seconds: StepSeconds
    ratio: Ratio
    ratio_without_update: Ratio
    ratio_published: Ratio
    value_difference: float
    gradient_difference: float


def main(args: list[str] | None = None) -> dict[str, ViewTrainingMeasurement] | dict[str, CompleteStepMeasurement]:
    """Run the command line and print a table."""
    settings = auto_cli(ViewTrainingSettings, args=args)
    torch.set_num_threads(settings.threads)
    return _report_complete(settings) if settings.complete else _report(settings)


def _report(settings: ViewTrainingSettings) -> dict[str, ViewTrainingMeasurement]:
    """Measure network and renderer, and print a table."""
    share, measurements = measure(settings)
    plain = measurements["plain"].seconds
    table = Table(title=f"{100 * share:.0f} % of the samples have density", title_justify="left")
    for heading in ("formulation", "seconds", "plain / this", "difference of values", "of gradients"):
        table.add_column(heading, justify="right")
    for name, row in measurements.items():
        differences = (f"{row.value_difference:.1e}", f"{row.gradient_difference:.1e}")
        table.add_row(name, f"{row.seconds:.3f}", f"{plain / row.seconds:.2f}", *differences)
    Console(width=120).print(table)
    return measurements


def _report_complete(settings: ViewTrainingSettings) -> dict[str, CompleteStepMeasurement]:
    """Measure complete steps, and print a table."""
    share, measurements = measure_complete(settings)
    title = f"{100 * share:.0f} % of the samples have density; plain / this: median (range) of {settings.repeats} pairs"
    table = Table(title=title, title_justify="left")
    for heading in ("formulation", "encode, s", "render", "update", "plain / this", "without update"):
        table.add_column(heading, justify="right")
    table.add_column(f"derived, {PUBLISHED_BATCH} objects", justify="right")
    table.add_column("differences", justify="right")
    for name, row in measurements.items():
        seconds = (f"{part:.3f}" for part in row.seconds)
        ratios = map(str, (row.ratio, row.ratio_without_update, row.ratio_published))
        table.add_row(name, *seconds, *ratios, f"{row.value_difference:.0e}, {row.gradient_difference:.0e}")
    Console(width=140).print(table)
    return measurements


def measure_complete(settings: ViewTrainingSettings) -> tuple[float, dict[str, CompleteStepMeasurement]]:
    """Return the share of samples with density, and the measurements of complete steps by name, the plain one first.

    Raises:
        ValueError: If values or gradients of the formulations differ by more than rounding errors.
    """
    torch.manual_seed(0)
    encoding = FourierFeatures(20, 2.0**8, use_pi=False)
    network = CoordinateMLP(3, 4, settings.hidden_dim, 6, (1,), encoding, output_offset=0.0)
    encoder = ViewPatches((1, 3, settings.size, settings.size))
    transformer = Transformer(settings.embed_dim, settings.num_blocks)
    composer = TransformerIPC(network, encoder, transformer, renderer=_renderer(settings, sparse=True)).eval()
    rays, target = _views(settings)
    support = _support(settings)
    observation = Observation(support)
    if settings.share is not None:
        with torch.no_grad():
            raw = _density(network.bind(composer.modulate(observation)), rays, settings.samples_per_ray)
            network.biases[str(network.num_layers - 1)][3] -= raw.quantile(1 - settings.share)
    plain, parameters = PlainComposer(composer), list(composer.parameters())

    def render(latents: Latents, rays: Tensor) -> Tensor:
        return composer.render(composer.compose(latents), rays)

    def render_all(latents: Latents, rays: Tensor) -> Tensor:
        values: Tensor = dense(composer.bind(latents), rays)
        return values

    dense = _renderer(settings, sparse=False)
    sides: dict[str, tuple[Callable[..., Latents], Callable[[Latents, Tensor], Tensor]]] = {
        "plain": (plain.encode, plain.reconstruct),
        "all samples": (composer.encode, render_all),
        "ours": (composer.encode, render),
    }
    with torch.no_grad():
        raw = _density(network.bind(composer.modulate(observation)), rays, settings.samples_per_ray)
    composer.train()
    optimizer = torch.optim.Adam(parameters, lr=1e-7)  # shared, and slow, so that the share of samples does not change
    seconds: dict[str, list[StepSeconds]] = {name: [] for name in sides}
    for _ in range(settings.repeats + 1):
        for name, (encode, reconstruct) in sides.items():
            step = (partial(encode, observation), reconstruct, rays, target, optimizer)
            seconds[name].append(_complete_step(*step))
    composer.eval()
    # Only now: memory that float64 leaves behind would be reused, which saves the plain formulation more.
    default_precision = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # also of the depths of the plain formulation
    composer.double()
    results = {}
    for name, (encode, reconstruct) in sides.items():
        values = reconstruct(encode(Observation(Views(*map(Tensor.double, support)))), rays.double())
        gradients = torch.autograd.grad((values - target).square().mean(), parameters)
        results[name] = (values.detach(), gradients)
    composer.float()
    torch.set_default_dtype(default_precision)
    values, gradients = results.pop("plain")
    differences = {"plain": (0.0, 0.0)} | {
        name: (float((some_values - values).abs().max()), max(map(relative_difference, some, gradients)))
        for name, (some_values, some) in results.items()
    }
    if not max(map(max, differences.values())) <= COMPLETE_TOLERANCE:  # negated, so that NaN fails too
        raise ValueError(
            f"Values and gradients differ by {differences}, more than {COMPLETE_TOLERANCE:.0e}: a formulation is wrong."
        )
    measurements = {
        name: CompleteStepMeasurement(
            StepSeconds(*(statistics.median(part) for part in zip(*steps[1:], strict=True))),
            _ratio(seconds["plain"][1:], steps[1:]),
            _ratio(seconds["plain"][1:], steps[1:], update_share=0.0),
            _ratio(seconds["plain"][1:], steps[1:], update_share=settings.batch_size / PUBLISHED_BATCH),
            *differences[name],
        )
        for name, steps in seconds.items()
    }
    return float((raw > 0).float().mean()), measurements


def _ratio(plain: Sequence[StepSeconds], steps: Sequence[StepSeconds], update_share: float = 1.0) -> Ratio:
    """Return the ratio of consecutive steps, with a share of the time of the update."""
    totals = [[step.encode + step.render + update_share * step.update for step in side] for side in (plain, steps)]
    ratios = [slow / fast for slow, fast in zip(*totals, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def _complete_step(
    encode: Callable[[], Latents],
    reconstruct: Callable[[Latents, Tensor], Tensor],
    rays: Tensor,
    target: Tensor,
    optimizer: torch.optim.Optimizer,
) -> StepSeconds:
    """Take a training step, and return the processor times of its parts."""
    times = [time.process_time()]
    optimizer.zero_grad()
    latents = encode()
    times.append(time.process_time())
    leaves = {name: latent.detach().requires_grad_() for name, latent in latents.items()}
    torch.autograd.backward((reconstruct(leaves, rays) - target).square().mean())
    times.append(time.process_time())
    torch.autograd.backward(list(latents.values()), [leaves[name].grad for name in latents])
    times.append(time.process_time())
    optimizer.step()
    times.append(time.process_time())
    forward, render, backward, update = (stop - start for start, stop in pairwise(times))
    return StepSeconds(forward + backward, render, update)


def _support(settings: ViewTrainingSettings) -> Views:
    """Return one random view of every object."""
    count, size = settings.batch_size, settings.size
    intrinsics = centred_intrinsics(torch.full((count, 2), focal_length(0.7, size)), (size, size))
    images = torch.rand(count, 1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Views(images, orbit(count).unsqueeze(1), intrinsics.unsqueeze(1))


def measure(settings: ViewTrainingSettings) -> tuple[float, dict[str, ViewTrainingMeasurement]]:
    """Return the share of samples with density, and the measurements by name, the plain formulation first.

    Raises:
        ValueError: If the gradients of the formulations differ by more than rounding errors.
    """
    torch.manual_seed(0)
    encoding = FourierFeatures(20, 2.0**8, use_pi=False)
    network = CoordinateMLP(3, 4, settings.hidden_dim, 6, (1,), encoding, output_offset=0.0)
    modulations = {name: slot.initial().unsqueeze(0) for name, slot in network.slots.items()}
    if settings.fit_steps:
        modulations = fit(network, chair(), settings.fit_steps)
    weights = {
        name: value.repeat(settings.batch_size, 1, 1).requires_grad_(True) for name, value in modulations.items()
    }
    rays, target = _views(settings)
    if settings.share is not None:
        with torch.no_grad():
            raw = _density(network.bind(weights), rays, settings.samples_per_ray)
            network.biases[str(network.num_layers - 1)][3] -= raw.quantile(1 - settings.share)
    reference, parameters = PlainCoordinateMLP(network), [*network.parameters(), *weights.values()]
    layers = {int(name.removeprefix("weight.")): weight for name, weight in weights.items()}

    def plain_field(points: Tensor) -> Tensor:
        values: Tensor = reference(points, layers)
        return values

    sides: dict[str, tuple[VolumeRenderer, Field]] = {
        "plain": (_renderer(settings, sparse=False), plain_field),
        "all samples": (_renderer(settings, sparse=False), network.bind(weights)),
        "ours": (_renderer(settings, sparse=True), network.bind(weights)),
    }

    def step(renderer: VolumeRenderer, field: Field) -> tuple[Tensor, tuple[Tensor, ...]]:
        values = renderer(field, rays)
        return values.detach(), torch.autograd.grad((values - target).square().mean(), parameters)

    results = {name: step(*side) for name, side in sides.items()}  # as warm-up, too
    values, gradients = results["plain"]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(settings.repeats):
        for name, side in sides.items():
            seconds[name].append(_duration(step, *side))
    measurements = {
        name: ViewTrainingMeasurement(
            statistics.median(seconds[name]),
            float((some_values - values).abs().max()),
            max(map(relative_difference, some, gradients)),
        )
        for name, (some_values, some) in results.items()
    }
    largest = measurements["ours"].gradient_difference
    if not largest <= GRADIENT_TOLERANCE:  # negated, so that NaN fails too
        raise ValueError(
            f"The gradients differ by {largest:.1e}, more than {GRADIENT_TOLERANCE:.0e}: a formulation is wrong."
        )
    share = (_density(network.bind(weights), rays, settings.samples_per_ray) > 0).float().mean()
    return float(share), measurements


def _renderer(settings: ViewTrainingSettings, sparse: bool) -> VolumeRenderer:
    """Return a renderer with the published settings."""
    return VolumeRenderer(2.0, 6.0, settings.samples_per_ray, sparse_gradients=sparse)


@torch.no_grad()
def _views(settings: ViewTrainingSettings) -> tuple[Tensor, Tensor]:
    """Return random rays ``(B, N, 7)`` of views of 128 x 128 pixels of the chair, and their colours ``(B, N, 3)``."""
    size, count, generator = 128, settings.batch_size, torch.Generator().manual_seed(0)
    cameras = (orbit(count), centred_intrinsics(torch.full((count, 2), focal_length(0.7, size)), (size, size)))
    rays = Rays().coords((count, size, size), cameras=cameras).view(count, -1, 6)
    chosen = torch.randint(size * size, (count, settings.rays, 1), generator=generator)
    rays = rays.take_along_dim(chosen, 1)
    renderer, field = VolumeRenderer(2.0, 6.0, settings.samples_per_ray), solid_field(chair())
    target = torch.cat([renderer(field, some.unsqueeze(0)) for some in rays])
    return torch.cat((rays, torch.rand(count, settings.rays, 1, generator=generator)), dim=-1), target


@torch.no_grad()
def _density(field: Field, rays: Tensor, samples: int) -> Tensor:
    """Return the densities before their activation at equally spaced samples of rays, flattened."""
    depths = torch.linspace(2, 6, samples)[:, None]
    points = rays[..., None, :3] + rays[..., None, 3:6] * depths
    return field(points.flatten(1, 2))[..., 3].flatten()


def _duration(step: Callable[..., object], *side: object) -> float:
    """Return the processor time of a step in seconds."""
    start = time.process_time()
    step(*side)
    return time.process_time() - start


if __name__ == "__main__":
    main()

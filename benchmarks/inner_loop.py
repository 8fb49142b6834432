"""Memory and time of inner loops: ``python -m benchmarks.inner_loop``.

Memory is measured in new processes. Timed runs alternate in one process, and start only once the values and gradients of this
implementation and of the plain formulation agree.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.memory import memory
from benchmarks.reference import PlainComposer
from benchmarks.speed import (
    GRADIENT_TOLERANCE,
    VALUE_TOLERANCE,
    append,
    check_columns,
    device_name,
    duration,
    relative_difference,
)
from composers import Composer, Functa, GradientSteps, LearnedInit, MetaIPC
from composers.inference import DifferentiableSGD
from composers.networks import CoordinateMLP, FourierFeatures, IdentityEncoding, Sine
from datamodules.batch import Observation, Samples
from datamodules.domain import Grid

METHODS = ("MetaIPC", "LearnedInit", "Functa")
CHECKED = (2, 16)  # maximum batch size and image size when formulations are compared, see `check`
_CLEAR = Path("/proc/self/clear_refs")
_OWN_PAGES = {"MALLOC_MMAP_THRESHOLD_": "131072"}  # disables the dynamic threshold of glibc


@dataclass(frozen=True)
class InnerLoopSettings:
    """Measure inner loops on random images.

    The default sizes are those published for ImageNette, except for the batch size, which is 16 there.

    Args:
        parts: Measurements to make, among ``memory``, ``evaluation`` and ``training``.
        size: Height and width of an image in pixels.
        batch_size: Number of images in a timed training step.
        hidden_dim: Width of the coordinate network, and also the rank.
        num_layers: Number of layers of the coordinate network, at least 2.
        num_frequencies: Number of frequencies of the Fourier features per axis.
        inner_steps: Number of inner steps in a timed training step.
        memory_steps: Numbers of inner steps whose memory is measured. Other numbers are compared with the first.
        memory_batch_size: Number of images in a training step whose memory is measured.
        own_pages: Whether large tensors are allocated with ``mmap`` when memory is measured, so that fragmentation of the heap
            does not count (glibc only).
        evaluation_batch_sizes: Numbers of images in a timed evaluation.
        repeats: Number of timed runs, at least 2. One warm-up run is not counted.
        device: Device of timed runs, for example ``cpu``, ``cuda`` or ``cuda:1``. Memory is always measured on the CPU, which
            requires Linux.
        threads: Number of CPU threads. If None, the default of PyTorch.
        csv: CSV file to which one row per measurement is appended. If None, no file is written.

    Raises:
        ValueError: If an argument is out of range.
    """

    parts: tuple[Literal["memory", "evaluation", "training"], ...] = ("memory", "evaluation", "training")
    size: int = 178
    batch_size: int = 4
    hidden_dim: int = 256
    num_layers: int = 5
    num_frequencies: int = 64
    inner_steps: int = 2
    memory_steps: tuple[int, ...] = (2, 1, 4, 8)
    memory_batch_size: int = 1
    own_pages: bool = True
    evaluation_batch_sizes: tuple[int, ...] = (1, 4)
    repeats: int = 5
    device: str = "cpu"
    threads: int | None = None
    csv: Path | None = None

    def __post_init__(self) -> None:
        """Raise if an argument is out of range."""
        if not self.parts or not self.memory_steps or not self.evaluation_batch_sizes:
            raise ValueError(
                f"parts is {self.parts}, memory_steps {self.memory_steps} and evaluation_batch_sizes "
                f"{self.evaluation_batch_sizes}; none may be empty."
            )
        counts = (self.inner_steps, self.memory_batch_size, *self.memory_steps, *self.evaluation_batch_sizes)
        if min(self.size, self.batch_size, *counts) < 1 or self.num_layers < 2 or self.repeats < 2:
            raise ValueError(
                f"num_layers is {self.num_layers} and repeats is {self.repeats}, which must be at least 2; all other numbers "
                "must be positive."
            )


@dataclass(frozen=True)
class Memory:
    """Memory of a training step in MB (10^6 bytes), without that of the model and the data.

    Attributes:
        peak_mb: Peak memory of the process, as reported by the kernel.
        alive_mb: Largest total size of all tensors that exist at the same time.
    """

    peak_mb: float
    alive_mb: float


@dataclass(frozen=True)
class InnerLoopMeasurement:
    """A measurement, and its ratio to another of the same run.

    Attributes:
        part: ``memory``, ``evaluation`` or ``training``.
        case: Name of the measurement.
        against: Name of the measurement it is compared with.
        unit: Unit of both: ``MB`` or ``s``.
        amount: Median of the measurement.
        other: Median of the one it is compared with.
        ratio: Ratio of ``amount`` to ``other``, the median over consecutive runs.
        ratio_low: Lower quartile of this ratio. Memory is measured once, so that quartiles equal the ratio.
        ratio_high: Upper quartile of this ratio.
    """

    part: str
    case: str
    against: str
    unit: str
    amount: float
    other: float
    ratio: float
    ratio_low: float
    ratio_high: float


class Alive(TorchDispatchMode):
    """Track the total size of the storages that operations create, until they are freed.

    Attributes:
        bytes: Current size.
        peak: Largest size so far.

    Args:
        excluded: Existing tensors that do not count, nor do their views.
    """

    def __init__(self, excluded: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in excluded:
            self._track(tensor.untyped_storage(), 0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and track the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in self._known:
                self._track(leaf.untyped_storage(), leaf.untyped_storage().nbytes())
        return result

    def _track(self, storage: torch.UntypedStorage, size: int) -> None:
        """Add the size of a storage until it is freed."""
        key = id(storage)

        def freed(_: object) -> None:
            self._known.pop(key, None)
            self.bytes -= size

        self._known[key] = weakref.ref(storage, freed)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def main(args: list[str] | None = None) -> list[InnerLoopMeasurement]:
    """Run the benchmark, print a table and append it to the CSV file.

    With ``--once STEPS KIND``, measure the memory of one training step in this process and print the result as JSON.
    """
    arguments = sys.argv[1:] if args is None else args
    if "--once" in arguments:
        index = arguments.index("--once")
        steps, kind = arguments[index + 1 : index + 3]
        settings = auto_cli(InnerLoopSettings, args=arguments[:index] + arguments[index + 3 :])
        _set_threads(settings)
        print(json.dumps(vars(measure_memory(settings, int(steps), kind == "recomputed"))))
        return []
    settings = auto_cli(InnerLoopSettings, args=arguments)
    _set_threads(settings)
    context = surroundings(settings)
    if settings.csv is not None:
        check_columns(settings.csv, [*(field.name for field in fields(InnerLoopMeasurement)), *context])
    console = Console(width=128)
    console.print(", ".join(f"{name} {value}" for name, value in context.items()))
    runs = {"memory": compare_memory, "evaluation": compare_evaluation, "training": compare_training}
    measurements = [measurement for part in settings.parts for measurement in runs[part](settings, console)]
    console.print(table(measurements))
    if settings.csv is not None:
        append(settings.csv, [asdict(measurement) | context for measurement in measurements])
    return measurements


def _set_threads(settings: InnerLoopSettings) -> None:
    """Set the number of CPU threads, unless it is None."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)


def build(settings: InnerLoopSettings, method: str, inner: GradientSteps) -> Composer:
    """Return an untrained composer on the device, in training mode. Functa has a SIREN of the same size."""
    torch.manual_seed(0)
    sizes = (2, 3, settings.hidden_dim, settings.num_layers)
    composer: Composer
    if method == "Functa":
        siren = CoordinateMLP(
            *sizes, "hidden", IdentityEncoding(), Sine(30.0), normalize_weights=False, modulates="shifts"
        )
        composer = Functa(siren, inner)
    else:
        encoding = FourierFeatures(settings.num_frequencies)
        if method == "MetaIPC":
            composer = MetaIPC(CoordinateMLP(*sizes, [1], encoding), inner)
        else:
            composer = LearnedInit(CoordinateMLP(*sizes, "all", encoding), inner)
    return composer.to(settings.device).train()


def make_images(settings: InnerLoopSettings, batch_size: int, size: int | None = None) -> Samples:
    """Return all pixels of random images."""
    size = size or settings.size
    values = torch.rand(batch_size, size * size, 3, device=settings.device)
    return Samples(Grid.unit(2).coords((size, size)).to(settings.device), values)


def train(
    evaluate: Callable[[Observation, Tensor], Tensor], optimizer: torch.optim.Optimizer, samples: Samples
) -> None:
    """Take one training step: inner loop, forward, mean squared error, backward, Adam."""
    assert samples.values is not None
    optimizer.zero_grad()
    functional.mse_loss(evaluate(Observation(samples=samples), samples.coords), samples.values).backward()
    optimizer.step()


def measure_memory(settings: InnerLoopSettings, steps: int, recompute: bool) -> Memory:
    """Measure the memory of a training step of MetaIPC in this process, after a small warm-up step."""
    composer = build(settings, "MetaIPC", GradientSteps(steps, DifferentiableSGD(recompute=recompute)))
    optimizer = torch.optim.Adam(composer.parameters(), lr=1e-4)
    train(composer, optimizer, make_images(settings, settings.memory_batch_size, size=4))
    samples = make_images(settings, settings.memory_batch_size)
    _CLEAR.write_text("5")  # resets the peak
    before = memory("VmRSS")
    train(composer, optimizer, samples)
    peak = memory("VmHWM") - before
    assert samples.values is not None
    optimizer.zero_grad()
    with Alive([*composer.parameters(), *composer.buffers(), samples.coords, samples.values]) as alive:
        train(composer, optimizer, samples)
    return Memory(peak, alive.peak / 1e6)


def compare_memory(settings: InnerLoopSettings, console: Console) -> list[InnerLoopMeasurement]:
    """Measure the memory of all numbers of inner steps, stored and recomputed, each in a new process."""
    measurements = []
    for kind in ("stored", "recomputed"):
        memories = {steps: _in_subprocess(settings, steps, kind) for steps in settings.memory_steps}
        first = memories[settings.memory_steps[0]]
        for steps, result in sorted(memories.items()):
            for name, amount, other in (
                ("peak", result.peak_mb, first.peak_mb),
                ("tensors alive", result.alive_mb, first.alive_mb),
            ):
                case, against = f"{kind}, {steps} inner steps, {name}", f"{settings.memory_steps[0]} inner steps"
                ratio = amount / max(other, 1e-6)
                measurements.append(
                    InnerLoopMeasurement("memory", case, against, "MB", amount, other, ratio, ratio, ratio)
                )
    return measurements


def _in_subprocess(settings: InnerLoopSettings, steps: int, kind: str) -> Memory:
    """Return the result of `measure_memory` in a new process."""
    command = [sys.executable, "-m", "benchmarks.inner_loop", "--once", str(steps), kind, "--device=cpu"]
    passed = ("size", "memory_batch_size", "hidden_dim", "num_layers", "num_frequencies")
    command += [f"--{name}={getattr(settings, name)}" for name in passed]
    if settings.threads is not None:
        command.append(f"--threads={settings.threads}")
    environment = os.environ | (_OWN_PAGES if settings.own_pages else {})
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout  # noqa: S603 - this module
    return Memory(**json.loads(printed.splitlines()[-1]))


def compare_evaluation(settings: InnerLoopSettings, console: Console) -> list[InnerLoopMeasurement]:
    """Time inner steps in evaluation relative to a forward pass of the network without a graph."""
    return [
        measurement
        for method in METHODS
        for batch_size in settings.evaluation_batch_sizes
        for measurement in _compare_steps(settings, method, batch_size)
    ]


def _compare_steps(settings: InnerLoopSettings, method: str, batch_size: int) -> list[InnerLoopMeasurement]:
    """Time one inner step with the loss after it, and the mean of the next two, alternating with a forward pass."""
    composers = {steps: build(settings, method, GradientSteps(test_steps=steps)).eval() for steps in (1, 3)}
    samples = make_images(settings, batch_size)
    with torch.no_grad():
        modulations = composers[1].modulate(Observation(samples=samples))
        sides = {"forward": partial(composers[1].network, samples.coords, modulations)} | {
            f"{steps}": partial(composer.encode, Observation(samples=samples)) for steps, composer in composers.items()
        }
        seconds = alternate(sides, settings)
    forward, one_step, three_steps = seconds.values()
    case = f"{method}, batch of {batch_size}"
    later_step = [(three - one) / 2 for one, three in zip(one_step, three_steps, strict=True)]
    return [
        compare("evaluation", f"{case}, an inner step", later_step, "forward pass", forward),
        compare("evaluation", f"{case}, the first step and the final loss", one_step, "forward pass", forward),
    ]


def compare_training(settings: InnerLoopSettings, console: Console) -> list[InnerLoopMeasurement]:
    """Time the training step relative to the plain formulation, and to one that recomputes inner steps."""
    measurements = []
    for method in ("MetaIPC", "LearnedInit"):
        composer = build(settings, method, GradientSteps(settings.inner_steps))
        recomputing = build(settings, method, GradientSteps(settings.inner_steps, DifferentiableSGD(recompute=True)))
        samples = make_images(settings, settings.batch_size)
        sides: dict[str, torch.nn.Module] = {
            "ours": composer,
            "plain": PlainComposer(composer),
            "without history": PlainComposer(composer, keep_history=False),
            "recomputed": recomputing,
        }
        small = make_images(settings, *map(min, CHECKED, (settings.batch_size, settings.size)))
        console.print(f"{method}: {check(sides, small)}")
        steps = {name: partial(train, side, _adam(side), samples) for name, side in sides.items()}
        seconds = alternate(steps, settings)
        ours = seconds["ours"]
        measurements += [
            compare("training", f"{method}, plain", seconds["plain"], "ours", ours),
            compare("training", f"{method}, plain without history", seconds["without history"], "ours", ours),
            compare("training", f"{method}, ours recomputed", seconds["recomputed"], "ours", ours),
        ]
    return measurements


def _adam(side: torch.nn.Module) -> torch.optim.Optimizer:
    """Return Adam for all parameters of a formulation."""
    return torch.optim.Adam(side.parameters(), lr=1e-4)


def check(sides: Mapping[str, torch.nn.Module], samples: Samples) -> str:
    """Compare the values and gradients of a training step with those of the first formulation, and return a summary.

    The comparison needs few samples: rounding in float32 flips a few of millions of ReLUs after an inner step, and gradients
    then differ by more than rounding errors, from those in float64 as much as from each other.

    Raises:
        ValueError: If they differ by more than rounding errors.
    """
    expected, *others = (differentiate(side, samples) for side in sides.values())
    value = max((values - expected[0]).abs().max().item() for values, _ in others)
    gradient = max(
        relative_difference(gradients[name], expected[1][name])
        for _, gradients in others
        for name in expected[1] | gradients
    )
    summary = f"largest difference of values {value:.1e}, of gradients {gradient:.1e} (relative)"
    if not (value <= VALUE_TOLERANCE and gradient <= GRADIENT_TOLERANCE):  # negated, so that NaN fails too
        raise ValueError(
            f"The formulations of the inner loop differ: {summary}; the tolerances are {VALUE_TOLERANCE:.0e} and "
            f"{GRADIENT_TOLERANCE:.0e}. At least one formulation is wrong."
        )
    return summary


def differentiate(side: torch.nn.Module, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the values of a formulation, and the gradients of its training step by the name of the composer's parameter."""
    assert samples.values is not None
    values = side(Observation(samples=samples), samples.coords)
    loss = functional.mse_loss(values, samples.values)
    parameters = {
        re.sub(r"^(\w+)\.\1\.", r"\1.", name): parameter for name, parameter in side.named_parameters()
    }  # plain parts hold the part they share parameters with under the same name
    gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return values.detach(), dict(zip(parameters, gradients, strict=True))


def alternate(sides: Mapping[str, Callable[[], object]], settings: InnerLoopSettings) -> dict[str, list[float]]:
    """Run all functions in turn, and return the seconds of all runs but the first."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(settings.repeats + 1):
        for name, side in sides.items():
            seconds[name].append(duration(side, settings.device))
    return {name: timed[1:] for name, timed in seconds.items()}


def compare(
    part: str, case: str, seconds: Sequence[float], against: str, others: Sequence[float]
) -> InnerLoopMeasurement:
    """Return the medians of both, and the quartiles of the ratio of consecutive runs."""
    ratios = [amount / other for amount, other in zip(seconds, others, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    amounts = (statistics.median(seconds), statistics.median(others))
    return InnerLoopMeasurement(part, case, against, "s", *amounts, middle, low, high)


def surroundings(settings: InnerLoopSettings) -> dict[str, object]:
    """Return the settings and the environment of the measurements."""
    omitted = ("csv", "parts")
    sizes = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in omitted}
    return sizes | {
        "device": device_name(settings.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def table(measurements: Sequence[InnerLoopMeasurement]) -> Table:
    """Return the measurements as a table."""
    rows = Table("", "measured", "against", "other", "ratio", "quartiles")
    for measurement in measurements:
        quartiles = f"{measurement.ratio_low:.2f} to {measurement.ratio_high:.2f}"
        rows.add_row(
            f"{measurement.part}: {measurement.case}",
            f"{measurement.amount:.4g} {measurement.unit}",
            measurement.against,
            f"{measurement.other:.4g} {measurement.unit}",
            f"{measurement.ratio:.2f}",
            "" if measurement.part == "memory" else quartiles,
        )
    return rows


if __name__ == "__main__":
    main()

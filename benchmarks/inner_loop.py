"""Memory and time of inner loops: ``python -m benchmarks.inner_loop``.

Memory is measured in processes of their own. What is timed runs in turn in one process, and only after values and gradients
of ours and of the plain formulation agree.
"""

from __future__ import annotations

import json
import os
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
from composers.meta_learned import MetaLearned
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.memory import memory
from benchmarks.reference import from_meta_learned
from benchmarks.speed import (
    GRADIENT_TOLERANCE,
    VALUE_TOLERANCE,
    append,
    check_columns,
    device_name,
    duration,
    relative_difference,
)
from composers import Functa, InnerLoop, LearnedInit, MetaIPC
from composers.networks import CoordinateMLP, FourierFeatures, IdentityEncoding, Sine
from datamodules.batch import Observation, Samples
from datamodules.domain import Grid

METHODS = ("MetaIPC", "LearnedInit", "Functa")
CHECKED = (2, 16)  # images, and pixels along each side, at most when sides are compared: see `check`
_CLEAR = Path("/proc/self/clear_refs")
_OWN_PAGES = {"MALLOC_MMAP_THRESHOLD_": "131072"}  # given once, glibc no longer raises it by itself


@dataclass(frozen=True)
class InnerLoopSettings:
    """Measure inner loops on random images. The sizes are the published ones of ImageNette, but for the batch of 16.

    Args:
        parts: What is measured, of ``memory``, ``evaluation`` and ``training``.
        size: Pixels along each side of an image.
        batch_size: Images of a training step that is timed.
        hidden_dim: Width of the coordinate network, also the rank.
        num_layers: Layers of the coordinate network, at least 2.
        num_frequencies: Frequencies of the Fourier features per axis.
        inner_steps: Inner steps of a training step that is timed.
        memory_steps: Inner steps whose memory is measured; the first is what the others are compared with.
        memory_batch_size: Images of a training step whose memory is measured.
        own_pages: Whether every large tensor gets pages of its own when memory is measured, so that the peak is of tensors
            and not of the holes between them (glibc only).
        evaluation_batch_sizes: Images that are adapted at a time in evaluation.
        repeats: Timed runs of every side, at least 2; one more of each goes before them and is not counted.
        device: Where to time: ``cpu``, ``cuda`` or ``cuda:1``; memory is always measured on the CPU, under Linux.
        threads: Threads of the CPU; as PyTorch chooses if None.
        csv: File that gets one row per measurement, made if missing; none if None.

    Raises:
        ValueError: If a number is out of range.
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
        """Refuse what cannot be measured."""
        if not self.parts or not self.memory_steps or not self.evaluation_batch_sizes:
            raise ValueError(
                f"parts is {self.parts}, memory_steps {self.memory_steps}, evaluation_batch_sizes "
                f"{self.evaluation_batch_sizes}: give at least one of each."
            )
        counts = (self.inner_steps, self.memory_batch_size, *self.memory_steps, *self.evaluation_batch_sizes)
        if min(self.size, self.batch_size, *counts) < 1 or self.num_layers < 2 or self.repeats < 2:
            raise ValueError(
                f"num_layers is {self.num_layers} and repeats {self.repeats}, which must be at least 2, or another number "
                "is not positive."
            )


@dataclass(frozen=True)
class Memory:
    """What a training step needs beyond the loaded model and data, in 10^6 bytes.

    Attributes:
        peak_mb: Largest memory of the process, as the kernel counted it.
        alive_mb: Largest sum of all tensors that were alive at a time, without the model and the data.
    """

    peak_mb: float
    alive_mb: float


@dataclass(frozen=True)
class InnerLoopMeasurement:
    """One amount as a ratio to another of the same run.

    Attributes:
        part: ``memory``, ``evaluation`` or ``training``.
        case: What was measured.
        against: What it is compared with.
        unit: Of both amounts: ``MB`` or ``s``.
        amount: The median of what was measured.
        other: The median of what it is compared with.
        ratio: Amount over other, the median of neighbouring runs.
        ratio_low: Lower quartile of the same; of memory, which is measured once, the ratio.
        ratio_high: Upper quartile, likewise.
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
    """Adds up the storages that operations make while it is on, and takes off those that are freed.

    Attributes:
        bytes: What is alive now.
        peak: The most that was alive at a time.

    Args:
        owned: Tensors that were there before and do not count, nor their views.
    """

    def __init__(self, owned: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in owned:
            self._note(tensor.untyped_storage(), 0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do an operation, and note what it made."""
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in self._known:
                self._note(leaf.untyped_storage(), leaf.untyped_storage().nbytes())
        return found

    def _note(self, storage: torch.UntypedStorage, size: int) -> None:
        """Count a storage until it is freed."""
        key = id(storage)

        def freed(_: object) -> None:
            self._known.pop(key, None)
            self.bytes -= size

        self._known[key] = weakref.ref(storage, freed)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def main(args: list[str] | None = None) -> list[InnerLoopMeasurement]:
    """Run the command line: all parts, or the memory of one training step here, with ``--once STEPS KIND``."""
    given = sys.argv[1:] if args is None else args
    if "--once" in given:
        place = given.index("--once")
        settings = auto_cli(InnerLoopSettings, args=given[:place] + given[place + 3 :])
        _set_threads(settings)
        print(json.dumps(vars(measure_memory(settings, int(given[place + 1]), given[place + 2] == "recomputed"))))
        return []
    settings = auto_cli(InnerLoopSettings, args=given)
    _set_threads(settings)
    context = surroundings(settings)
    if settings.csv is not None:
        check_columns(settings.csv, [*(field.name for field in fields(InnerLoopMeasurement)), *context])
    console = Console(width=128)
    console.print(", ".join(f"{name} {value}" for name, value in context.items()))
    runs = {"memory": compare_memory, "evaluation": compare_evaluation, "training": compare_training}
    found = [one for part in settings.parts for one in runs[part](settings, console)]
    console.print(table(found))
    if settings.csv is not None:
        append(settings.csv, [asdict(one) | context for one in found])
    return found


def _set_threads(settings: InnerLoopSettings) -> None:
    """Use so many threads, if a number was given."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)


def build(settings: InnerLoopSettings, method: str, **inner_loop: Any) -> MetaLearned:
    """Return an untrained composer of these sizes on the device, in training mode; Functa has a SIREN of the same size."""
    torch.manual_seed(0)
    loop = InnerLoop(**inner_loop)
    sizes = (2, 3, settings.hidden_dim, settings.num_layers)
    composer: MetaLearned
    if method == "Functa":
        siren = CoordinateMLP(
            *sizes, "hidden", IdentityEncoding(), Sine(30.0), normalize_weights=False, modulates="biases"
        )
        composer = Functa(siren, loop)
    else:
        made, layers = (MetaIPC, [1]) if method == "MetaIPC" else (LearnedInit, "all")
        composer = made(CoordinateMLP(*sizes, layers, FourierFeatures(settings.num_frequencies)), loop)  # type: ignore[arg-type]
    return composer.to(settings.device).train()


def make_images(settings: InnerLoopSettings, batch_size: int, size: int | None = None) -> Samples:
    """Return all pixels of random images."""
    size = size or settings.size
    values = torch.rand(batch_size, size * size, 3, device=settings.device)
    return Samples(Grid.unit(2).coords((size, size)).to(settings.device), values)


def train(evaluate: Callable[[Observation, Tensor], Tensor], optimizer: torch.optim.Optimizer, seen: Samples) -> None:
    """Do one training step: inner loop, forward, mean squared error, backward, Adam."""
    assert seen.values is not None
    optimizer.zero_grad()
    functional.mse_loss(evaluate(Observation(samples=seen), seen.coords), seen.values).backward()
    optimizer.step()


def measure_memory(settings: InnerLoopSettings, steps: int, recompute: bool) -> Memory:
    """Measure a training step of MetaIPC in this process, after a small one that loads what is loaded once."""
    composer = build(settings, "MetaIPC", steps=steps, recompute=recompute)
    optimizer = torch.optim.Adam(composer.parameters(), lr=1e-4)
    train(composer, optimizer, make_images(settings, settings.memory_batch_size, size=4))
    seen = make_images(settings, settings.memory_batch_size)
    _CLEAR.write_text("5")  # the peak starts again from here
    before = memory("VmRSS")
    train(composer, optimizer, seen)
    peak = memory("VmHWM") - before
    assert seen.values is not None
    optimizer.zero_grad()
    with Alive([*composer.parameters(), *composer.buffers(), seen.coords, seen.values]) as alive:
        train(composer, optimizer, seen)
    return Memory(peak, alive.peak / 1e6)


def compare_memory(settings: InnerLoopSettings, console: Console) -> list[InnerLoopMeasurement]:
    """Measure every number of inner steps, stored and recomputed, each in a process of its own."""
    found = []
    for kind in ("stored", "recomputed"):
        memories = {steps: _in_own_process(settings, steps, kind) for steps in settings.memory_steps}
        first = memories[settings.memory_steps[0]]
        for steps, one in sorted(memories.items()):
            for name, amount, other in (
                ("peak", one.peak_mb, first.peak_mb),
                ("tensors alive", one.alive_mb, first.alive_mb),
            ):
                case, against = f"{kind}, {steps} inner steps, {name}", f"{settings.memory_steps[0]} inner steps"
                ratio = amount / max(other, 1e-6)
                found.append(InnerLoopMeasurement("memory", case, against, "MB", amount, other, ratio, ratio, ratio))
    return found


def _in_own_process(settings: InnerLoopSettings, steps: int, kind: str) -> Memory:
    """Return what `measure_memory` finds in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.inner_loop", "--once", str(steps), kind, "--device=cpu"]
    passed = ("size", "memory_batch_size", "hidden_dim", "num_layers", "num_frequencies")
    command += [f"--{name}={getattr(settings, name)}" for name in passed]
    if settings.threads is not None:
        command.append(f"--threads={settings.threads}")
    own = os.environ | (_OWN_PAGES if settings.own_pages else {})
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=own).stdout  # noqa: S603 - ourselves
    return Memory(**json.loads(printed.splitlines()[-1]))


def compare_evaluation(settings: InnerLoopSettings, console: Console) -> list[InnerLoopMeasurement]:
    """Time inner steps of evaluation against one forward pass of the network, which keeps no graph."""
    found = []
    for method in METHODS:
        for batch_size in settings.evaluation_batch_sizes:
            found += _compare_steps(settings, method, batch_size)
    return found


def _compare_steps(settings: InnerLoopSettings, method: str, batch_size: int) -> list[InnerLoopMeasurement]:
    """Time one inner step with the loss after it, and the mean of the next two, in turn with a forward pass."""
    loops = [build(settings, method, test_steps=steps).eval() for steps in (1, 3)]
    seen = make_images(settings, batch_size)
    with torch.no_grad():
        modulations = loops[0].modulate(Observation(samples=seen))
        sides = {"forward": partial(loops[0].network, seen.coords, modulations)} | {
            f"{loop.inner.test_steps}": partial(loop.encode, Observation(samples=seen)) for loop in loops
        }
        seconds = alternate(sides, settings)
    forward, one, three = seconds.values()
    case = f"{method}, batch of {batch_size}"
    further = [(late - early) / 2 for early, late in zip(one, three, strict=True)]
    return [
        compare("evaluation", f"{case}, an inner step", further, "forward pass", forward),
        compare("evaluation", f"{case}, the first and its check", one, "forward pass", forward),
    ]


def compare_training(settings: InnerLoopSettings, console: Console) -> list[InnerLoopMeasurement]:
    """Time the training step against the plain formulation, and against the one that computes steps again."""
    found = []
    for method in ("MetaIPC", "LearnedInit"):
        composer = build(settings, method, steps=settings.inner_steps)
        again = build(settings, method, steps=settings.inner_steps, recompute=True)
        assert isinstance(composer, (MetaIPC, LearnedInit))
        plain, bare = (from_meta_learned(composer, history=history) for history in (True, False))
        seen = make_images(settings, settings.batch_size)
        sides: dict[str, torch.nn.Module] = {"ours": composer, "plain": plain, "bare": bare, "again": again}
        few = make_images(settings, *map(min, CHECKED, (settings.batch_size, settings.size)))
        console.print(f"{method}: {check(sides, few)}")
        steps = {name: partial(train, side, _adam(side), seen) for name, side in sides.items()}
        seconds = alternate(steps, settings)
        ours = seconds["ours"]
        found += [
            compare("training", f"{method}, plain", seconds["plain"], "ours", ours),
            compare("training", f"{method}, plain without history", seconds["bare"], "ours", ours),
            compare("training", f"{method}, ours recomputed", seconds["again"], "ours", ours),
        ]
    return found


def _adam(side: torch.nn.Module) -> torch.optim.Optimizer:
    """Return Adam for all parameters of a side, each once."""
    return torch.optim.Adam(side.parameters(), lr=1e-4)


def check(sides: Mapping[str, torch.nn.Module], seen: Samples) -> str:
    """Say how far values and gradients of the training step are from those of the first side.

    On few samples: of millions of ReLUs float32 turns a few one way or the other after an inner step, and gradients then differ
    by more than rounding, from those in float64 as much as from each other.

    Raises:
        ValueError: If they differ by more than rounding.
    """
    wanted, *others = (differentiate(side, seen) for side in sides.values())
    value = max((values - wanted[0]).abs().max().item() for values, _ in others)
    gradient = max(
        relative_difference(found[name], wanted[1][name]) for _, found in others for name in wanted[1] | found
    )
    said = f"largest difference of a value {value:.1e}, of a gradient {gradient:.1e} (relative)"
    if not (value <= VALUE_TOLERANCE and gradient <= GRADIENT_TOLERANCE):  # so that NaN is refused too
        raise ValueError(
            f"All sides must agree before they are timed: {said}, allowed are {VALUE_TOLERANCE:.0e} and "
            f"{GRADIENT_TOLERANCE:.0e}. One of the formulations is wrong."
        )
    return said


def differentiate(side: torch.nn.Module, seen: Samples) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the values of one side, and the gradients of its training step by the name of the parameter within a composer."""
    assert seen.values is not None
    values = side(Observation(samples=seen), seen.coords)
    loss = functional.mse_loss(values, seen.values)
    named = {_name(name): parameter for name, parameter in side.named_parameters()}
    gradients = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
    return values.detach(), dict(zip(named, gradients, strict=True))


def _name(name: str) -> str:
    """Return what the parameter of a plain formulation is called in the composer."""
    return name.replace("inr.network.", "inr.").replace("start_weights.", "weights.")


def alternate(sides: Mapping[str, Callable[[], object]], settings: InnerLoopSettings) -> dict[str, list[float]]:
    """Run the sides in turn, and return the seconds of every run after the first."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(settings.repeats + 1):
        for name, side in sides.items():
            seconds[name].append(duration(side, settings.device))
    return {name: kept[1:] for name, kept in seconds.items()}


def compare(
    part: str, case: str, seconds: Sequence[float], against: str, others: Sequence[float]
) -> InnerLoopMeasurement:
    """Return the medians of both, and quartiles of the ratio of neighbouring runs."""
    ratios = [own / other for own, other in zip(seconds, others, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    amounts = (statistics.median(seconds), statistics.median(others))
    return InnerLoopMeasurement(part, case, against, "s", *amounts, middle, low, high)


def surroundings(settings: InnerLoopSettings) -> dict[str, object]:
    """Return where and on which sizes was measured."""
    left_out = ("csv", "parts")
    sizes = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in left_out}
    return sizes | {
        "device": device_name(settings.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def table(found: Sequence[InnerLoopMeasurement]) -> Table:
    """Return the measurements for people."""
    shown = Table("", "measured", "against", "other", "ratio", "quartiles")
    for one in found:
        shown.add_row(
            f"{one.part}: {one.case}",
            f"{one.amount:.4g} {one.unit}",
            one.against,
            f"{one.other:.4g} {one.unit}",
            f"{one.ratio:.2f}",
            "" if one.part == "memory" else f"{one.ratio_low:.2f} to {one.ratio_high:.2f}",
        )
    return shown


if __name__ == "__main__":
    main()

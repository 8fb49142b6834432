"""Test protocols: what an evaluation returns, and starts of refinement besides the prediction.

A prediction is worth what refinement from elsewhere needs many steps to reach; these are the two places to compare with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, Self, TypedDict

import torch
from lightning import Trainer
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor

from composers.latents import Latents, Layout
from composers.rendering import Reconstruction
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation
from datamodules.randomness import generator_at, global_seed


class Encodes(Protocol):
    """A model that finds latents, as far as measuring training codes needs it."""

    training: bool

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    @property
    def trainer(self) -> Trainer:
        """What runs it."""

    def encode(self, observation: Observation) -> Latents:
        """Return the latents of what was observed."""

    def eval(self) -> Self:
        """Enter evaluation mode."""

    def train(self, mode: bool = True) -> Self:
        """Enter training mode, or leave it."""


_NOT_AT_HAND = (FileNotFoundError, ValueError, NotImplementedError)


class Evaluation(TypedDict):
    """What one step made of a batch, for the callbacks that people look at.

    Attributes:
        losses: ``(B,)``, the loss of every prediction; None where nothing was measured.
        latents: The instance codes after each reported number of refinement steps; 0 is the prediction.
        layout: Of the latents.
        reconstructions: Of the query, after the same steps.
        values: ``(B, N, C)``, those of the reconstructions.
        metrics: By step, then by metric, one number per instance ``(B,)``.
        starts: The same metrics of other curves: of refinement from elsewhere, ``mean`` and ``random``, of all weights and
            biases instead of the latents, ``network``, and of an inner loop from its learned start, ``inner``; empty outside
            tests.
    """

    losses: Tensor | None
    latents: dict[int, Latents]
    layout: Layout
    reconstructions: dict[int, Reconstruction]
    values: dict[int, Tensor]
    metrics: dict[int, dict[str, Tensor]]
    starts: dict[str, dict[int, dict[str, Tensor]]]


class CodeStatistics(NamedTuple):
    """What the codes of training items are like, number by number, in float64 on the CPU.

    Attributes:
        mean: By latent, the mean code: a latent without its batch dimension.
        deviation: By latent, the standard deviation of every number over the items, divided by ``items``.
        items: Number of items measured.
    """

    mean: Latents
    deviation: Latents
    items: int


def measure_training_codes(composer: Encodes) -> CodeStatistics | None:
    """Return the statistics of the training codes, or None, with one line that says why, if there is no training data.

    Args:
        composer: On its device, with the trainer that tests it.
    """
    data = getattr(composer.trainer, "datamodule", None)
    try:
        if not isinstance(data, CoordinateDataModule):
            raise ValueError("this test has no data module that knows training items")
        with composer.trainer.precision_plugin.test_step_context():
            convert = composer.trainer.precision_plugin.convert_input
            return measure_codes(composer, (convert(batch) for batch in data.training_batches()))
    except _NOT_AT_HAND as error:
        _tell(f"Refined from the prediction only, for the training data is not at hand: {' '.join(str(error).split())}")
        return None


def measure_codes(composer: Encodes, batches: Iterable[CoordinateBatch]) -> CodeStatistics:
    """Encode items in evaluation mode and return what their codes are like; their batches make no difference.

    Args:
        composer: Left in the mode in which it was.
        batches: Items on any device, moved to the composer's.

    Raises:
        ValueError: If there is no item.
    """
    training, moments = composer.training, _Moments()
    composer.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                moments.add(composer.encode(move_data_to_device(batch, composer.device).observation))
    finally:
        composer.train(training)
    return moments.statistics()


def mean_start(statistics: CodeStatistics, like: Latents) -> Latents:
    """Return the mean code for every instance.

    Args:
        statistics: Of the training codes.
        like: Latents ``(B, ...)`` of the instances, for their number and device.
    """
    return {name: _fit(statistics.mean[name].expand(latent.shape), latent) for name, latent in like.items()}


def random_start(statistics: CodeStatistics, names: Sequence[str], seed: int) -> Latents:
    """Return normal numbers with the mean and deviation of all numbers of the training codes: their scale, no structure.

    Args:
        statistics: Of the training codes.
        names: Of the instances; each draws at its own address, whatever the batch holds besides it.
        seed: Of the run.

    Returns:
        Latents ``(B, ...)`` in float32 on the CPU.
    """
    scales = {name: _scale(statistics, name) for name in statistics.mean}
    drawn: dict[str, list[Tensor]] = {name: [] for name in scales}
    for instance in names:
        generator = generator_at(seed, "random start", instance)
        for name, (mean, deviation) in scales.items():
            normal = torch.randn(statistics.mean[name].shape, generator=generator)
            drawn[name].append(mean + deviation * normal)
    return {name: torch.stack(codes) for name, codes in drawn.items()}


def other_starts(
    starts: Sequence[str], statistics: CodeStatistics, predicted: Latents, names: Sequence[str]
) -> dict[str, Latents]:
    """Return the latents of every start asked for but the prediction, in the precision in which they are refined.

    Args:
        starts: Of `Refinement`.
        statistics: Of the training codes.
        predicted: Latents ``(B, ...)`` of the instances.
        names: Of the instances.
    """
    found: dict[str, Latents] = {}
    if "mean" in starts:
        found["mean"] = mean_start(statistics, predicted)
    if "random" in starts:
        drawn = random_start(statistics, names, global_seed())
        found["random"] = {name: _fit(codes, predicted[name]) for name, codes in drawn.items()}
    return found


class _Moments:
    """Mean and variance of codes, batch after batch (Chan, Golub and LeVeque 1979), without keeping any."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Latents = {}
        self.squares: Latents = {}

    def add(self, latents: Latents) -> None:
        """Take in the codes of a batch."""
        before, number = self.count, len(next(iter(latents.values())))
        self.count += number
        for name, latent in latents.items():
            codes = latent.detach().cpu().double()
            mean = self.mean.get(name, torch.zeros_like(codes[0]))
            apart = codes.mean(0) - mean
            self.mean[name] = mean + apart * (number / self.count)
            own = (codes - codes.mean(0)).square().sum(0)
            between = apart.square() * (before * number / self.count)
            self.squares[name] = self.squares.get(name, torch.zeros_like(mean)) + own + between

    def statistics(self) -> CodeStatistics:
        """Return what was found."""
        if not self.count:
            raise ValueError("there are no training items to measure codes of")
        deviation = {name: (squares / self.count).sqrt() for name, squares in self.squares.items()}
        return CodeStatistics(self.mean, deviation, self.count)


def _scale(statistics: CodeStatistics, name: str) -> tuple[float, float]:
    """Return mean and standard deviation of all numbers of all codes of a latent."""
    mean, deviation = statistics.mean[name], statistics.deviation[name]
    variance = deviation.square().mean() + mean.var(correction=0)
    return mean.mean().item(), variance.sqrt().item()


def _fit(codes: Tensor, latent: Tensor) -> Tensor:
    """Return codes on the device of a latent, in its precision or float32, whichever is finer."""
    return codes.to(latent.device, torch.promote_types(latent.dtype, torch.float32))


@rank_zero_only
def _tell(line: str) -> None:
    """Print a line, on one process."""
    Console(soft_wrap=True, highlight=False, markup=False).print(line)

"""Test protocols: the results of an evaluation step, and the initialisations that a test compares with the prediction.

The number of steps that refinement needs from another initialisation to reach the prediction shows how good the prediction is.
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
    """The part of a composer that `measure_training_codes` uses."""

    training: bool

    @property
    def device(self) -> torch.device:
        """The device of the model."""

    @property
    def trainer(self) -> Trainer:
        """The trainer of the model."""

    def encode(self, observation: Observation) -> Latents:
        """Return the latents of an observation."""

    def eval(self) -> Self:
        """Enter evaluation mode."""

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode."""


_NOT_AT_HAND = (FileNotFoundError, ValueError, NotImplementedError)


class Evaluation(TypedDict):
    """Result of an evaluation step on a batch, for callbacks.

    Attributes:
        losses: Loss of every prediction, ``(B,)``; None without measured values.
        latents: Latents by number of refinement steps; 0 is the prediction.
        layout: Layout of the latents.
        reconstructions: Reconstructions of the query by number of refinement steps.
        values: Values ``(B, N, C)`` of the reconstructions.
        metrics: Metrics ``(B,)`` by number of refinement steps, then by name.
        starts: Metrics of the other curves of a test in the same form: refinement from the ``mean`` of the training codes and
            from ``random`` latents, refinement of all weights and biases (``network``), and the inner loop (``inner``). Empty
            outside of tests.
    """

    losses: Tensor | None
    latents: dict[int, Latents]
    layout: Layout
    reconstructions: dict[int, Reconstruction]
    values: dict[int, Tensor]
    metrics: dict[int, dict[str, Tensor]]
    starts: dict[str, dict[int, dict[str, Tensor]]]


class CodeStatistics(NamedTuple):
    """Mean and standard deviation of the codes of training items, element by element, in float64 on the CPU.

    Attributes:
        mean: Mean of every latent, without batch dimension.
        deviation: Population standard deviation of every latent over the items (divisor ``items``), without batch dimension.
        items: Number of items.
    """

    mean: Latents
    deviation: Latents
    items: int


def measure_training_codes(composer: Encodes) -> CodeStatistics | None:
    """Return the statistics of the training codes; without training data, print the reason and return None.

    Args:
        composer: The model, attached to the trainer that tests it.
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
    """Encode items in evaluation mode and return the statistics of their codes; batching does not affect them.

    Args:
        composer: The model; its training or evaluation mode is restored afterwards.
        batches: Batches of items, which are moved to the device of the composer.

    Raises:
        ValueError: If there are no items.
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
        statistics: Statistics of the training codes.
        like: Latents ``(B, ...)`` of the instances, for their number and device.
    """
    return {name: _fit(statistics.mean[name].expand(latent.shape), latent) for name, latent in like.items()}


def random_start(statistics: CodeStatistics, names: Sequence[str], seed: int) -> Latents:
    """Return normally distributed latents; mean and deviation are those of all entries of a latent in the training codes.

    Args:
        statistics: Statistics of the training codes.
        names: Names of the instances, which seed their random numbers independently of the batch.
        seed: Seed of the run.

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
    """Return the latents of all requested initialisations except the prediction, in the precision of refinement.

    Args:
        starts: Initialisations, as in `Refinement`.
        statistics: Statistics of the training codes.
        predicted: Latents ``(B, ...)`` of the instances.
        names: Names of the instances.
    """
    found: dict[str, Latents] = {}
    if "mean" in starts:
        found["mean"] = mean_start(statistics, predicted)
    if "random" in starts:
        drawn = random_start(statistics, names, global_seed())
        found["random"] = {name: _fit(codes, predicted[name]) for name, codes in drawn.items()}
    return found


class _Moments:
    """Running mean and variance of codes over batches (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Latents = {}
        self.squares: Latents = {}

    def add(self, latents: Latents) -> None:
        """Add the codes of a batch."""
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
        """Return mean, standard deviation and number of the codes added."""
        if not self.count:
            raise ValueError("there are no training items to measure codes of")
        deviation = {name: (squares / self.count).sqrt() for name, squares in self.squares.items()}
        return CodeStatistics(self.mean, deviation, self.count)


def _scale(statistics: CodeStatistics, name: str) -> tuple[float, float]:
    """Return mean and standard deviation over all entries of a latent and all codes."""
    mean, deviation = statistics.mean[name], statistics.deviation[name]
    variance = deviation.square().mean() + mean.var(correction=0)
    return mean.mean().item(), variance.sqrt().item()


def _fit(codes: Tensor, latent: Tensor) -> Tensor:
    """Return codes on the device of a latent, in the higher of its precision and float32."""
    return codes.to(latent.device, torch.promote_types(latent.dtype, torch.float32))


@rank_zero_only
def _tell(line: str) -> None:
    """Print a line on the first process only."""
    Console(soft_wrap=True, highlight=False, markup=False).print(line)

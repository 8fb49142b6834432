"""Evaluation results, and alternative initialisations of refinement for comparison with the predicted latents.

A good prediction saves refinement steps. To measure how many, refinement also runs from two baselines: the mean training
code and a random code.
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
    """Interface of a model whose training codes can be measured."""

    training: bool

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""

    @property
    def trainer(self) -> Trainer:
        """Return the trainer of the model."""

    def encode(self, observation: Observation) -> Latents:
        """Return the latents of an observation."""

    def eval(self) -> Self:
        """Enter evaluation mode."""

    def train(self, mode: bool = True) -> Self:
        """Set training mode, or evaluation mode if ``mode`` is False."""


TRAINING_DATA_ERRORS = (FileNotFoundError, ValueError, NotImplementedError)  # of tests that have no training data


class Evaluation(TypedDict):
    """Results of one step on a batch, passed to the callbacks.

    Attributes:
        losses: Loss of every prediction, ``(B,)``; None if there are no target values.
        latents: Latents after each reported number of refinement steps; step 0 is the prediction.
        layout: Layout of the latents.
        reconstructions: Reconstruction at the query coordinates after each of these steps.
        values: Values of the reconstructions after each of these steps, ``(B, N, C)``.
        metrics: Metrics by step, then by name, one value per instance ``(B,)``.
        starts: The same metrics for other refinement curves: from the mean training code, ``mean``; from a random code,
            ``random``; of all weights and biases instead of the latents, ``network``; and of an inner loop from its learned
            initialisation, ``inner``. Empty outside tests.
    """

    losses: Tensor | None
    latents: dict[int, Latents]
    layout: Layout
    reconstructions: dict[int, Reconstruction]
    values: dict[int, Tensor]
    metrics: dict[int, dict[str, Tensor]]
    starts: dict[str, dict[int, dict[str, Tensor]]]


class CodeStatistics(NamedTuple):
    """Elementwise mean and standard deviation of the training codes, in float64 on the CPU.

    Attributes:
        mean: Mean of every latent, without a batch dimension.
        deviation: Population standard deviation of every latent, elementwise over the items.
        items: Number of items.
    """

    mean: Latents
    deviation: Latents
    items: int


def measure_training_codes(composer: Encodes) -> CodeStatistics | None:
    """Return the statistics of the training codes; if there is no training data, print the reason and return None.

    Args:
        composer: Model on its device, attached to the trainer that runs the test.
    """
    data = getattr(composer.trainer, "datamodule", None)
    try:
        if not isinstance(data, CoordinateDataModule):
            raise ValueError("the test has no data module with training items")
        with composer.trainer.precision_plugin.test_step_context():
            convert = composer.trainer.precision_plugin.convert_input
            return measure_codes(composer, (convert(batch) for batch in data.training_batches()))
    except TRAINING_DATA_ERRORS as error:
        reason = " ".join(str(error).split())
        _print(f"Refinement starts from the prediction only, because the training data is not available: {reason}")
        return None


def measure_codes(composer: Encodes, batches: Iterable[CoordinateBatch]) -> CodeStatistics:
    """Encode items in evaluation mode and return the statistics of their codes, independent of the batch size.

    Args:
        composer: Model; its training or evaluation mode is restored afterwards.
        batches: Batches on any device; they are moved to the device of the model.

    Raises:
        ValueError: If there are no items.
    """
    was_training, moments = composer.training, _Moments()
    composer.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                moments.add(composer.encode(move_data_to_device(batch, composer.device).observation))
    finally:
        composer.train(was_training)
    return moments.statistics()


def mean_start(statistics: CodeStatistics, like: Latents) -> Latents:
    """Return the mean training code for every instance.

    Args:
        statistics: Statistics of the training codes.
        like: Latents ``(B, ...)`` that define the batch size, device and dtype, with float32 as the lowest precision.
    """
    return {name: _fit(statistics.mean[name].expand(latent.shape), latent) for name, latent in like.items()}


def random_start(statistics: CodeStatistics, names: Sequence[str], seed: int) -> Latents:
    """Sample codes from one normal distribution per latent, with the mean and variance of all elements of the training codes.

    The random codes have the scale of the training codes and none of their structure.

    Args:
        statistics: Statistics of the training codes.
        names: Names of the instances; the code of an instance depends on its name and the seed, not on its batch.
        seed: Seed of the run.

    Returns:
        Latents ``(B, ...)`` in float32 on the CPU.
    """
    scales = {name: _scale(statistics, name) for name in statistics.mean}
    samples: dict[str, list[Tensor]] = {name: [] for name in scales}
    for instance in names:
        generator = generator_at(seed, "random start", instance)
        for name, (mean, deviation) in scales.items():
            noise = torch.randn(statistics.mean[name].shape, generator=generator)
            samples[name].append(mean + deviation * noise)
    return {name: torch.stack(codes) for name, codes in samples.items()}


def other_starts(
    starts: Sequence[str], statistics: CodeStatistics, predicted: Latents, names: Sequence[str]
) -> dict[str, Latents]:
    """Return the requested initialisations of refinement other than the prediction, in the precision of refinement.

    Args:
        starts: ``starts`` of `Refinement`; ``mean`` and ``random`` are read.
        statistics: Statistics of the training codes.
        predicted: Predicted latents ``(B, ...)``.
        names: Names of the instances.

    Returns:
        Latents ``(B, ...)`` of each initialisation.
    """
    initial: dict[str, Latents] = {}
    if "mean" in starts:
        initial["mean"] = mean_start(statistics, predicted)
    if "random" in starts:
        samples = random_start(statistics, names, global_seed())
        initial["random"] = {name: _fit(codes, predicted[name]) for name, codes in samples.items()}
    return initial


class _Moments:
    """Running mean and variance of codes, updated batch by batch (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Latents = {}
        self.squares: Latents = {}

    def add(self, latents: Latents) -> None:
        """Update the moments with the codes of a batch."""
        previous_count, batch_size = self.count, len(next(iter(latents.values())))
        self.count += batch_size
        for name, latent in latents.items():
            codes = latent.detach().cpu().double()
            mean = self.mean.get(name, torch.zeros_like(codes[0]))
            delta = codes.mean(0) - mean
            self.mean[name] = mean + delta * (batch_size / self.count)
            within_batch = (codes - codes.mean(0)).square().sum(0)
            between_batches = delta.square() * (previous_count * batch_size / self.count)
            self.squares[name] = self.squares.get(name, torch.zeros_like(mean)) + within_batch + between_batches

    def statistics(self) -> CodeStatistics:
        """Return the statistics of all codes."""
        if not self.count:
            raise ValueError("there are no training items to compute code statistics from")
        deviation = {name: (squares / self.count).sqrt() for name, squares in self.squares.items()}
        return CodeStatistics(self.mean, deviation, self.count)


def _scale(statistics: CodeStatistics, name: str) -> tuple[float, float]:
    """Return the mean and standard deviation over all elements of a latent in all training codes."""
    mean, deviation = statistics.mean[name], statistics.deviation[name]
    variance = deviation.square().mean() + mean.var(correction=0)
    return mean.mean().item(), variance.sqrt().item()


def _fit(codes: Tensor, latent: Tensor) -> Tensor:
    """Move codes to the device of a latent, in its dtype but at least float32."""
    return codes.to(latent.device, torch.promote_types(latent.dtype, torch.float32))


@rank_zero_only
def _print(line: str) -> None:
    """Print a line on the first process only."""
    Console(soft_wrap=True, highlight=False, markup=False).print(line)

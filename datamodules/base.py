"""Base class of data modules: data loaders, and the conversion of raw signals to coordinate batches on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, Literal, cast

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from datamodules.batch import CoordinateBatch, Observation, Samples, Signal
from datamodules.domain import Domain, jitter, subset
from datamodules.loading import Addressed, AddressSampler, Augmentation, FixedSampler, ResumingLoader
from datamodules.randomness import generator_at, global_seed
from datamodules.spec import DataSpec, Modality


class CoordinateDataModule(LightningDataModule, ABC):
    """Base class of data modules for signals on regular grids with any number of axes.

    A subclass defines `spec`, and assigns data sets of `Signal` to ``train_set``, ``val_set`` and ``test_set`` in `setup`. It
    may define ``augmentation``, random changes of training items, ``detail``, the samples of training items along each axis per
    sample that a model observes, and `observe`, the part of a signal that a model sees.
    ``collate`` combines items into a batch in the loading process; if items cannot be stacked, it returns another type, and the
    subclass overrides `to_coordinates`. ``skipped`` lists the reasons why files are skipped, by path, and ``notes`` lists
    remarks on the data, by name.

    Args:
        batch_size: Instances per device and batch; with ``--global_batch_size``, their maximum.
        eval_batch_size: Instances per device in validation, test and prediction; ``batch_size`` if None.
        num_workers: Number of worker processes; 0 loads in the main process.
        coordinate_noise: Uniform noise within the cell of each coordinate in training: ``per_instance`` as in the
            paper; ``shared`` by all instances of a batch, which are then evaluated together up to the first modulated layer;
            or ``none``.
        coordinate_subset: Coordinates per training step, sampled anew for every batch: a ratio up to 1.0, a count, or all if
            None.

    Raises:
        ValueError: If a number is out of range.
    """

    train_set: Dataset[Signal]
    val_set: Dataset[Signal]
    test_set: Dataset[Signal]
    augmentation: Augmentation | None = None
    detail: int = 1
    accumulated: int = 1  # batches per optimizer step; the number of batches of an epoch is a multiple of it
    modality: Modality = Modality()
    collate: Callable[[list[Any]], Any] = staticmethod(default_collate)

    def __init__(
        self,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        coordinate_noise: Literal["none", "per_instance", "shared"] = "none",
        coordinate_subset: int | float | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (eval_batch_size is not None and eval_batch_size < 1) or num_workers < 0:
            raise ValueError(
                f"batch_size is {batch_size}, eval_batch_size {eval_batch_size}, num_workers {num_workers}: "
                "batch sizes must be at least 1, num_workers at least 0."
            )
        if coordinate_subset is not None and (
            coordinate_subset <= 0 or (isinstance(coordinate_subset, float) and coordinate_subset > 1)
        ):
            raise ValueError(
                f"coordinate_subset is {coordinate_subset}: use a ratio in (0, 1], a count of at least 1, or null for all."
            )
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.coordinate_noise = coordinate_noise
        self.coordinate_subset = coordinate_subset
        self.skipped: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    @property
    @abstractmethod
    def spec(self) -> DataSpec:
        """Specification of the signals; available before `setup`."""

    @property
    def num_instances(self) -> int | None:
        """Number of training instances, for `spec`; None before `setup`."""
        train_set = getattr(self, "train_set", None)
        return None if train_set is None else len(cast(Sized, train_set))

    @property
    def signal_shape(self) -> tuple[int, ...]:
        """``spec.signal_shape``."""
        return self.spec.signal_shape

    @property
    def domain(self) -> Domain:
        """``spec.domain``."""
        return self.spec.domain

    @property
    def coord_dim(self) -> int:
        """``spec.domain.coord_dim``."""
        return self.spec.domain.coord_dim

    def train_dataloader(self) -> DataLoader[Signal]:
        """Return the loader of training items, shuffled every epoch; it resumes an interrupted epoch."""
        return self._loader(self.train_set, self.batch_size, training=True)

    def val_dataloader(self) -> DataLoader[Signal]:
        """Return the loader of validation items, in order."""
        return self._loader(self.val_set, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Signal]:
        """Return the loader of test items, in order."""
        return self._loader(self.test_set, self.eval_batch_size)

    def training_batches(self, count: int = 256) -> Iterator[CoordinateBatch]:
        """Yield the first training items of epoch 0, shuffled and augmented, at the coordinates of evaluation.

        They are the same on every process and for any number of processes.

        Args:
            count: Maximum number of items.

        Yields:
            Batches of at most ``eval_batch_size`` items, on the CPU.

        Raises:
            ValueError: If there are no training items.
        """
        if getattr(self, "train_set", None) is None:
            self.setup("fit")
        if getattr(self, "train_set", None) is None:
            raise ValueError(f"{type(self).__name__} has no training items.")
        seed = global_seed()
        items = Addressed(self.train_set, self.augmentation, seed)
        order = list(AddressSampler(len(cast(Sized, self.train_set)), shuffle=True, seed=seed))[:count]
        for start in range(0, len(order), self.eval_batch_size):
            collated = self.collate([items[address] for address in order[start : start + self.eval_batch_size]])
            yield self.to_coordinates(collated)

    def random_items(self, count: int) -> Any:
        """Return a collated batch of random values, for benchmarks and tests that need no data.

        Args:
            count: Number of items.
        """
        names = [f"random-{index}" for index in range(count)]
        items = Signal(torch.rand(count, *self.spec.signal_shape), "random")
        return items._replace(name=names, seed=torch.arange(count))  # type: ignore[arg-type]

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the items to predict, by default the test items."""
        return self.test_dataloader()

    def original(self, name: str) -> Tensor | None:
        """Return the complete signal ``(C, *shape)`` if batches contain its tiles under this name, else None."""
        return None

    def source_signal(self, name: str, shape: Sequence[int] | None = None) -> Tensor | None:
        """Return the signal that a test item was downscaled from, for measures at a finer scale than that of the items.

        Args:
            name: Name of the item.
            shape: Samples along every axis, to which the signal is resized as items are; its own if None.

        Returns:
            ``(C, *shape)``, uint8 or floating point; None if there is no such signal, or it has fewer samples than ``shape``.
        """
        return None

    def scale_of(self, name: str) -> float | None:
        """Return the scale of an evaluation item of super-resolution: query samples per observed sample along each axis.

        Args:
            name: Name of the item.

        Returns:
            The scale; None if the data module states none.
        """
        return None

    @property
    def measured_area(self) -> str:
        """Which samples of evaluation items metrics compare, for captions; empty if they compare all."""
        return ""

    def source_of(self, name: str) -> dict[str, Any]:
        """Return the properties of the file of a signal that a writer needs, such as the sampling rate of audio."""
        return {}

    def on_after_batch_transfer(self, batch: Signal, dataloader_idx: int) -> CoordinateBatch:
        """Convert raw signals to coordinates on the device."""
        training = self.trainer is not None and self.trainer.training
        # the optimizer step, not the batch: accumulated batches share random numbers, like the batches of several devices
        step = self.trainer.global_step - 1 if training and self.trainer is not None else 0
        coordinates = self.to_coordinates(batch, training=training, step=step)
        if self.trainer is not None:
            coordinates = self.trainer.precision_plugin.convert_input(coordinates)  # to float64 for ``64-true``
        return coordinates

    def to_coordinates(self, batch: Signal, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Convert collated raw signals to a coordinate batch.

        Args:
            batch: ``values (B, C, *shape)``, and names, seeds and lengths of the instances.
            training: Whether to apply coordinate noise and subsets.
            step: Training step, which seeds random numbers that the batch shares.
        """
        signal = batch.values.float().div_(255) if batch.values.dtype == torch.uint8 else batch.values
        shape: tuple[int, ...] | None = tuple(signal.shape[2:])
        assert shape is not None
        if self.detail > 1 and shape == tuple(self.detail * size for size in self.spec.signal_shape[1:]):
            return self._finer_coordinates(signal, batch, training=training, step=step)
        domain = self.spec.domain
        coords = domain.coords(shape, device=signal.device)  # (N, D)
        values = signal.flatten(2).mT  # (B, N, C)
        mask = _measured_mask(batch.length, signal)
        if training:
            coords = self._add_noise(coords, domain.cell(shape), batch, step)
            if (indices := self._subset(values, step)) is not None:
                coords, values, shape = coords[..., indices, :], values[:, indices], None
                mask = None if mask is None else mask[:, indices]
        query = samples = Samples(coords, values, mask)
        if (observed := self.observe(signal)) is not signal:
            samples = Samples(domain.coords(observed.shape[2:], device=signal.device), observed.flatten(2).mT)
        index = torch.as_tensor(batch.instance, device=signal.device) if training else None
        return CoordinateBatch(Observation(observed, samples, index), query, shape, list(batch.name))

    def _finer_coordinates(self, signal: Tensor, batch: Signal, *, training: bool, step: int) -> CoordinateBatch:
        """Return the batch of training signals with more samples than the model observes; see ``detail``.

        The values at one position within every observed sample are compared: its centre or, in every second training step on
        average, that of one of the finer samples, the same in all instances.
        """
        observed = self.coarser(signal)
        coarse = self.to_coordinates(batch._replace(values=observed), training=training, step=step)
        generator = generator_at(global_seed(), "detail", step)
        if not training or torch.rand((), generator=generator) < 0.5:
            return coarse
        offsets = torch.randint(self.detail, (signal.dim() - 2,), generator=generator).tolist()
        sizes = observed.shape[2:]
        places = [
            torch.arange(size, dtype=torch.float64, device=signal.device) + (offset + 0.5) / self.detail
            for size, offset in zip(sizes, offsets, strict=True)
        ]
        phase = (slice(None), slice(None), *(slice(offset, None, self.detail) for offset in offsets))
        finer = signal[phase]
        coords, values = self.spec.domain.at(places, sizes), finer.flatten(2).mT
        if (indices := self._subset(values, step)) is not None:
            coords, values = coords[indices], values[:, indices]
        return coarse._replace(query=Samples(coords, values), shape=None)

    def _subset(self, values: Tensor, step: int) -> Tensor | None:
        """Return the indices of the coordinates of a training step, of as many as there are values ``(B, N, C)``."""
        if self.coordinate_subset is None:
            return None
        generator = generator_at(global_seed(), "subset", step, device=values.device)
        return subset(values.shape[1], self.coordinate_subset, generator)

    def coarser(self, signal: Tensor) -> Tensor:
        """Return signals ``(B, C, *shape)`` with ``detail`` times fewer samples along every axis, the means of finer ones."""
        for axis in range(2, signal.dim()):
            signal = signal.unflatten(axis, (-1, self.detail)).mean(axis + 1)
        return signal

    def observe(self, signal: Tensor) -> Tensor:
        """Return what a model observes of signals ``(B, C, *shape)``: all by default, fewer samples for super-resolution.

        The shape must be that of `spec`, and the samples those of a grid on its domain.
        """
        return signal

    def _add_noise(self, coords: Tensor, cell: tuple[float, ...], batch: Signal, step: int) -> Tensor:
        """Return coordinates with noise: ``(B, N, D)`` if the noise is per instance, else ``(N, D)``."""
        if self.coordinate_noise == "none":
            return coords
        if self.coordinate_noise == "shared":
            return jitter(coords, cell, generator_at(global_seed(), "noise", step, device=coords.device))
        seeds = torch.as_tensor(batch.seed).tolist()
        return torch.stack([jitter(coords, cell, generator_at(seed, "noise", device=coords.device)) for seed in seeds])

    def _batches_done(self) -> int:
        """Return the number of training batches of this epoch that are done."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer else 0

    def _loader(self, dataset: Dataset[Signal], batch_size: int, training: bool = False) -> DataLoader[Signal]:
        """Return a loader with addressed order and random numbers."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        seed = global_seed()
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        overfit = fitting and self.trainer.overfit_batches > 0  # type: ignore[union-attr]
        sampler = (FixedSampler if overfit else AddressSampler)(
            len(cast(Sized, dataset)),
            shuffle=training,
            seed=seed,
            rank=rank,
            world_size=world_size,
            step_size=batch_size * self.accumulated,
        )
        if training and len(sampler) < batch_size:
            times = f" x {self.accumulated} accumulated" if self.accumulated > 1 else ""
            most = sampler.size // world_size * world_size
            raise ValueError(
                f"batch_size {batch_size} on {world_size} device(s){times} exceeds the {sampler.size} training items: "
                f"reduce it, so that an optimizer step has at most {most}."
            )
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "sampler": sampler,
            "collate_fn": self.collate,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.num_workers > 0,
        }
        if not training:
            return DataLoader(Addressed(dataset, None, seed), **options)
        return ResumingLoader(
            Addressed(dataset, self.augmentation, seed, training=True), self._batches_done, drop_last=True, **options
        )


def _measured_mask(lengths: Any, signal: Tensor) -> Tensor | None:
    """Return the mask ``(B, N)`` of samples of a signal ``(B, C, *shape)`` that are not padding; None without padding."""
    counts = torch.as_tensor(lengths, device=signal.device).reshape(-1, 1)
    if not signal.shape[-1] or bool((counts < 0).all()):
        return None
    measured = (torch.arange(signal.shape[-1], device=signal.device) < counts) | (counts < 0)  # (B, last axis)
    return measured.view(len(signal), *[1] * (signal.dim() - 3), -1).expand(len(signal), *signal.shape[2:]).flatten(1)

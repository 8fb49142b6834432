"""Base of the data modules: loaders, and the step on the device from raw signals to a batch of coordinates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sized
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
    """Raw signals on regular grids, of any number of axes, as batches of coordinates and values.

    A subclass states `spec` and fills ``train_set``, ``val_set``, ``test_set`` in `setup` with data sets
    of `Signal`; what else it draws at random in training is its ``augmentation``. Items become a batch by ``collate``, in the
    process that loads; where they do not stack, it makes a batch of another type, which `to_coordinates` knows. What the
    subclass had to leave out, and what it had to decide, it says in ``skipped``, reasons by file, and ``notes``, by name.

    Args:
        batch_size: Instances per device and step.
        eval_batch_size: Instances per device in validation, test and prediction; ``batch_size`` if None.
        num_workers: Processes that load; 0 loads in the main process.
        coordinate_noise: In training, moves coordinates uniformly within their cell: ``per_instance`` as published,
            ``shared`` by the batch, which keeps the layers before the first modulated one shared, or ``none``.
        coordinate_subset: In training, coordinates per step, drawn anew for every batch: a ratio below 1, a count, or
            all if None.

    Raises:
        ValueError: If a number is out of range.
    """

    train_set: Dataset[Signal]
    val_set: Dataset[Signal]
    test_set: Dataset[Signal]
    augmentation: Augmentation | None = None
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
                "batches hold at least 1 item, workers may be 0."
            )
        if coordinate_subset is not None and (
            coordinate_subset <= 0 or (isinstance(coordinate_subset, float) and coordinate_subset > 1)
        ):
            raise ValueError(
                f"coordinate_subset is {coordinate_subset}; give a ratio in (0, 1], a count of at least 1, or null for all."
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
        """All that this data module states of its signals, before set-up already."""

    @property
    def num_instances(self) -> int | None:
        """Training instances, for `spec`; None before the set-up of training."""
        items = getattr(self, "train_set", None)
        return None if items is None else len(cast(Sized, items))

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
        """Return the loader of training items, in a new order every epoch, from where an interrupted epoch stopped."""
        return self._loader(self.train_set, self.batch_size, training=True)

    def val_dataloader(self) -> DataLoader[Signal]:
        """Return the loader of validation items, in order."""
        return self._loader(self.val_set, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Signal]:
        """Return the loader of test items, in order."""
        return self._loader(self.test_set, self.eval_batch_size)

    def training_batches(self, count: int = 256) -> Iterator[CoordinateBatch]:
        """Yield the first training items of epoch 0, in its order and augmented, at the coordinates of evaluation.

        They are the same on every process and for every number of processes.

        Args:
            count: Items, or all if there are fewer.

        Yields:
            Batches of ``eval_batch_size`` items at most, on the CPU.

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
        """Return collated raw items of random numbers, for whoever needs a batch and no data: what a step costs, say.

        Args:
            count: Items.
        """
        names = [f"random-{index}" for index in range(count)]
        items = Signal(torch.rand(count, *self.spec.signal_shape), "random")
        return items._replace(name=names, seed=torch.arange(count))  # type: ignore[arg-type]

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of what is predicted: the test items, unless a subclass knows better."""
        return self.test_dataloader()

    def original(self, name: str) -> Tensor | None:
        """Return the signal ``(C, *shape)`` of which batches hold pieces under this name; None where they hold it whole."""
        return None

    def source_of(self, name: str) -> dict[str, Any]:
        """Return the facts of the file of a signal that a writer needs, such as the sampling rate of audio."""
        return {}

    def on_after_batch_transfer(self, batch: Signal, dataloader_idx: int) -> CoordinateBatch:
        """Make coordinates on the device."""
        training = self.trainer is not None and self.trainer.training
        step = self.trainer.fit_loop.total_batch_idx if training and self.trainer is not None else 0
        return self._converted(self.to_coordinates(batch, training=training, step=step))

    def _converted(self, batch: CoordinateBatch) -> CoordinateBatch:
        """Return a batch in the precision of the trainer: float64 for ``64-true``."""
        if self.trainer is None:
            return batch
        converted: CoordinateBatch = self.trainer.precision_plugin.convert_input(batch)
        return converted

    def to_coordinates(self, batch: Signal, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Return the coordinate batch of collated raw signals.

        Args:
            batch: ``values (B, C, *shape)``, and names, seeds and lengths of the instances.
            training: Whether to apply coordinate noise and subsets.
            step: The address of draws that the whole batch shares.
        """
        signal = batch.values.float().div_(255) if batch.values.dtype == torch.uint8 else batch.values
        shape: tuple[int, ...] | None = tuple(signal.shape[2:])
        assert shape is not None
        domain = self.spec.domain
        coords = domain.coords(shape, device=signal.device)  # (N, D)
        values = signal.flatten(2).mT  # (B, N, C)
        mask = _measured(batch.length, signal)
        if training:
            coords = self._add_noise(coords, domain.cell(shape), batch, step)
            if self.coordinate_subset is not None:
                generator = generator_at(global_seed(), "subset", step, device=signal.device)
                chosen = subset(values.shape[1], self.coordinate_subset, generator)
                coords, values, shape = coords[..., chosen, :], values[:, chosen], None
                mask = None if mask is None else mask[:, chosen]
        samples = Samples(coords, values, mask)
        index = torch.as_tensor(batch.instance, device=signal.device) if training else None
        return CoordinateBatch(Observation(signal, samples, index), samples, shape, list(batch.name))

    def _add_noise(self, coords: Tensor, cell: tuple[float, ...], batch: Signal, step: int) -> Tensor:
        """Move coordinates within their cells: ``(N, D)`` if nothing or a shared draw is added, else ``(B, N, D)``."""
        if self.coordinate_noise == "none":
            return coords
        if self.coordinate_noise == "shared":
            return jitter(coords, cell, generator_at(global_seed(), "noise", step, device=coords.device))
        seeds = torch.as_tensor(batch.seed).tolist()
        return torch.stack([jitter(coords, cell, generator_at(seed, "noise", device=coords.device)) for seed in seeds])

    def _batches_done(self) -> int:
        """Return the training batches of this epoch that are done."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer else 0

    def _loader(self, dataset: Dataset[Signal], batch_size: int, training: bool = False) -> DataLoader[Signal]:
        """Return a loader whose order and draws are addressed."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        seed = global_seed()
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        overfit = fitting and self.trainer.overfit_batches > 0  # type: ignore[union-attr]
        sampler = (FixedSampler if overfit else AddressSampler)(
            len(cast(Sized, dataset)), shuffle=training, seed=seed, rank=rank, world_size=world_size
        )
        if training and len(sampler) < batch_size:
            raise ValueError(
                f"batch_size {batch_size} on {world_size} device(s) is more than the {sampler.size} training items: "
                "lower it."
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


def _measured(lengths: Any, signal: Tensor) -> Tensor | None:
    """Return which samples of a signal ``(B, C, *shape)`` were measured, ``(B, N)``; None if all of all instances were."""
    counts = torch.as_tensor(lengths, device=signal.device).reshape(-1, 1)
    if not signal.shape[-1] or bool((counts < 0).all()):
        return None
    measured = (torch.arange(signal.shape[-1], device=signal.device) < counts) | (counts < 0)  # (B, last axis)
    return measured.view(len(signal), *[1] * (signal.dim() - 3), -1).expand(len(signal), *signal.shape[2:]).flatten(1)

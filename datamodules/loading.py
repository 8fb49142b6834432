"""Samplers and loaders whose order and random numbers depend only on seed, epoch and index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from datamodules.batch import Signal
from datamodules.randomness import generator_at, seed_at

Address = tuple[int, int]
Augmentation = Callable[[Signal, torch.Generator], Signal]


class Chain:
    """Random changes that are applied one after another.

    Args:
        changes: The changes in their order.
    """

    def __init__(self, *changes: Augmentation) -> None:
        self.changes = changes

    def __call__(self, item: Signal, generator: torch.Generator) -> Signal:
        """Return a changed copy of an item."""
        for change in self.changes:
            item = change(item, generator)
        return item


class AddressSampler(DistributedSampler[Address]):
    """Distributed sampler of (epoch, index) whose global batches do not depend on the number of processes.

    Batch ``t`` of all processes together is the same set of items for any split of the same total batch size. Shuffled
    epochs drop the items of an incomplete optimizer step; unshuffled ones neither drop nor repeat an item. If there are fewer
    items than processes, the remaining processes repeat the last item, because all must take part; `repeats` marks them.

    Args:
        size: Number of items of the data set.
        shuffle: Whether to shuffle the items every epoch.
        seed: Seed of the shuffling.
        rank: Rank of this process.
        world_size: Number of processes.
        skip: Number of items to skip at the start of the first epoch, to resume an interrupted run.
        step_size: Items per process and optimizer step; shuffled epochs hold complete optimizer steps only.
    """

    def __init__(
        self,
        size: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        skip: int = 0,
        step_size: int = 1,
    ) -> None:
        super().__init__(range(size), num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.size = size
        self.skip = skip
        self.step_size = step_size

    @property
    def repeats(self) -> bool:
        """Whether the only item of this process belongs to another process as well, and must not be counted."""
        return not self.shuffle and self.rank >= self.size > 0

    def __iter__(self) -> Iterator[Address]:
        """Yield the addresses of this process in this epoch."""
        skip, self.skip = self.skip, 0
        return iter([(self.epoch, index) for index in self._indices()[skip:]])

    def __len__(self) -> int:
        """Return the number of items of this process in a complete epoch."""
        return len(self._indices())

    def _indices(self) -> list[int]:
        """Return the indices of this process in this epoch."""
        if self.repeats:
            return [self.size - 1]
        if not self.shuffle:
            return list(range(self.rank, self.size, self.num_replicas))
        order = torch.randperm(self.size, generator=generator_at(self.seed, "order", self.epoch)).tolist()
        return order[self.rank : self.size - self.size % (self.num_replicas * self.step_size) : self.num_replicas]


class FixedSampler(AddressSampler, SequentialSampler):  # type: ignore[misc]
    """Sampler that returns the same addresses in order in every epoch, for ``overfit_batches`` of the trainer.

    All epochs are epoch 0, so that augmentation and noise do not change either. The trainer does not replace a
    `SequentialSampler`. Every process has the same number of items.
    """

    def _indices(self) -> list[int]:
        """Return the indices of this process."""
        return list(range(self.rank, self.size - self.size % self.num_replicas, self.num_replicas))

    def set_epoch(self, epoch: int) -> None:
        """Stay in epoch 0."""


class Addressed(Dataset[Signal]):
    """A data set indexed by (epoch, index), which adds the seed of an item and applies the augmentation.

    Args:
        dataset: The raw items, by index.
        augmentation: Function of an item and its generator; None for no augmentation.
        seed: Seed of the run.
        training: Whether the items are training instances, which get their index.
    """

    def __init__(
        self, dataset: Dataset[Signal], augmentation: Augmentation | None, seed: int, training: bool = False
    ) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed
        self.training = training

    def __getitem__(self, address: Address) -> Signal:
        """Return the item at an address."""
        epoch, index = address
        item = self.dataset[index]
        if self.augmentation is not None:
            item = self.augmentation(item, generator_at(self.seed, "augmentation", epoch, index))
        return item._replace(seed=seed_at(self.seed, "item", epoch, index), instance=index if self.training else -1)


class ResumingLoader(DataLoader[Signal]):
    """A loader of training items that resumes an interrupted epoch.

    The number of batches to skip is determined when the first batch is requested, because the trainer creates loaders and
    prefetching iterators before it restores its progress.

    Args:
        dataset: A data set indexed by the addresses of an `AddressSampler`.
        done: Function that returns the number of batches of this epoch that are done.
        options: Arguments of `DataLoader`; its sampler must be an `AddressSampler`.
    """

    def __init__(self, dataset: Dataset[Signal], done: Callable[[], int], **options: Any) -> None:
        super().__init__(dataset, **options)
        self.done = done

    def __iter__(self) -> Iterator[Signal]:  # type: ignore[override]
        """Yield the remaining batches of the epoch."""
        cast(AddressSampler, self.sampler).skip = self.done() * cast(int, self.batch_size)
        yield from super().__iter__()


class InMemory(Dataset[Signal]):
    """Signals in memory, repeated until an epoch has ``length`` items.

    Args:
        items: The signals.
        length: Number of items of an epoch; the number of signals if None.
    """

    def __init__(self, items: Sequence[Signal], length: int | None = None) -> None:
        self.items = list(items)
        self.length = length or len(self.items)

    def __len__(self) -> int:
        """Return the number of items of an epoch."""
        return self.length

    def __getitem__(self, index: int) -> Signal:
        """Return signal ``index`` modulo the number of signals."""
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is out of range for {self.length} items")  # also ends iteration
        return self.items[index % len(self.items)]

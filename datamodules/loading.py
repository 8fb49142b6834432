"""Which items are loaded when: an order and random draws that depend on (seed, epoch, index) and on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from datamodules.batch import Signal
from datamodules.randomness import generator_at, seed_at

Address = tuple[int, int]
Augmentation = Callable[[Signal, torch.Generator], Signal]


class AddressSampler(DistributedSampler[Address]):
    """Yields (epoch, index) for the items of one process, so that any number of processes see the same global batches.

    Batch ``t`` of all processes together is the same set of items for any split of the same total batch size. Shuffled
    epochs drop what does not divide evenly; unshuffled ones neither drop nor repeat an item.

    Args:
        size: Items of the data set.
        shuffle: Whether to draw a new order every epoch.
        seed: Seed of the orders.
        rank: This process, from 0.
        world_size: Number of processes.
        skip: Items to leave out at the start of the first epoch, to go on where an interrupted run stopped.
    """

    def __init__(
        self, size: int, *, shuffle: bool, seed: int, rank: int = 0, world_size: int = 1, skip: int = 0
    ) -> None:
        super().__init__(range(size), num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.size = size
        self.skip = skip

    def __iter__(self) -> Iterator[Address]:
        """Yield the addresses of this process in this epoch."""
        skip, self.skip = self.skip, 0
        return iter([(self.epoch, index) for index in self._indices()[skip:]])

    def __len__(self) -> int:
        """Return the number of items of this process in a whole epoch."""
        return len(self._indices())

    def _indices(self) -> list[int]:
        """Return the indices of this process in this epoch."""
        if not self.shuffle:
            return list(range(self.rank, self.size, self.num_replicas))
        order = torch.randperm(self.size, generator=generator_at(self.seed, "order", self.epoch)).tolist()
        return order[self.rank : self.size - self.size % self.num_replicas : self.num_replicas]


class FixedSampler(AddressSampler, SequentialSampler):  # type: ignore[misc]
    """Yields the same addresses in every epoch, in order, for ``overfit_batches`` of the trainer.

    Items are those of epoch 0, so that their augmentation and noise stay the same too. The trainer takes a `SequentialSampler`
    as it is. Every process has as many items.
    """

    def _indices(self) -> list[int]:
        """Return the indices of this process."""
        return list(range(self.rank, self.size - self.size % self.num_replicas, self.num_replicas))

    def set_epoch(self, epoch: int) -> None:
        """Stay in epoch 0."""


class Addressed(Dataset[Signal]):
    """A data set read by (epoch, index): each item gets its seed and, in training, its augmentation.

    Args:
        dataset: The raw items, by index.
        augmentation: Applied with the item's own generator; None leaves items as they are.
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
    """A loader of training items that goes on where an interrupted epoch stopped.

    Where that was, and which epoch it is, it asks when the first batch is wanted: the trainer makes loaders, and iterators
    that prefetch, before it has restored its progress.

    Args:
        dataset: What `AddressSampler` addresses.
        done: Returns the batches of this epoch that are done already.
        options: Of `DataLoader`, its sampler an `AddressSampler`.
    """

    def __init__(self, dataset: Dataset[Signal], done: Callable[[], int], **options: Any) -> None:
        super().__init__(dataset, **options)
        self.done = done

    def __iter__(self) -> Iterator[Signal]:  # type: ignore[override]
        """Yield the batches that are left."""
        cast(AddressSampler, self.sampler).skip = self.done() * cast(int, self.batch_size)
        yield from super().__iter__()


class InMemory(Dataset[Signal]):
    """Signals in memory, repeated until an epoch has ``length`` items.

    Args:
        items: The signals.
        length: Items of an epoch; the number of signals if None.
    """

    def __init__(self, items: Sequence[Signal], length: int | None = None) -> None:
        self.items = list(items)
        self.length = length or len(self.items)

    def __len__(self) -> int:
        """Return the items of an epoch."""
        return self.length

    def __getitem__(self, index: int) -> Signal:
        """Return signal ``index``, counted round and round."""
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is not in an epoch of {self.length} items")  # which also ends iteration
        return self.items[index % len(self.items)]

"""A global batch size, from which the batch size per device and the number of accumulated batches follow."""

from __future__ import annotations

from typing import NamedTuple

from jsonargparse import SUPPRESS, ArgumentParser
from jsonargparse.typing import PositiveInt
from lightning import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from datamodules import CoordinateDataModule

_OPTION = "--global_batch_size"


class BatchSplit(NamedTuple):
    """A global batch, split over devices and over batches that are accumulated.

    Attributes:
        batch_size: Instances per device and batch.
        accumulated: Batches per optimizer step.
    """

    batch_size: int
    accumulated: int


def add_global_batch_option(parser: ArgumentParser, *, ignored: bool = False) -> None:
    """Add the option ``--global_batch_size``; if ignored, it is hidden, but still accepted in the config of a run.

    Args:
        parser: Parser of a command.
        ignored: Whether the command does not train.
    """
    description = (
        "Instances per optimizer step on all devices together. Every device gets an equal share, split into as few equal "
        "batches of at most data.init_args.batch_size as possible, whose gradients are accumulated."
    )
    help_text = SUPPRESS if ignored else description
    parser.add_argument(_OPTION, type=PositiveInt | None, default=None, help=help_text)


def split(global_batch_size: int, devices: int, largest: int) -> BatchSplit:
    """Split a global batch over devices into as few batches as possible.

    Args:
        global_batch_size: Instances per optimizer step.
        devices: Number of devices on all nodes.
        largest: Maximum batch size per device.

    Raises:
        ValueError: If the devices cannot have equal shares; the message names the nearest sizes that they can divide.

    Example:
        >>> split(64, devices=2, largest=16), split(30, devices=2, largest=4)
        (BatchSplit(batch_size=16, accumulated=2), BatchSplit(batch_size=3, accumulated=5))
    """
    share, rest = divmod(global_batch_size, devices)
    if rest:
        nearest = [size * devices for size in (share, share + 1) if size]
        raise ValueError(
            f"{_OPTION} is {global_batch_size}, which {devices} devices cannot share equally: use "
            f"{' or '.join(map(str, nearest))}, or another number of devices."
        )
    accumulated = next(count for count in range(1, share + 1) if share % count == 0 and share // count <= largest)
    return BatchSplit(share // accumulated, accumulated)


def apply_global_batch(trainer: Trainer, data: CoordinateDataModule, global_batch_size: int) -> None:
    """Set the batch size per device and the accumulation to those of a global batch; call it before loaders are created.

    Args:
        trainer: Trainer, which knows the number of devices.
        data: Data module, whose ``batch_size`` is the maximum per device.
        global_batch_size: Instances per optimizer step.

    Raises:
        ValueError: If the devices cannot share it equally, or the trainer is configured to accumulate batches itself.
    """
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(f"{_OPTION} sets the accumulation: remove it, or the callback GradientAccumulationScheduler.")
    devices = trainer.num_devices * trainer.num_nodes
    batch_size, accumulated = split(global_batch_size, devices, data.batch_size)
    if (configured := trainer.accumulate_grad_batches) != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches is {configured}, but {_OPTION} {global_batch_size} determines it ({accumulated} "
            f"batches of {batch_size} on {devices} device(s)): remove one of them."
        )
    limit = trainer.limit_train_batches
    if isinstance(limit, int) and limit % accumulated and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        nearest = [count * accumulated for count in (limit // accumulated, limit // accumulated + 1) if count]
        raise ValueError(
            f"trainer.limit_train_batches is {limit}, but a step of {_OPTION} {global_batch_size} takes {accumulated} "
            f"batches of {batch_size} on {devices} device(s): use {' or '.join(map(str, nearest))}."
        )
    data.batch_size, data.accumulated, trainer.accumulate_grad_batches = batch_size, accumulated, accumulated

"""Summary of a training run, printed before it, and the next command, printed after it."""

from __future__ import annotations

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch.utils.data import default_collate

from callbacks.baseline import observed_shape, size_of_instance
from callbacks.folders import planned_folder, relative_path
from callbacks.progress import ProgressBar as ProgressBar  # configs of earlier versions name it here
from composers.base import Composer
from composers.networks.frequencies import unreached_frequencies
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch


class StartSummary(Callback):
    """Print a summary of model and data before training, and the checkpoint and the next command after it."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary on the first process; all processes collect it, because the trainer synchronises them."""
        if not isinstance(pl_module, Composer):
            return
        table = Table(title=type(pl_module).__name__, show_header=False, title_justify="left")
        for name, value in self._facts(trainer, pl_module).items():
            table.add_row(name, value)
        if trainer.is_global_zero:
            Console().print(table)
            for warning in self._warnings(trainer, pl_module):
                Console(soft_wrap=True).print(f"warning: {warning}", markup=False, highlight=False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the path of the checkpoint, and the next command if the run wrote its config."""
        savers = trainer.checkpoint_callbacks
        paths = (getattr(saver, name, "") for name in ("last_model_path", "best_model_path") for saver in savers)
        path = next(filter(None, paths), None)
        folder = planned_folder(trainer)
        if not trainer.is_global_zero:
            return
        console = Console(soft_wrap=True)
        if path is None:
            console.print("No checkpoint was saved.")
            return
        console.print(f"Checkpoint: {(checkpoint := relative_path(path))}")
        if folder is not None and (config := folder / "config.yaml").is_file():
            console.print(f"Next: python cli.py test --config {relative_path(config)} --ckpt_path {checkpoint}")

    @staticmethod
    def _warnings(trainer: Trainer, composer: Composer) -> list[str]:
        """Return what a user may want to change before training."""
        data = getattr(trainer, "datamodule", None)
        unreached = unreached_frequencies(composer.network, data.spec) if isinstance(data, CoordinateDataModule) else ""
        return [unreached] if unreached else []

    def _facts(self, trainer: Trainer, composer: Composer) -> dict[str, str]:
        """Return the rows of the summary."""
        facts = {"parameters": f"{sum(parameter.numel() for parameter in composer.parameters()):,}"}
        facts |= composer.facts()
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, CoordinateDataModule):
            facts |= _data_facts(trainer, composer, data)
        facts["steps"] = f"{trainer.estimated_stepping_batches:,.0f}"
        facts["precision"] = str(trainer.precision)
        facts["device"] = f"{trainer.num_devices * trainer.num_nodes} x {composer.device.type}"
        folder = planned_folder(trainer)
        reason = "fast_dev_run" if trainer.fast_dev_run else "no logger"  # type: ignore[attr-defined]
        facts["output"] = f"nothing is written: {reason}" if folder is None else str(relative_path(folder))
        return facts


def _data_facts(trainer: Trainer, composer: Composer, data: CoordinateDataModule) -> dict[str, str]:
    """Return the rows of the data and of the code of an instance."""
    raw = default_collate([data.val_set[0]])
    batch: CoordinateBatch = trainer.strategy.batch_to_device(raw)
    with torch.no_grad():
        latents = composer.eval().encode(batch.observation)
    composer.train()
    numbers = sum(latent[0].numel() for latent in latents.values())
    complete = data.to_coordinates(raw)  # with all coordinates
    size, observed = size_of_instance(data.spec, complete, 0, numbers), observed_shape(complete)
    given = (
        f", for an input of {' x '.join(map(str, observed or ()))}" if observed not in (None, complete.shape) else ""
    )
    devices = trainer.num_devices * trainer.num_nodes
    accumulated = trainer.accumulate_grad_batches
    sizes = [f"{len(items):,}" if hasattr(items, "__len__") else "?" for items in (data.train_set, data.val_set)]
    return {
        "instance code": size.describe() + given,
        "data": f"{type(data).__name__} {tuple(data.signal_shape)}, {sizes[0]} training and {sizes[1]} validation items",
        "effective batch": f"{data.batch_size * devices * accumulated} = {data.batch_size} x {devices} device(s) "
        f"x {accumulated} accumulated",
    } | data.notes

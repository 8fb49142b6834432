"""Tables of samples for loggers that take tables, as that of Weights & Biases does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from torch.utils.data import Dataset

from callbacks.results import heading
from composers.base import Composer
from composers.latents import Latents, Layout
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Samples, instance_of
from datamodules.domain import Domain
from datamodules.spec import Modality
from modalities.drawing import Animation, Waveform

Medium = str | float | Image.Image | Waveform | Animation


def log_table(trainer: Trainer, key: str, rows: Sequence[Mapping[str, Medium]], step: int) -> None:
    """Send a table to every logger that takes tables; to be called on the first process.

    Args:
        trainer: Whose loggers are asked.
        key: Name of the table.
        rows: Cells by column, the columns the same in all rows; images and animations are shown, and audio can be heard.
        step: The optimizer step it belongs to.
    """
    for logger in table_loggers(trainer):
        with staged_below(Path(logger.save_dir or ".", "wandb")):
            data = [[_medium(cell) for cell in row.values()] for row in rows]
            logger.log_table(key, columns=list(rows[0]), data=data, step=step)


def table_loggers(trainer: Trainer) -> list[Any]:
    """Return the loggers that take tables, as Lightning's `WandbLogger` does."""
    return [
        logger
        for logger in trainer.loggers
        if not isinstance(logger, DummyLogger) and callable(getattr(logger, "log_table", None))
    ]


class ValidationTable(Callback):
    """Sends after every validation a table of the first validation samples to W&B, ``val/samples``: the same rows each time.

    The columns are those of the modality. Images have input, reconstruction and error x 5, audio has input, reconstruction and
    spectrograms of both. Scenes have support, query, prediction and refined, up to four views beside each other, and orbit, a
    small turntable video of the refinement. Signals of no particular modality have numbers only. The rows are made on the first
    process from the data set itself, so they do not depend on the number of devices. The refined number is that after the
    composer's own refinement, be there one in validation or not; its column is missing if it has no steps. Each validation
    costs the refinement of these samples, and the turntable videos of scenes.

    Args:
        num_samples: Rows.
        refinement_steps: At most so many steps before the refined number, for every validation waits; the composer's own if
            None.
        orbit_frames: Frames of the turntable video of a scene; 0 for none.

    Raises:
        ValueError: If a number is out of range, or, at set-up, if no logger takes tables.
    """

    def __init__(self, num_samples: int = 8, refinement_steps: int | None = None, orbit_frames: int = 12) -> None:
        if num_samples < 1 or (refinement_steps is not None and refinement_steps < 1) or orbit_frames < 0:
            raise ValueError(
                f"num_samples is {num_samples}, refinement_steps {refinement_steps}; they must be at least 1, "
                f"and orbit_frames, which is {orbit_frames}, at least 0."
            )
        self.num_samples = num_samples
        self.refinement_steps = refinement_steps
        self.orbit_frames = orbit_frames

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse loggers that take no tables."""
        if not any(callable(getattr(logger, "log_table", None)) for logger in trainer.loggers):
            found = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none"
            raise ValueError(
                f"ValidationTable fills a table of W&B, and no logger takes tables (found: {found}): "
                "add --config configs/overlays/wandb.yaml, or leave the callback out."
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the rows and send them."""
        data = getattr(trainer, "datamodule", None)
        if trainer.sanity_checking or not trainer.is_global_zero or not table_loggers(trainer):
            return
        assert isinstance(pl_module, Composer)
        assert isinstance(data, CoordinateDataModule)
        rows: list[dict[str, Medium]] = []
        with trainer.precision_plugin.val_step_context():
            for batch in _first(data.val_set, self.num_samples, data.eval_batch_size):
                moved = trainer.strategy.batch_to_device(data.collate(batch))
                rows += sample_rows(
                    pl_module, moved, data.spec.modality, data.spec.domain, self.refinement_steps, self.orbit_frames
                )
        log_table(trainer, "val/samples", rows, max(trainer.global_step - 1, 0))  # where Lightning puts val/psnr


def sample_rows(
    composer: Composer,
    batch: CoordinateBatch,
    modality: Modality,
    domain: Domain,
    refinement_steps: int | None = None,
    frames: int = 0,
) -> list[dict[str, Medium]]:
    """Return a row for every instance of a batch, as `ValidationTable` describes them.

    Args:
        composer: The model.
        batch: On its device.
        modality: Of the signals.
        domain: Of the signals.
        refinement_steps: At most so many; the composer's own if None.
        frames: Of the animation of an instance; 0 for none.
    """
    latents, layout = composer.encode(batch.observation), composer.layout(batch.observation)
    reconstructions = {0: composer.reconstruct(composer.compose(latents, layout), batch.query.coords)}
    if composer.refinement.steps and batch.observation.samples is not None:
        latents, step = _refined(composer, latents, layout, batch.observation.samples, refinement_steps)
        reconstructions[step] = composer.reconstruct(composer.compose(latents, layout), batch.query.coords)
    values = {step: reconstruction.values for step, reconstruction in reconstructions.items()}
    label = heading(modality.headline.metric, unit="")
    metric = modality.metrics().get(modality.headline.metric) or composer.measures[modality.headline.metric]
    numbers = {
        f"refined {label}" if step else label: metric.measure(reconstruction, batch.query, batch.shape).tolist()
        for step, reconstruction in reconstructions.items()
    }
    rows: list[dict[str, Medium]] = []
    for index, name in enumerate(batch.names):
        row: dict[str, Medium] = {"name": name}
        if batch.shape is not None and batch.query.values is not None:
            instance = instance_of(batch, index, domain, values)
            row |= modality.media(instance)
            modulations = composer.compose({key: latent[index : index + 1] for key, latent in latents.items()}, layout)
            animation = modality.animation(composer, modulations, instance, frames) if frames else None
            if animation is not None:
                row["orbit"] = animation
        rows.append(row | {column: of_instance[index] for column, of_instance in numbers.items()})
    return rows


def _refined(
    composer: Composer, latents: Latents, layout: Layout, samples: Samples, steps: int | None
) -> tuple[Latents, int]:
    """Return latents after the composer's own refinement, or its first steps, and how many these are."""
    own = composer.refinement
    refinement = own.with_steps(min(own.steps, steps or own.steps))
    return composer.refine(latents, samples, refinement, layout)[refinement.steps], refinement.steps


def _medium(medium: Medium) -> Any:
    """Return a medium as W&B takes it."""
    import wandb

    if isinstance(medium, Image.Image):
        return wandb.Image(medium)
    if isinstance(medium, Animation):
        return wandb.Video(BytesIO(medium.gif), format="gif")
    if isinstance(medium, Waveform):
        return wandb.Audio(medium.values.clamp(-1, 1).mT.numpy(), sample_rate=medium.sample_rate, caption=medium.label)
    return medium


def _first(dataset: Dataset[Any], number: int, at_once: int) -> Iterator[list[Any]]:
    """Yield the first items of a data set, a few at once."""
    indices = range(min(number, len(dataset)))  # type: ignore[arg-type]
    for start in range(0, len(indices), at_once):
        yield [dataset[index] for index in indices[start : start + at_once]]


@contextmanager
def staged_below(folder: Path) -> Iterator[None]:
    """Keep images that wait for a server in the folder of the run, not of the user, unless ``WANDB_DATA_DIR`` says where."""
    stated = "WANDB_DATA_DIR" in os.environ
    os.environ.setdefault("WANDB_DATA_DIR", str(folder))
    try:
        yield
    finally:
        if not stated:
            del os.environ["WANDB_DATA_DIR"]

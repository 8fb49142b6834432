"""Tables of samples for loggers that support tables, such as Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from torch.utils.data import Dataset

from callbacks.results import headline_metric
from composers.base import Composer
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, instance_of
from datamodules.domain import Domain
from datamodules.spec import Modality
from modalities.drawing import Animation, Model3D, Waveform

Medium = str | float | Image.Image | Waveform | Animation | Model3D


def log_table(trainer: Trainer, key: str, rows: Sequence[Mapping[str, Medium]], step: int) -> None:
    """Log a table with every logger that supports tables; call it on the first process only.

    Args:
        trainer: Trainer with the loggers.
        key: Name of the table.
        rows: Cells by column, with the same columns in all rows. Images, animations and audio are logged as media.
        step: Optimizer step of the table.
    """
    for logger in table_loggers(trainer):
        with staged_below(Path(logger.save_dir or ".", "wandb")):
            data = [[_medium(cell) for cell in row.values()] for row in rows]
            logger.log_table(key, columns=list(rows[0]), data=data, step=step)


def table_loggers(trainer: Trainer) -> list[Any]:
    """Return the loggers that support tables, such as Lightning's `WandbLogger`."""
    return [
        logger
        for logger in trainer.loggers
        if not isinstance(logger, DummyLogger) and callable(getattr(logger, "log_table", None))
    ]


class ValidationTable(Callback):
    """Log the first validation samples as the table ``val/samples`` to W&B after every validation.

    The modality determines the columns: input, reconstruction and error x 5 for images; input, reconstruction and the
    spectrograms of both for audio; support, query, prediction and refined (up to four views side by side) and orbit (a small
    turntable video of the refinement) for scenes; the observed points, the true surface, the reconstructed surface (a mesh to
    rotate), slices of its distances and orbit for shapes; the headline metric only for data without a modality. The samples are
    read from the data set on the first process and do not depend on the number of devices. The refined metric is measured after
    the refinement of the composer, even if validation does not refine; its column is missing if the refinement has no steps.
    Every validation takes the additional time of refining these samples and rendering the videos.

    Args:
        num_samples: Number of rows.
        refinement_steps: Maximum number of refinement steps; those of the composer if None.
        orbit_frames: Number of frames of the turntable video of a scene or shape; 0 for no video.

    Raises:
        ValueError: If a number is out of range, or, at set-up, if no logger supports tables.
    """

    def __init__(self, num_samples: int = 8, refinement_steps: int | None = None, orbit_frames: int = 12) -> None:
        if num_samples < 1 or (refinement_steps is not None and refinement_steps < 1) or orbit_frames < 0:
            raise ValueError(
                f"num_samples is {num_samples} and refinement_steps {refinement_steps}: both must be at least 1; "
                f"orbit_frames is {orbit_frames}: it must be at least 0."
            )
        self.num_samples = num_samples
        self.refinement_steps = refinement_steps
        self.orbit_frames = orbit_frames

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that a logger supports tables."""
        if not any(callable(getattr(logger, "log_table", None)) for logger in trainer.loggers):
            loggers = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none"
            raise ValueError(
                f"ValidationTable requires a logger that supports tables, such as W&B (loggers: {loggers}): add "
                "`--config configs/overlays/wandb.yaml` or remove the callback."
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the table."""
        data = getattr(trainer, "datamodule", None)
        if trainer.sanity_checking or not trainer.is_global_zero or not table_loggers(trainer):
            return
        assert isinstance(pl_module, Composer)
        assert isinstance(data, CoordinateDataModule)
        rows: list[dict[str, Medium]] = []
        with trainer.precision_plugin.val_step_context():
            for batch in _first_items(data.val_set, self.num_samples, data.eval_batch_size):
                on_device = trainer.strategy.batch_to_device(data.collate(batch))
                rows += sample_rows(
                    pl_module, on_device, data.spec.modality, data.spec.domain, self.refinement_steps, self.orbit_frames
                )
        log_table(trainer, "val/samples", rows, max(trainer.global_step - 1, 0))  # the step of `val/psnr`


def sample_rows(
    composer: Composer,
    batch: CoordinateBatch,
    modality: Modality,
    domain: Domain,
    refinement_steps: int | None = None,
    frames: int = 0,
) -> list[dict[str, Medium]]:
    """Return the row of every instance of a batch, as described in `ValidationTable`.

    Args:
        composer: Model.
        batch: Batch on the device of the model.
        modality: Modality of the signals.
        domain: Domain of the signals.
        refinement_steps: Maximum number of refinement steps; those of the composer if None.
        frames: Number of frames of the animation of an instance; 0 for no animation.
    """
    latents, layout = composer.encode(batch.observation), composer.layout(batch.observation)
    reconstructions = {0: composer.reconstruct(composer.compose(latents, layout), batch.query.coords)}
    if composer.refinement.steps and batch.observation.samples is not None:
        step = min(composer.refinement.steps, refinement_steps or composer.refinement.steps)
        refinement = composer.refinement.with_steps(step)
        latents = composer.refine(latents, batch.observation.samples, refinement, layout)[step]
        reconstructions[step] = composer.reconstruct(composer.compose(latents, layout), batch.query.coords)
    values = {step: reconstruction.values for step, reconstruction in reconstructions.items()}
    metric = headline_metric(composer, modality)
    label = metric.heading or modality.headline.metric
    measured = {
        f"refined {label}" if step else label: metric.measure(reconstruction, batch.query, batch.shape).tolist()
        for step, reconstruction in reconstructions.items()
    }
    rows: list[dict[str, Medium]] = []
    for index, name in enumerate(batch.names):
        row: dict[str, Medium] = {"name": name}
        if batch.shape is not None and batch.query.values is not None:
            instance = instance_of(batch, index, domain, values)
            reconstruction = composer.reconstruction(
                {key: latent[index : index + 1] for key, latent in latents.items()}, layout
            )
            row |= modality.media(composer, reconstruction, instance)
            animation = modality.animation(composer, reconstruction, instance, frames) if frames else None
            if animation is not None:
                row["orbit"] = animation
        rows.append(row | {column: metrics[index] for column, metrics in measured.items()})
    return rows


def _medium(medium: Medium) -> Any:
    """Return a medium as the type that W&B logs."""
    import wandb

    if isinstance(medium, Image.Image):
        return wandb.Image(medium)
    if isinstance(medium, Animation):
        return wandb.Video(BytesIO(medium.gif), format="gif")
    if isinstance(medium, Model3D):
        return wandb.Object3D(StringIO(medium.obj), file_type="obj")
    if isinstance(medium, Waveform):
        return wandb.Audio(medium.values.clamp(-1, 1).mT.numpy(), sample_rate=medium.sample_rate, caption=medium.label)
    return medium


def _first_items(dataset: Dataset[Any], number: int, batch_size: int) -> Iterator[list[Any]]:
    """Yield the first items of a data set in batches."""
    indices = range(min(number, len(dataset)))  # type: ignore[arg-type]
    for start in range(0, len(indices), batch_size):
        yield [dataset[index] for index in indices[start : start + batch_size]]


@contextmanager
def staged_below(folder: Path) -> Iterator[None]:
    """Stage media for upload in ``folder`` instead of the home folder, unless ``WANDB_DATA_DIR`` is set."""
    is_set = "WANDB_DATA_DIR" in os.environ
    os.environ.setdefault("WANDB_DATA_DIR", str(folder))
    try:
        yield
    finally:
        if not is_set:
            del os.environ["WANDB_DATA_DIR"]

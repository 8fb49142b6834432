"""The figure of spectrograms: held-out audio beside what the model makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from callbacks.folders import output_folder, relative_path
from composers.evaluation import Evaluation
from composers.metrics import instance_mse, psnr_of_mse
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch
from modalities.audio import sampling_rate, save_wav
from modalities.spectrogram import Panel, draw, pieces_of_sound, save_figure

if TYPE_CHECKING:
    pass


class SpectrogramSheet(Callback):
    """Writes after a test a PNG of spectrograms, held-out clips beside their prediction and their refinement, and their sound.

    The clips are in a folder beside it: ``clips/NAME.original.wav``, ``NAME.predicted.wav`` and ``NAME.refined.wav``, the last
    only where the test refines.

    Args:
        filename: Of the PNG, in the folder of the run.
        num_clips: Rows, the first clips of the test set.
        folder: Of the clips, in the folder of the run.

    Raises:
        ValueError: If the number is not positive.
    """

    def __init__(self, filename: str = "spectrograms.png", num_clips: int = 6, folder: str = "clips") -> None:
        if num_clips < 1:
            raise ValueError(f"num_clips is {num_clips}; it must be at least 1.")
        self.filename = filename
        self.num_clips = num_clips
        self.folder = folder
        self.rows: list[list[Panel]] = []
        self.place: Path | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget earlier rows, and refuse data that are no sound before the test takes its time.

        Raises:
            ValueError: If signals have more axes than one.
        """
        axes = _data(trainer).coord_dim
        if axes != 1:
            raise ValueError(
                f"SpectrogramSheet draws sound, and these signals have {axes} axes: leave the callback out."
            )
        self.rows, self.place = [], output_folder(trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep rows until there are enough, and write their sound."""
        wanted = self.num_clips - len(self.rows)
        if self.place is None or wanted <= 0 or not trainer.is_global_zero:
            return
        folder = self.place / self.folder
        for name, panels in _panels(outputs, batch, _data(trainer).coord_range)[:wanted]:
            for kind, panel in panels.items():
                save_wav(panel.values, panel.rate, folder / f"{name}.{kind}.wav")
            self.rows.append(list(panels.values()))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the sheet."""
        if self.place is not None and self.rows and trainer.is_global_zero:
            path = self.place / self.filename
            save_figure(draw(self.rows, width=4.2), path)
            told = f"Spectrograms: {relative_path(path)}; the clips: {relative_path(path.parent / self.folder)}"
            Console(soft_wrap=True).print(told)


def _panels(
    evaluation: Evaluation, batch: CoordinateBatch, coord_range: tuple[float, float]
) -> list[tuple[str, dict[str, Panel]]]:
    """Return of every clip of a batch its name, and by kind the original, the prediction and the refinement."""
    assert batch.shape is not None, "test batches hold whole clips"
    query = batch.query
    assert query.values is not None
    rate = sampling_rate(batch.shape[0], coord_range)
    columns = {"original": zip(batch.names, pieces_of_sound(query.values, query.mask), strict=True)}
    for step in sorted({0, max(evaluation["values"])}):
        values, made = evaluation["values"][step], f"{step} steps" if step else "predicted"
        decibels = psnr_of_mse(instance_mse(values, query)).tolist()
        labels = [f"{made} {psnr:.1f} dB" for psnr in decibels]
        columns["refined" if step else "predicted"] = zip(labels, pieces_of_sound(values, query.mask), strict=True)
    rows = zip(*([Panel(label, values, rate) for label, values in column] for column in columns.values()), strict=True)
    return [(name, dict(zip(columns, row, strict=True))) for name, row in zip(batch.names, rows, strict=True)]


def _data(trainer: Trainer) -> CoordinateDataModule:
    """Return the data module."""
    data = getattr(trainer, "datamodule", None)
    assert isinstance(data, CoordinateDataModule)
    return data

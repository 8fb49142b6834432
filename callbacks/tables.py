"""Tables of samples for loggers that take tables, as that of Weights & Biases does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from composers.base import Composer
from composers.inference.refinement import Latents
from composers.metrics import instance_mse, psnr_of_mse
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Samples, Views
from modalities.audio import sampling_rate
from modalities.images import picture
from modalities.spectrogram import Panel, draw, figure_picture, pieces_of_sound
from modalities.turntable import Camera, orbit_frames, write_gif
from modalities.view_metrics import ViewPSNR

if TYPE_CHECKING:
    pass


class Film(NamedTuple):
    """A film.

    Attributes:
        gif: The content of a GIF.
    """

    gif: bytes


Cell = str | float | Image.Image | Panel | Film
_PSNR = {"prediction": "PSNR", "refined": "refined PSNR"}  # columns of what is rendered
_MOST_VIEWS = 4  # of one instance that are shown beside each other
_ORBIT_SIZE = 64  # pixels of the longer side of a film, for every validation waits
_ORBIT_SECONDS = 3.0


def log_table(trainer: Trainer, key: str, rows: Sequence[Mapping[str, Cell]], step: int) -> None:
    """Send a table to every logger that takes tables; to be called on the first process.

    Args:
        trainer: Whose loggers are asked.
        key: Name of the table.
        rows: Cells by column, the columns the same in all rows; pictures and films are shown, and clips of sound can be heard.
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

    Pictures have the columns input, reconstruction and error x 5, sound the columns input, reconstruction and spectrograms of
    both. Scenes have the columns support, query, prediction and refined, up to four views beside each other, and orbit, a small
    film around the object as refined. Other signals have numbers only. The rows are made on the first process from the data set
    itself, so they do not depend on the number of devices. The refined PSNR is that after the composer's own refinement, be
    there one in validation or not; its column is missing if it has no steps. Each validation costs the refinement of these
    samples, and the films of scenes.

    Args:
        num_samples: Rows.
        refinement_steps: At most so many steps before the refined PSNR, for every validation waits; the composer's own if None.
        orbit_frames: Pictures of the film around a scene; 0 for none.

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
        rows: list[dict[str, Cell]] = []
        with trainer.precision_plugin.val_step_context():
            for batch in _first(data.val_set, self.num_samples, data.eval_batch_size):
                moved = trainer.strategy.batch_to_device(data.collate(batch))
                rows += sample_rows(pl_module, moved, self.refinement_steps, data.coord_range, self.orbit_frames)
        log_table(trainer, "val/samples", rows, max(trainer.global_step - 1, 0))  # where Lightning puts val/psnr


def sample_rows(
    composer: Composer,
    batch: CoordinateBatch,
    refinement_steps: int | None = None,
    coord_range: tuple[float, float] = (-1.0, 1.0),
    frames: int = 0,
) -> list[dict[str, Cell]]:
    """Return a row for every instance of a batch, as `ValidationTable` describes them.

    Args:
        composer: The model.
        batch: On its device.
        refinement_steps: At most so many; the composer's own if None.
        coord_range: Ends of the coordinates, from which the rate of sound follows.
        frames: Pictures of the film around a scene; 0 for none.
    """
    latents = composer.encode(batch.observation)
    values = {"prediction": composer.render(composer.compose(latents), batch.query.coords)}
    if composer.refinement.steps and batch.observation.samples is not None:
        latents = _refined(composer, latents, batch.observation.samples, refinement_steps)
        values["refined"] = composer.render(composer.compose(latents), batch.query.coords)
    numbers = {_PSNR[name]: _psnr(batch, found).tolist() for name, found in values.items()}
    rows: list[dict[str, Cell]] = []
    for index, name in enumerate(batch.names):
        row: dict[str, Cell] = {"name": name} | _media(batch, values, index, coord_range)
        if frames and isinstance(batch.observation.signal, Views):
            row["orbit"] = _orbit(composer, latents, batch.observation.signal, index, frames)
        rows.append(row | {column: of_instance[index] for column, of_instance in numbers.items()})
    return rows


def _psnr(batch: CoordinateBatch, values: Tensor) -> Tensor:
    """Return the PSNR of every instance ``(B,)``; of scenes the mean of their views."""
    if isinstance(batch.observation.signal, Views):
        return ViewPSNR().measure(values, batch.query, batch.shape)
    return psnr_of_mse(instance_mse(values, batch.query))


def _refined(composer: Composer, latents: Latents, samples: Samples, steps: int | None) -> Latents:
    """Return latents after the composer's own refinement, or its first steps."""
    own = composer.refinement
    refinement = own.with_steps(min(own.steps, steps or own.steps))
    return composer.refine(latents, samples, refinement)[refinement.steps]


def _media(
    batch: CoordinateBatch, values: Mapping[str, Tensor], index: int, coord_range: tuple[float, float]
) -> dict[str, Cell]:
    """Return what can be seen or heard of one instance, of values ``(B, N, C)``; nothing of signals of another kind."""
    found = values["prediction"]
    if batch.shape is None or batch.query.values is None:
        return {}
    if isinstance(batch.observation.signal, Views):
        true = {"query": batch.query.values[index]} | {name: some[index] for name, some in values.items()}
        pictures = {column: _strip(some, batch.shape) for column, some in true.items()}
        return {"support": _support(batch.observation.signal.images[index]), **pictures}
    if len(batch.shape) == 2 and found.shape[-1] in (1, 3):
        return _pictures(batch.query.values[index], found[index], batch.shape)
    return _sounds(batch, found, index, sampling_rate(batch.shape[0], coord_range)) if len(batch.shape) == 1 else {}


def _support(images: Tensor) -> Image.Image:
    """Return views ``(V, 3, H, W)`` side by side."""
    return _strip(images.movedim(1, -1).flatten(0, 2), (len(images), *images.shape[2:]))


def _strip(values: Tensor, shape: tuple[int, ...]) -> Image.Image:
    """Return the first of as many views as ``shape (V, H, W)`` says side by side, of values ``(V H W, 3)``."""
    views = values.unflatten(0, shape)[:_MOST_VIEWS]
    return picture(views.transpose(0, 1).flatten(0, 2), (shape[1], len(views) * shape[2]))


def _orbit(composer: Composer, latents: Latents, views: Views, index: int, count: int) -> Film:
    """Return the film around one instance of a batch, as far away as the views ``(B, V, ...)`` of it."""
    modulations = composer.compose({name: latent[index : index + 1] for name, latent in latents.items()})
    own = Views(*(part[index] for part in views))
    camera = Camera.of(own, min(_ORBIT_SIZE, max(own.images.shape[-2:])))
    frames = [colour for colour, _ in orbit_frames(composer, modulations, camera, count)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "orbit.gif")
        write_gif(frames, path, _ORBIT_SECONDS)
        return Film(path.read_bytes())


def _pictures(target: Tensor, found: Tensor, shape: tuple[int, ...]) -> dict[str, Cell]:
    """Return the pictures of one instance, of values ``(N, C)``."""
    error = (found.float() - target.float()).abs() * 5
    columns = {"input": target, "reconstruction": found, "error x 5": error}
    return {column: picture(values, shape) for column, values in columns.items()}


def _sounds(batch: CoordinateBatch, found: Tensor, index: int, rate: int) -> dict[str, Cell]:
    """Return the sound of one instance, of values ``(B, N, C)``, and its spectrograms."""
    assert batch.query.values is not None
    mask = None if batch.query.mask is None else batch.query.mask[index, None]
    both = [pieces_of_sound(values[index, None], mask)[0] for values in (batch.query.values, found)]
    heard, made = (Panel(label, values, rate) for label, values in zip(("input", "reconstruction"), both, strict=True))
    spectrograms = figure_picture(draw([[heard], [made]], width=4.2))
    return {"input": heard, "reconstruction": made, "spectrograms": spectrograms}


def _medium(cell: Cell) -> Any:
    """Return a cell as W&B takes it."""
    import wandb

    if isinstance(cell, Image.Image):
        return wandb.Image(cell)
    if isinstance(cell, Film):
        return wandb.Video(BytesIO(cell.gif), format="gif")
    if isinstance(cell, Panel):
        return wandb.Audio(cell.values.clamp(-1, 1).mT.numpy(), sample_rate=cell.rate, caption=cell.label)
    return cell


def _first(dataset: Dataset[Any], number: int, at_once: int) -> Iterator[list[Any]]:
    """Yield the first items of a data set, a few at once."""
    indices = range(min(number, len(dataset)))  # type: ignore[arg-type]
    for start in range(0, len(indices), at_once):
        yield [dataset[index] for index in indices[start : start + at_once]]


@contextmanager
def staged_below(folder: Path) -> Iterator[None]:
    """Keep pictures that wait for a server in the folder of the run, not of the user, unless ``WANDB_DATA_DIR`` says where."""
    stated = "WANDB_DATA_DIR" in os.environ
    os.environ.setdefault("WANDB_DATA_DIR", str(folder))
    try:
        yield
    finally:
        if not stated:
            del os.environ["WANDB_DATA_DIR"]

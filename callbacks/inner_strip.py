"""The strip of an inner loop: held-out instances beside what the network makes of them after every reported step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from rich.console import Console
from torch import Tensor

from callbacks.folders import output_folder, relative_path
from callbacks.results import inner_steps
from callbacks.tables import Cell, log_table, table_loggers
from callbacks.view_sheet import object_of
from composers.base import Composer
from composers.inference.inner_settings import InnerLoop
from composers.meta_learned import MetaLearned
from composers.metrics import instance_mse, psnr_of_mse
from composers.networks import Modulations
from composers.rendering import RayRenderer
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, Samples, Views
from modalities.audio import sampling_rate
from modalities.drawing import sheet
from modalities.images import picture, save_picture
from modalities.spectrogram import Panel, draw, save_figure
from modalities.views import chunk_of_points, look

_NARROWEST, _WIDEST = 160, 256  # pixels of a cell, which needs room for its label and has many beside it
_LETTERS = 24  # that have room above the narrowest cell
_PANEL = (2.4, 1.8)  # hundreds of pixels of a spectrogram


class Frame(NamedTuple):
    """What is shown of an instance.

    Attributes:
        step: After so many inner steps; None for the instance itself.
        label: What stands above it.
        psnr: In dB, of what is shown; None for the instance itself.
        values: ``(N, C)``, on the CPU.
    """

    step: int | None
    label: str
    psnr: float | None
    values: Tensor


class Strip(NamedTuple):
    """The row of an instance.

    Attributes:
        name: Of the instance.
        shape: ``(n,)`` of sound, ``(H, W)`` of a picture or a view.
        frames: The instance itself, then what the network makes of it, step by step.
    """

    name: str
    shape: tuple[int, ...]
    frames: list[Frame]


class InnerStrip(Callback):
    """Writes after a test of a meta-learned model a PNG, a row per instance: itself, and what the inner loop makes of it.

    The numbers of steps are those of the report of the inner loop: 0 is the learned start, the same for all; those of training
    and of the test are marked, and those beyond show what further steps do. Of scenes it shows the middle query view, of
    different objects, of sound spectrograms. The rows are sent as the table ``test/inner_steps`` to
    loggers that take tables, as that of W&B does. Other models, and signals of another kind, have no strip.

    Args:
        filename: Of the PNG, in the folder of the run.
        num_pictures: Rows, the first instances of the test set; not more than a batch has.
        max_memory: MB that rendering may take above the model and what is shown.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(self, filename: str = "inner_steps.png", num_pictures: int = 4, max_memory: float = 500.0) -> None:
        if num_pictures < 1 or not max_memory > 0:
            raise ValueError(f"num_pictures is {num_pictures}, max_memory {max_memory}: at least 1, and above 0.")
        self.filename = filename
        self.num_pictures = num_pictures
        self.max_memory = max_memory
        self.rows: list[Strip] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget earlier rows."""
        self.rows = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the steps again on the first instances of the first batch."""
        if batch_idx == 0 and trainer.is_global_zero and isinstance(pl_module, MetaLearned) and _can_be_shown(batch):
            with trainer.precision_plugin.test_step_context():
                self.rows = strips(pl_module, batch, self.num_pictures, self.max_memory)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the strip, and send it."""
        folder = output_folder(trainer)
        if folder is None or not self.rows or not trainer.is_global_zero:
            return
        path = folder / self.filename
        data = getattr(trainer, "datamodule", None)
        assert isinstance(data, CoordinateDataModule)
        shown = [[_cell(frame, strip.shape, data.coord_range) for frame in strip.frames] for strip in self.rows]
        panels = [[cell for cell in row if isinstance(cell, Panel)] for row in shown]
        if panels[0]:
            save_figure(draw(panels, *_PANEL), path)
        else:
            labels = [[frame.label for frame in strip.frames] for strip in self.rows]
            pictures = [[cell for cell in row if isinstance(cell, Image.Image)] for row in shown]
            save_picture(sheet([list(zip(*row, strict=True)) for row in zip(labels, pictures, strict=True)]), path)
        Console(soft_wrap=True).print(f"Inner steps: {relative_path(path)}")
        if table_loggers(trainer):
            table = [_table_row(strip, cells) for strip, cells in zip(self.rows, shown, strict=True)]
            log_table(trainer, "test/inner_steps", table, trainer.global_step)


def strips(composer: MetaLearned, batch: CoordinateBatch, number: int, max_memory: float = 500.0) -> list[Strip]:
    """Return the rows of the first instances of a batch; none if the report of the inner loop is empty.

    Args:
        composer: The model.
        batch: On its device, of whole signals with values.
        number: Of rows, at most.
        max_memory: MB that rendering may take above the model and what is shown.
    """
    loop = composer.inner_loop
    if not loop.report:
        return []
    chosen = _chosen(batch, number)
    asked = [_asked(batch, index) for index in chosen]
    names = [_shown_name(batch, index) for index in chosen]
    rows = [Strip(name, shape, [_itself(name, part)]) for name, (part, shape) in zip(names, asked, strict=True)]
    for step, latents in composer.trajectory(_observed(batch, chosen), loop.report):
        for place, (row, (part, _)) in enumerate(zip(rows, asked, strict=True)):
            with torch.no_grad():
                modulations = composer.compose({name: latent[place : place + 1] for name, latent in latents.items()})
                values = _rendered(composer, modulations, part.coords, max_memory)
            row.frames.append(_frame(step, values, part, loop))
    return rows


def _can_be_shown(batch: CoordinateBatch) -> bool:
    """Return whether instances are pictures, views of scenes, or sound."""
    if batch.shape is None or batch.query.values is None:
        return False
    views, colours = isinstance(batch.observation.signal, Views), batch.query.values.shape[-1] in (1, 3)
    return views or len(batch.shape) == 1 or (len(batch.shape) == 2 and colours)


def _chosen(batch: CoordinateBatch, number: int) -> list[int]:
    """Return the first instances of a batch; of several draws from one object the first."""
    names = [_shown_name(batch, index) for index in range(len(batch.names))]
    return [index for index, name in enumerate(names) if name not in names[:index]][:number]


def _shown_name(batch: CoordinateBatch, index: int) -> str:
    """Return the name of an instance, of a scene that of the object."""
    name = batch.names[index]
    return object_of(name) if isinstance(batch.observation.signal, Views) else name


def _asked(batch: CoordinateBatch, index: int) -> tuple[Samples, tuple[int, ...]]:
    """Return what of an instance is shown, ``(N, D)`` and ``(N, C)``, without padding, and how it unflattens."""
    assert batch.shape is not None
    assert batch.query.values is not None
    coords = batch.query.coords if batch.query.coords.dim() == 2 else batch.query.coords[index]
    values, shape = batch.query.values[index], batch.shape
    if isinstance(batch.observation.signal, Views):
        coords, values = (part.unflatten(0, (shape[0], -1))[shape[0] // 2] for part in (coords, values))
        return Samples(coords, values), shape[1:]
    if batch.query.mask is not None and len(shape) == 1:
        kept = batch.query.mask[index]
        coords, values = coords[kept], values[kept]
    return Samples(coords, values), shape


def _observed(batch: CoordinateBatch, chosen: Sequence[int]) -> Observation:
    """Return what a composer adapts to, of some instances."""
    samples = batch.observation.samples
    assert samples is not None, "an inner loop has adapted to this batch"
    places = list(chosen)
    coords = samples.coords if samples.coords.dim() == 2 else samples.coords[places]
    values, mask = (None if part is None else part[places] for part in (samples.values, samples.mask))
    return Observation(None, Samples(coords, values, mask))


def _rendered(composer: Composer, modulations: Modulations, coords: Tensor, max_memory: float) -> Tensor:
    """Return values ``(N, C)`` of one instance on the CPU, rendered a part at a time."""
    if isinstance(composer.renderer, RayRenderer):
        return look(composer, modulations, coords, max_memory).colours
    parts = coords.split(max(1, chunk_of_points(composer, max_memory)))
    return torch.cat([composer.render(modulations, part)[0].float().cpu() for part in parts])


def _itself(name: str, part: Samples) -> Frame:
    """Return an instance as it is."""
    assert part.values is not None
    return Frame(None, name if len(name) <= _LETTERS else f"{name[: _LETTERS - 3]}...", None, part.values.float().cpu())


def _frame(step: int, values: Tensor, part: Samples, loop: InnerLoop) -> Frame:
    """Return what the network makes of an instance after some steps, with its PSNR."""
    assert part.values is not None
    true = Samples(part.coords.cpu(), part.values.float().cpu()[None])
    psnr = psnr_of_mse(instance_mse(values[None], true)).item()
    note = {loop.test_steps: ", tested", loop.steps: ", trained", 0: ", start"}.get(step, "")
    made = f"{step} step{'' if step == 1 else 's'}{note}"
    return Frame(step, f"{made} {psnr:.1f} dB" if math.isfinite(psnr) else f"{made}, diverged", psnr, values)


def _cell(frame: Frame, shape: tuple[int, ...], coord_range: tuple[float, float]) -> Image.Image | Panel:
    """Return what is drawn of a frame."""
    values = frame.values.nan_to_num(0, 1, 0)
    if len(shape) == 1:
        return Panel(frame.label, values.mT, sampling_rate(shape[0], coord_range))
    return _sized(picture(values, shape))


def _sized(image: Image.Image) -> Image.Image:
    """Return a picture as wide as a cell may be: a small one enlarged by a whole number, a large one reduced.

    Example:
        >>> [_sized(Image.new("RGB", (width, 64))).size for width in (32, 178, 512)]
        [(160, 320), (178, 64), (256, 32)]
    """
    scale = math.ceil(_NARROWEST / image.width)
    if scale > 1:
        return image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
    if image.width <= _WIDEST:
        return image
    return image.resize((_WIDEST, max(1, round(image.height * _WIDEST / image.width))), Image.Resampling.LANCZOS)


def _table_row(strip: Strip, cells: Sequence[Image.Image | Panel]) -> dict[str, Cell]:
    """Return the row of an instance in the table of W&B."""
    row: dict[str, Cell] = {"name": strip.name}
    for frame, cell in zip(strip.frames, cells, strict=True):
        row["original" if frame.step is None else inner_steps(frame.step)] = cell
    return row | {f"PSNR@{frame.step}": frame.psnr for frame in strip.frames if frame.psnr is not None}

"""The sheet of views: held-out objects from new sides, beside what the model makes of them, and films around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from rich.console import Console

from callbacks.folders import output_folder, relative_path
from composers.base import Composer
from composers.evaluation import Evaluation
from composers.networks import Modulations
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Samples
from modalities.drawing import sheet
from modalities.images import picture, save_picture
from modalities.turntable import Camera, beside, orbit_frames, write_gif
from modalities.view_metrics import view_psnr
from modalities.views import Scene, depth_pictures, look, on_page, scene_of, support_pictures

_LABEL = 18  # letters of a name that stand above a view
_ELEVATION, _SECONDS = 30.0, 4.0  # of the films

Cell = tuple[str, Image.Image]


class ViewSheet(Callback):
    """Writes after a test a PNG, a row per object: the support views, a view held back, and what the model makes of it.

    That view is the middle one of the query views; beside the truth stand the prediction, the refinement where the test
    refines, each with its PSNR, and the depth of the last. The rows are of different objects: where a test draws
    several times from one, as OBJECT.000, OBJECT.001 and so on, its first draw. A folder beside holds a film around each.

    Args:
        filename: Of the PNG, in the folder of the run.
        num_objects: Rows, the first objects of the test set.
        folder: Of the films, in the folder of the run.
        frames: Of a film; 0 for no films.
        max_memory: MB that rendering may take above the model and the pictures.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        filename: str = "views.png",
        num_objects: int = 6,
        folder: str = "orbits",
        frames: int = 24,
        max_memory: float = 500.0,
    ) -> None:
        if num_objects < 1 or frames < 0 or not max_memory > 0:
            raise ValueError(
                f"num_objects is {num_objects}, frames {frames}, max_memory {max_memory}: at least 1, 0, and above 0."
            )
        self.filename = filename
        self.num_objects = num_objects
        self.folder = folder
        self.frames = frames
        self.max_memory = max_memory
        self.rows: dict[str, list[Cell]] = {}
        self.place: Path | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget earlier rows, and refuse data that are no scenes before the test takes its time.

        Raises:
            ValueError: If signals are no views of scenes.
        """
        data = getattr(trainer, "datamodule", None)
        assert isinstance(data, CoordinateDataModule)
        if data.coord_dim != 6:
            raise ValueError(
                f"ViewSheet draws scenes, and these signals have {data.coord_dim} axes: leave the callback out."
            )
        self.rows, self.place = {}, output_folder(trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CoordinateBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the objects that are new until there are enough."""
        if self.place is None or not trainer.is_global_zero or not isinstance(pl_module, Composer):
            return
        for index, name in enumerate(batch.names):
            thing = object_of(name)
            if len(self.rows) < self.num_objects and thing not in self.rows:
                self.rows[thing] = self._draw(pl_module, outputs, batch, index)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the sheet."""
        if self.place is None or not self.rows or not trainer.is_global_zero:
            return
        path = self.place / self.filename
        save_picture(sheet(list(self.rows.values())), path)
        films = f"; films: {relative_path(path.parent / self.folder)}" if self.frames else ""
        Console(soft_wrap=True).print(f"Views: {relative_path(path)}{films}")

    def _draw(self, composer: Composer, evaluation: Evaluation, batch: CoordinateBatch, index: int) -> list[Cell]:
        """Return the row of one object, and write its film."""
        last, thing = max(evaluation["latents"]), object_of(batch.names[index])
        scene = scene_of(batch, index, {step: evaluation["values"][step] for step in sorted({0, last})})
        latents = {name: latent[index : index + 1] for name, latent in evaluation["latents"][last].items()}
        with torch.no_grad():
            modulations = composer.compose(latents)
        if self.frames:
            self._film(composer, modulations, scene, thing)
        cells = [("", image) for image in support_pictures(scene.support)]
        cells[0] = (_short(thing), cells[0][1])
        cells += _middle_view(composer, modulations, scene, self.max_memory)
        return [(label, on_page(image)) for label, image in cells]

    def _film(self, composer: Composer, modulations: Modulations, scene: Scene, name: str) -> None:
        """Write the film around an object."""
        camera = Camera.of(scene.support)
        pairs = orbit_frames(composer, modulations, camera, self.frames, _ELEVATION, self.max_memory)
        assert self.place is not None, "nothing is drawn without a folder"
        write_gif([beside(pair) for pair in pairs], self.place / self.folder / f"{name}.gif", _SECONDS)


def object_of(name: str) -> str:
    """Return the object of an instance, whose name may end with the number of a draw in three digits.

    Example:
        >>> object_of("chairs/1a6f.004"), object_of("mug.v2")
        ('chairs/1a6f', 'mug.v2')
    """
    thing, _, draw = name.rpartition(".")
    return thing if thing and len(draw) == 3 and draw.isdecimal() else name


def _middle_view(composer: Composer, modulations: Modulations, scene: Scene, max_memory: float) -> list[Cell]:
    """Return the truth of the middle query view, what the model makes of it, and its depth."""
    assert scene.true is not None, "a test has values to compare with"
    view, shape = scene.shape[0] // 2, scene.shape[1:]
    one = [values.unflatten(0, (scene.shape[0], -1))[view] for values in (scene.rays, scene.true)]
    cells = [("truth", picture(one[1], shape))]
    for step, values in scene.made.items():
        psnr = view_psnr(values[None], Samples(scene.rays, scene.true[None]), scene.shape)[0, view]
        image = picture(values.unflatten(0, (scene.shape[0], -1))[view], shape)
        cells.append((f"{f'{step} steps' if step else 'predicted'} {psnr:.1f} dB", image))
    [depth] = depth_pictures([look(composer, modulations, one[0], max_memory)], shape)
    return cells if depth is None else [*cells, ("depth", depth)]


def _short(name: str) -> str:
    """Return a name that has room above a view."""
    return name if len(name) <= _LABEL else f"{name[: _LABEL - 3]}..."

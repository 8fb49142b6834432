"""What a prediction writes of scenes: a film around the object, its views, the instance code, a mesh, and a table."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from typing import ClassVar

import torch
from lightning import LightningModule, Trainer
from PIL import Image
from rich.console import Console

from callbacks.predictions import Part, Predictions, Row
from composers.base import Composer
from composers.codes import InstanceCode
from composers.networks import Modulations
from datamodules.base import CoordinateDataModule
from datamodules.batch import Samples
from datamodules.tiles import whole
from modalities.drawing import sheet
from modalities.images import error_picture, save_picture
from modalities.surfaces import density_renderer, save_ply, surface
from modalities.turntable import HOW_TO_MP4, Camera, beside, encoder, orbit_frames, write_gif, write_mp4
from modalities.view_metrics import ViewPSNR, WhiteView, view_psnr
from modalities.views import Scene, depth_pictures, depth_range, look, on_page, support_pictures, view_pictures

Cell = tuple[str, Image.Image]


class ScenePredictions(Predictions):
    """Writes what a model makes of every scene: a film around it, all views beside the truth, its code, and a mesh.

    For a scene called NAME these are NAME.gif, colour and depth from all around; NAME.png, the support views and of every
    query view the truth, the prediction, five times its error and the depth; NAME.safetensors; NAME.mp4 and NAME.ply where
    asked for; and a row of predictions.csv: the PSNR of what was predicted and refined and of white pictures, means over the
    query views, NaN where these have no pictures to compare with.

    Args:
        folder: Where to; made if it is missing. One that holds other things than earlier predictions is refused.
        frames: Of the film, at least 2.
        size: Pixels of the longer side of a frame; those of the views if None.
        elevation: Degrees of the camera above the horizontal plane, between -90 and 90.
        seconds: Of one round of the film.
        mesh: Whether to write NAME.ply, the surface in colours; only for models with a density.
        mesh_resolution: Points along each side of the cube in which the surface is searched, at least 2.
        mesh_level: The density at which the surface lies; where a sample of a ray is half opaque if None.
        mp4: Whether to write NAME.mp4; where no encoder is at hand, a line says how to get one.
        max_memory: MB that rendering may take above the model and the pictures.

    Raises:
        ValueError: If a number is out of range.
    """

    axes = 6
    results = "Films, views, codes"
    headings = ("scene", "pixels")
    counted = "views"
    numbers: ClassVar = {"psnr predicted": "predicted", "psnr refined": "refined", "white": "white"}

    def __init__(
        self,
        folder: str = "predictions",
        frames: int = 48,
        size: int | None = None,
        elevation: float = 30.0,
        seconds: float = 4.0,
        mesh: bool = False,
        mesh_resolution: int = 128,
        mesh_level: float | None = None,
        mp4: bool = False,
        max_memory: float = 500.0,
    ) -> None:
        super().__init__(folder)
        if frames < 2 or mesh_resolution < 2 or (size is not None and size < 1):
            raise ValueError(
                f"frames is {frames}, mesh_resolution {mesh_resolution}, size {size}: at least 2, 2 and 1."
            )
        if mesh_level is not None and mesh_level <= 0:
            raise ValueError(f"mesh_level is {mesh_level}; it must be positive.")
        if not (seconds > 0 and max_memory > 0 and -90 <= elevation <= 90):
            raise ValueError(
                f"seconds is {seconds}, max_memory {max_memory}, elevation {elevation}: seconds and memory are positive, "
                "the elevation is between -90 and 90 degrees."
            )
        self.frames = frames
        self.size = size
        self.elevation = elevation
        self.seconds = seconds
        self.mesh = mesh
        self.mesh_resolution = mesh_resolution
        self.mesh_level = mesh_level
        self.mp4 = mp4
        self.max_memory = max_memory

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder; look before the work whether there can be a mesh and an MP4.

        Raises:
            ValueError: As for all predictions, and if a mesh is asked of a model without density.
        """
        super().on_predict_start(trainer, pl_module)
        assert isinstance(pl_module, Composer)
        if self.mesh:
            density_renderer(pl_module)
        if self.mp4 and encoder() is None and trainer.is_global_zero:
            Console(soft_wrap=True).print(f"No MP4, for there is no encoder; GIFs are written: {HOW_TO_MP4}.")

    def write(self, data: CoordinateDataModule, composer: Composer, code: InstanceCode, part: Part) -> Row:
        """Write the film, the views, the code and the mesh of a scene."""
        scene = part.scene
        assert scene is not None, "the data module of scenes gives their views"
        numbers = _numbers(scene)
        shape = (len(scene.support.images), *scene.support.images.shape[-2:])
        measured = {fact: numbers[fact] for fact in code.facts if fact in numbers}
        code = replace(code, shape=shape, boxes=[whole(shape)], facts={"signal": "scene"} | code.facts | measured)
        code.save(self.folder / f"{code.name}.safetensors")
        with torch.no_grad():
            modulations = composer.compose({key: some.to(composer.device) for key, some in code.latents.items()})
        save_picture(_page(composer, modulations, scene, self.max_memory), self.folder / f"{code.name}.png")
        self._film(composer, modulations, scene, code.name)
        row = {"rows": str(shape[1]), "columns": str(shape[2]), "views": str(scene.shape[0])}
        steps = {fact: code.facts[fact] for fact in ("inner steps", "refinement steps") if fact in code.facts}
        row |= {"support views": str(shape[0])} | steps | numbers
        return row | ({"mesh": self._mesh(composer, modulations, code.name)} if self.mesh else {})

    def described(self, row: Row) -> tuple[str, ...]:
        """Return the pixels of a view."""
        return (f"{row['rows']} x {row['columns']}",)

    def _film(self, composer: Composer, modulations: Modulations, scene: Scene, name: str) -> None:
        """Write the film of a scene."""
        camera = Camera.of(scene.support, self.size)
        pairs = orbit_frames(composer, modulations, camera, self.frames, self.elevation, self.max_memory)
        frames = [beside(pair) for pair in pairs]
        write_gif(frames, self.folder / f"{name}.gif", self.seconds)
        if self.mp4 and encoder() is not None:
            write_mp4(frames, self.folder / f"{name}.mp4", self.seconds)

    def _mesh(self, composer: Composer, modulations: Modulations, name: str) -> str:
        """Write the mesh of a scene, and return how large it is, or why there is none."""
        try:
            found = surface(composer, modulations, 1.5, self.mesh_resolution, self.mesh_level, self.max_memory)
        except ValueError as error:  # a scene without a surface is a result: the others shall be written
            way = "The program takes it by --trainer.callbacks.mesh_level."
            Console(soft_wrap=True).print(f"No {name}.ply: {error} {way}", markup=False, highlight=False)
            return f"none: {error}"
        save_ply(found, self.folder / f"{name}.ply")
        return f"{len(found.faces)} faces"


def _numbers(scene: Scene) -> Row:
    """Return the PSNR of a scene, means over its views: predicted, refined, and of white."""
    keys, last = ("psnr predicted", "psnr refined", "white"), scene.made[max(scene.made)]
    if scene.true is None:
        return dict.fromkeys(keys, str(math.nan))
    target = Samples(scene.rays, scene.true[None])
    found = [ViewPSNR().measure(values[None], target, scene.shape) for values in (scene.made[0], last)]
    found.append(WhiteView().measure(last[None], target, scene.shape))
    return {key: f"{number.item():.3f}" for key, number in zip(keys, found, strict=True)}


def _page(composer: Composer, modulations: Modulations, scene: Scene, max_memory: float) -> Image.Image:
    """Return the support views, and below them every query view as rows of labelled pictures."""
    support = [(f"support {view}", image) for view, image in enumerate(support_pictures(scene.support))]
    views = _view_cells(composer, modulations, scene, max_memory)
    together = max(1, round(math.sqrt(len(views)) / 2))  # views beside each other, for a page that is not a ribbon
    width = together * len(views[0]) if views else len(support)
    rows = [support[start : start + width] for start in range(0, len(support), width)]
    rows += [[*chain(*views[start : start + together])] for start in range(0, len(views), together)]
    blank = Image.new("RGB", support[0][1].size, "white")
    padded = [[*row, *[("", blank)] * (width - len(row))] for row in rows]
    return sheet([[(label, on_page(image)) for label, image in row] for row in padded])


def _view_cells(composer: Composer, modulations: Modulations, scene: Scene, max_memory: float) -> list[list[Cell]]:
    """Return of every query view the truth, the prediction, its error and the depth, as far as they are known."""
    made = scene.made[max(scene.made)]
    cells: list[list[Cell]] = [[(f"made {view}", image)] for view, image in enumerate(view_pictures(made, scene.shape))]
    if scene.true is not None:
        target = Samples(scene.rays, scene.true[None])
        decibels = view_psnr(made[None], target, scene.shape)[0].tolist()
        for view, (true, psnr) in enumerate(zip(view_pictures(scene.true, scene.shape), decibels, strict=True)):
            image = cells[view][0][1]
            error = error_picture(image, true)[0]
            cells[view] = [(f"truth {view}", true), (f"made {psnr:.1f} dB", image), ("5 x error", error)]
    if depth_range(composer) is None:
        return cells
    views = scene.rays.unflatten(0, (scene.shape[0], -1))
    depths = depth_pictures([look(composer, modulations, rays, max_memory) for rays in views], scene.shape[1:])
    return [row if depth is None else [*row, ("depth", depth)] for row, depth in zip(cells, depths, strict=True)]

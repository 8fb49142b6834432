"""Posed views of scenes: read, written, drawn and measured; scenes are decoded along rays of cameras."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from composers.base import Composer
from composers.codes import InstanceCode
from composers.metrics import InstanceMetric
from composers.networks import Modulations
from composers.rendering import Reconstruction
from datamodules.batch import Cell, Instance, Samples, Views
from datamodules.spec import Headline, Modality
from datamodules.storage.views import read_srn, read_transforms, read_view
from datamodules.tiles import whole
from modalities import turntable
from modalities.drawing import Animation, LabelledImage, compacted, enlarged, image_grid
from modalities.images import error_image, save_image, to_image
from modalities.surfaces import density_renderer, save_ply, surface
from modalities.turntable import HOW_TO_MP4, Camera, beside, orbit_frames, write_gif
from modalities.view_metrics import OverWhite, ViewPSNR, ViewSSIM, WhiteView, view_psnr
from modalities.view_rendering import (
    depth_colours,
    depth_ends,
    depth_images,
    depth_range,
    look,
    support_images,
    view_images,
)
from modalities.writing import Prediction, Row, Writer

_LEAST = 128  # pixels of the longer side of a view in a figure
_ELEVATION, _SECONDS, _FRAMES = 30.0, 4.0, 24  # of turntable videos in a gallery
_ANIMATION_SIZE, _ANIMATION_SECONDS = 64, 3.0  # small, for every validation waits for it
_MOST_VIEWS = 4  # of one instance that stand side by side for loggers


@dataclass(frozen=True)
class ViewWriter(Writer):
    """Writes what a model makes of a scene: a turntable video, all views beside the truth, its instance code, and a mesh.

    For a scene called NAME these are NAME.gif, colour and depth from all around; NAME.png, the support views and of every
    query view the truth, the prediction, five times its error and the depth; NAME.safetensors; NAME.mp4 and NAME.ply where
    asked for; and a row of the table: the PSNR of what was predicted and refined and of white views, means over the query
    views, NaN where these have no images to compare with.

    Args:
        frames: Of the turntable video, at least 2.
        size: Pixels of the longer side of a frame; those of the views if None.
        elevation: Degrees of the camera above the horizontal plane, between -90 and 90.
        seconds: Of one round of the turntable video.
        mesh: Write the surface too, a triangle mesh in colours; only for models with a density.
        mesh_resolution: Points along each side of the cube in which the surface is searched, at least 2.
        mesh_level: The density at which the surface lies; where a sample of a ray is half opaque if None.
        mp4: Write the turntable video as MP4 too; where no encoder is installed, a line says how to get one.
        max_memory: MB that rendering may take above the model and the result.

    Raises:
        ValueError: If a number is out of range.
    """

    frames: int = 48
    size: int | None = None
    elevation: float = 30.0
    seconds: float = 4.0
    mesh: bool = False
    mesh_resolution: int = 128
    mesh_level: float | None = None
    mp4: bool = False
    max_memory: float = 500.0

    results: ClassVar[str] = "Turntable videos, views, codes"
    size_heading: ClassVar[str] = "pixels"
    counted: ClassVar[str] = "views"
    numbers: ClassVar[Mapping[str, str]] = {
        "psnr predicted": "predicted",
        "psnr refined": "refined",
        "white": "white",
    }

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range."""
        if self.size is not None and not isinstance(self.size, int):
            raise ValueError(
                f"size is {list(self.size)}: of views give the pixels of the longer side, they keep their shape."
            )
        if self.frames < 2 or self.mesh_resolution < 2 or (self.size is not None and self.size < 1):
            raise ValueError(
                f"frames is {self.frames}, mesh_resolution {self.mesh_resolution}, size {self.size}: at least 2, 2 and 1."
            )
        if self.mesh_level is not None and self.mesh_level <= 0:
            raise ValueError(f"mesh_level is {self.mesh_level}; it must be positive.")
        if not (self.seconds > 0 and self.max_memory > 0 and -90 <= self.elevation <= 90):
            raise ValueError(
                f"seconds is {self.seconds}, max_memory {self.max_memory}, elevation {self.elevation}: seconds and memory are "
                "positive, the elevation is between -90 and 90 degrees."
            )

    def check(self, composer: Composer) -> list[str]:
        """Refuse a mesh of a model without a density, and say so where no MP4 can be written.

        Raises:
            ValueError: If the model has no density and a mesh is asked for.
        """
        if self.mesh:
            density_renderer(composer)
        if self.mp4 and turntable.encoder() is None:
            return [f"No MP4, for there is no encoder; GIFs are written: {HOW_TO_MP4}."]
        return []

    def write(self, reconstruction: Prediction, path: Path) -> Row:
        """Write the turntable video, the views, the code and the mesh of a scene."""
        composer, code, instance = reconstruction.composer, reconstruction.code, reconstruction.instance
        assert instance is not None, "scenes are not cut into tiles"
        support, numbers = _support(instance), _numbers(instance)
        shape = (len(support.images), *support.images.shape[-2:])
        measured = {fact: numbers[fact] for fact in code.facts if fact in numbers}
        code = replace(code, shape=shape, boxes=[whole(shape)], facts={"signal": "scene"} | code.facts | measured)
        code.save(f"{path}.safetensors")
        with torch.no_grad():
            modulations = composer.compose(
                {key: some.to(composer.device) for key, some in code.latents.items()}, code.layout
            )
        save_image(_page(composer, modulations, instance, self.max_memory), Path(f"{path}.png"))
        self._turntable(composer, modulations, support, path)
        row = {"rows": str(shape[1]), "columns": str(shape[2]), "views": str(instance.shape[0])}
        steps = {fact: code.facts[fact] for fact in ("inner steps", "refinement steps") if fact in code.facts}
        row |= {"support views": str(shape[0])} | steps | numbers
        return row | ({"mesh": self._mesh(composer, modulations, path, code.name)} if self.mesh else {})

    def size_of(self, row: Row) -> str:
        """Return the pixels of a view."""
        return f"{row['rows']} x {row['columns']}"

    def _turntable(self, composer: Composer, modulations: Modulations, support: Views, path: Path) -> None:
        """Write the turntable video of a scene."""
        camera = Camera.of(support, self.size)
        pairs = orbit_frames(composer, modulations, camera, self.frames, self.elevation, self.max_memory)
        frames = [beside(pair) for pair in pairs]
        write_gif(frames, Path(f"{path}.gif"), self.seconds)
        if self.mp4 and turntable.encoder() is not None:
            turntable.write_mp4(frames, Path(f"{path}.mp4"), self.seconds)

    def _mesh(self, composer: Composer, modulations: Modulations, path: Path, name: str) -> str:
        """Write the mesh of a scene, and return how large it is, or why there is none."""
        try:
            mesh = surface(composer, modulations, 1.5, self.mesh_resolution, self.mesh_level, self.max_memory)
        except ValueError as error:  # a scene without a surface is a result: the others shall be written
            way_out = "Set the level with --mesh_level."
            Console(soft_wrap=True).print(f"No {name}.ply: {error} {way_out}", markup=False, highlight=False)
            return f"none: {error}"
        save_ply(mesh, Path(f"{path}.ply"))
        return f"{len(mesh.faces)} faces"


class PosedViews(Modality):
    """Scenes seen by posed cameras: a few views are looked at, others are rendered along their rays."""

    name = "views"
    noun = "scene"
    headline = Headline("psnr", "max", "dB")
    reader = "datamodules.scenes.prediction.SceneFiles"
    reading = ("support",)
    writer = ViewWriter

    def metrics(self) -> dict[str, InstanceMetric]:
        """Return PSNR, the PSNR of white views and over it, and SSIM, each the mean of the views of a scene."""
        return {"psnr": ViewPSNR(), "white": WhiteView(), "over_white": OverWhite(), "ssim": ViewSSIM()}

    def read(self, path: str | Path) -> tuple[Views, dict[str, Any]]:
        """Return all views of a scene in a folder, ``images (V, 3, H, W)`` in [0, 1]; of ``intrinsics.txt`` or transforms.json.

        Raises:
            ValueError: If a file cannot be read; the message names it.
        """
        is_srn = (Path(path) / "intrinsics.txt").is_file()
        scene = read_srn(path) if is_srn else read_transforms(path)
        images = torch.stack([read_view(file, drop_alpha=is_srn) for file in scene.images]).float() / 255
        return Views(images, scene.poses, scene.focals), {}

    def input_shape(self, composer: Composer) -> tuple[int, ...] | None:
        """Return ``(V, 3, H, W)`` of the views that a model takes; None if it does not say."""
        return composer.start.signal_shape

    def shown(self, instance: Instance) -> Instance:
        """Return the middle query view, under the name of the object of which the instance is one draw."""
        views, view = instance.shape[0], instance.shape[0] // 2

        def middle(values: Tensor) -> Tensor:
            return values.view(views, -1, values.shape[-1])[view]

        true = instance.query.values
        return instance._replace(
            name=object_of(instance.name),
            query=Samples(middle(instance.query.coords), None if true is None else middle(true)),
            shape=(1, *instance.shape[1:]),
            values={step: middle(values) for step, values in instance.values.items()},
        )

    def panel(self, values: Tensor, shape: Sequence[int]) -> Image.Image:
        """Return the first views of values ``(V * H * W, 3)``, four at most, side by side, clipped; ``shape`` is (V, H, W)."""
        views = values.nan_to_num(0, 1, 0).unflatten(0, tuple(shape))[:_MOST_VIEWS]
        return to_image(views.transpose(0, 1).flatten(0, 2), (shape[1], len(views) * shape[2]))

    def figure(self, rows: Sequence[Sequence[Cell]], compact: bool = False) -> Image.Image:
        """Return cells in rows and columns; small views are enlarged to 128 pixels or a few more."""
        return image_grid(
            [
                [
                    (cell.label, compacted(image) if compact else enlarged(image, _LEAST))
                    for cell in row
                    for image in [self.panel(cell.values, cell.shape)]
                ]
                for row in rows
            ]
        )

    def context(self, instance: Instance) -> list[Cell]:
        """Return the support views."""
        images = _support(instance).images
        return [Cell("", image.flatten(1).mT, (1, *image.shape[1:]), instance.domain) for image in images]

    def extras(
        self, composer: Composer, modulations: Modulations, shown: Instance, max_memory: float = 500.0
    ) -> list[Cell]:
        """Return the depth of the view, where the renderer knows one."""
        rendered = look(composer, modulations, shown.query.coords, max_memory)
        if rendered.depth is None:
            return []
        return [Cell("depth", depth_colours(rendered, depth_ends([rendered])), shown.shape, shown.domain)]

    def save_media(
        self, composer: Composer, modulations: Modulations, instance: Instance, stem: Path, max_memory: float = 500.0
    ) -> bool:
        """Write the turntable video STEM.gif."""
        camera = Camera.of(_support(instance))
        pairs = orbit_frames(composer, modulations, camera, _FRAMES, _ELEVATION, max_memory)
        write_gif([beside(pair) for pair in pairs], Path(f"{stem}.gif"), _SECONDS)
        return True

    def values_at(
        self, composer: Composer, modulations: Modulations, coords: Tensor, max_memory: float = 500.0
    ) -> Tensor:
        """Return the colours ``(N, 3)`` of rays ``(N, 6)`` of one instance, on the CPU."""
        return look(composer, modulations, coords, max_memory).colours

    def media(self, instance: Instance) -> dict[str, Any]:
        """Return support views, query views, prediction and refinement, up to four of each side by side."""
        support, true = _support(instance).images, instance.query.values
        assert true is not None
        pixels = support.movedim(1, -1).flatten(0, 2)
        columns = {"query": true} | {
            "refined" if step else "prediction": values for step, values in instance.values.items()
        }
        return {"support": self.panel(pixels, (len(support), *support.shape[2:]))} | {
            column: self.panel(values, instance.shape) for column, values in columns.items()
        }

    def animation(
        self, composer: Composer, modulations: Modulations, instance: Instance, frames: int
    ) -> Animation | None:
        """Return a small turntable video, as far away as the support views."""
        support = _support(instance)
        camera = Camera.of(support, min(_ANIMATION_SIZE, max(support.images.shape[-2:])))
        colours = [colour for colour, _ in orbit_frames(composer, modulations, camera, frames)]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "orbit.gif")
            write_gif(colours, path, _ANIMATION_SECONDS)
            return Animation(path.read_bytes())

    def decodes(self, code: InstanceCode) -> bool:
        """Return whether a code stands for a scene."""
        return code.facts.get("signal") == "scene"


def object_of(name: str) -> str:
    """Return the object of an instance, whose name may end with the number of a draw in three digits.

    Example:
        >>> object_of("chairs/1a6f.004"), object_of("mug.v2")
        ('chairs/1a6f', 'mug.v2')
    """
    thing, _, draw = name.rpartition(".")
    return thing if thing and len(draw) == 3 and draw.isdecimal() else name


def _support(instance: Instance) -> Views:
    """Return the support views of a scene."""
    if not isinstance(instance.signal, Views):
        raise ValueError(f"{instance.name} has no posed views: the modality PosedViews needs data of scenes.")
    return instance.signal


def _numbers(instance: Instance) -> Row:
    """Return the PSNR of a scene, means over its views: predicted, refined, and of white."""
    keys, last = ("psnr predicted", "psnr refined", "white"), instance.values[max(instance.values)]
    if instance.query.values is None:
        return dict.fromkeys(keys, str(math.nan))
    target = Samples(instance.query.coords, instance.query.values[None])
    numbers = [
        ViewPSNR().measure(Reconstruction.of_values(values[None]), target, instance.shape)
        for values in (instance.values[0], last)
    ]
    numbers.append(WhiteView().measure(Reconstruction.of_values(last[None]), target, instance.shape))
    return {key: f"{number.item():.3f}" for key, number in zip(keys, numbers, strict=True)}


def _page(composer: Composer, modulations: Modulations, instance: Instance, max_memory: float) -> Image.Image:
    """Return the support views, and below them every query view as rows of labelled images."""
    support = [(f"support {view}", image) for view, image in enumerate(support_images(_support(instance)))]
    views = _view_cells(composer, modulations, instance, max_memory)
    together = max(1, round(math.sqrt(len(views)) / 2))  # views beside each other, for a page that is not a ribbon
    width = together * len(views[0]) if views else len(support)
    rows = [support[start : start + width] for start in range(0, len(support), width)]
    rows += [[*chain(*views[start : start + together])] for start in range(0, len(views), together)]
    blank = Image.new("RGB", support[0][1].size, "white")
    padded = [[*row, *[("", blank)] * (width - len(row))] for row in rows]
    return image_grid([[(label, enlarged(image, _LEAST)) for label, image in row] for row in padded])


def _view_cells(
    composer: Composer, modulations: Modulations, instance: Instance, max_memory: float
) -> list[list[LabelledImage]]:
    """Return of every query view the truth, the prediction, its error and the depth, as far as they are known."""
    prediction, true, shape = instance.values[max(instance.values)], instance.query.values, instance.shape
    cells: list[list[LabelledImage]] = [
        [(f"prediction {view}", image)] for view, image in enumerate(view_images(prediction, shape))
    ]
    if true is not None:
        decibels = view_psnr(prediction[None], Samples(instance.query.coords, true[None]), shape)[0].tolist()
        for view, (image, psnr) in enumerate(zip(view_images(true, shape), decibels, strict=True)):
            predicted = cells[view][0][1]
            error = error_image(predicted, image)[0]
            cells[view] = [(f"truth {view}", image), (f"prediction {psnr:.1f} dB", predicted), ("5 x error", error)]
    if depth_range(composer) is None:
        return cells
    views = instance.query.coords.unflatten(0, (shape[0], -1))
    depths = depth_images([look(composer, modulations, rays, max_memory) for rays in views], shape[1:])
    return [row if depth is None else [*row, ("depth", depth)] for row, depth in zip(cells, depths, strict=True)]

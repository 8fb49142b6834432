"""The modality of posed views: reading, writing, figures and metrics of scenes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from composers.base import Composer
from composers.codes import InstanceCode
from composers.metrics import InstanceMetric
from composers.rendering import Reconstruction
from datamodules.batch import Cell, Instance, Samples, Views
from datamodules.spec import Headline, Modality
from datamodules.storage.layouts import read_scene
from datamodules.tiles import whole
from modalities import turntable
from modalities.drawing import Animation, LabelledImage, compacted, enlarged, image_grid
from modalities.images import error_image, save_image, to_image
from modalities.level_set import NoSurfaceError
from modalities.surfaces import density_renderer, surface
from modalities.triangle_mesh import MeshFormat, save_mesh
from modalities.turntable import (
    HOW_TO_MP4,
    Camera,
    TrueViews,
    looking,
    orbit_elevation,
    orbit_frames,
    side_by_side,
    turntable_frames,
    write_gif,
)
from modalities.view_metrics import OverWhite, ViewPSNR, ViewSSIM, WhiteView, view_psnr
from modalities.view_rendering import (
    depth_colours,
    depth_ends,
    depth_images,
    depth_range,
    render_rays,
    support_images,
    view_images,
)
from modalities.writing import Prediction, Row, Writer

_MIN_SIZE = 128  # pixels of the longer side of a view in a figure
_ELEVATION, _SECONDS, _FRAMES = 30.0, 4.0, 24  # of turntable videos in a gallery
_ANIMATION_SIZE, _ANIMATION_SECONDS = 64, 3.0  # small, because every validation renders one
_MAX_VIEWS = 4  # views of an instance shown side by side


@dataclass(frozen=True)
class ViewWriter(Writer):
    """Write the prediction for a scene: a turntable video, a figure of all views, the instance code, and optionally a mesh.

    For a scene NAME, these are NAME.gif, the nearest true view, colour and depth around the object, and NAME.mp4 if ffmpeg is
    installed; NAME.png, the support views, and for every query view the truth, the prediction, five times the error, and the
    depth; NAME.safetensors, the code; and NAME.ply if requested. The row of the table contains the PSNR of the prediction, of
    the refinement and of white views, averaged over the query views, or NaN if these have no images.

    A code is rendered without images: its turntable video in colour and depth, and the mesh if requested. The code file states
    the camera of the video.

    Args:
        frames: Number of frames of the turntable video, at least 2.
        size: Longer side of a frame in pixels; that of the views if None.
        elevation: Elevation of the camera in degrees, between -90 and 90; if None, that of the scene's cameras if they are on a
            circle around the object, and else 30.
        seconds: Duration of one revolution of the turntable video.
        mesh: Also write the surface as a coloured triangle mesh; only for models with a density.
        mesh_format: Format of the mesh.
        mesh_resolution: Number of points along each side of the cube that is searched for the surface, at least 2.
        mesh_level: Density of the surface; if None, the density at which a sample of a ray is half opaque.
        mp4: Require the turntable video as MP4, which is written in any case if an encoder is installed: if there is none, a
            message says how to get one, and if it fails, that is an error.
        max_memory: Memory in MB for rendering, in addition to the model and the result.

    Raises:
        ValueError: If a number is out of range.
    """

    frames: int = 48
    size: int | None = None
    elevation: float | None = None
    seconds: float = 4.0
    mesh: bool = False
    mesh_format: MeshFormat = "ply"
    mesh_resolution: int = 128
    mesh_level: float | None = None
    mp4: bool = False
    max_memory: float = 500.0

    results: ClassVar[str] = "Turntable videos, views, codes"
    size_heading: ClassVar[str] = "pixels"
    counted: ClassVar[str] = "views"
    numbers: ClassVar[Mapping[str, str]] = {"white": "white"}

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` if a number is out of range."""
        if self.size is not None and not isinstance(self.size, int):
            raise ValueError(
                f"size is {list(self.size)}: for views, pass the longer side in pixels; the aspect ratio is kept."
            )
        if self.frames < 2 or self.mesh_resolution < 2 or (self.size is not None and self.size < 1):
            raise ValueError(
                f"frames is {self.frames}, mesh_resolution {self.mesh_resolution}, size {self.size}: they must be at least 2, "
                "2 and 1."
            )
        if self.mesh_level is not None and self.mesh_level <= 0:
            raise ValueError(f"mesh_level is {self.mesh_level}; it must be positive.")
        if self.mesh_format not in get_args(MeshFormat):
            raise ValueError(f"mesh_format is {self.mesh_format!r}: choose one of {', '.join(get_args(MeshFormat))}.")
        if not (self.seconds > 0 and self.max_memory > 0 and -90 <= (self.elevation or 0.0) <= 90):
            raise ValueError(
                f"seconds is {self.seconds}, max_memory {self.max_memory}, elevation {self.elevation}: seconds and max_memory "
                "must be positive, and elevation must be between -90 and 90 degrees."
            )

    def check(self, composer: Composer) -> list[str]:
        """Check that the requested files can be written; return a warning if there is no encoder for MP4.

        Raises:
            ValueError: If a mesh is requested from a model without a density.
        """
        if self.mesh:
            density_renderer(composer)
        if self.mp4 and turntable.encoder() is None:
            return [f"No encoder is installed, so only GIFs are written: {HOW_TO_MP4}."]
        return []

    def write(self, prediction: Prediction, path: Path) -> Row:
        """Write the turntable video, the figure, the code and the mesh of a scene."""
        composer, code, instance = prediction.composer, prediction.code, prediction.instance
        assert instance is not None, "scenes are not tiled"
        support, true = _support(instance), _true_views(instance, prediction.source)
        camera = Camera.of(support)
        elevation = self.elevation
        if elevation is None:
            elevation = orbit_elevation(_all_poses(support, prediction.source))
            elevation = _ELEVATION if elevation is None else elevation
        shape = (len(support.images), *support.images.shape[-2:])
        facts = {"signal": "scene", "camera": _camera_fact(camera, elevation)} | code.facts
        code = replace(code, shape=shape, boxes=[whole(shape)], facts=facts)
        code.save(f"{path}{code.suffix}")
        reconstruction = prediction.reconstruction()
        save_image(_views_figure(composer, reconstruction, instance, self.max_memory), Path(f"{path}.png"))
        camera = camera.resized(self.size)
        frames = turntable_frames(composer, reconstruction, camera, true, self.frames, elevation, self.max_memory)
        turntable.write_videos(frames, path, self.seconds, self.mp4)
        row = {"rows": str(shape[1]), "columns": str(shape[2]), "views": str(instance.shape[0])}
        row |= {"support views": str(shape[0])} | prediction.code.facts | {"white": _white_psnr(instance)}
        return row | ({"mesh": self._write_mesh(composer, reconstruction, path, code.name)} if self.mesh else {})

    def size_of(self, row: Row) -> str:
        """Return the size of a view in pixels."""
        return f"{row['rows']} x {row['columns']}"

    def decode(
        self, composer: Composer, codes: Sequence[InstanceCode], path: Path | None, stem: Path
    ) -> tuple[Path, str]:
        """Write the turntable video of a code, and its mesh if requested, as in `Writer.decode`.

        The frames of an interpolation show the object from the first camera of the video, as images and as ``frames.gif``.

        Raises:
            ValueError: If a code states no camera, if ``path`` is no GIF or MP4, or if a mesh is requested without a density.
        """
        for message in self.check(composer):
            Console(soft_wrap=True).print(message, markup=False, highlight=False)
        camera, elevation = _stated_camera(codes[0])
        camera, elevation = camera.resized(self.size), elevation if self.elevation is None else self.elevation
        size = "{} x {}".format(*camera.size)
        if len(codes) == 1:
            path = path or Path(f"{stem}.{size.replace(' ', '')}.gif")
            if path.suffix not in (".gif", ".mp4"):
                raise ValueError(f"{path} has no supported video format: choose a name that ends with .gif or .mp4.")
            if path.suffix == ".mp4" and turntable.encoder() is None:
                raise ValueError(
                    f"There is no encoder to write {path}: install one with pip install imageio-ffmpeg, or choose a name that "
                    "ends with .gif."
                )
            reconstruction = Prediction(composer, codes[0]).reconstruction()
            frames = turntable_frames(composer, reconstruction, camera, None, self.frames, elevation, self.max_memory)
            turntable.write_videos(frames, path.with_suffix(""), self.seconds, self.mp4 or path.suffix == ".mp4")
            text = f"{len(frames)} frames of {size} pixels"
            if not self.mesh:
                return path, text
            mesh = self._write_mesh(composer, reconstruction, path.with_suffix(""), path.stem)
            return path, f"{text}, {path.stem}.{self.mesh_format}: {mesh}"
        assert path is not None, "several frames require a folder"
        images = []
        for frame, code in enumerate(codes):
            reconstruction = Prediction(composer, code).reconstruction()
            pair = next(orbit_frames(composer, reconstruction, camera, 1, elevation, self.max_memory))
            images.append(side_by_side(pair))
            save_image(images[-1], path / f"{frame:03d}.png")
        write_gif(images, path / "frames.gif", 0.08 * len(images))
        return path, f"{size} pixels and frames.gif"

    def _write_mesh(self, composer: Composer, reconstruction: Reconstruction, path: Path, name: str) -> str:
        """Write the mesh of a scene; return its number of faces, or the reason why there is none."""
        file = f"{name}.{self.mesh_format}"
        try:
            mesh, colours = surface(
                composer, reconstruction, 1.5, self.mesh_resolution, self.mesh_level, self.max_memory
            )
        except NoSurfaceError as error:  # a scene without a surface must not stop the others
            message = f"No {file}: {error} Set the level with --mesh_level."
            Console(soft_wrap=True).print(message, markup=False, highlight=False)
            return f"none: {error}"
        save_mesh(mesh, Path(f"{path}.{self.mesh_format}"), colours)
        return f"{len(mesh.faces)} faces"


class PosedViews(Modality):
    """Posed views of scenes: a few support views are observed, query views are rendered along their rays."""

    name = "views"
    noun = "scene"
    headline = Headline("psnr", "max", "dB")
    reader = "datamodules.scenes.prediction.SceneFiles"
    reading = ("support", "convention")
    writer = ViewWriter
    decoding = (
        "size",
        "frames",
        "elevation",
        "seconds",
        "mesh",
        "mesh_format",
        "mesh_resolution",
        "mesh_level",
        "mp4",
    )

    def metrics(self) -> dict[str, InstanceMetric]:
        """Return PSNR, PSNR of white views, PSNR over white and SSIM, each averaged over the views of a scene."""
        return {"psnr": ViewPSNR(), "white": WhiteView(), "over_white": OverWhite(), "ssim": ViewSSIM()}

    def read(self, path: str | Path) -> tuple[Views, dict[str, Any]]:
        """Read all views of a scene folder in the convention of its layout: ``images (V, 3, H, W)`` in [0, 1].

        Raises:
            ValueError: If a file cannot be read; the message names it.
        """
        scene = read_scene(path)
        images = torch.stack([scene.read(frame) for frame in range(len(scene.images))]).float() / 255
        return Views(images, scene.poses, scene.intrinsics), {}

    def input_shape(self, composer: Composer) -> tuple[int, ...] | None:
        """Return the shape ``(V, 3, H, W)`` of the support views of a model, or None if it is unknown."""
        return composer.start.signal_shape

    def shown(self, instance: Instance) -> Instance:
        """Return the middle query view, named after the object without the number of the draw."""
        views, view = instance.shape[0], instance.shape[0] // 2

        def middle(values: Tensor) -> Tensor:
            return values.view(views, -1, values.shape[-1])[view]

        truth = instance.query.values
        return instance._replace(
            name=object_of(instance.name),
            query=Samples(middle(instance.query.coords), None if truth is None else middle(truth)),
            shape=(1, *instance.shape[1:]),
            values={step: middle(values) for step, values in instance.values.items()},
        )

    def panel(self, values: Tensor, shape: Sequence[int]) -> Image.Image:
        """Return up to four views of ``values (V * H * W, 3)`` side by side, clipped; ``shape`` is ``(V, H, W)``."""
        views = values.nan_to_num(0, 1, 0).unflatten(0, tuple(shape))[:_MAX_VIEWS]
        return to_image(views.transpose(0, 1).flatten(0, 2), (shape[1], len(views) * shape[2]))

    def figure(self, rows: Sequence[Sequence[Cell]], compact: bool = False) -> Image.Image:
        """Return cells in rows and columns; small views are enlarged by an integer factor to at least 128 pixels."""
        return image_grid(
            [
                [
                    (cell.label, compacted(image) if compact else enlarged(image, _MIN_SIZE))
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
        self, composer: Composer, reconstruction: Reconstruction, shown: Instance, max_memory: float = 500.0
    ) -> list[Cell]:
        """Return the depth of the view, if the renderer has depth."""
        rendered = render_rays(composer, reconstruction, shown.query.coords, max_memory)
        if rendered.depth is None:
            return []
        return [Cell("depth", depth_colours(rendered, depth_ends([rendered])), shown.shape, shown.domain)]

    def save_media(
        self,
        composer: Composer,
        reconstruction: Reconstruction,
        instance: Instance,
        stem: Path,
        max_memory: float = 500.0,
    ) -> bool:
        """Write the turntable video STEM.gif, with the nearest of the support and query views beside it."""
        camera, true = Camera.of(_support(instance)), _true_views(instance)
        frames = turntable_frames(composer, reconstruction, camera, true, _FRAMES, _ELEVATION, max_memory)
        write_gif(frames, Path(f"{stem}.gif"), _SECONDS)
        return True

    def values_at(
        self, composer: Composer, reconstruction: Reconstruction, coords: Tensor, max_memory: float = 500.0
    ) -> Tensor:
        """Return the colours ``(N, 3)`` of rays ``(N, 6)`` of one instance, on the CPU."""
        return render_rays(composer, reconstruction, coords, max_memory).colours

    def media(self, composer: Composer, reconstruction: Reconstruction, instance: Instance) -> dict[str, Any]:
        """Return support views, query views, prediction and refinement, up to four views of each side by side."""
        support, truth = _support(instance).images, instance.query.values
        assert truth is not None
        pixels = support.movedim(1, -1).flatten(0, 2)
        columns = {"query": truth} | {
            "refined" if step else "prediction": values for step, values in instance.values.items()
        }
        return {"support": self.panel(pixels, (len(support), *support.shape[2:]))} | {
            column: self.panel(values, instance.shape) for column, values in columns.items()
        }

    def animation(
        self, composer: Composer, reconstruction: Reconstruction, instance: Instance, frames: int
    ) -> Animation | None:
        """Return a small turntable video at the mean distance of the support views."""
        support = _support(instance)
        camera = Camera.of(support, min(_ANIMATION_SIZE, max(support.images.shape[-2:])))
        colours = [colour for colour, _ in orbit_frames(composer, reconstruction, camera, frames)]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "orbit.gif")
            write_gif(colours, path, _ANIMATION_SECONDS)
            return Animation(path.read_bytes())

    def decodes(self, code: InstanceCode) -> bool:
        """Return whether a code is that of a scene."""
        return code.facts.get("signal") == "scene"


def object_of(name: str) -> str:
    """Return the object of an instance: its name without the three-digit number of the draw.

    Example:
        >>> object_of("chairs/1a6f.004"), object_of("mug.v2")
        ('chairs/1a6f', 'mug.v2')
    """
    prefix, _, draw = name.rpartition(".")
    return prefix if prefix and len(draw) == 3 and draw.isdecimal() else name


def _support(instance: Instance) -> Views:
    """Return the support views of a scene."""
    if not isinstance(instance.signal, Views):
        raise ValueError(f"{instance.name} has no posed views: the modality PosedViews needs a data set of scenes.")
    return instance.signal


def _true_views(instance: Instance, source: Mapping[str, Any] | None = None) -> TrueViews:
    """Return the views of a scene in its source, or else its support views and the query views with images."""
    views = (source or {}).get("views")
    if views is not None:
        labels = [f"{'observed' if frame in views.observed else 'true'} {frame}" for frame in views.frames]
        return TrueViews(views.images.float() / 255, looking(views.poses), labels)
    support = _support(instance)
    images, directions = [support.images], [looking(support.poses)]
    labels = [f"observed {view}" for view in range(len(support.images))]
    if instance.query.values is not None:
        images.append(instance.query.values.unflatten(0, instance.shape).movedim(-1, 1))
        rays = instance.query.coords.unflatten(0, (instance.shape[0], -1))
        directions.append(torch.nn.functional.normalize(rays[..., 3:6].mean(1), dim=-1))
        labels += [f"true {view}" for view in range(instance.shape[0])]
    return TrueViews(torch.cat(images), torch.cat(directions), labels)


def _all_poses(support: Views, source: Mapping[str, Any]) -> Tensor:
    """Return the poses of all cameras of a scene, as far as they are known."""
    poses: Tensor = source["views"].poses if "views" in source else support.poses
    return poses


def _camera_fact(camera: Camera, elevation: float) -> str:
    """Return the camera of a turntable video as text for a code file.

    These are the distance, the focal lengths relative to the sides of the image, and the elevation in degrees.
    """
    (rows, columns), (focal_x, focal_y) = camera.size, camera.focals
    return " ".join(f"{number:.7g}" for number in (camera.radius, focal_x / columns, focal_y / rows, elevation))


def _stated_camera(code: InstanceCode) -> tuple[Camera, float]:
    """Return the camera that a code states and its elevation; raise a `ValueError` if it states none."""
    try:
        radius, relative_x, relative_y, elevation = (float(number) for number in code.facts["camera"].split())
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"The code of {code.name or 'the scene'} states no camera, as codes of earlier versions: encode the scene again "
            "with cli.py predict --views."
        ) from error
    rows, columns = code.shape[-2:]
    return Camera((rows, columns), (relative_x * columns, relative_y * rows), radius), elevation


def _white_psnr(instance: Instance) -> str:
    """Return the PSNR of white views, averaged over the views of a scene; NaN without images of the views."""
    if instance.query.values is None:
        return str(math.nan)
    target = Samples(instance.query.coords, instance.query.values[None])
    return (
        f"{WhiteView().measure(Reconstruction.of_values(instance.values[0][None]), target, instance.shape).item():.3f}"
    )


def _views_figure(
    composer: Composer, reconstruction: Reconstruction, instance: Instance, max_memory: float
) -> Image.Image:
    """Return a figure with the support views on top, and below the labelled images of every query view."""
    support = [(f"support {view}", image) for view, image in enumerate(support_images(_support(instance)))]
    views = _view_cells(composer, reconstruction, instance, max_memory)
    views_per_row = max(1, round(math.sqrt(len(views)) / 2))  # for an aspect ratio near 1
    width = views_per_row * len(views[0]) if views else len(support)
    rows = [support[start : start + width] for start in range(0, len(support), width)]
    rows += [[*chain(*views[start : start + views_per_row])] for start in range(0, len(views), views_per_row)]
    blank = Image.new("RGB", support[0][1].size, "white")
    padded = [[*row, *[("", blank)] * (width - len(row))] for row in rows]
    return image_grid([[(label, enlarged(image, _MIN_SIZE)) for label, image in row] for row in padded])


def _view_cells(
    composer: Composer, reconstruction: Reconstruction, instance: Instance, max_memory: float
) -> list[list[LabelledImage]]:
    """Return the truth, the prediction, its error and the depth of every query view, as far as they are available."""
    prediction, truth, shape = instance.values[max(instance.values)], instance.query.values, instance.shape
    cells: list[list[LabelledImage]] = [
        [(f"prediction {view}", image)] for view, image in enumerate(view_images(prediction, shape))
    ]
    if truth is not None:
        decibels = view_psnr(prediction[None], Samples(instance.query.coords, truth[None]), shape)[0].tolist()
        for view, (image, psnr) in enumerate(zip(view_images(truth, shape), decibels, strict=True)):
            predicted = cells[view][0][1]
            error = error_image(predicted, image)[0]
            cells[view] = [(f"truth {view}", image), (f"prediction {psnr:.1f} dB", predicted), ("5 x error", error)]
    if depth_range(composer) is None:
        return cells
    views = instance.query.coords.unflatten(0, (shape[0], -1))
    depths = depth_images([render_rays(composer, reconstruction, rays, max_memory) for rays in views], shape[1:])
    return [row if depth is None else [*row, ("depth", depth)] for row, depth in zip(cells, depths, strict=True)]

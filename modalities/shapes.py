"""The modality of shapes: signed distance fields, their surfaces, figures and files."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from composers.base import Composer
from composers.codes import InstanceCode
from composers.metrics import InstanceMetric
from composers.rendering import Reconstruction
from datamodules.batch import Cell, Instance, Samples
from datamodules.domain import Grid, Volume
from datamodules.spec import Headline
from datamodules.storage.meshes import UpAxis
from datamodules.tiles import whole
from modalities import turntable
from modalities.decoding import chunk_of_points, values_at
from modalities.drawing import Animation, LabelledImage, Model3D, image_grid
from modalities.drawn import GALLERY_SIZE, DrawnModality
from modalities.images import save_image, to_image
from modalities.level_set import Lattice, NoSurfaceError, level_set
from modalities.mesh_rendering import (
    GREY,
    orbit_images,
    slice_images,
    still_images,
    triangles_of_mesh,
    triangles_of_points,
)
from modalities.shape_metrics import (
    Chamfer,
    ChamferSquared,
    FScore,
    MeanAbsoluteDistance,
    NormalConsistency,
    VolumeIoU,
    meshes_of,
    true_surface,
)
from modalities.triangle_mesh import MeshFormat, SurfacePoints, TriangleMesh, obj_text, save_mesh
from modalities.turntable import HOW_TO_MP4, write_gif
from modalities.writing import Prediction, Row, Writer

Units = Literal["world", "normalised"]

_SIZE = 256  # pixels of an image in figures and videos
_GALLERY_RESOLUTION, _LOGGED_RESOLUTION = 128, 64  # cells along each side of the cube
_FRAMES, _SECONDS = 24, 4.0  # of turntable videos in a gallery
_ANIMATION_SIZE, _ANIMATION_SECONDS = 96, 3.0  # small, because every validation renders one
_MAX_POINTS = 20000  # of a point set in an image


@dataclass(frozen=True)
class ShapeWriter(Writer):
    """Write the predicted surface of a shape as a mesh, a turntable video, a figure and the instance code.

    For a shape NAME, these are NAME.ply, the surface of distance 0; NAME.gif, the shaded surface from all sides; NAME.png, the
    surface from four sides, the true surface if it is known, the observed points, and three slices of the distances, in which
    the black line is the surface; NAME.safetensors, the code; NAME.mp4 if ffmpeg is installed; and NAME.slices.png if
    requested. A shape without
    a surface has no mesh and no video. The row of the table holds the number of faces, whether the mesh is watertight,
    its size, and, for shapes whose surface is known, the Chamfer distance (`modalities.shape_metrics.Chamfer`).

    Args:
        resolution: Number of cells along each side of the cube in which the surface is searched, at least 2. Nothing smaller
            than a cell is resolved.
        mesh_format: Format of the mesh.
        units: Coordinates of the mesh: those of the input file (``world``), or of the model (``normalised``).
        up: Axis of the input files that points up, for images.
        frames: Number of frames of the turntable video, at least 2.
        size: Pixels along each side of a frame; 256 if None.
        elevation: Elevation of the camera in degrees, between -90 and 90.
        seconds: Duration of one revolution of the turntable video.
        mp4: Require the turntable video as MP4, which is written in any case if an encoder is installed: if there is none, a
            message says how to get one, and if it fails, that is an error.
        slices: Also write large images of the slices.
        max_memory: Memory in MB for evaluating the model, in addition to the model and the result.

    Raises:
        ValueError: If a number is out of range.
    """

    resolution: int = 256
    mesh_format: MeshFormat = "ply"
    units: Units = "world"
    up: UpAxis = "y"
    frames: int = 48
    size: int | None = None
    elevation: float = 30.0
    seconds: float = 4.0
    mp4: bool = False
    slices: bool = False
    max_memory: float = 500.0

    results: ClassVar[str] = "Meshes, turntable videos, figures, codes"
    counted: ClassVar[str] = "faces"

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` if an option is out of range."""
        if self.size is not None and not isinstance(self.size, int):
            raise ValueError(f"size is {list(self.size)}: for shapes, pass one number of pixels; frames are square.")
        if min(self.resolution, self.frames) < 2 or (self.size is not None and self.size < 1):
            raise ValueError(
                f"resolution is {self.resolution}, frames {self.frames}, size {self.size}: they must be at least 2, 2 and 1."
            )
        if not (self.seconds > 0 and self.max_memory > 0 and -90 <= self.elevation <= 90):
            raise ValueError(
                f"seconds is {self.seconds}, max_memory {self.max_memory}, elevation {self.elevation}: seconds and max_memory "
                "must be positive, and elevation must be between -90 and 90 degrees."
            )
        for name, kind in (("mesh_format", MeshFormat), ("units", Units), ("up", UpAxis)):
            if vars(self)[name] not in get_args(kind):
                raise ValueError(f"{name} is {vars(self)[name]!r}: choose one of {', '.join(get_args(kind))}.")

    def check(self, composer: Composer) -> list[str]:
        """Check that the memory suffices; return a warning if there is no encoder for MP4.

        Raises:
            ValueError: If ``max_memory`` does not suffice for one point.
        """
        if chunk_of_points(composer, self.max_memory) < 1:
            raise ValueError(
                f"max_memory is {self.max_memory:g} MB, too little for one point of the field: increase it."
            )
        if self.mp4 and turntable.encoder() is None:
            return [f"No encoder is installed, so only GIFs are written: {HOW_TO_MP4}."]
        return []

    def write(self, prediction: Prediction, path: Path) -> Row:
        """Write the mesh, the turntable video, the figure and the code of a shape."""
        composer, instance, reconstruction = prediction.composer, prediction.instance, prediction.reconstruction()
        assert instance is not None, "shapes are not tiled"
        shape = (self.resolution,) * 3
        facts = _source_facts(prediction.source) | {"signal": "shape", "up": self.up} | prediction.code.facts
        code = replace(prediction.code, shape=shape, boxes=[whole(shape)], facts=facts)
        code.save(f"{path}{code.suffix}")
        evaluate = evaluator(composer, reconstruction, self.max_memory)
        try:
            mesh = self._surface(evaluate, code)
            reason = ""
        except NoSurfaceError as error:  # must not stop the others
            mesh, reason = None, str(error)
            message = f"No {code.name}.{self.mesh_format}: {reason}"
            Console(soft_wrap=True).print(message, markup=False, highlight=False)
        bound = _bound(instance)
        save_image(_figure(evaluate, mesh, instance, bound, self.up), Path(f"{path}.png"))
        if self.slices:
            images = slice_images(evaluate, 2 * _SIZE, bound, self.up)
            save_image(image_grid([images]), Path(f"{path}.slices.png"))
        row = {"size": "-", "faces": "0", "watertight": "-", "surface": reason or "yes"}
        if mesh is not None:
            written = self._in_units(mesh, code)
            save_mesh(written, Path(f"{path}.{self.mesh_format}"))
            self._write_turntable(mesh, path)
            extents = " x ".join(f"{extent:.3g}" for extent in written.extents)
            row |= {"size": extents, "faces": f"{len(mesh.faces)}", "watertight": "yes" if mesh.is_watertight else "no"}
        return row | prediction.code.facts

    def size_of(self, row: Row) -> str:
        """Return the edge lengths of the bounding box of the mesh."""
        return row["size"]

    def decode(
        self, composer: Composer, codes: Sequence[InstanceCode], path: Path | None, stem: Path
    ) -> tuple[Path, str]:
        """Write the meshes of codes as in `Writer.decode`; several frames are also drawn as ``frames.gif``.

        The frames of an interpolation are in normalised coordinates, because two shapes have different scales. A frame
        without a surface has no mesh.
        """
        if len(codes) == 1:
            mesh = self._surface(self._evaluator(composer, codes[0]), codes[0])
            path = path or Path(f"{stem}.{self.resolution}.{self.mesh_format}")
            save_mesh(self._in_units(mesh, codes[0]), path)
            return path, f"{len(mesh.faces):,} faces at a resolution of {self.resolution}"
        assert path is not None, "several frames require a folder"
        images = []
        for frame, code in enumerate(codes):
            try:
                mesh = self._surface(self._evaluator(composer, code), code)
            except NoSurfaceError:
                images += still_images(None, 1, self.size or _SIZE)
                continue
            images += still_images(triangles_of_mesh(mesh, up=_up(codes[0])), 1, self.size or _SIZE, self.elevation)
            save_mesh(mesh, path / f"{frame:03d}.{self.mesh_format}")
        write_gif(images, path / "frames.gif", 0.08 * len(images))
        return path, f"meshes at a resolution of {self.resolution} and frames.gif"

    def _evaluator(self, composer: Composer, code: InstanceCode) -> Callable[[Tensor], Tensor]:
        """Return the signed distances of a code as a function of coordinates."""
        return evaluator(composer, Prediction(composer, code).reconstruction(), self.max_memory)

    def _surface(self, evaluate: Callable[[Tensor], Tensor], code: InstanceCode) -> TriangleMesh:
        """Return the surface of a code in normalised coordinates; raise a `NoSurfaceError` if there is none."""
        assert isinstance(code.domain, Volume), "a code of a shape has a domain in space"
        return level_set(evaluate, code.domain.bound, self.resolution)

    def _in_units(self, mesh: TriangleMesh, code: InstanceCode) -> TriangleMesh:
        """Return a mesh in the requested units; those of the model if the code does not state any others."""
        if self.units == "normalised" or "scale" not in code.facts:
            return mesh
        return mesh.in_world([float(part) for part in code.facts["offset"].split()], float(code.facts["scale"]))

    def _write_turntable(self, mesh: TriangleMesh, path: Path) -> None:
        """Write the turntable video of a mesh."""
        triangles = triangles_of_mesh(mesh, up=self.up)
        images = orbit_images(triangles, self.frames, self.size or _SIZE, self.elevation)
        turntable.write_videos(images, path, self.seconds, self.mp4)


class Shapes(DrawnModality):
    """Signed distance fields of shapes in a cube, negative inside, whose surface is the level set 0.

    A cell of a figure holds the pixels of an image: shaded points of the true surface, or the shaded predicted surface.

    Args:
        up: Axis that points up in images.
    """

    name = "shapes"
    noun = "shape"
    headline = Headline("chamfer", "min", "%")
    reader = "datamodules.shapes.prediction.ShapeFiles"
    reading = ("normalized",)
    writer = ShapeWriter
    decoding = ("resolution",)

    def __init__(self, up: UpAxis = "y") -> None:
        self.up = up

    def takes(self, facts: Mapping[str, Any]) -> bool:
        """Return whether a model was trained on points in space."""
        domain = facts.get("domain") or {}
        return not domain or domain.get("class_path") == Volume(1.0).config()["class_path"]

    def metrics(self) -> dict[str, InstanceMetric]:
        """Return two Chamfer distances, F-score, normal consistency, IoU and mean absolute distance."""
        return {
            "chamfer": Chamfer(),
            "chamfer_squared": ChamferSquared(),
            "fscore": FScore(),
            "normal_consistency": NormalConsistency(),
            "iou": VolumeIoU(),
            "distance": MeanAbsoluteDistance(),
        }

    def input_shape(self, composer: Composer) -> tuple[int, ...] | None:
        """Return the shape ``(P, K)`` of the point sets that a model takes, or None if it is unknown."""
        return composer.start.signal_shape

    def panel(self, values: Tensor, shape: Sequence[int]) -> Image.Image:
        """Return the pixels ``(H * W, 3)`` of a cell as an image."""
        return to_image(values, shape)

    def context(self, instance: Instance) -> list[Cell]:
        """Return an image of the observed points; of those with distances, the ones inside."""
        points = _observed(instance)
        return [] if points is None else [_cell("", self._points(points))]

    def original(self, shown: Instance) -> Cell:
        """Return an image of the true surface points, without any of the samples inside."""
        points = _true_points(shown)
        return _cell("", Image.new("RGB", (GALLERY_SIZE,) * 2, "white") if points is None else self._points(points))

    def reconstructed(
        self,
        composer: Composer,
        reconstruction: Reconstruction,
        shown: Instance,
        values: Tensor,
        max_memory: float = 500.0,
    ) -> Cell:
        """Return an image of the predicted surface; it is white if there is none."""
        mesh = _mesh(reconstruction, _bound(shown))
        triangles = None if mesh is None else triangles_of_mesh(mesh, up=self.up)
        return _cell("", still_images(triangles, 1, GALLERY_SIZE)[0])

    def extras(
        self, composer: Composer, reconstruction: Reconstruction, shown: Instance, max_memory: float = 500.0
    ) -> list[Cell]:
        """Return three slices of the predicted distances; the black line is the surface."""
        evaluate = evaluator(composer, reconstruction, max_memory)
        return [_cell(*labelled) for labelled in slice_images(evaluate, GALLERY_SIZE, _bound(shown), self.up)]

    def save_media(
        self,
        composer: Composer,
        reconstruction: Reconstruction,
        instance: Instance,
        stem: Path,
        max_memory: float = 500.0,
    ) -> bool:
        """Write the turntable video STEM.gif, unless there is no surface."""
        mesh = _mesh(reconstruction, _bound(instance))
        if mesh is None:
            return False
        write_gif(orbit_images(triangles_of_mesh(mesh, up=self.up), _FRAMES, _SIZE), Path(f"{stem}.gif"), _SECONDS)
        return True

    def media(self, composer: Composer, reconstruction: Reconstruction, instance: Instance) -> dict[str, Any]:
        """Return the observed points, the true surface, the reconstructed surface as a mesh, and slices of its distances."""
        bound = _bound(instance)
        mesh = _mesh(reconstruction, bound, _LOGGED_RESOLUTION)
        empty = Image.new("RGB", (GALLERY_SIZE,) * 2, "white")
        cells = {"observed": next(iter(self.context(instance)), None), "original": self.original(instance)}
        images = {name: empty if cell is None else self.medium(cell) for name, cell in cells.items()}
        slices = slice_images(evaluator(composer, reconstruction), GALLERY_SIZE, bound, self.up)
        surface = "no surface" if mesh is None else Model3D(obj_text(mesh))
        return images | {"reconstruction": surface, "slices": image_grid([slices])}

    def animation(
        self, composer: Composer, reconstruction: Reconstruction, instance: Instance, frames: int
    ) -> Animation | None:
        """Return a small turntable video; it is white if there is no surface."""
        mesh = _mesh(reconstruction, _bound(instance), _LOGGED_RESOLUTION)
        triangles = None if mesh is None else triangles_of_mesh(mesh, up=self.up)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "orbit.gif")
            write_gif(orbit_images(triangles, frames, _ANIMATION_SIZE), path, _ANIMATION_SECONDS)
            return Animation(path.read_bytes())

    def decodes(self, code: InstanceCode) -> bool:
        """Return whether a code is that of a shape."""
        return code.facts.get("signal") == "shape"

    def _points(self, points: SurfacePoints) -> Image.Image:
        """Return an image of a point set."""
        return still_images(triangles_of_points(points, GREY, self.up), 1, GALLERY_SIZE)[0]


def evaluator(
    composer: Composer, reconstruction: Reconstruction, max_memory: float = 500.0
) -> Callable[[Tensor], Tensor]:
    """Return the values of one instance as a function from coordinates ``(N, 3)`` to ``(N,)``, evaluated in chunks.

    Args:
        composer: The model.
        reconstruction: Reconstruction of one instance.
        max_memory: Memory in MB for the evaluation, in addition to the model and the values.
    """

    def evaluate(coords: Tensor) -> Tensor:
        return values_at(composer, reconstruction, coords, max_memory)[:, 0]

    return evaluate


def _source_facts(source: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts of a code about its file: how its coordinates were normalised."""
    if "scale" not in source:
        return {}
    offset = " ".join(repr(float(part)) for part in source.get("offset", (0.0, 0.0, 0.0)))
    return {"offset": offset, "scale": repr(float(source["scale"]))}


def _up(code: InstanceCode) -> UpAxis:
    """Return the axis that points up, y if the code does not state it."""
    return "z" if code.facts.get("up") == "z" else "y"


def _bound(instance: Instance) -> float:
    """Return half the edge of the cube of a shape."""
    if not isinstance(instance.domain, Volume):
        raise ValueError(f"{instance.name} has the domain {instance.domain}: the modality Shapes needs a Volume.")
    return instance.domain.bound


def _mesh(reconstruction: Reconstruction, bound: float, resolution: int = _GALLERY_RESOLUTION) -> TriangleMesh | None:
    """Return the surface of a reconstruction of one instance for figures, None if there is none."""
    [mesh] = meshes_of(reconstruction, Lattice(bound, resolution))
    return None if isinstance(mesh, NoSurfaceError) else mesh


def _observed(instance: Instance) -> SurfacePoints | None:
    """Return the observed points for an image; of points with distances, those inside, and all if none is."""
    signal = instance.signal
    if not isinstance(signal, Tensor) or not len(signal):
        return None
    kept = signal
    if signal.shape[1] == 4 and bool((signal[:, 3] < 0).any()):
        kept = signal[signal[:, 3] < 0]
    normals = kept[:, 3:] if signal.shape[1] == 6 else torch.zeros_like(kept[:, :3])
    return _thinned(SurfacePoints(kept[:, :3].double().numpy(), normals.double().numpy()))


def _true_points(instance: Instance) -> SurfacePoints | None:
    """Return the points on the true surface for an image, the samples inside without any, and None without either."""
    coords, values, mask, normals = instance.query
    if values is None:
        return None
    batch = Samples(coords, values[None], *(None if part is None else part[None] for part in (mask, normals)))
    points = true_surface(batch, 0)
    if not len(points.points):
        inside = values[:, 0] < 0 if mask is None else (values[:, 0] < 0) & mask
        points = SurfacePoints(coords[inside].double().numpy(), np.zeros((int(inside.sum()), 3)))
    return _thinned(points) if len(points.points) else None


def _thinned(points: SurfacePoints) -> SurfacePoints:
    """Return at most 20,000 points, evenly spaced in the list."""
    step = math.ceil(len(points.points) / _MAX_POINTS)
    return SurfacePoints(points.points[::step], points.normals[::step])


def _cell(label: str, image: Image.Image) -> Cell:
    """Return an image as a cell."""
    pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).float() / 255
    return Cell(label, pixels.flatten(0, 1), (image.height, image.width), Grid.unit(2))


def _figure(
    evaluate: Callable[[Tensor], Tensor], mesh: TriangleMesh | None, instance: Instance, bound: float, up: UpAxis
) -> Image.Image:
    """Return the figure of a prediction: the surface, the true surface if it is known, the observed points, and slices."""
    triangles = None if mesh is None else triangles_of_mesh(mesh, up=up)
    label = "prediction" if mesh is not None else "no surface"
    rows: list[list[LabelledImage]] = [[(label, image) for image in still_images(triangles, 4, _SIZE)]]
    true, observed = _true_points(instance), _observed(instance)
    if true is not None:
        rows.append([("original", image) for image in still_images(triangles_of_points(true, GREY, up), 4, _SIZE)])
    points = None if observed is None else triangles_of_points(observed, GREY, up)
    rows.append([("observed points", still_images(points, 1, _SIZE)[0]), *slice_images(evaluate, _SIZE, bound, up)])
    return image_grid(rows)

"""Prediction on files of shapes: point clouds, meshes and depth images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, default_collate

from datamodules.batch import CoordinateBatch
from datamodules.domain import Domain, Volume
from datamodules.images.prediction import WholeImages, unique_names
from datamodules.shapes.base import ShapeModule
from datamodules.shapes.clouds import (
    UNIFORM,
    Normalization,
    check_normalized,
    has_distances,
    normalization,
    observed_distances,
    observed_surface,
)
from datamodules.shapes.samples import ShapeItem, StoredShape
from datamodules.spec import DataSpec
from datamodules.storage import meshes, points
from datamodules.storage.files import one_line
from datamodules.storage.folders import Split, files_below
from modalities.shapes import Shapes

_CONTEXT_POINTS = 2048  # of a model of any number of points, if its checkpoint does not state those of training
_CHANNELS = {3: "points", 4: "points with distances", 6: "points with normals"}
_KINDS = (
    "point clouds (PLY, XYZ, TXT, CSV, NPY, NPZ), meshes (OBJ, PLY, STL, GLB) and depth images (NPZ, or PNG with JSON)"
)


class ShapeFile(NamedTuple):
    """A readable file of a shape.

    Attributes:
        name: Name of its results.
        path: Path of the file.
        is_mesh: Whether it is a mesh, whose surface and distances are known.
        normalization: Map from its coordinates to those of the model.
    """

    name: str
    path: Path
    is_mesh: bool
    normalization: Normalization


class ShapeBatches(Dataset[ShapeItem]):
    """Batches of consecutive shapes with equally many points.

    Args:
        data: Reads the shapes.
        files: The files, each with its numbers of observed and of query points.
        batch_size: Maximum number of shapes per batch.
    """

    def __init__(self, data: ShapeFiles, files: Sequence[tuple[ShapeFile, tuple[int, int]]], batch_size: int) -> None:
        self.data = data
        groups = [[file for file, _ in group] for _, group in itertools.groupby(files, key=lambda file: file[1])]
        self.batches = [
            group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)
        ]

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)

    def __getitem__(self, index: int) -> ShapeItem:
        """Read and collate batch ``index``."""
        batch: ShapeItem = default_collate([self.data.read(file)[0] for file in self.batches[index]])
        return batch


class ShapeFiles(ShapeModule):
    """Point clouds, meshes and depth images for ``cli.py predict --shapes``.

    A file is normalised as DeepSDF's data: its bounding box is centred at the origin, and its farthest point is at 1 / 1.03.
    That of a depth image is the bounding box of what the camera sees. A model that observes points on the surface takes at most
    as many as in training, a random subset of a larger cloud, and those of a mesh are sampled from it. A model that
    observes distances takes those of a mesh, or estimates them from points with normals.

    Meshes are compared with the result: the query is points in the volume with their distances, then points on the surface.
    Files that cannot be used are skipped and reported; it is an error if none can.

    Args:
        shapes: Point clouds, meshes and depth images, and folders that are searched for them.
        signal_shape: ``(P, K)`` of the model, or ``(-1, K)`` of a model of any number of points; the command line reads it
            from the checkpoint. K is 3 for points, 6 for points with normals, 4 for points with distances.
        context_points: Number of points that the model observes, at most; if None, ``P``. The command line reads that of a
            model of any number of points from the checkpoint; 2,048 without one.
        normal_offset: Distance along the normals at which refinement and an inner loop observe two further samples per surface
            point; the command line reads it from the checkpoint.
        inside: Fraction of the observed samples in space that are inside; the command line reads it from the checkpoint.
        uniform: Fraction of the observed samples in space that are drawn in the volume rather than near the surface; 0.06 if
            None. The command line reads it from the checkpoint.
        normalized: The coordinates are normalised already: use them as they are.
        domain: Domain of the model; the command line reads it from the checkpoint.
        eval_points: Number of points in the volume at which the result is compared with a mesh.
        eval_surface_points: Number of points on the surface that the result is compared with.
        eval_batch_size: Number of shapes per device and step.
        num_workers: Number of loader processes; 0 loads in the main process.

    Attributes:
        files: The usable files, after set-up.

    Raises:
        ValueError: If a number is out of range.
    """

    modality = Shapes()

    def __init__(
        self,
        shapes: Sequence[str] = (),
        signal_shape: Sequence[int] | None = None,
        context_points: int | None = None,
        normal_offset: float | None = None,
        inside: float | None = None,
        uniform: float | None = None,
        normalized: bool = False,
        domain: Domain | None = None,
        eval_points: int = 16384,
        eval_surface_points: int = 10000,
        eval_batch_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        shape = tuple(signal_shape or ())
        fixed = shape[0] if len(shape) == 2 and shape[0] > 0 else _CONTEXT_POINTS
        channels = shape[1] if len(shape) == 2 else 3
        super().__init__(
            context="dense" if channels == 4 else "surface",
            context_points=fixed if context_points is None else context_points,
            normals=channels == 6,
            normal_offset=0.0 if channels == 4 else normal_offset or 0.0,
            inside=inside,
            eval_points=eval_points,
            eval_surface_points=eval_surface_points,
            batch_size=eval_batch_size,
            num_workers=num_workers,
        )
        self.paths = [shapes] if isinstance(shapes, str) else list(shapes)
        self._signal_shape = shape
        self.uniform: float = UNIFORM if uniform is None else uniform
        self._domain = domain or Volume(1.0)
        self.normalized = normalized
        self.files: list[ShapeFile] = []
        self._sizes: list[tuple[int, int]] = []

    @property
    def spec(self) -> DataSpec:
        """Signed distances, and the point set that the model observes."""
        shape = self._signal_shape
        if len(shape) != 2 or shape[1] not in _CHANNELS:
            raise ValueError(
                f"signal_shape is {list(shape)}, but shapes need a model of point sets, [points, numbers per point] with 3, 4 "
                "or 6 numbers: pass a checkpoint of such a model with --ckpt_path."
            )
        return super().spec._replace(domain=self._domain)

    def shapes(self, split: Split) -> Sequence[StoredShape]:
        """Raise a ``ValueError``: there are no splits."""
        raise ValueError(f"ShapeFiles supports only predict, not the split {split}: choose another data module.")

    def setup(self, stage: str) -> None:
        """Read every file once, to skip those that cannot be used.

        Raises:
            ValueError: If no file can be used, or ``stage`` is not ``predict``.
        """
        if stage != "predict":
            raise ValueError(f"ShapeFiles supports only predict, not {stage}: choose another data module.")
        _ = self.spec  # the model must be one of shapes
        unique: dict[Path, tuple[Path, Path]] = {}
        for path, relative in (item for root in self.paths for item in shape_files(Path(root))):
            unique.setdefault(path.absolute(), (path, relative))
        files = list(unique.values())
        self.files, self._sizes, self.skipped, self.notes = [], [], {}, {}
        for (path, relative), name in zip(files, unique_names(files), strict=True):
            try:
                self._add(path, name, renamed=name != relative.with_suffix("").as_posix())
            except (ValueError, RuntimeError, MemoryError) as error:  # libigl raises RuntimeError
                message = one_line(error)
                self.skipped[str(path)] = message if str(path) in message else f"{path} cannot be used: {message}"
        if not self.files:
            reasons = "".join(f"\n  {reason}" for reason in self.skipped.values())
            raise ValueError(
                f"No usable shape in {', '.join(self.paths) or 'an empty list'}: pass {_KINDS} with --shapes.{reasons}"
            )

    def predict_dataloader(self) -> DataLoader[ShapeItem]:
        """Return a loader of the shapes in order; those of a batch have equally many points."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = ShapeBatches(self, list(zip(self.files, self._sizes, strict=True)), self.eval_batch_size)
        if len(batches) < world_size:
            raise ValueError(f"{len(batches)} batch(es) of shapes for {world_size} devices: lower --trainer.devices.")
        return DataLoader(
            batches,
            batch_size=None,  # items are batches already
            sampler=WholeImages([1] * len(batches), rank, world_size),
            num_workers=self.num_workers,
        )

    def to_coordinates(self, batch: Any, *, training: bool = False, step: int = 0) -> CoordinateBatch:
        """Return the coordinate batch of a collated `ShapeItem`, without values where distances are unknown."""
        coordinates = super().to_coordinates(batch, training=training, step=step)
        if has_distances(batch.query):
            return coordinates
        return coordinates._replace(query=coordinates.query._replace(values=None, normals=None))

    def source_of(self, name: str) -> dict[str, Any]:
        """Return ``offset`` and ``scale`` of a shape: ``normalised = (p + offset) * scale``."""
        return next((file.normalization.facts() for file in self.files if file.name == name), {})

    def read(self, file: ShapeFile) -> tuple[ShapeItem, list[str]]:
        """Return the item of a file, and remarks on it.

        Raises:
            ValueError: If the file cannot be used; the message names it.
        """
        if file.is_mesh:
            from datamodules.shapes.solids import observed_solid, read_solid  # here: libigl takes time to import

            solid = read_solid(file.path, self.normalized)
            counts = (self.context_points, self.eval_points, self.eval_surface_points)
            item = observed_solid(solid, counts, self.context == "dense", file.name, self.uniform, self.inside)
            notes = [*(["not watertight"] if not solid.is_watertight else []), *solid.notes]
            return item, notes if bool((item.query[:, 3] < 0).any()) else [*notes, "no inside"]
        cloud = points.read_points(file.path)
        cloud = cloud._replace(points=file.normalization(cloud.points))
        if self.context == "dense":
            item, notes = observed_distances(
                cloud, self.context_points, file.name, file.path, self.uniform, self.inside
            )
        else:
            item, notes = observed_surface(cloud, self.context_points, self.normals, file.name, file.path)
        if self.normal_offset and not bool(item.context_normals.any()):
            raise ValueError(
                f"{file.path} has no normals, along which this model observes samples at a distance of {self.normal_offset:g}: "
                "pass points with normals or a mesh, or --data.normal_offset 0 if the model takes no gradient steps."
            )
        return item, [*cloud.notes, *notes]

    def _add(self, path: Path, name: str, renamed: bool) -> None:
        """Check a file, and add it with its notes."""
        is_mesh = path.suffix.lower() in meshes.ENDINGS and (path.suffix.lower() != ".ply" or points.has_faces(path))
        places = meshes.read_corners(path).reshape(-1, 3) if is_mesh else points.read_points(path).points
        file = ShapeFile(name, path, is_mesh, (check_normalized if self.normalized else normalization)(places, path))
        item, notes = self.read(file)
        self.files.append(file)
        self._sizes.append((len(item.context), len(item.query)))
        self.notes[name] = "; ".join([*notes, *([f"from {path}"] if renamed else [])])


def shape_files(path: Path) -> list[tuple[Path, Path]]:
    """Return the files of shapes at a path, each with its path relative to it.

    Args:
        path: A file, or a folder that is searched recursively for point clouds, meshes, and PNG files beside a JSON of the same
            name, except for hidden files and the results of earlier predictions.

    Raises:
        ValueError: If there is no such file or folder.
    """
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}: pass {_KINDS} with --shapes.")
    if path.is_file():
        return [(path, Path(path.name))]
    endings = {*meshes.ENDINGS, *points.ENDINGS, points.DEPTH_ENDING}
    files = files_below(path, endings)
    return [item for item in files if item[0].suffix.lower() != points.DEPTH_ENDING or points.is_depth_image(item[0])]

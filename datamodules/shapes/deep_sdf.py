"""Data in the layout of DeepSDF (github.com/facebookresearch/DeepSDF), which MetaSDF also reads."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import trimesh
from numpy.typing import NDArray

from datamodules.shapes.samples import StoredShape
from datamodules.shapes.shape_set import ShapeSet
from datamodules.storage.files import one_line
from datamodules.storage.folders import NamedFile, Split

_KEYS = ("pos", "neg")
_NORMALS = ("nx", "ny", "nz")
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_AGAIN = "get it from its source again, or run DeepSDF's preprocess_data.py again"


class DeepSDF(ShapeSet):
    """Shapes in the layout of DeepSDF.

    ``SdfSamples/SET/CLASS/ID.npz`` has arrays ``pos`` and ``neg`` ``(n, 4)``, points outside and inside with their distances;
    rows with NaN are dropped, as DeepSDF does. ``SurfaceSamples/SET/CLASS/ID.ply`` has points on the surface in the units of
    the mesh, and ``NormalizationParameters/SET/CLASS/ID.npz`` their ``offset`` and ``scale``; both are read if the context or
    evaluation needs points on the surface. Splits are files of DeepSDF's repository (examples/splits), which are not part of
    this software: JSON ``{SET: {CLASS: [ID, ...]}}``. A shape is named SET/CLASS/ID.

    Args:
        root: Folder with ``SdfSamples``.
        train_split: Split file for training, such as sv2_planes_train.json.
        test_split: Split file for the test, such as sv2_planes_test.json.
        val_split: Split file for validation; that of the test if None, as published for MetaSDF.
        kwargs: Arguments of `ShapeSet`.

    Raises:
        ValueError: If an argument is out of range; at set-up, if split files or shapes are missing or damaged.
    """

    def __init__(
        self,
        root: str = "data/deep_sdf",
        *,
        train_split: str | None = None,
        test_split: str | None = None,
        val_split: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.split_files: dict[Split, str | None] = {
            "train": train_split,
            "val": val_split or test_split,
            "test": test_split or val_split,
        }
        self.dropped_rows: dict[str, int] = {}

    @property
    def needs_surface(self) -> bool:
        """Return whether the context or evaluation has points on the surface."""
        return self.context != "dense" or self.eval_surface_points > 0

    def files(self, split: Split) -> list[NamedFile]:
        """Return the files of the samples of a split, in the order of the split file.

        Raises:
            ValueError: If there is no split file, or it is damaged.
        """
        if (path := self.split_files[split]) is None:
            option = "train_split" if split == "train" else "test_split"
            raise ValueError(
                f"{option} is None: set --data.init_args.{option} to a split file, such as sv2_planes_{option[:-6]}.json in "
                "examples/splits of github.com/facebookresearch/DeepSDF."
            )
        self.notes["split"] = "by split files"
        return [NamedFile(name, self._path("SdfSamples", name, ".npz")) for name in names_in_split(Path(path))]

    def read(self, file: NamedFile) -> StoredShape:
        """Read the samples of a shape without rows that have NaN, and its surface if it is needed.

        The number of dropped rows is kept in ``dropped_rows``, by name.

        Raises:
            ValueError: If a file is damaged, or no sample is left; the message names it.
        """
        arrays = read_samples(file.path)
        rows = np.concatenate(arrays)
        valid = ~np.isnan(rows).any(axis=1)
        if not valid.any():
            raise ValueError(f"The samples {file.path} have no row without NaN: {_AGAIN}.")
        if not np.isfinite(rows[valid]).all():
            raise ValueError(f"The samples {file.path} have infinite numbers: {_AGAIN}.")
        surface = np.zeros((0, 6), dtype=np.float32)
        offset, scale = self.normalisation(file)
        if self.needs_surface:
            points, normals = read_surface(self._path("SurfaceSamples", file.name, ".ply"))
            surface = np.concatenate(((points + np.array(offset)) * scale, normals), axis=1).astype(np.float32)
        if not valid.all():
            self.dropped_rows[file.name] = int((~valid).sum())
            self.notes["NaN"] = (
                f"{sum(list(self.dropped_rows.values())):,} rows with NaN dropped in {len(self.dropped_rows):,} shapes"
            )
        return StoredShape(rows[valid], surface, file.name, 0, offset, scale)

    def problem(self, file: NamedFile) -> str | None:
        """Return why the files of a shape cannot be used: missing files, or wrong headers of the samples."""
        places = {"samples": file.path}
        if self.needs_surface:
            places["surface samples"] = self._path("SurfaceSamples", file.name, ".ply")
            places["normalization parameters"] = self._path("NormalizationParameters", file.name, ".npz")
        for kind, path in places.items():
            if not path.is_file():
                return f"{file.name} has no {kind}: there is no file {path}."
        try:
            _check_headers(file.path)
            self.normalisation(file)
        except ValueError as error:
            return str(error)
        return None

    def normalisation(self, file: NamedFile) -> tuple[tuple[float, float, float], float]:
        """Return the offset and the scale of a shape; 0 and 1 if the file is missing and no surface is needed."""
        path = self._path("NormalizationParameters", file.name, ".npz")
        if not path.is_file() and not self.needs_surface:
            return (0.0, 0.0, 0.0), 1.0
        return read_normalization(path)

    def how_to_get(self) -> str:
        """Return where the data comes from."""
        return (
            "run preprocess_data.py of github.com/facebookresearch/DeepSDF, or sample the meshes with python -m "
            "tools.sample_sdf and use ShapeFolder."
        )

    def _path(self, kind: str, name: str, suffix: str) -> Path:
        """Return the path of a file of a shape."""
        return self.root / kind / f"{name}{suffix}"


def names_in_split(path: Path) -> list[str]:
    """Return the names SET/CLASS/ID in a split file of DeepSDF.

    Raises:
        ValueError: If the file is missing, damaged, or has no names.
    """
    layout = 'expected JSON such as {"ShapeNetV2": {"02691156": ["1a2b", ...]}}'
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"The split file {path} cannot be read ({one_line(error)}): {layout}.") from error
    names = []
    for set_name, classes in content.items() if isinstance(content, dict) else [("", None)]:
        for class_name, ids in classes.items() if isinstance(classes, dict) else [("", None)]:
            if not isinstance(ids, list) or not all(isinstance(name, str) and name for name in ids):
                raise ValueError(f"The split file {path} has another layout: {layout}.")
            names += [f"{set_name}/{class_name}/{name}" for name in ids]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"The split file {path} {'repeats shapes' if names else 'has no shapes'}: {layout}, each once."
        )
    return names


def read_samples(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read the arrays ``pos`` and ``neg`` ``(n, 4)`` of a shape.

    Raises:
        ValueError: If the file is missing or damaged; the message names it.
    """
    _check_headers(path)
    try:
        with np.load(path) as file:
            pos, neg = (np.asarray(file[key], dtype=np.float32) for key in _KEYS)
    except _DAMAGED as error:
        raise ValueError(f"The samples {path} cannot be read ({one_line(error)}): {_AGAIN}.") from error
    return pos, neg


class _Header(NamedTuple):
    """Shape and type of an array in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _check_headers(path: Path) -> None:
    """Raise a ``ValueError`` if a file has no arrays ``pos`` and ``neg`` ``(n, 4)``; only headers are read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            missing = [key for key in _KEYS if key not in names]
            if not missing:
                headers = {key: _header(archive.open(f"{key}.npy")) for key in _KEYS}
    except _DAMAGED as error:
        raise ValueError(f"The samples {path} cannot be read ({one_line(error)}): {_AGAIN}.") from error
    if missing:
        raise ValueError(
            f"The samples {path} have no array {missing[0]}, only {', '.join(sorted(names)) or 'none'}: {_AGAIN}."
        )
    for key, header in headers.items():
        if len(header.shape) != 2 or header.shape[1] != 4 or header.dtype.kind != "f":
            raise ValueError(
                f"The samples {path} have an array {key} of {header.dtype} {header.shape}; expected float32 (n, 4): {_AGAIN}."
            )
    if not sum(header.shape[0] for header in headers.values()):
        raise ValueError(f"The samples {path} are empty: {_AGAIN}.")


def _header(file: IO[bytes]) -> _Header:
    """Return the header of an array in NumPy's format."""
    with file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return _Header(shape, dtype)


def read_normalization(path: Path) -> tuple[tuple[float, float, float], float]:
    """Read ``offset`` and ``scale`` of a shape.

    Raises:
        ValueError: If the file is missing or damaged; the message names it.
    """
    try:
        with np.load(path) as file:
            offset, scale = np.asarray(file["offset"], dtype=np.float64).reshape(-1), float(np.squeeze(file["scale"]))
    except (*_DAMAGED, TypeError) as error:
        raise ValueError(
            f"The normalization parameters {path} cannot be read ({one_line(error)}): {_AGAIN}."
        ) from error
    if offset.shape != (3,) or not (np.isfinite(offset).all() and np.isfinite(scale) and scale > 0):
        raise ValueError(
            f"The normalization parameters {path} have offset {offset.tolist()} and scale {scale}; expected three finite "
            f"numbers and a positive one: {_AGAIN}."
        )
    x, y, z = offset.tolist()
    return (x, y, z), scale


def read_surface(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read the points of a PLY file, and their unit normals, zeros if it has none.

    Raises:
        ValueError: If the file is missing or damaged; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"There are no surface samples {path}: {_AGAIN}.")
    try:
        cloud: Any = trimesh.load(path, process=False)
        points = np.asarray(cloud.vertices, dtype=np.float64)
        vertex = cloud.metadata["_ply_raw"]["vertex"]
        normals = np.zeros_like(points)
        if {*_NORMALS} <= {*vertex["properties"]}:
            columns = [np.asarray(vertex["data"][name], dtype=np.float64).reshape(-1) for name in _NORMALS]
            normals = np.stack(columns, axis=1)
    except Exception as error:  # parsers raise arbitrary exceptions for damaged files
        raise ValueError(f"The surface samples {path} cannot be read ({one_line(error)}): {_AGAIN}.") from error
    valid = np.isfinite(points).all(axis=1)
    if not valid.any():
        raise ValueError(f"The surface samples {path} have no finite points: {_AGAIN}.")
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(np.isfinite(length) & (length > 0), normals / np.where(length > 0, length, 1), 0)
    return points[valid], normals[valid]

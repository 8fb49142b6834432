"""Scenes described by ``transforms.json``, or by one such file per split."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args

from datamodules.storage.folders import Split
from datamodules.storage.lenses import LENS_KEYS, Lens, merged, read_lens
from datamodules.storage.poses import Convention, matrix_of, poses_of
from datamodules.storage.views import Scene, common_header, lens_tensors, unnamed_images

TRANSFORMS = "transforms.json"
TRANSFORMS_OF_SPLITS: Mapping[Split, str] = {split: f"transforms_{split}.json" for split in get_args(Split)}


class _Frames(NamedTuple):
    """The frames in a file.

    Attributes:
        path: The file.
        shared: Its keys, which apply to all frames.
        entries: One object per frame.
    """

    path: Path
    shared: Mapping[str, Any]
    entries: list[Mapping[str, Any]]

    @property
    def labels(self) -> list[str]:
        """Return the place of every frame, for error messages."""
        return [f"{self.path}, frame {index}" for index in range(len(self.entries))]


def read_transforms(folder: str | Path, convention: Convention = "opengl") -> Scene:
    """Read a scene with ``transforms.json``, as written by Blender's exporters for NeRF, instant-ngp and Nerfstudio.

    Frames keep the order of the file. The file contains ``frames``, each with ``file_path`` and ``transform_matrix``, 4 x 4 or
    3 x 4; and, for all frames or per frame, the keys of `datamodules.storage.lenses.read_lens`. Without ``transforms.json``,
    the files ``transforms_train.json``, ``transforms_val.json`` and ``transforms_test.json`` are read, as in Blender's data of
    NeRF: the frames of the scene are those of the three files in this order, and each file is a split. If one of the latter
    two is missing, the other is used for both.

    The image of a frame is ``file_path`` relative to the folder of the scene, as it is or with ``.png``. If there is no such
    file, it is the last part of ``file_path`` in the folder of the scene, with ``.png`` or as it is, as in the data of
    LearnIt. Files outside of the folder are refused.

    Args:
        folder: Folder of the scene.
        convention: Convention of ``transform_matrix``.

    Raises:
        ValueError: If the file is missing, damaged or invalid, or if images are missing, outside of the folder, truncated or of
            different sizes, or if a lens is not supported; the message names the file.
    """
    folder = Path(folder)
    files = _files(folder)
    parts = [_read_frames(path) for path in files.values()]
    images = tuple(image for part in parts for image in _images(folder, part))
    matrices = [
        matrix_of(entry.get("transform_matrix"), label)
        for part in parts
        for entry, label in zip(part.entries, part.labels, strict=True)
    ]
    poses = poses_of(matrices, [label for part in parts for label in part.labels], convention)
    shape, num_opaque = common_header(images)
    intrinsics, distortion = lens_tensors([lens for part in parts for lens in _lenses(part, shape)])
    splits = _splits(files, [len(part.entries) for part in parts])
    notes = (*_notes(images), *_notes_on_splits(images, files, splits))
    return Scene(
        folder.absolute().name,
        images,
        poses,
        intrinsics,
        shape,
        distortion,
        splits,
        False,
        num_opaque,
        convention,
        notes,
    )


def _files(folder: Path) -> dict[Split, Path]:
    """Return the files of a scene by split; ``train`` for one without splits."""
    files = {split: folder / name for split, name in TRANSFORMS_OF_SPLITS.items() if (folder / name).is_file()}
    if (folder / TRANSFORMS).is_file() or not files:
        return {"train": folder / TRANSFORMS}
    if "train" not in files:
        others = " and ".join(path.name for path in files.values())
        raise ValueError(
            f"There is no {folder / TRANSFORMS_OF_SPLITS['train']} beside {others}: "
            f"add it, or rename a file to {TRANSFORMS}."
        )
    return files


def _splits(files: Mapping[Split, Path], counts: Sequence[int]) -> dict[Split, range] | None:
    """Return the frames of the splits; None if there is one file."""
    if len(files) == 1:
        return None
    ends = pairwise(accumulate(counts, initial=0))
    splits = {split: range(*bounds) for split, bounds in zip(files, ends, strict=True)}
    held_out = splits.get("val", splits.get("test", range(0)))
    return {"train": splits["train"], "val": held_out, "test": splits.get("test", held_out)}


def _read_frames(path: Path) -> _Frames:
    """Return the frames in a file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"There is no {path}: a scene is a folder with {TRANSFORMS} and its images.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): get it from its source again.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} contains a {type(content).__name__}, not a JSON object: get it from its source again."
        )
    entries = content.get("frames")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"{path} has no frames: it needs a list of at least one, each with file_path and transform_matrix."
        )
    return _Frames(path, content, entries)


def _lenses(part: _Frames, shape: tuple[int, int]) -> list[Lens]:
    """Return the lenses of frames; that of frames without keys of their lens is read once."""
    plain = [LENS_KEYS.isdisjoint(entry) for entry in part.entries]
    shared = read_lens(merged(part.shared, {}), shape, part.labels[0]) if any(plain) else None
    return [
        shared if shared and is_plain else read_lens(merged(part.shared, entry), shape, label)
        for entry, is_plain, label in zip(part.entries, plain, part.labels, strict=True)
    ]


def _images(folder: Path, part: _Frames) -> list[Path]:
    """Return the image files of all frames."""
    with os.scandir(folder) as entries:
        names = {entry.name for entry in entries}
    file_paths = [entry.get("file_path") for entry in part.entries]
    images = [_image(folder, file_path, names, label) for file_path, label in zip(file_paths, part.labels, strict=True)]
    missing = [file_path for file_path, image in zip(file_paths, images, strict=True) if image is None]
    if missing:
        raise ValueError(
            f"{part.path}: {len(missing)} of {len(file_paths)} images are missing in {folder}, the first with "
            f"file_path {missing[0]!r:.100}. Add them, or remove their frames from the file."
        )
    return [image for image in images if image is not None]


def _image(folder: Path, file_path: Any, names: set[str], label: str) -> Path | None:
    """Return the image file of a frame, or None if it does not exist.

    Args:
        folder: Folder of the scene.
        file_path: The path that the file states.
        names: Names of all files and folders in the folder of the scene.
        label: Place of the frame, for error messages.
    """
    if not isinstance(file_path, str) or not file_path or "\0" in file_path:
        return None
    named = file_path.replace("\\", "/")
    parts = Path(os.path.normpath(named)).parts
    path = Path(os.path.normpath(folder.absolute() / named))
    inside = path.is_relative_to(folder.absolute())
    if inside:
        path = folder / path.relative_to(folder.absolute())
    candidates = [path, Path(f"{path}.png")]
    if inside and len(parts) == 1:  # the names are known, without asking the file system
        candidates = [candidate for candidate in candidates if candidate.name in names]
    exists = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)  # noqa: PTH113 - for long names
    if (exists is not None or not Path(named).is_absolute()) and not inside:
        raise ValueError(
            f"{label}: file_path {file_path!r:.100} is outside of the folder of the scene: copy the images into {folder}, and "
            "write paths relative to it."
        )
    if exists is not None:
        return exists
    last = named.rsplit("/", 1)[-1]
    beside = next((name for name in (f"{last}.png", last) if name in names and last not in ("", ".", "..")), None)
    return None if beside is None or not (folder / beside).is_file() else folder / beside


def _notes(images: Sequence[Path]) -> list[tuple[str, str]]:
    """Return a note on images that no frame names."""
    unnamed = unnamed_images(images)
    if not unnamed:
        return []
    return [("unused images", f"{len(unnamed)} image(s) that no frame names are ignored, such as {unnamed[0]}")]


def _notes_on_splits(
    images: Sequence[Path], files: Mapping[Split, Path], splits: Mapping[Split, range] | None
) -> list[tuple[str, str]]:
    """Return a note on images that are both for training and held out."""
    if splits is None:
        return []
    training = {images[frame] for frame in splits["train"]}
    shared = [
        path.name
        for split, path in files.items()
        if split != "train" and any(images[frame] in training for frame in splits[split])
    ]
    if not shared:
        return []
    return [
        (
            "shared images",
            f"{' and '.join(shared)} name images that are also used for training: metrics are too optimistic",
        )
    ]

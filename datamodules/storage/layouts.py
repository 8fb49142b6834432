"""Layouts of scene folders: which there are, and reading a scene in any of them."""

from __future__ import annotations

from pathlib import Path

from datamodules.storage.colmap import model_folder, read_colmap
from datamodules.storage.poses import Convention
from datamodules.storage.srn import SRN_FILE, read_srn
from datamodules.storage.transforms import TRANSFORMS, TRANSFORMS_OF_SPLITS, read_transforms
from datamodules.storage.views import Scene

_TRANSFORMS_FILES = (TRANSFORMS, *TRANSFORMS_OF_SPLITS.values())
_COLMAP_FILES = ("cameras.txt", "cameras.bin")
SCENE_FILES = (*_TRANSFORMS_FILES, SRN_FILE, *_COLMAP_FILES)  # each identifies a layout


def is_scene(folder: Path) -> bool:
    """Return whether a folder contains a file that identifies a scene."""
    return any((folder / name).is_file() for name in (*_TRANSFORMS_FILES, SRN_FILE)) or model_folder(folder) is not None


def scene_of_file(file: Path) -> Path:
    """Return the folder of the scene that a file identifies.

    Args:
        file: A path whose name is in `SCENE_FILES`.

    Example:
        >>> scene_of_file(Path("room/sparse/0/cameras.txt")).as_posix()
        'room'
    """
    folder = file.parent
    if file.name in _COLMAP_FILES:
        folder = folder.parent if folder.name == "0" and folder.parent.name == "sparse" else folder
        folder = folder.parent if folder.name == "sparse" else folder
    return folder


def read_scene(folder: str | Path, convention: Convention | None = None, scale: float = 1.0) -> Scene:
    """Read the scene in a folder: with ``transforms.json`` or its split files, the layout of SRN, or a COLMAP model as text.

    Args:
        folder: Folder of the scene.
        convention: Convention of the poses; that of the layout if None: ``opengl`` for ``transforms.json``, ``opencv`` for SRN,
            ``opencv_w2c`` for COLMAP.
        scale: Factor of all positions.

    Raises:
        ValueError: If the scene is missing, damaged or not supported; the message names the file.
    """
    folder = Path(folder)
    if any((folder / name).is_file() for name in _TRANSFORMS_FILES):
        scene = read_transforms(folder, convention or "opengl")
    elif (folder / SRN_FILE).is_file():
        scene = read_srn(folder, convention or "opencv")
    elif model_folder(folder) is not None:
        scene = read_colmap(folder, convention or "opencv_w2c")
    else:
        scene = read_transforms(folder)  # reports that there is none
    return scene.scaled(scale)

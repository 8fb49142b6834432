"""Chairs, cars and lamps of ShapeNet, as rendered for Learned Init."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.scenes.base import SceneSet
from datamodules.storage.folders import Split

ORIGIN = "https://drive.google.com/drive/folders/1lRfg-Ov1dd3ldke9Gv9dyzGGTxiFOhIs"
Category = Literal["chairs", "cars", "lamps"]


class ShapeNet(SceneSet):
    """Chairs, cars or lamps of ShapeNet (Chang et al., 2015), as rendered for Learned Init (Tancik et al., CVPR 2021).

    The published settings train on the first 25 of the 50 frames of an object, with 1 to 5 support views and one query view,
    near 2 and far 6; cars occur twice per epoch and lamps three times (``repeats``). Publications differ in how evaluation
    selects views, see ``protocol``. The terms of ShapeNet apply to the objects.

    The split lists ``chair_splits.json``, ``car_splits.json`` and ``lamp_splits.json`` are expected in ``root``. The objects
    are expected next to them, in ``chairs``, ``cars`` and ``lamps``, or in 03001627, 02958343 and 03636649 as in the archives:
    one folder per object, with ``transforms.json`` and PNG images of 128 x 128 pixels, which are composited over white.

    Args:
        category: ``chairs``, ``cars`` or ``lamps``.
        root: Folder of the split lists and the categories.
        kwargs: Arguments of `SceneSet`.

    Raises:
        ValueError: If a number is out of range; at set-up, if objects are missing or broken.
    """

    folders: ClassVar[Mapping[Category, tuple[str, str]]] = {
        "chairs": ("chairs", "03001627"),
        "cars": ("cars", "02958343"),
        "lamps": ("lamps", "03636649"),
    }

    def __init__(self, category: Category = "chairs", root: str = "data/shapenet", **kwargs: Any) -> None:
        if category not in self.folders:
            raise ValueError(f"category is {category!r}: choose one of {', '.join(self.folders)}.")
        super().__init__(root=root, **kwargs)
        self.category: Category = category

    def scenes(self, split: Split) -> list[Path]:
        """Return the folders of the objects in the list of a split, in its order; folders may be missing."""
        path = self._splits_file
        if not path.is_file():
            raise ValueError(f"There is no {path}, which lists the {self.category} of every split: {self.how_to_get()}")
        candidates = [self.root / name for name in self.folders[self.category]]
        folder = next((candidate for candidate in candidates if candidate.is_dir()), None)
        if folder is None:
            raise ValueError(
                f"There are no {self.category}, neither {candidates[0]} nor {candidates[1]} is a folder: {self.how_to_get()}"
            )
        return [folder / name for name in _read_names(path, split)]

    def how_to_get(self) -> str:
        """Return how to get the objects, as the end of an error message."""
        name, synset = self.folders[self.category]
        return (
            f"download them by hand, because this program cannot download folders from Google Drive. Save "
            f"{self._splits_file.name} from {ORIGIN} as {self._splits_file}, and unpack the archive of {name} to "
            f"{self.root / name} or {self.root / synset}, so that each object is a folder with transforms.json. Or pass the "
            "folder that contains them with --data.init_args.root."
        )

    @property
    def _splits_file(self) -> Path:
        """JSON file that lists the objects of every split."""
        return self.root / f"{self.category.removesuffix('s')}_splits.json"


def _read_names(path: Path, split: Split) -> list[str]:
    """Return the unique folder names in the list of a split."""
    try:
        lists = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): download it from {ORIGIN} again.") from error
    names = lists.get(split) if isinstance(lists, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and _is_folder_name(name) for name in names):
        raise ValueError(f"{path} has no list {split} of folder names: download it from {ORIGIN} again.")
    return list(dict.fromkeys(names))


def _is_folder_name(name: str) -> bool:
    """Return whether a name is that of a folder, without a path."""
    return name not in ("", "..") and Path(name).name == name

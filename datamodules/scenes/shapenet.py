"""Objects of ShapeNet as rendered for learned initializations: chairs, cars and lamps."""

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
    """Chairs, cars or lamps of ShapeNet (Chang et al., 2015), as Learned Init (Tancik et al., CVPR 2021) has them rendered.

    Published are training on the first 25 of the 50 frames of an object, 1 to 5 support views and one query view, near 2 and
    far 6; in an epoch cars come twice, lamps three times. How evaluation takes views differs between publications, see
    ``protocol``. The objects are under the terms of ShapeNet.

    The lists of the splits, ``chair_splits.json``, ``car_splits.json`` and ``lamp_splits.json``, are looked for in ``root``,
    the objects in ``chairs``, ``cars`` and ``lamps`` beside them, or in 03001627, 02958343 and 03636649, as the archives have
    them: a folder per object, with ``transforms.json`` and PNG of 128 x 128 pixels, whose transparency becomes white.

    Args:
        category: ``chairs``, ``cars`` or ``lamps``.
        root: Folder of the lists and the categories.
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
            raise ValueError(f"category is {category!r}: choose of {', '.join(self.folders)}.")
        super().__init__(root=root, **kwargs)
        self.category: Category = category

    def scenes(self, split: Split) -> list[Path]:
        """Return the folders of the objects that the list of a split names, in its order, whether they are there or not."""
        path = self._list
        if not path.is_file():
            raise ValueError(f"There is no {path}, which lists the {self.category} of every split: {self.how_to_get()}")
        places = [self.root / name for name in self.folders[self.category]]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise ValueError(
                f"There are no {self.category}: neither {places[0]} nor {places[1]} is a folder. {self._get()}"
            )
        return [folder / name for name in _named(path, split)]

    def how_to_get(self) -> str:
        """Return where the objects come from, and where they go."""
        text = self._get()
        return text[0].lower() + text[1:]

    @property
    def _list(self) -> Path:
        """The file that lists the objects of every split."""
        return self.root / f"{self.category.removesuffix('s')}_splits.json"

    def _get(self) -> str:
        """Return the same as a sentence."""
        name, synset = self.folders[self.category]
        return (
            f"Fetch it by hand, for a folder of Google Drive cannot be fetched by this program: from {ORIGIN} take "
            f"{self._list.name} to {self._list}, and unpack the archive of {name} to {self.root / name} or "
            f"{self.root / synset}, so that each object is a folder with transforms.json in it. Or name the folder that holds "
            "them: --data.init_args.root."
        )


def _named(path: Path, split: Split) -> list[str]:
    """Return the objects that a list names for a split, each once."""
    try:
        lists = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): take it from {ORIGIN} again.") from error
    names = lists.get(split) if isinstance(lists, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and _plain(name) for name in names):
        raise ValueError(f"{path} has no list {split} of names of folders: take it from {ORIGIN} again.")
    return list(dict.fromkeys(names))


def _plain(name: str) -> bool:
    """Return whether a name can be that of a folder."""
    return name not in ("", "..") and Path(name).name == name

"""Anybody's scenes in a folder, for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.scenes.base import SceneSet
from datamodules.storage.folders import RandomSplit, Split, files_of_split


class SceneFolder(SceneSet):
    """The scenes of a folder: in it a folder per scene, with ``transforms.json`` and the images that it names.

    If the folder has a folder ``train`` beside ``val`` or ``test``, these are the splits; where one of the latter is missing,
    the other serves for both. If not, scenes are drawn for validation and test, and the rest is for training; the draw depends
    on ``split_seed`` and the names of the folders alone. Transparency becomes white; images without it are taken as they are.

    Args:
        root: The folder.
        val_ratio: Part of the scenes for validation, in (0, 1), at least one; unless there are folders.
        test_ratio: The same for the test; validation scenes serve if 0.
        split_seed: Of that draw.
        kwargs: Arguments of `SceneSet`.

    Raises:
        ValueError: If a number is out of range; at set-up, if scenes are missing or broken.
    """

    def __init__(
        self,
        root: str = "data/scenes",
        *,
        val_ratio: float = 0.1,
        test_ratio: float = 0.0,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.random_split = RandomSplit(val_ratio, test_ratio, split_seed)

    def scenes(self, split: Split) -> list[Path]:
        """Return the folders of the scenes of a split, in alphabetical order."""
        folders, self.notes["split"] = files_of_split(self.root, split, _folders, "scenes", self.random_split)
        return [folder.path for folder in folders]


def _folders(path: Path) -> list[tuple[Path, Path]]:
    """Return the folders in a folder and their names, without those that are hidden or hold nothing described.

    A folder without ``transforms.json`` is taken for a broken scene if it holds an image.
    """
    found = sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    return [(item, Path(item.name)) for item in found if (item / "transforms.json").exists() or any(item.glob("*.png"))]

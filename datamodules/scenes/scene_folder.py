"""Scenes in a folder, for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.scenes.base import SceneSet
from datamodules.storage.folders import RandomSplit, Split, files_of_split
from datamodules.storage.layouts import is_scene


class SceneFolder(SceneSet):
    """A folder with one folder per scene, in a layout of `datamodules.storage.layouts.read_scene`.

    If the folder is itself a scene, it is the only scene of every split; with ``transforms_train.json`` and
    ``transforms_val.json`` or ``transforms_test.json``, these split its frames. Otherwise, if the folder contains ``train`` and
    at least one of ``val`` and ``test``, these are the splits; if one of the latter is missing, the other is used for both.
    Otherwise, validation and test scenes are drawn at random, and the rest is for training; the draw depends only on
    ``split_seed`` and the names of the folders. Images with transparency are composited over white; others are used as they
    are.

    Args:
        root: The folder.
        val_ratio: Fraction of the scenes for validation, in (0, 1), at least one scene; ignored if there are split folders.
        test_ratio: Fraction of the scenes for the test; 0 uses the validation scenes. Ignored if there are split folders.
        split_seed: Seed of the random split.
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
        """Return the scene folders of a split in alphabetical order."""
        if is_scene(self.root):
            self.notes["split"] = f"{self.root} is one scene, which is used for training and evaluation"
            return [self.root]
        folders, self.notes["split"] = files_of_split(self.root, split, _folders, "scenes", self.random_split)
        return [folder.path for folder in folders]


def _folders(path: Path) -> list[tuple[Path, Path]]:
    """Return the scene folders in a folder and their names, without hidden ones.

    A folder with a PNG image but without a file that identifies a scene counts as a (broken) scene.
    """
    folders = sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    return [(folder, Path(folder.name)) for folder in folders if is_scene(folder) or any(folder.glob("*.png"))]

"""Scenes of ShapeNet in the layout of scene representation networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from datamodules.scenes.base import SceneSet
from datamodules.storage.folders import Split
from datamodules.storage.views import Scene, read_srn

ORIGINS = (
    "https://drive.google.com/drive/folders/1PsT3uKwqHHD2bEEHkIXB99AlIjtmrEiR",  # srn_cars.zip
    "https://drive.google.com/file/d/19yDsEJjx9zNpOKz9o6AaK-E8ED6taJWU",
)


class SRNScenes(SceneSet):
    """Cars, or other scenes, as rendered for scene representation networks (Sitzmann et al., NeurIPS 2019).

    They are looked for in the folders ``CATEGORY_train``, ``CATEGORY_val`` and ``CATEGORY_test`` of ``root``, a folder per
    scene with ``intrinsics.txt``, ``pose`` and ``rgb`` in it; where one of the latter two is missing, the other serves for
    both. Functa reports 2,458 cars for training and 703 for the test, without those that are damaged. The images are on white
    already, so that transparency is ignored. The objects are under the terms of ShapeNet.

    Args:
        category: How the names of the folders begin.
        root: Folder that holds them.
        near: Depth at which rendering starts, in world units from the plane of the camera.
        far: Depth at which it ends.
        train_frames: Frames of a scene, from the first, that training draws from.
        kwargs: Arguments of `SceneSet`.

    Raises:
        ValueError: If a number is out of range; at set-up, if scenes are missing or broken.
    """

    drop_alpha: ClassVar[bool] = True

    def __init__(
        self,
        category: str = "cars",
        root: str = "data/srn",
        *,
        near: float = 0.8,
        far: float = 1.8,
        train_frames: int = 50,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, near=near, far=far, train_frames=train_frames, **kwargs)
        self.category = category

    def scenes(self, split: Split) -> list[Path]:
        """Return the folders of the scenes of a split, in alphabetical order."""
        folder = self.root / f"{self.category}_{split}"
        if split != "train" and not folder.is_dir():
            folder = self.root / f"{self.category}_{'test' if split == 'val' else 'val'}"
            self.notes["split"] = f"{folder.name} serves for validation and test"
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}: {self.how_to_get()}")
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))

    def read(self, folder: Path) -> Scene:
        """Return a scene, or raise a ``ValueError`` that says what is wrong with it."""
        return read_srn(folder)

    def how_to_get(self) -> str:
        """Return where the scenes come from, and where they go."""
        return (
            f"fetch them by hand, for Google Drive lets no program do it, from {' or '.join(ORIGINS)}, and unpack them so that "
            f"{self.root} holds {self.category}_train and {self.category}_test, each with a folder per scene. Or name the "
            "folder that holds them: --data.init_args.root."
        )

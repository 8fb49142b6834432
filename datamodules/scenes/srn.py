"""ShapeNet scenes in the layout of scene representation networks (SRN)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.scenes.base import SceneSet
from datamodules.storage.folders import Split
from datamodules.storage.srn import read_srn
from datamodules.storage.views import Scene

ORIGINS = (
    "https://drive.google.com/drive/folders/1PsT3uKwqHHD2bEEHkIXB99AlIjtmrEiR",  # srn_cars.zip
    "https://drive.google.com/file/d/19yDsEJjx9zNpOKz9o6AaK-E8ED6taJWU",
)


class SRNScenes(SceneSet):
    """Cars, or other scenes, as rendered for scene representation networks (Sitzmann et al., NeurIPS 2019).

    The scenes are expected in the folders ``CATEGORY_train``, ``CATEGORY_val`` and ``CATEGORY_test`` of ``root``, one folder
    per scene with ``intrinsics.txt``, ``pose`` and ``rgb``. If ``CATEGORY_val`` or ``CATEGORY_test`` is missing, the other is
    used for both. Functa reports 2,458 cars for training and 703 for the test, without damaged ones. The images already have a
    white background, so transparency is ignored. The terms of ShapeNet apply to the objects.

    Args:
        category: Prefix of the folder names.
        root: Folder that contains them.
        near: Depth at which rendering starts, in world units from the camera plane.
        far: Depth at which rendering ends.
        train_frames: Number of leading frames of a scene that training draws from.
        kwargs: Arguments of `SceneSet`.

    Raises:
        ValueError: If a number is out of range; at set-up, if scenes are missing or broken.
    """

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
        """Return the scene folders of a split in alphabetical order."""
        folder = self.root / f"{self.category}_{split}"
        if split != "train" and not folder.is_dir():
            folder = self.root / f"{self.category}_{'test' if split == 'val' else 'val'}"
            self.notes["split"] = f"{folder.name} is used for validation and test"
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}: {self.how_to_get()}")
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))

    def read(self, folder: Path) -> Scene:
        """Return the scene in a folder.

        Raises:
            ValueError: If the scene is broken.
        """
        return read_srn(folder, self.convention or "opencv").scaled(self.scale)

    def how_to_get(self) -> str:
        """Return how to get the scenes, as the end of an error message."""
        return (
            f"download them by hand, because Google Drive does not allow programs to, from {' or '.join(ORIGINS)}, and unpack "
            f"them so that {self.root} contains {self.category}_train and {self.category}_test, each with a folder per scene. "
            "Or pass the folder that contains them with --data.init_args.root."
        )

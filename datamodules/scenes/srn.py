"""Scenes of ShapeNet in the layout of scene representation networks."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from datamodules.scenes.base import SceneSet
from datamodules.scenes.draws import Protocol
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
    both. Functa reports 2,458 cars for training and 703 for the test, without those that are damaged. The pictures are on white
    already, so that transparency is ignored. The objects are under the terms of ShapeNet.

    Args:
        category: How the names of the folders begin.
        root: Folder that holds them.
        views: Support views of an instance, which are looked at.
        query_views: Views of an instance that are to be rendered.
        size: Pixels along each side of the pictures; scenes of another size are broken.
        near: Depth at which rendering starts, in world units from the plane of the camera.
        far: Depth at which it ends.
        train_frames: Frames of a scene, from the first, that training draws from.
        repeats: Times that a scene comes in a training epoch.
        protocol: How evaluation takes views: ``draws`` from all frames; ``halves``, support from the first ``train_frames`` and
            queries from the others; ``first``, the first as support and the next 25 as queries, once per scene.
        draws: Times that a scene comes in the test, with other views; with ``first`` it comes once.
        val_draws: The same in validation.
        rays_per_view: Rays of every query view in a training step; all, if it has fewer.
        foreground_epochs: Training epochs, from the first, in which half of the rays come from the foreground.
        on_bad_scene: What a broken scene does: ``raise`` stops with its name, ``skip`` leaves it out and says so.
        batch_size: Instances per device and step.
        eval_batch_size: Instances per device in validation, test and prediction; ``batch_size`` if None.
        num_workers: Processes that load; 0 loads in the main process.

    Raises:
        ValueError: If a number is out of range; at set-up, if scenes are missing or broken.
    """

    drop_alpha: ClassVar[bool] = True

    def __init__(
        self,
        category: str = "cars",
        root: str = "data/srn",
        views: int = 1,
        query_views: int = 1,
        size: int = 128,
        near: float = 0.8,
        far: float = 1.8,
        train_frames: int = 50,
        repeats: int = 1,
        protocol: Protocol = "draws",
        draws: int = 100,
        val_draws: int = 1,
        rays_per_view: int = 128,
        foreground_epochs: int = 2,
        on_bad_scene: Literal["raise", "skip"] = "skip",
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            root,
            views,
            query_views,
            size,
            near,
            far,
            train_frames,
            repeats,
            protocol,
            draws,
            val_draws,
            rays_per_view,
            foreground_epochs,
            on_bad_scene,
            batch_size,
            eval_batch_size,
            num_workers,
        )
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

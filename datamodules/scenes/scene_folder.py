"""Anybody's scenes in a folder, for training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from datamodules.scenes.base import SceneSet
from datamodules.scenes.draws import Protocol
from datamodules.storage.folders import Split, files_of_split


class SceneFolder(SceneSet):
    """The scenes of a folder: in it a folder per scene, with ``transforms.json`` and the pictures that it names.

    If the folder has a folder ``train`` beside ``val`` or ``test``, these are the splits; where one of the latter is missing,
    the other serves for both. If not, scenes are drawn for validation and test, and the rest is for training; the draw depends
    on ``split_seed`` and the names of the folders alone. Transparency becomes white; pictures without it are taken as they are.

    Args:
        root: The folder.
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
        val_ratio: Part of the scenes for validation, in (0, 1), at least one; unless there are folders.
        test_ratio: The same for the test; validation scenes serve if 0.
        split_seed: Of that draw.
        rays_per_view: Rays of every query view in a training step; all, if it has fewer.
        foreground_epochs: Training epochs, from the first, in which half of the rays come from the foreground.
        on_bad_scene: What a broken scene does: ``raise`` stops with its name, ``skip`` leaves it out and says so.
        batch_size: Instances per device and step.
        eval_batch_size: Instances per device in validation, test and prediction; ``batch_size`` if None.
        num_workers: Processes that load; 0 loads in the main process.

    Raises:
        ValueError: If a number is out of range; at set-up, if scenes are missing or broken.
    """

    def __init__(
        self,
        root: str = "data/scenes",
        views: int = 1,
        query_views: int = 1,
        size: int = 128,
        near: float = 2.0,
        far: float = 6.0,
        train_frames: int = 25,
        repeats: int = 1,
        protocol: Protocol = "draws",
        draws: int = 100,
        val_draws: int = 1,
        val_ratio: float = 0.1,
        test_ratio: float = 0.0,
        split_seed: int = 0,
        rays_per_view: int = 128,
        foreground_epochs: int = 2,
        on_bad_scene: Literal["raise", "skip"] = "skip",
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
    ) -> None:
        if not (0 < val_ratio < 1 and 0 <= test_ratio < 1 and val_ratio + test_ratio < 1):
            raise ValueError(
                f"val_ratio is {val_ratio}, test_ratio {test_ratio}: parts of the scenes, whose sum leaves some for training."
            )
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
        self.val_ratio = val_ratio
        self.test_ratio = test_ratio
        self.split_seed = split_seed

    def scenes(self, split: Split) -> list[Path]:
        """Return the folders of the scenes of a split, in alphabetical order."""
        ratios = {"val_ratio": self.val_ratio, "test_ratio": self.test_ratio}
        folders, self.notes["split"] = files_of_split(
            self.root, split, _folders, "scenes", **ratios, seed=self.split_seed
        )
        return [folder.path for folder in folders]


def _folders(path: Path) -> list[tuple[Path, Path]]:
    """Return the folders in a folder and their names, without those that are hidden or hold nothing described.

    A folder without ``transforms.json`` is taken for a broken scene if it holds a picture.
    """
    found = sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    return [(item, Path(item.name)) for item in found if (item / "transforms.json").exists() or any(item.glob("*.png"))]

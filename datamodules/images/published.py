"""Image sets that are published at several resolutions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch.utils.data import Dataset

from datamodules.batch import Signal
from datamodules.images.base import DecodedImages, ImageSet, unreadable
from datamodules.storage.cache import cached
from datamodules.storage.folders import NamedFile, Split
from datamodules.storage.images import Preparation

_MAX_LISTED = 5  # files listed in an error message


class PublishedPairs(ImageSet):
    """Base class for data sets whose images are also published at lower resolutions, in one folder per scale.

    The low resolution of ``baby.png`` at scale 2 is ``babyx2.png``. A subclass defines the folders
    (`low_resolution_folder`) and may describe how to replace one (`how_to_replace`). Scales without a folder have no published
    images. ``notes`` records which scales have them.
    """

    low_resolution_scales: ClassVar[tuple[int, ...]] = (2, 3, 4)

    @abstractmethod
    def low_resolution_folder(self, split: Split, scale: int) -> Path | None:
        """Return the folder of the images of a lower resolution; None if there is none."""

    def how_to_replace(self, folder: Path) -> str:
        """Return the fix for missing or unreadable images in a folder of a lower resolution."""
        return f"Replace them, or move {folder} away to use Pillow's bicubic filter instead."

    def prepare_native(self, splits: Sequence[Split]) -> None:
        """Download and decode the images of some splits, for evaluation also those of lower resolutions."""
        super().prepare_native(splits)
        if self.cache is not None:
            for split in splits:
                for scale in self.low_resolution_scales if split != "train" else ():
                    self.low_resolution_images(split, scale)

    def related_files(self, split: Split) -> list[NamedFile]:
        """Return the images of lower resolutions, which may be missing; those of training, which nothing reads, if present."""
        folders = {scale: self.low_resolution_folder(split, scale) for scale in self.low_resolution_scales}
        related = [
            NamedFile(f"{file.name}x{scale}", _low_resolution_of(file, folder, scale))
            for scale, folder in folders.items()
            if folder is not None
            for file in self.files(split)
        ]
        return [file for file in related if split != "train" or file.path.exists()]

    def low_resolution_images(self, split: Split, scale: float) -> Dataset[Signal] | None:
        """Return the published images of a lower resolution; see `NativeImages.low_resolution_images`."""
        if scale not in self.low_resolution_scales:
            return None
        folder = self.low_resolution_folder(split, int(scale))
        self.notes[f"low resolution at scale {scale:g}"] = (
            "Pillow, bicubic" if folder is None else f"published, {folder}"
        )
        if folder is None:
            return None
        files = [
            NamedFile(file.name, _low_resolution_of(file, folder, int(scale)))
            for file in self.files(split)
            if str(file.path) not in self.skipped
        ]
        self._refuse([f"{file.path} is missing." for file in files if not file.path.exists()], files, folder, scale)
        if self.cache is None:
            self._refuse(list(unreadable(files).values()), files, folder, scale)
            return DecodedImages(files, Preparation())
        images = cached(files, Preparation(), self.cache, f"{type(self).__name__.lower()}-x{scale:g}")
        self._refuse(list(images.skipped.values()), files, folder, scale)
        return images

    def _refuse(self, problems: Sequence[str], files: Sequence[NamedFile], folder: Path, scale: float) -> None:
        """Raise an error if images of a lower resolution have problems."""
        if not problems:
            return
        reasons = "".join(f"\n  {problem}" for problem in problems[:_MAX_LISTED])
        more = f"\n  and {len(problems) - _MAX_LISTED:,} more" if len(problems) > _MAX_LISTED else ""
        raise ValueError(
            f"{len(problems):,} of {len(files):,} published images at scale {scale:g} in {folder} are missing or cannot be "
            f"read:{reasons}{more}\n{self.how_to_replace(folder)}"
        )


def _low_resolution_of(file: NamedFile, folder: Path, scale: int) -> Path:
    """Return the path of the low resolution of an image, with its suffix or ``.png``."""
    path = folder / f"{file.path.stem}x{scale}{file.path.suffix}"
    return path if path.exists() else path.with_suffix(".png")

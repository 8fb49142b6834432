"""Training on a folder of images."""

from __future__ import annotations

from typing import Any, Literal

from datamodules.images.base import ImageSet
from datamodules.storage.folders import NamedFile, RandomSplit, Split, files_of_split
from datamodules.storage.images import Preparation, RandomCrop, image_files


class ImageFolder(ImageSet):
    """All images in a folder and its subfolders.

    If the folder contains ``train`` and at least one of ``val`` and ``test``, these are the splits; if one of the latter is
    missing, the other is used for both. Otherwise the images are split at random, depending only on ``split_seed`` and the
    paths relative to the folder. Images are resized and cropped to the central square. With ``crop: random``, training takes
    random crops of images whose shorter side is ``crop_scale`` times ``size`` pixels.

    Args:
        root: Folder of the images.
        crop: Training crops: the ``center`` of every image, or ``random`` positions.
        crop_scale: Shorter side of the images that random crops are taken from, in multiples of ``size``, at least 1. If
            None, images are not resized.
        flip: Whether to flip training images horizontally with probability 0.5.
        val_ratio: Fraction of the images for validation, in (0, 1), at least one image. Ignored if folders define the splits.
        test_ratio: Fraction of the images for testing, in [0, 1). If 0, the validation images are used.
        split_seed: Seed of the random split.
        kwargs: Arguments of `ImageSet`.

    Raises:
        ValueError: If an argument is out of range; at set-up, if images are missing or unreadable.
    """

    def __init__(
        self,
        root: str = "data/images",
        *,
        crop: Literal["center", "random"] = "center",
        crop_scale: float | None = 1.8,
        flip: bool = False,
        val_ratio: float = 0.1,
        test_ratio: float = 0.0,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if crop_scale is not None and crop_scale < 1:
            raise ValueError(
                f"crop_scale is {crop_scale}, but must be at least 1, so that images are at least as large as crops."
            )
        super().__init__(root=root, partial=False, **kwargs)
        self.crop = crop
        self.crop_scale = crop_scale
        self.random_split = RandomSplit(val_ratio, test_ratio, split_seed)
        self.random_crop = RandomCrop(self.size, flip) if crop == "random" or flip else None

    def files(self, split: Split) -> list[NamedFile]:
        """Return the images of a split, in alphabetical order."""
        files, self.notes["split"] = files_of_split(self.root, split, image_files, "images", self.random_split)
        return files

    def preparation(self, split: Split) -> Preparation:
        """Return the preprocessing of a split."""
        if split != "train" or self.crop == "center":
            return super().preparation(split)
        short_side = None if self.crop_scale is None else round(self.size * self.crop_scale)
        return Preparation(short_side=short_side, smallest=self.size)

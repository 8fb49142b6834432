"""Anybody's images in a folder, for training."""

from __future__ import annotations

from typing import Any, Literal

from datamodules.images.base import ImageSet
from datamodules.storage.folders import NamedFile, RandomSplit, Split, files_of_split
from datamodules.storage.images import Preparation, RandomCrop, image_files


class ImageFolder(ImageSet):
    """The images of a folder and of the folders in it.

    If the folder has a folder ``train`` beside ``val`` or ``test``, these are the splits; where one of the latter is missing,
    the other serves for both. If not, images are drawn for validation and test, and the rest is for training; the draw
    depends on ``split_seed`` and the paths below the folder alone. Images are resized and cut to their central square, or,
    with ``crop: random``, training cuts squares at random places of images whose short side has ``crop_scale`` times
    ``size`` pixels.

    Args:
        root: The folder.
        crop: What training sees: the ``center`` of each image, or ``random`` places.
        crop_scale: Short side of the images from which random crops are cut, in multiples of ``size``, at least 1; as it
            is in the file if None.
        flip: Whether half of the training images are mirrored left to right, at random.
        val_ratio: Part of the images for validation, in (0, 1), at least one image; unless there are folders.
        test_ratio: The same for the test; validation images serve if 0.
        split_seed: Of that draw.
        kwargs: Arguments of `ImageSet`.

    Raises:
        ValueError: If a number is out of range; at set-up, if images are missing or unreadable.
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
                f"crop_scale is {crop_scale}; images have to be at least as large as the crops: 1 or more."
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
        """Return what is done to every image of a split."""
        if split != "train" or self.crop == "center":
            return super().preparation(split)
        scaled = None if self.crop_scale is None else round(self.size * self.crop_scale)
        return Preparation(short_side=scaled, smallest=self.size)

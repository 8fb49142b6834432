"""Anybody's pictures in a folder, for training."""

from __future__ import annotations

from typing import Literal

from datamodules.images.base import PictureSet
from datamodules.storage.folders import NamedFile, Split, files_of_split
from datamodules.storage.images import Preparation, RandomCrop, picture_files


class ImageFolder(PictureSet):
    """The pictures of a folder and of the folders in it.

    If the folder has a folder ``train`` beside ``val`` or ``test``, these are the splits; where one of the latter is missing,
    the other serves for both. If not, pictures are drawn for validation and test, and the rest is for training; the draw
    depends on ``split_seed`` and the paths below the folder alone. Pictures are resized and cut to their central square, or,
    with ``crop: random``, training cuts squares at random places of pictures whose short side has ``crop_scale`` times
    ``size`` pixels.

    Args:
        root: The folder.
        size: Pixels along each side of a picture as it is trained and evaluated on.
        crop: What training sees: the ``center`` of each picture, or ``random`` places.
        crop_scale: Short side of the pictures from which random crops are cut, in multiples of ``size``, at least 1; as it
            is in the file if None.
        flip: Whether half of the training pictures are mirrored left to right, at random.
        val_ratio: Part of the pictures for validation, in (0, 1), at least one picture; unless there are folders.
        test_ratio: The same for the test; validation pictures serve if 0.
        split_seed: Of that draw.
        cache: Folder that keeps decoded pictures; if None, they are decoded every time.
        on_bad_file: What an unreadable picture does: ``raise`` stops with its name, ``skip`` leaves it out and says so.
        batch_size: Instances per device and step.
        eval_batch_size: Instances per device in validation, test and prediction; ``batch_size`` if None.
        num_workers: Processes that load; 0 loads in the main process.
        coordinate_noise: In training, moves coordinates uniformly within their cell: ``per_instance``, ``shared`` or ``none``.
        coordinate_subset: In training, coordinates per step: a ratio below 1, a count, or all if None.

    Raises:
        ValueError: If a number is out of range; at set-up, if pictures are missing or unreadable.
    """

    def __init__(
        self,
        root: str = "data/pictures",
        size: int = 178,
        crop: Literal["center", "random"] = "center",
        crop_scale: float | None = 1.8,
        flip: bool = False,
        val_ratio: float = 0.1,
        test_ratio: float = 0.0,
        split_seed: int = 0,
        cache: str | None = "data/cache",
        on_bad_file: Literal["raise", "skip"] = "raise",
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        coordinate_noise: Literal["none", "per_instance", "shared"] = "none",
        coordinate_subset: int | float | None = None,
    ) -> None:
        if not (0 < val_ratio < 1 and 0 <= test_ratio < 1 and val_ratio + test_ratio < 1):
            raise ValueError(
                f"val_ratio is {val_ratio}, test_ratio {test_ratio}: parts of the pictures, whose sum leaves some for training."
            )
        if crop_scale is not None and crop_scale < 1:
            raise ValueError(
                f"crop_scale is {crop_scale}; pictures have to be at least as large as the crops: 1 or more."
            )
        super().__init__(
            size,
            root,
            cache,
            on_bad_file,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            coordinate_noise=coordinate_noise,
            coordinate_subset=coordinate_subset,
        )
        self.crop = crop
        self.crop_scale = crop_scale
        self.val_ratio = val_ratio
        self.test_ratio = test_ratio
        self.split_seed = split_seed
        self.random_crop = RandomCrop(size, flip) if crop == "random" or flip else None

    def files(self, split: Split) -> list[NamedFile]:
        """Return the pictures of a split, in alphabetical order."""
        ratios = {"val_ratio": self.val_ratio, "test_ratio": self.test_ratio}
        files, self.notes["split"] = files_of_split(
            self.root, split, picture_files, "pictures", **ratios, seed=self.split_seed
        )
        return files

    def preparation(self, split: Split) -> Preparation:
        """Return what is done to every picture of a split."""
        if split != "train" or self.crop == "center":
            return super().preparation(split)
        scaled = None if self.crop_scale is None else round(self.size * self.crop_scale)
        return Preparation(short_side=scaled, smallest=self.size)

"""ImageNette: 13,394 images of ten classes of ImageNet, 320 pixels along the shorter side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.images.base import ImageSet
from datamodules.storage.archives import extract
from datamodules.storage.download import Source, download
from datamodules.storage.folders import NamedFile, Split
from datamodules.storage.images import Preparation, RandomCrop, image_files


class ImageNette(ImageSet):
    """ImageNette (fast.ai), preprocessed as published: 9,469 images for training, 3,925 for both validation and testing.

    Training takes random crops, flipped with probability 0.5, of images at their original resolution. The published
    evaluation first resizes images to ``size`` and then takes the central square, so that they are about 1.8 times smaller
    than in training at the published 178 pixels. ``evaluation: matched`` takes the central square at the original
    resolution; its results are not comparable with published ones.

    The images are searched for in ``imagenette/imagenette2-320``, ``imagenette`` and ``imagenette2-320`` below ``root``, and in
    ``root`` itself. The folder must contain ``train`` and ``val`` with one subfolder per class.

    Args:
        download: Whether to download the archive (about 340 MB) into ``root``. An archive that is already in ``root`` is
            unpacked in any case.
        flip: Whether to flip training images horizontally with probability 0.5.
        evaluation: Scale of validation and test images: ``resized`` as published, or ``matched`` to training.
        kwargs: Arguments of `ImageSet`.

    Raises:
        ValueError: If an argument is out of range; at set-up, if images are missing or unreadable.
        ConnectionError: If the archive cannot be downloaded.
    """

    published: ClassVar[Mapping[Split, int]] = {"train": 9_469, "val": 3_925, "test": 3_925}
    source: ClassVar[Source] = Source(
        "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
        "imagenette2-320.tgz",
        "md5:3df6f0d01a2c9592104656642f5e78a3",
    )

    def __init__(
        self,
        *,
        download: bool = True,
        flip: bool = True,
        evaluation: Literal["resized", "matched"] = "resized",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.download = download
        self.evaluation = evaluation
        self.random_crop = RandomCrop(self.size, flip)

    def fetch(self) -> None:
        """Download and unpack the archive if the images are missing."""
        archive = self.root / self.source.filename
        if self._folder() is None and (self.download or archive.exists()):
            extract(download(self.source, self.root), self.root / "imagenette")

    def files(self, split: Split) -> list[NamedFile]:
        """Return the images of a split, named ``CLASS/FILE``, in alphabetical order."""
        folder = self._folder()
        if folder is None:
            raise ValueError(
                f"ImageNette was not found in {self.root}: none of {', '.join(map(str, self._candidates()))} contains folders "
                f"train and val. Pass --data.init_args.download true to download it, or download {self.source.url} "
                f"({self.source.checksum}) to {self.root / self.source.filename}. It will be unpacked into "
                f"{self.root / 'imagenette'}; if that folder exists and contains something else, move it away."
            )
        files = image_files(folder / ("train" if split == "train" else "val"))
        return [NamedFile(relative.as_posix(), path) for path, relative in files]

    def preparation(self, split: Split) -> Preparation:
        """Return the preprocessing of a split; training images are cropped later, on the device."""
        if split == "train":
            return Preparation(smallest=self.size)
        return Preparation(crop=self.size) if self.evaluation == "matched" else super().preparation(split)

    def _candidates(self) -> list[Path]:
        """Return the folders to search, in order."""
        return [
            self.root / "imagenette" / "imagenette2-320",
            self.root / "imagenette",
            self.root / "imagenette2-320",
            self.root,
        ]

    def _folder(self) -> Path | None:
        """Return the first candidate that contains ``train`` and ``val``; None if there is none."""
        return next(
            (folder for folder in self._candidates() if (folder / "train").is_dir() and (folder / "val").is_dir()), None
        )

"""CelebA: 202,599 aligned faces of 178 x 218 pixels."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.images.base import ImageSet
from datamodules.storage.archives import extract
from datamodules.storage.download import Source, download
from datamodules.storage.folders import NamedFile, Split

OFFICIAL = "https://drive.google.com/drive/folders/0B7EVK8r0v71pTUZsaXdaSnZBZzg?resourcekey=0-rJlzl934LzC-Xp28GeIBzQ"


class CelebA(ImageSet):
    """The aligned faces of CelebA (Liu et al., ICCV 2015), resized to ``size`` and cut to their central square.

    They are split by their numbers, as published: 1 to 162,770 for training, to 182,637 for validation, to 202,599 for the
    test. Use is restricted to research that is not commercial.

    The images, ``000001.jpg`` and on, are looked for in ``celeba/img_align_celeba``, ``img_align_celeba/img_align_celeba``
    (as Kaggle has them), ``img_align_celeba``, ``CelebA_aligned`` and ``celeba`` of ``root``.

    Args:
        download: Whether to fetch the archive (about 1.4 GB) into ``root``, from a mirror; one that was put there by hand is
            unpacked anyway.
        validation: Images that validation sees: ``val``, or those of the ``test``, as in the published training.
        kwargs: Arguments of `ImageSet`.

    Raises:
        ValueError: If a number is out of range; at set-up, if images are missing, unreadable or of another size.
        ConnectionError: If the archive cannot be fetched.
    """

    shape: ClassVar[tuple[int, int]] = (218, 178)
    source: ClassVar[Source] = Source(
        "https://s3-us-west-1.amazonaws.com/udacity-dlnfd/datasets/celeba.zip",
        "img_align_celeba.zip",
        "md5:00d2c5bc6d35e252742224ab0c1e8fcb",
    )
    numbers: ClassVar[Mapping[Split, range]] = {
        "train": range(1, 162_771),
        "val": range(162_771, 182_638),
        "test": range(182_638, 202_600),
    }

    def __init__(self, *, download: bool = True, validation: Literal["val", "test"] = "val", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.download = download
        self.validation: Split = validation

    def fetch(self) -> None:
        """Download and unpack the archive, unless the images are there."""
        archive = self.root / self.source.filename
        if self._folder() is not None or not (self.download or archive.exists()):
            return
        try:
            download(self.source, self.root)
        except (ConnectionError, ValueError) as error:
            raise type(error)(f"{error}\n{self._by_hand()}") from error
        extract(archive, self.root / "img_align_celeba")

    def expected(self, split: Split) -> list[str]:
        """Return the names that a split should have: ``000001.jpg`` and on."""
        return [f"{number:06}.jpg" for number in self.numbers[self.validation if split == "val" else split]]

    def files(self, split: Split) -> list[NamedFile]:
        """Return the images of a split that are there, in the order of their numbers."""
        folder = self._folder()
        if folder is None:
            raise ValueError(
                f"There is no CelebA in {self.root}: none of {', '.join(map(str, self._places()))} holds 000001.jpg and on. "
                f"Let it be downloaded, --data.init_args.download true.\n{self._by_hand()}"
            )
        there = _names(folder)
        return [NamedFile(name, folder / name) for name in self.expected(split) if name in there]

    def _places(self) -> list[Path]:
        """Return the folders that are looked for, in this order."""
        return [
            self.root / "celeba" / "img_align_celeba",
            self.root / "img_align_celeba" / "img_align_celeba",
            self.root / "img_align_celeba",
            self.root / "CelebA_aligned",
            self.root / "celeba",
        ]

    def _folder(self) -> Path | None:
        """Return the first folder that holds images named by numbers."""
        return next((place for place in self._places() if place.is_dir() and _holds_images(place)), None)

    def _by_hand(self) -> str:
        """Return how to get the archive from its official place."""
        return (
            f"Or take {self.source.filename} ({self.source.checksum}) from its official place, {OFFICIAL}, and put it at "
            f"{self.root / self.source.filename}. It is unpacked into {self.root / 'img_align_celeba'}."
        )


def _holds_images(folder: Path) -> bool:
    """Return whether a folder holds an image named by its number; not all of it is listed."""
    with os.scandir(folder) as entries:
        return any(re.fullmatch(r"\d{6}\.jpg", entry.name) for entry in entries)


def _names(folder: Path) -> set[str]:
    """Return the names of all that is in a folder."""
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}

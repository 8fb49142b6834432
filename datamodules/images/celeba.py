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
    """The aligned faces of CelebA (Liu et al., ICCV 2015), resized to ``size`` and cropped to the central square.

    The published split by number is used: 1 to 162,770 for training, 162,771 to 182,637 for validation, and 182,638 to
    202,599 for testing. The data set is available for non-commercial research only.

    The images, ``000001.jpg`` and so on, are searched for in ``celeba/img_align_celeba``, ``img_align_celeba/img_align_celeba``
    (the layout of Kaggle), ``img_align_celeba``, ``CelebA_aligned`` and ``celeba`` below ``root``.

    Args:
        download: Whether to download the archive (about 1.4 GB) from a mirror into ``root``. An archive that is already in
            ``root`` is unpacked in any case.
        validation: Split to validate on: ``val``, or ``test`` as in the published training.
        kwargs: Arguments of `ImageSet`.

    Raises:
        ValueError: If an argument is out of range; at set-up, if images are missing, unreadable or have the wrong size.
        ConnectionError: If the archive cannot be downloaded.
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
        """Download and unpack the archive if the images are missing."""
        archive = self.root / self.source.filename
        if self._folder() is not None or not (self.download or archive.exists()):
            return
        try:
            download(self.source, self.root)
        except (ConnectionError, ValueError) as error:
            raise type(error)(f"{error}\n{self._manual_download()}") from error
        extract(archive, self.root / "img_align_celeba")

    def expected(self, split: Split) -> list[str]:
        """Return the names of all images of a split, such as ``000001.jpg``."""
        return [f"{number:06}.jpg" for number in self.numbers[self.validation if split == "val" else split]]

    def files(self, split: Split) -> list[NamedFile]:
        """Return the existing images of a split, ordered by number."""
        folder = self._folder()
        if folder is None:
            raise ValueError(
                f"CelebA was not found in {self.root}: none of {', '.join(map(str, self._candidates()))} contains images named "
                f"000001.jpg and so on. Pass --data.init_args.download true to download it.\n{self._manual_download()}"
            )
        with os.scandir(folder) as entries:
            existing = {entry.name for entry in entries}
        return [NamedFile(name, folder / name) for name in self.expected(split) if name in existing]

    def _candidates(self) -> list[Path]:
        """Return the folders to search, in order."""
        return [
            self.root / "celeba" / "img_align_celeba",
            self.root / "img_align_celeba" / "img_align_celeba",
            self.root / "img_align_celeba",
            self.root / "CelebA_aligned",
            self.root / "celeba",
        ]

    def _folder(self) -> Path | None:
        """Return the first candidate folder that contains numbered images; None if there is none."""
        return next((folder for folder in self._candidates() if folder.is_dir() and _has_images(folder)), None)

    def _manual_download(self) -> str:
        """Return instructions for downloading the archive from its official source."""
        return (
            f"Alternatively, download {self.source.filename} ({self.source.checksum}) from the official source, {OFFICIAL}, "
            f"to {self.root / self.source.filename}. It will be unpacked into {self.root / 'img_align_celeba'}."
        )


def _has_images(folder: Path) -> bool:
    """Return whether a folder contains a numbered image, without listing the whole folder."""
    with os.scandir(folder) as entries:
        return any(re.fullmatch(r"\d{6}\.jpg", entry.name) for entry in entries)

"""DIV2K: 900 photographs of about 2040 x 1356 pixels for super-resolution."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

from datamodules.images.published import PublishedPairs
from datamodules.storage.archives import extract
from datamodules.storage.download import Source, download
from datamodules.storage.folders import NamedFile, Split, splits_of

ORIGIN = "https://data.vision.ee.ethz.ch/cvl/DIV2K/"

_NUM_HELD_OUT = 100


# Bytes and SHA-256 of the archives, as recorded by TensorFlow Datasets.
_ARCHIVES = {
    "DIV2K_train_HR": (3_530_603_713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335"),
    "DIV2K_valid_HR": (448_993_893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc"),
    "DIV2K_valid_LR_bicubic_X2": (117_763_600, "60eed9875c697df51204aa579e2a699e1d5215095788a097ff54dd17e2664d57"),
    "DIV2K_valid_LR_bicubic_X3": (54_513_392, "04b9a2ed3b4a0715d3924d3ae8514830c3328fac8d30512ce716d6f419e052a3"),
    "DIV2K_valid_LR_bicubic_X4": (31_505_881, "a50a5d1c4b88de4e8d300d8fb2b904c52fe93b2b298a4899697760d7cbb6d553"),
}


class DIV2K(PublishedPairs):
    """DIV2K (Agustsson and Timofte, CVPR Workshops 2017): 800 training and 100 test images, of about 2040 x 1356 pixels.

    In published evaluation at scales 2, 3 and 4, models observe the published images of a lower resolution, made with MATLAB's
    bicubic filter; at all other scales and in training, images made with Pillow's. The data set is available for academic
    research only.

    The folders ``DIV2K_train_HR`` (``0001.png`` to ``0800.png``), ``DIV2K_valid_HR`` (``0801.png`` to ``0900.png``) and
    ``DIV2K_valid_LR_bicubic/X2`` (``0801x2.png`` and so on) to ``X4`` are searched for in ``div2k`` and ``DIV2K`` below
    ``root``, and in ``root`` itself. Missing ones are downloaded, that of training images only for training.

    Args:
        download: Whether to download missing archives into ``root``: 3.5 GB for training, 0.65 GB for validation and testing.
            Archives that are already in ``root`` are unpacked in any case.
        val_count: Number of images for validation, the first of those for testing; 10 as in LIIF.
        low_resolution: Whether to use the published images of a lower resolution, and to download them with the others. Without
            them, Pillow's bicubic filter makes the low resolution at all scales.
        kwargs: Arguments of `ImageSet`.

    Raises:
        ValueError: If an argument is out of range; at set-up, if images are missing or unreadable.
        ConnectionError: If an archive cannot be downloaded.
    """

    archives: ClassVar[Mapping[str, Source]] = {
        name: Source(f"{ORIGIN}{name}.zip", f"{name}.zip", f"sha256:{checksum}", size)
        for name, (size, checksum) in _ARCHIVES.items()
    }
    numbers: ClassVar[Mapping[str, range]] = {"train": range(1, 801), "valid": range(801, 901)}

    def __init__(
        self, *, download: bool = True, val_count: int = 10, low_resolution: bool = True, **kwargs: Any
    ) -> None:
        if not 1 <= val_count <= _NUM_HELD_OUT:
            raise ValueError(f"val_count is {val_count}, but must be in [1, {_NUM_HELD_OUT}].")
        super().__init__(**kwargs)
        self.download = download
        self.val_count = val_count
        self.low_resolution = low_resolution

    @property
    def sources(self) -> tuple[Source, ...]:
        """The archives of all splits."""
        return tuple(self.archives[name] for name in self._names(get_args(Split)))

    def fetch(self) -> None:
        """Download and unpack the missing archives: those that the stage of the trainer needs, or all without a trainer."""
        for name in self._names(splits_of(self.trainer.state.fn) if self.trainer else get_args(Split)):
            source = self.archives[name]
            if self._folder(name) is not None or not (self.download or (self.root / source.filename).exists()):
                continue
            try:
                archive = download(source, self.root)
            except (ConnectionError, ValueError) as error:
                advice = "\nPass --data.init_args.low_resolution false to use Pillow's bicubic filter instead."
                raise type(error)(f"{error}{advice if '_LR_' in name else ''}") from error
            extract(archive, self.root / "div2k" / name)

    def expected(self, split: Split) -> list[str]:
        """Return the names of all images of a split, such as ``0001.png``."""
        names = [f"{number:04}.png" for number in self.numbers["train" if split == "train" else "valid"]]
        return names[: self.val_count] if split == "val" else names

    def files(self, split: Split) -> list[NamedFile]:
        """Return the existing images of a split, ordered by number."""
        name = _high_resolution(split)
        folder = self._folder(name)
        if folder is None:
            raise ValueError(
                f"{name} was not found in {self.root}: none of {', '.join(map(str, self._places(name)))} contains images named "
                f"as {self.expected(split)[0]}. Pass --data.init_args.download true to download it, or {self.how_to_get()}"
            )
        return [NamedFile(image, folder / image) for image in self.expected(split) if (folder / image).exists()]

    def low_resolution_folder(self, split: Split, scale: int) -> Path | None:
        """Return the folder of the published images at a scale; None if it is absent or not to be used."""
        part = "train" if split == "train" else "valid"
        return self._folder(f"DIV2K_{part}_LR_bicubic_X{scale}") if self.low_resolution else None

    def how_to_get(self) -> str:
        """Return where to download the archives and where to put them."""
        lines = [f"{source.url} ({source.checksum})" for source in self.sources]
        return (
            f"download {', '.join(lines)} into {self.root}. They will be unpacked into {self.root / 'div2k'}; if their folders "
            "exist there and contain something else, move these away."
        )

    def how_to_replace(self, folder: Path) -> str:
        """Return the fix for missing or unreadable images in a folder of a lower resolution."""
        unpacked = self.root / "div2k" / f"{folder.parent.name}_{folder.name}"
        return (
            f"Move {unpacked if folder.is_relative_to(unpacked) else folder} away to obtain them again with "
            "--data.init_args.download true, or pass --data.init_args.low_resolution false to use Pillow's bicubic filter "
            "instead."
        )

    def _names(self, splits: tuple[Split, ...]) -> list[str]:
        """Return the names of the archives that some splits need."""
        held_out = any(split != "train" for split in splits)
        names = [name for name in ("DIV2K_train_HR",) if "train" in splits]
        names += ["DIV2K_valid_HR"] if held_out else []
        if held_out and self.low_resolution:
            names += [f"DIV2K_valid_LR_bicubic_X{scale}" for scale in self.low_resolution_scales]
        return names

    def _places(self, name: str) -> list[Path]:
        """Return the folders to search for the content of an archive, in order."""
        content = re.sub(r"_(X\d)$", r"/\1", name)
        folders = (self.root / "div2k", self.root / "DIV2K", self.root)
        return [folder / inner / content for folder in folders for inner in (name, "")]

    def _folder(self, name: str) -> Path | None:
        """Return the first folder of an archive that exists, with images in the case of high resolution; None if none does."""
        is_low = "_LR_" in name  # whose folder is not that of the archive, so that an empty one is incomplete
        folders = (folder for folder in self._places(name) if folder.is_dir())
        return next((folder for folder in folders if is_low or any(folder.glob("[0-9][0-9][0-9][0-9].png"))), None)


def _high_resolution(split: Split) -> str:
    """Return the name of the archive of a split."""
    return "DIV2K_train_HR" if split == "train" else "DIV2K_valid_HR"

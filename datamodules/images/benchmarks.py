"""Benchmarks of super-resolution: Set5, Set14, B100, Urban100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from datamodules.images.published import PublishedPairs
from datamodules.storage.folders import NamedFile, Split
from datamodules.storage.images import image_files

_NAMES: Mapping[str, tuple[str, ...]] = {"B100": ("B100", "BSD100")}  # of folders, where they differ


class SRBenchmark(PublishedPairs):
    """A benchmark of super-resolution, for evaluation only: Set5, Set14, B100, Urban100, or others in the same layout.

    The layout is that of the distribution of EDSR: ``Set5/HR/baby.png``, and ``Set5/LR_bicubic/X2/babyx2.png`` to ``X4`` for
    images of a lower resolution, made with MATLAB's bicubic filter. ``Set5`` is searched for in ``root`` and in its subfolder
    named ``benchmark``, and may also contain the images directly. At scales without published images of a lower resolution,
    Pillow's bicubic filter makes them. Validation and testing use all images.

    Args:
        benchmark: Name of the benchmark and of its folder.
        low_resolution: Whether to use the published images of a lower resolution.
        kwargs: Arguments of `ImageSet`.

    Raises:
        ValueError: If an argument is out of range; at set-up, if images are missing or unreadable, or for training.
    """

    counts: ClassVar[Mapping[str, int]] = {"Set5": 5, "Set14": 14, "B100": 100, "Urban100": 100, "Manga109": 109}

    def __init__(self, benchmark: str = "Set5", *, low_resolution: bool = True, **kwargs: Any) -> None:
        if benchmark in ("", ".", "..") or "/" in benchmark or "\\" in benchmark:
            raise ValueError(
                f"benchmark is {benchmark!r}; give the name of a benchmark, such as Set5, and its parent folder as root."
            )
        super().__init__(**kwargs)
        self.benchmark = benchmark
        self.low_resolution = low_resolution

    def count(self, split: Split) -> int | None:
        """Return the number of images of the benchmark; None if it is unknown or for training."""
        return None if split == "train" else self.counts.get(self.benchmark)

    def files(self, split: Split) -> list[NamedFile]:
        """Return the images in alphabetical order; none for training."""
        if split == "train":
            return []
        folder = self._folder()
        if folder is None:
            places = ", ".join(str(place / "HR") for place in self._places())
            raise ValueError(
                f"{self.benchmark} was not found in {self.root}: none of {places} contains images. To fix this, "
                f"{self.how_to_get()}"
            )
        return [NamedFile(path.name, path) for path in _images_in(folder)]

    def low_resolution_folder(self, split: Split, scale: int) -> Path | None:
        """Return the folder of the published images at a scale; None if it is absent or not to be used."""
        high = self._folder() if self.low_resolution and split != "train" else None
        if high is None:
            return None
        folder = (high.parent if high.name == "HR" else high) / "LR_bicubic" / f"X{scale}"
        return folder if folder.is_dir() else None

    def how_to_get(self) -> str:
        """Return where to get the images and where to put them."""
        return (
            f"put the images into {self.root / self.benchmark / 'HR'} and, if you have them, their low resolutions into "
            f"{self.root / self.benchmark / 'LR_bicubic'}/X2 to X4 (babyx2.png for baby.png). The benchmarks have no official "
            "download; the archive benchmark.tar of EDSR (https://github.com/sanghyun-son/EDSR-PyTorch) contains Set5, Set14, "
            f"B100 and Urban100 in this layout: unpack it into {self.root}."
        )

    def _places(self) -> list[Path]:
        """Return the folders to search, in order."""
        names = _NAMES.get(self.benchmark, (self.benchmark,))
        return [folder / name for folder in (self.root, self.root / "benchmark") for name in names]

    def _folder(self) -> Path | None:
        """Return the first folder that contains images; None if there is none."""
        folders = (folder for place in self._places() for folder in (place / "HR", place))
        return next((folder for folder in folders if _images_in(folder)), None)

    def _check_published(self, files: Sequence[NamedFile], split: Split) -> None:
        """Raise an error for training, or if the number of images differs from what was published."""
        if split == "train":
            raise ValueError(
                f"{self.benchmark} is for evaluation and has no training images: train on another data set, as in "
                "configs/data/super_resolution_div2k.yaml, and pass this one to validate or test."
            )
        super()._check_published(files, split)


def _images_in(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, in alphabetical order."""
    return [path for path, place in image_files(folder) if len(place.parts) == 1] if folder.is_dir() else []

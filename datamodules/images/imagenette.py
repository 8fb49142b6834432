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
    """The images of ImageNette (fast.ai), prepared as published: 9,469 for training, 3,925 for validation and test alike.

    Training sees random crops of the images as they are in their files, half of them mirrored. In published evaluation
    images are scaled down to ``size`` first, and then cut to their central square: they are about 1.8 times smaller than
    those of training, at the published 178 pixels. ``evaluation: matched`` cuts the central square of the images as they
    are; its numbers are not comparable with published ones.

    The images are looked for in ``imagenette/imagenette2-320``, ``imagenette`` and ``imagenette2-320`` of ``root``, and in
    ``root`` itself: folders ``train`` and ``val``, in which every class has a folder.

    Args:
        download: Whether to fetch the archive (about 340 MB) into ``root``; one that was put there by hand is unpacked anyway.
        flip: Whether half of the training images are mirrored left to right, at random.
        evaluation: What validation and test see: ``resized`` as published, or ``matched`` to the scale of training.
        kwargs: Arguments of `ImageSet`.

    Raises:
        ValueError: If a number is out of range; at set-up, if images are missing or unreadable.
        ConnectionError: If the archive cannot be fetched.
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
        """Download and unpack the archive, unless the images are there."""
        archive = self.root / self.source.filename
        if self._folder() is None and (self.download or archive.exists()):
            extract(download(self.source, self.root), self.root / "imagenette")

    def files(self, split: Split) -> list[NamedFile]:
        """Return the images of a split, named ``CLASS/FILE``, in alphabetical order."""
        folder = self._folder()
        if folder is None:
            raise ValueError(
                f"There is no ImageNette in {self.root}: none of {', '.join(map(str, self._places()))} has the folders train "
                f"and val. Let it be downloaded, --data.init_args.download true, or fetch {self.source.url} "
                f"({self.source.checksum}) and put it at {self.root / self.source.filename}. It is unpacked into "
                f"{self.root / 'imagenette'}; if that is there, and is something else, move it away."
            )
        found = image_files(folder / ("train" if split == "train" else "val"))
        return [NamedFile(place.as_posix(), path) for path, place in found]

    def preparation(self, split: Split) -> Preparation:
        """Return what is done to every image of a split, before crops of training images."""
        if split == "train":
            return Preparation(smallest=self.size)
        return Preparation(crop=self.size) if self.evaluation == "matched" else super().preparation(split)

    def _places(self) -> list[Path]:
        """Return the folders that are looked for, in this order."""
        return [
            self.root / "imagenette" / "imagenette2-320",
            self.root / "imagenette",
            self.root / "imagenette2-320",
            self.root,
        ]

    def _folder(self) -> Path | None:
        """Return the first folder that holds training and validation images."""
        places = self._places()
        return next((place for place in places if (place / "train").is_dir() and (place / "val").is_dir()), None)

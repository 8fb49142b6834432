"""FFHQ: 70,000 faces of 1024 x 1024 pixels."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

from datamodules.images.base import ImageSet
from datamodules.storage.folders import NamedFile, Split

ORIGIN = "https://github.com/NVlabs/ffhq-dataset"
IPC_LISTS = ("401d325a5096f3991903d50225b22ff8", "15db1dc277960fff9d41f37673219e15")  # MD5, training and validation

_NUM_TRAINING = 60_000
_NUM_IMAGES = 70_000


class FFHQ(ImageSet):
    """The faces of FFHQ (Karras et al., CVPR 2019), resized to ``size``.

    By default, the common split is used: 00000 to 59999 for training, and 60000 to 69999 for both validation and testing.
    The paper on instance pattern composers (IPC) uses another split, given by two random lists published with its code
    (``ffhqtrain.txt`` and ``ffhqvalidation.txt``, https://github.com/kakaobrain/ginr-ipc); its results are comparable only
    with those lists. ``notes`` records the split in use. The data set is licensed under CC BY-NC-SA 4.0; individual images have
    other licences.

    The images, ``00000.png`` and so on, are searched for in ``ffhq/images1024x1024``, ``ffhq`` and ``images1024x1024`` below
    ``root``, directly or in subfolders of a thousand images.

    Args:
        training_list: Text file with the names of the training images, one per line; folders and extensions are ignored.
        validation_list: Text file with the names of the validation and test images, in the same format.
        kwargs: Arguments of `ImageSet`.

    Raises:
        ValueError: If an argument is out of range, or only one list is passed; at set-up, if a list is invalid, or images are
            missing, unreadable or have the wrong size.
    """

    shape: ClassVar[tuple[int, int]] = (1024, 1024)

    def __init__(self, *, training_list: str | None = None, validation_list: str | None = None, **kwargs: Any) -> None:
        if (training_list is None) != (validation_list is None):
            raise ValueError(
                f"training_list is {training_list} and validation_list is {validation_list}: pass both, or neither for the "
                "common split."
            )
        super().__init__(**kwargs)
        self.training_list = training_list
        self.validation_list = validation_list

    def expected(self, split: Split) -> list[str]:
        """Return the names of all images of a split, such as ``00000.png``, in alphabetical order."""
        return self._split[0 if split == "train" else 1]

    def files(self, split: Split) -> list[NamedFile]:
        """Return the existing images of a split, in alphabetical order."""
        expected = self.expected(split)  # before searching for images, so that an invalid list fails at once
        existing = self._images()
        return [NamedFile(name, existing[name]) for name in expected if name in existing]

    def how_to_get(self) -> str:
        """Return where to download the images and where to put them."""
        return (
            f"download images1024x1024 from {ORIGIN} and put the images, or their folders, into {self.root / 'ffhq'}."
        )

    @cached_property
    def _split(self) -> tuple[list[str], list[str]]:
        """The names of the training and the held-out images; also records the split in ``notes``."""
        if self.training_list is None or self.validation_list is None:
            self.notes["split"] = (
                "common split, not that of the IPC paper: 00000 to 59999 for training, the rest held out"
            )
            names = [f"{number:05}.png" for number in range(_NUM_IMAGES)]
            return names[:_NUM_TRAINING], names[_NUM_TRAINING:]
        training = _read_list(Path(self.training_list), "training_list")
        held_out = _read_list(Path(self.validation_list), "validation_list")
        for name, line in held_out.lines.items():
            if name in training.lines:
                raise ValueError(
                    f"{held_out.path}, line {line}: {name} is also a training image ({training.path}, line "
                    f"{training.lines[name]}). Remove it from one of the lists."
                )
        is_ipc = (training.md5, held_out.md5) == IPC_LISTS
        self.notes["split"] = "random lists of the IPC paper" if is_ipc else "custom lists"
        return sorted(training.lines), sorted(held_out.lines)

    def _images(self) -> dict[str, Path]:
        """Return the image files by name, all from the first folder that contains images."""
        folder = self.root / "ffhq"
        candidates = [folder / "images1024x1024", folder, self.root / "images1024x1024"]
        for candidate in candidates:
            if candidate.is_dir() and (images := _images_in(candidate)):
                return images
        raise ValueError(
            f"FFHQ was not found in {self.root}: none of {', '.join(map(str, candidates))} contains images named 00000.png and "
            f"so on, directly or in subfolders of a thousand images. To fix this, {self.how_to_get()}"
        )


class _List(NamedTuple):
    """A text file with image names.

    Attributes:
        path: Path of the file.
        lines: Line number of every image name, counted from 1.
        md5: MD5 checksum of the file.
    """

    path: Path
    lines: dict[str, int]
    md5: str


def _images_in(folder: Path) -> dict[str, Path]:
    """Return the images in a folder and in its subfolders of a thousand images, by name."""
    paths = {path.name: path for path in folder.iterdir()}
    subfolders = sorted(path for name, path in paths.items() if re.fullmatch(r"\d{5}", name) and path.is_dir())
    nested = {path.name: path for subfolder in subfolders for path in subfolder.iterdir()}
    return {name: path for name, path in (nested | paths).items() if re.fullmatch(r"\d{5}\.png", name)}


def _read_list(path: Path, argument: str) -> _List:
    """Read a list of unique image names."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{argument} {path} cannot be read: {error.strerror}. Pass a text file with one image name per line."
        ) from error
    lines: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, content.decode("utf-8-sig", "replace").splitlines()), 1):
        if not line:
            continue
        match = re.fullmatch(r"([0-6]\d{4})(\.\w+)?", PurePosixPath(line.replace("\\", "/")).name, re.ASCII)
        if match is None:
            raise ValueError(
                f"{path}, line {number}: {line!r} is not an image of FFHQ. Each line must name one image, 00000 to 69999."
            )
        name = f"{match[1]}.png"
        if lines.setdefault(name, number) != number:
            raise ValueError(
                f"{path}, line {number}: {name} is already listed in line {lines[name]}. Remove one of the lines."
            )
    if not lines:
        raise ValueError(f"{argument} {path} is empty. Pass a text file with one image name per line.")
    return _List(path, lines, hashlib.md5(content, usedforsecurity=False).hexdigest())

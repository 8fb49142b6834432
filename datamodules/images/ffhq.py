"""FFHQ: 70,000 faces of 1024 x 1024 pixels."""

from __future__ import annotations

import hashlib
import os
import re
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

from datamodules.images.base import ImageSet
from datamodules.storage.folders import NamedFile, Split

ORIGIN = "https://github.com/NVlabs/ffhq-dataset"
IPC_LISTS = ("401d325a5096f3991903d50225b22ff8", "15db1dc277960fff9d41f37673219e15")  # MD5, training and validation

_FOR_TRAINING = 60_000
_COUNT = 70_000


class FFHQ(ImageSet):
    """The faces of FFHQ (Karras et al., CVPR 2019), resized to ``size``.

    Without lists they are split as is customary: 00000 to 59999 for training, the others for validation and test alike. The
    paper of instance pattern composers has another split, by two random lists that come with its code (``ffhqtrain.txt`` and
    ``ffhqvalidation.txt``, https://github.com/kakaobrain/ginr-ipc): its numbers are comparable with those lists alone. Which
    split it is, ``notes`` say. Licences differ from image to image; the set is CC BY-NC-SA 4.0.

    The images, ``00000.png`` and on, are looked for in ``ffhq/images1024x1024``, ``ffhq`` and ``images1024x1024`` of
    ``root``, all together or in folders of a thousand.

    Args:
        training_list: Text file that names the training images, one per line, with or without ending and folders.
        validation_list: The same for validation and test.
        kwargs: Arguments of `ImageSet`.

    Raises:
        ValueError: If a number is out of range, or there is one list without the other; at set-up, if a list is wrong, or
            images are missing, unreadable or of another size.
    """

    shape: ClassVar[tuple[int, int]] = (1024, 1024)

    def __init__(self, *, training_list: str | None = None, validation_list: str | None = None, **kwargs: Any) -> None:
        if (training_list is None) != (validation_list is None):
            raise ValueError(
                f"training_list is {training_list}, validation_list {validation_list}: give both, or none for the customary "
                "split."
            )
        super().__init__(**kwargs)
        self.training_list = training_list
        self.validation_list = validation_list

    def expected(self, split: Split) -> list[str]:
        """Return the names that a split should have, such as ``00000.png``, in alphabetical order."""
        return self._split[0 if split == "train" else 1]

    def files(self, split: Split) -> list[NamedFile]:
        """Return the images of a split that are there, in alphabetical order."""
        wanted = self.expected(split)  # before images are looked for: a wrong list is found out at once
        there = self._images()
        return [NamedFile(name, there[name]) for name in wanted if name in there]

    def how_to_get(self) -> str:
        """Return where the images come from, and where they go."""
        return f"take images1024x1024 from {ORIGIN} and put the images, or their folders, into {self.root / 'ffhq'}."

    @cached_property
    def _split(self) -> tuple[list[str], list[str]]:
        """The names for training and for evaluation; which split it is becomes a note."""
        if self.training_list is None or self.validation_list is None:
            self.notes["split"] = (
                "customary, not that of the IPC paper: 00000 to 59999 for training, the others held out"
            )
            names = [f"{number:05}.png" for number in range(_COUNT)]
            return names[:_FOR_TRAINING], names[_FOR_TRAINING:]
        training = _read(Path(self.training_list), "training_list")
        held_out = _read(Path(self.validation_list), "validation_list")
        _refuse_shared(training, held_out)
        ours = (training.md5, held_out.md5) != IPC_LISTS
        self.notes["split"] = "by lists of your own" if ours else "by the random lists of the IPC paper"
        return sorted(training.lines), sorted(held_out.lines)

    def _images(self) -> dict[str, Path]:
        """Return the files of images by name, all from one place."""
        folder = self.root / "ffhq"
        places = [folder / "images1024x1024", folder, self.root / "images1024x1024"]
        for place in places:
            if place.is_dir() and (found := _found(place)):
                return found
        raise ValueError(
            f"There is no FFHQ in {self.root}: none of {', '.join(map(str, places))} holds 00000.png and on, nor folders of "
            f"a thousand: {self.how_to_get()}"
        )


class _List(NamedTuple):
    """A list of images.

    Attributes:
        path: Its file.
        lines: Where each image is named, from 1.
        md5: Of the file.
    """

    path: Path
    lines: dict[str, int]
    md5: str


def _found(folder: Path) -> dict[str, Path]:
    """Return the images in a folder and in its folders of a thousand, by name."""
    names = _names(folder)
    thousands = sorted(name for name in names if re.fullmatch(r"\d{5}", name) and (folder / name).is_dir())
    inner = {name: folder / thousand / name for thousand in thousands for name in _names(folder / thousand)}
    everything = inner | {name: folder / name for name in names}
    return {name: path for name, path in everything.items() if re.fullmatch(r"\d{5}\.png", name)}


def _names(folder: Path) -> list[str]:
    """Return the names of all that is in a folder."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _read(path: Path, argument: str) -> _List:
    """Return a list that names images, each once."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{argument}, {path}, cannot be read ({error.strerror}): name a text file with an image on each line."
        ) from error
    lines: dict[str, int] = {}
    for number, line in enumerate(content.decode("utf-8-sig", "replace").splitlines(), 1):
        name = _name(line.strip(), f"{path}, line {number}")
        if name is not None and lines.setdefault(name, number) != number:
            raise ValueError(f"{path}, line {number}: {name} is there already, in line {lines[name]}: name it once.")
    if not lines:
        raise ValueError(f"{argument}, {path}, is empty: it names an image on each line.")
    return _List(path, lines, hashlib.md5(content, usedforsecurity=False).hexdigest())


def _name(line: str, where: str) -> str | None:
    """Return the image that a line names; None if it is empty."""
    if not line:
        return None
    named = re.fullmatch(r"([0-6]\d{4})(\.\w+)?", PurePosixPath(line.replace("\\", "/")).name, re.ASCII)
    if named is None:
        raise ValueError(f"{where}: {line!r} is no image of FFHQ: they are 00000 to 69999, each in a line of its own.")
    return f"{named[1]}.png"


def _refuse_shared(training: _List, held_out: _List) -> None:
    """Refuse lists that have an image in common."""
    for name, number in held_out.lines.items():
        if name in training.lines:
            raise ValueError(
                f"{held_out.path}, line {number}: {name} is a training image too ({training.path}, line "
                f"{training.lines[name]}): take it out of one of them."
            )

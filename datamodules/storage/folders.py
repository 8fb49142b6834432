"""Files in folders of the user: which ones are read, and how they are split."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from datamodules.randomness import seed_at

Split = Literal["train", "val", "test"]

_FOLDERS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_MAX_NAMED = 5  # files that a message lists
_STAGES: Mapping[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
}  # all others read the test split


class NamedFile(NamedTuple):
    """A file of a data set.

    Attributes:
        name: Name of the instance in tables and files, unique within a split.
        path: Path of the file.
    """

    name: str
    path: Path


@dataclass(frozen=True)
class RandomSplit:
    """A random split of files that depends only on their names and the seed.

    Args:
        val_ratio: Share of the validation split, in (0, 1); at least one file.
        test_ratio: Share of the test split, in [0, 1); if 0, the validation split is used for testing.
        seed: Seed of the split.

    Raises:
        ValueError: If a ratio is out of range, or no files are left for training.
    """

    val_ratio: float
    test_ratio: float
    seed: int

    def __post_init__(self) -> None:
        """Check the ratios."""
        if not (0 < self.val_ratio < 1 and 0 <= self.test_ratio < 1 and self.val_ratio + self.test_ratio < 1):
            raise ValueError(
                f"val_ratio is {self.val_ratio}, test_ratio {self.test_ratio}: val_ratio must be in (0, 1), test_ratio in "
                "[0, 1), and their sum below 1 to leave files for training."
            )

    def names(self, split: Split, names: Sequence[str]) -> set[str]:
        """Return the names that belong to a split. The sort key of a name does not depend on the other names."""
        order = sorted(names, key=lambda name: seed_at("split", self.seed, name))
        num_val = max(1, round(self.val_ratio * len(order)))
        num_test = round(self.test_ratio * len(order))
        if split == "train":
            return set(order[num_val + num_test :])
        return set(order[num_val : num_val + num_test] if split == "test" and num_test else order[:num_val])


def splits_of(stage: str | None) -> tuple[Split, ...]:
    """Return the splits that a stage of the trainer reads.

    Example:
        >>> splits_of("fit"), splits_of("predict")
        (('train', 'val'), ('test',))
    """
    return _STAGES.get(stage or "", ("test",))


@rank_zero_only
def report_skipped(paths: Collection[str], what: str) -> None:
    """Log which files are skipped because they cannot be read, on the first process only.

    Args:
        paths: The skipped files.
        what: Noun for them, in the plural.
    """
    listed = ", ".join(list(paths)[:_MAX_NAMED]) + (", ..." if len(paths) > _MAX_NAMED else "")
    message = f"Skipped {len(paths):,} unreadable {what} ({listed})."
    Console(stderr=True, soft_wrap=True).print(message, markup=False)


def files_below(path: Path, endings: Collection[str]) -> list[tuple[Path, Path]]:
    """Return the files at a path, each with its path relative to the folder.

    A folder is searched recursively, in alphabetical order. Hidden files and folders and folders with earlier predictions are
    skipped, unless ``path`` is such a folder itself. Links to folders are followed. Every folder is searched once: under its
    path without links, or else under the first link to it; a link to a folder that contains the link is not followed. A link
    to a file is a file of its own. Broken links and folders that cannot be read are logged; a broken link with one of the
    suffixes is returned, so that reading it reports the reason. No file is opened.

    Args:
        path: A folder; or a file, which is returned regardless of its suffix, with its name as the relative path.
        endings: Suffixes with a dot, in lower case.
    """
    if not path.is_dir():
        return [(path, Path(path.name))]
    walk = _Walk(path, endings)
    report_unreachable(tuple(walk.unreachable))
    return [(path / place, place) for place in sorted(walk.places)]


class _Walk:
    """A search of a folder that enters every folder once.

    Args:
        root: The folder.
        endings: Suffixes of the files, in lower case.

    Attributes:
        places: Files with these suffixes, relative to the folder, in no particular order.
        unreachable: Broken links and folders that cannot be read, each with the reason.
    """

    def __init__(self, root: Path, endings: Collection[str]) -> None:
        self.root, self.endings = root, endings
        self.places: list[Path] = []
        self.unreachable: list[str] = []
        self._entered: set[tuple[int, int]] = set()  # device and inode
        self._links: list[Path] = []  # to folders; they are followed after all folders that are reached without links
        self._search(Path())
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                if not self._is_loop(link):
                    self._search(link)

    def _search(self, top: Path) -> None:
        """Search a folder and those below it without following links."""
        folders = [top]
        while folders:
            folder = folders.pop()
            try:
                status = (self.root / folder).stat()
                if (status.st_dev, status.st_ino) in self._entered:
                    continue
                self._entered.add((status.st_dev, status.st_ino))
                with os.scandir(self.root / folder) as listing:
                    entries = [entry for entry in listing if not entry.name.startswith(".")]
                if folder != Path() and any(entry.name == "predictions.csv" for entry in entries):
                    continue
                folders += [folder / entry.name for entry in entries if self._is_folder(entry, folder)]
            except OSError as error:
                self.unreachable.append(f"{self.root / folder}: {error.strerror}")

    def _is_folder(self, entry: os.DirEntry[str], folder: Path) -> bool:
        """Return whether an entry is a folder to search now; record files and links."""
        place = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            return True
        matches = place.suffix.lower() in self.endings
        try:
            status = (self.root / place).stat()
        except OSError as error:  # a broken link, or one to itself
            if matches:
                self.places.append(place)
            else:
                self.unreachable.append(f"{self.root / place}: {broken_link(self.root / place) or error.strerror}")
            return False
        if stat.S_ISDIR(status.st_mode):
            self._links.append(place)
        elif matches and stat.S_ISREG(status.st_mode):
            self.places.append(place)
        return False

    def _is_loop(self, link: Path) -> bool:
        """Return whether a link leads to a folder that contains the link."""
        target, folder = (self.root / link).resolve(), (self.root / link.parent).resolve()
        return folder.is_relative_to(target)


def broken_link(path: Path) -> str:
    """Return a message if a path is a broken link, else an empty string."""
    if not path.is_symlink() or path.exists():
        return ""
    return f"it is a link to {path.readlink()}, which does not exist"


def not_regular(path: Path) -> str:
    """Return a message if a path is a broken link, a pipe or a device, else an empty string.

    Opening a pipe would wait for a writer.
    """
    if problem := broken_link(path):
        return problem
    if path.exists() and not path.is_file() and not path.is_dir():
        return "it is a pipe, a socket or a device, which cannot be read twice: save it as a file"
    return ""


@cache
def report_unreachable(reasons: tuple[str, ...]) -> None:
    """Log the links and folders that cannot be searched, once per set of reasons and on the first process only."""
    if reasons:
        report_skipped(reasons, "links or folders")


def split_folder(root: Path, split: Split) -> Path | None:
    """Return the folder of a split, or None if ``root`` has no ``train`` folder beside ``val`` or ``test``.

    If only one of ``val`` and ``test`` exists, it is used for both.
    """
    folders = {
        key: next((root / name for name in names if (root / name).is_dir()), None) for key, names in _FOLDERS.items()
    }
    if folders["train"] is None or (folders["val"] is None and folders["test"] is None):
        return None
    other: Mapping[Split, Split] = {"val": "test", "test": "val", "train": "train"}
    return folders[split] or folders[other[split]]


def files_of_split(
    root: Path,
    split: Split,
    found_in: Callable[[Path], Sequence[tuple[Path, Path]]],
    what: str,
    random_split: RandomSplit,
) -> tuple[list[NamedFile], str]:
    """Return the files of a split, named by their relative paths, and a description of how the files are split.

    Args:
        root: The folder, split by its subfolders (`split_folder`) or else at random.
        split: The split to return.
        found_in: Function that returns the files below a folder and their relative paths, in a fixed order.
        what: Noun for the files, in the plural.
        random_split: The split to use if there are no folders of splits.

    Raises:
        ValueError: If the folder is missing or contains no such files.
    """
    if not root.is_dir():
        raise ValueError(f"There is no folder {root}: set --data.init_args.root to an existing folder.")
    folder = split_folder(root, split)
    files = [NamedFile(place.as_posix(), path) for path, place in found_in(folder or root)]
    if folder is not None:
        return files, f"by folders: {split_folder(root, 'train')} and {split_folder(root, 'val')}"
    if not files:
        raise ValueError(f"The folder {root} contains no {what}: set --data.init_args.root to another folder.")
    selected = random_split.names(split, [file.name for file in files])
    note = f"at random with split_seed {random_split.seed}, because {root} has no folders train and val"
    return [file for file in files if file.name in selected], note

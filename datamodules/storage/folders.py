"""Folders of anybody's files: which of them count, and to which split they belong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
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


_NAMED = 5  # files that a message names
_STAGES: Mapping[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}  # of any other, the test


class NamedFile(NamedTuple):
    """A file of a data set, not read yet.

    Attributes:
        name: Of the instance, in tables and files; unique in its split.
        path: The file.
    """

    name: str
    path: Path


@dataclass(frozen=True)
class RandomSplit:
    """A random split of files; it depends on their names and the seed alone.

    Args:
        val_ratio: Part for validation, in (0, 1), at least one file.
        test_ratio: Part for the test; if 0, the files of validation serve.
        seed: Of the draw.

    Raises:
        ValueError: If a ratio is out of range, or nothing is left for training.
    """

    val_ratio: float
    test_ratio: float
    seed: int

    def __post_init__(self) -> None:
        """Check the ratios."""
        if not (0 < self.val_ratio < 1 and 0 <= self.test_ratio < 1 and self.val_ratio + self.test_ratio < 1):
            raise ValueError(
                f"val_ratio is {self.val_ratio}, test_ratio {self.test_ratio}: val_ratio must be in (0, 1), test_ratio in "
                "[0, 1), and their sum below 1, so that something is left for training."
            )

    def names(self, split: Split, names: Sequence[str]) -> set[str]:
        """Return which names belong to a split, by an order in which the place of each depends on no other."""
        order = sorted(names, key=lambda name: seed_at("split", self.seed, name))
        val = max(1, round(self.val_ratio * len(order)))
        test = round(self.test_ratio * len(order))
        if split == "train":
            return set(order[val + test :])
        return set(order[val : val + test] if split == "test" and test else order[:val])


def splits_of(stage: str | None) -> tuple[Split, ...]:
    """Return the splits that a stage reads.

    Example:
        >>> splits_of("fit"), splits_of("predict")
        (('train', 'val'), ('test',))
    """
    return _STAGES.get(stage or "", ("test",))


@rank_zero_only
def tell_left_out(paths: Collection[str], what: str) -> None:
    """Say once, on one process, which files are left out because they cannot be read.

    Args:
        paths: Of the files.
        what: They are, in the plural.
    """
    named = ", ".join(list(paths)[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")
    told = f"Left out, for they cannot be read: {len(paths):,} {what} ({named})."
    Console(stderr=True, soft_wrap=True).print(told, markup=False)


def files_below(path: Path, endings: Collection[str]) -> list[tuple[Path, Path]]:
    """Return the files at a path and, for each, its place below the folder that was named.

    Of a folder, all files with one of the endings are taken, in its subfolders too, in alphabetical order; not hidden ones, nor
    those in folders of earlier predictions, unless such a folder is named itself. None of them is read.

    Args:
        path: A folder; or a file, which is taken whatever its ending, its place being its name.
        endings: With a dot, in lower case.
    """
    if not path.is_dir():
        return [(path, Path(path.name))]
    everything = sorted(path.rglob("*"))
    below = [item for item in everything if item.suffix.lower() in endings and not item.is_dir()]
    results = [item.parent for item in everything if item.name == "predictions.csv" and item.parent != path]
    places = [(item, item.relative_to(path)) for item in below if not any(map(item.is_relative_to, results))]
    return [(item, place) for item, place in places if not any(part.startswith(".") for part in place.parts)]


def split_folder(root: Path, split: Split) -> Path | None:
    """Return the folder of a split; None if the folders are no splits, which takes ``train`` beside ``val`` or ``test``.

    Where one of the latter is missing, the other serves for both.
    """
    found = {
        name: next((root / one for one in named if (root / one).is_dir()), None) for name, named in _FOLDERS.items()
    }
    if found["train"] is None or (found["val"] is None and found["test"] is None):
        return None
    other: Mapping[Split, Split] = {"val": "test", "test": "val", "train": "train"}
    return found[split] or found[other[split]]


def files_of_split(
    root: Path,
    split: Split,
    found_in: Callable[[Path], Sequence[tuple[Path, Path]]],
    what: str,
    random_split: RandomSplit,
) -> tuple[list[NamedFile], str]:
    """Return the files of a split of anybody's folder, named by their places, and in words how it is split.

    Args:
        root: The folder, split by folders in it (`split_folder`) or else at random.
        split: Which part is wanted.
        found_in: Returns the files below a folder and their places, in an order that is always the same.
        what: They are, in the plural.
        random_split: How it is split where no folders do it.

    Raises:
        ValueError: If there is no such folder, or nothing in it.
    """
    if not root.is_dir():
        raise ValueError(f"There is no folder {root}: name yours with --data.init_args.root.")
    folder = split_folder(root, split)
    found = [NamedFile(place.as_posix(), path) for path, place in found_in(folder or root)]
    if folder is not None:
        return found, f"by folders: {split_folder(root, 'train')} and {split_folder(root, 'val')}"
    if not found:
        raise ValueError(f"The folder {root} holds no {what}: name another with --data.init_args.root.")
    chosen = random_split.names(split, [file.name for file in found])
    note = f"drawn with split_seed {random_split.seed}, for {root} has no folders train and val"
    return [file for file in found if file.name in chosen], note

"""Files in folders of the user: which ones are read, and how they are split."""

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

    A folder is searched recursively, in alphabetical order. Hidden files and folders with earlier predictions are skipped,
    unless ``path`` is such a folder itself. No file is opened.

    Args:
        path: A folder; or a file, which is returned regardless of its suffix, with its name as the relative path.
        endings: Suffixes with a dot, in lower case.
    """
    if not path.is_dir():
        return [(path, Path(path.name))]
    everything = sorted(path.rglob("*"))
    matches = [item for item in everything if item.suffix.lower() in endings and not item.is_dir()]
    predictions = [item.parent for item in everything if item.name == "predictions.csv" and item.parent != path]
    pairs = [(item, item.relative_to(path)) for item in matches if not any(map(item.is_relative_to, predictions))]
    return [(item, place) for item, place in pairs if not any(part.startswith(".") for part in place.parts)]


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

"""Shapes in a folder, as ``python -m tools.sample_sdf`` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.shapes.files import ENDING, normalisation_of, problem_of, read_shape
from datamodules.shapes.samples import StoredShape
from datamodules.shapes.shape_set import ShapeSet
from datamodules.storage.folders import NamedFile, RandomSplit, Split, files_below, files_of_split


class ShapeFolder(ShapeSet):
    """A folder of shapes, each a safetensors file that ``python -m tools.sample_sdf`` wrote.

    Splits are those of lists, if given; else, if the folder contains ``train`` and at least one of ``val`` and ``test``, these
    folders are the splits, and if one of the latter is missing, the other is used for both; else validation and test shapes
    are drawn at random, and the rest is for training. The draw depends only on ``split_seed`` and the names of the shapes.

    Args:
        root: The folder.
        train_list: Text file with the name of a training shape per line; None if there are no lists.
        val_list: The same for validation; the test list if None.
        test_list: The same for the test; the validation list if None.
        val_ratio: Fraction of the shapes for validation, in (0, 1), at least one shape; ignored with lists or split folders.
        test_ratio: Fraction of the shapes for the test; 0 uses the validation shapes. Ignored with lists or split folders.
        split_seed: Seed of the random split.
        kwargs: Arguments of `ShapeSet`.

    Raises:
        ValueError: If an argument is out of range; at set-up, if shapes or lists are missing or damaged.
    """

    def __init__(
        self,
        root: str = "data/shapes",
        *,
        train_list: str | None = None,
        val_list: str | None = None,
        test_list: str | None = None,
        val_ratio: float = 0.1,
        test_ratio: float = 0.0,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.lists: dict[Split, str | None] = {
            "train": train_list,
            "val": val_list or test_list,
            "test": test_list or val_list,
        }
        given = [path for path in self.lists.values() if path is not None]
        if given and len(given) < len(self.lists):
            raise ValueError(
                f"train_list is {train_list}, val_list {val_list}, test_list {test_list}: pass train_list and at least one of "
                "the others, or none."
            )
        self.random_split = RandomSplit(val_ratio, test_ratio, split_seed)

    def files(self, split: Split) -> list[NamedFile]:
        """Return the files of a split: in the order of its list, else in alphabetical order."""
        if (listed := self.lists[split]) is not None:
            self.notes["split"] = f"by lists: {self.lists['train']}, {self.lists['val']} and {self.lists['test']}"
            return [NamedFile(name, self.root / f"{name}{ENDING}") for name in names_in(Path(listed))]
        files, self.notes["split"] = files_of_split(self.root, split, _shapes, "shapes", self.random_split)
        return files

    def read(self, file: NamedFile) -> StoredShape:
        """Read a shape, under the name of its file."""
        return read_shape(file.path)._replace(name=file.name)

    def problem(self, file: NamedFile) -> str | None:
        """Return why the header of a file is not that of a shape."""
        return problem_of(file.path)

    def normalisation(self, file: NamedFile) -> tuple[tuple[float, float, float], float]:
        """Return the offset and the scale in a file."""
        return normalisation_of(file.path)

    def how_to_get(self) -> str:
        """Return the command that samples meshes."""
        return (
            f"sample meshes with python -m tools.sample_sdf MESHES {self.root}, or pass another --data.init_args.root."
        )


def names_in(path: Path) -> list[str]:
    """Return the names in a text file, one per line; empty lines are ignored.

    Raises:
        ValueError: If the file is missing, has no names, or lists a name twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The list {path} cannot be read ({error}): pass a text file with a name per line.") from error
    names = [line for line in lines if line]
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if not names or repeated:
        reason = f"lists {repeated[0]} more than once" if repeated else "has no names"
        raise ValueError(f"The list {path} {reason}: write one name per line, each once.")
    return names


def _shapes(path: Path) -> list[tuple[Path, Path]]:
    """Return the shape files in a folder, and their relative paths without the suffix."""
    return [(file, place.with_suffix("")) for file, place in files_below(path, (ENDING,))]

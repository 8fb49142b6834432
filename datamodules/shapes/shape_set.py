"""Base class of the data sets of shapes in files: headers are checked during set-up, shapes are read when they are used."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from datamodules.shapes.base import ShapeModule
from datamodules.shapes.samples import StoredShape
from datamodules.storage.folders import NamedFile, Split, report_skipped
from datamodules.storage.parallel import unreadable_of

_MAX_LISTED = 5  # shapes listed in an error message


class StoredShapes(Sequence[StoredShape]):
    """Shapes in files, each read when it is accessed.

    Args:
        files: The files with the names of their shapes.
        read: Function that reads a file.
    """

    def __init__(self, files: Sequence[NamedFile], read: Callable[[NamedFile], StoredShape]) -> None:
        self.files = list(files)
        self.read = read

    def __len__(self) -> int:
        """Return the number of shapes."""
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> StoredShape: ...

    @overload
    def __getitem__(self, index: slice) -> StoredShapes: ...

    def __getitem__(self, index: int | slice) -> StoredShape | StoredShapes:
        """Read a shape, or return some of the files."""
        if isinstance(index, slice):
            return StoredShapes(self.files[index], self.read)
        return self.read(self.files[index])


class ShapeSet(ShapeModule):
    """Shapes in files.

    A subclass defines the files of each split (`files`), and how to check (`problem`) and to read one (`read`).

    Args:
        root: Folder of the data.
        on_bad_shape: What to do with a shape that is missing or damaged: ``raise`` an error, or ``skip`` and report it.
        kwargs: Arguments of `ShapeModule`.

    Raises:
        ValueError: If an argument is out of range; at set-up, if shapes are missing or damaged.
    """

    def __init__(self, root: str = "data", *, on_bad_shape: Literal["raise", "skip"] = "raise", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if on_bad_shape not in ("raise", "skip"):
            raise ValueError(f"on_bad_shape is {on_bad_shape!r}: choose raise or skip.")
        self.root = Path(root)
        self.on_bad_shape = on_bad_shape
        self._files_by_name: dict[str, NamedFile] = {}

    @abstractmethod
    def files(self, split: Split) -> list[NamedFile]:
        """Return the files of a split in a fixed order, whether they exist or not.

        Raises:
            ValueError: If the data is missing; the message says how to get it.
        """

    @abstractmethod
    def read(self, file: NamedFile) -> StoredShape:
        """Return the shape in a file.

        Raises:
            ValueError: If the file is damaged; the message names it.
        """

    @abstractmethod
    def problem(self, file: NamedFile) -> str | None:
        """Return why a file cannot be used, from its header alone; None if it can."""

    @abstractmethod
    def normalisation(self, file: NamedFile) -> tuple[tuple[float, float, float], float]:
        """Return the offset and the scale of a shape: ``normalised = (p + offset) * scale``."""

    def how_to_get(self) -> str:
        """Return how to get missing shapes, as the end of an error message."""
        return "pass another folder with --data.init_args.root."

    def shapes(self, split: Split) -> StoredShapes:
        """Return the usable shapes of a split.

        Raises:
            ValueError: If there are none, or some are missing or damaged and ``on_bad_shape`` is ``raise``.
        """
        files = self.files(split)
        if not files:
            raise ValueError(
                f"{type(self).__name__} has no shapes of the split {split} in {self.root}: {self.how_to_get()}"
            )
        broken = unreadable_of(files, self.problem, "reading shapes")
        if broken and (self.on_bad_shape == "raise" or len(broken) == len(files)):
            reasons = "".join(f"\n  {reason}" for reason in list(broken.values())[:_MAX_LISTED])
            more = f"\n  and {len(broken) - _MAX_LISTED:,} more" if len(broken) > _MAX_LISTED else ""
            fix = "Fix them, or skip them with --data.init_args.on_bad_shape skip."
            if len(broken) == len(files):
                fix = f"If shapes are missing, {self.how_to_get()}"
            raise ValueError(
                f"{len(broken):,} of {len(files):,} shapes of the split {split} cannot be used:{reasons}{more}\n{fix}"
            )
        if broken:
            self.skipped |= broken
            report_skipped(broken, "shapes")
        usable = [file for file in files if str(file.path) not in broken]
        self._files_by_name |= {file.name: file for file in usable}
        return StoredShapes(usable, self.read)

    def file_of(self, name: str) -> NamedFile | None:
        """Return the file of a shape of a split that was read, None if there is none."""
        return self._files_by_name.get(name)

    def source_of(self, name: str) -> dict[str, Any]:
        """Return ``offset`` and ``scale`` of a shape, which map its mesh back to its own units."""
        file = self.file_of(name)
        if file is None:
            return {}
        offset, scale = self.normalisation(file)
        return {"offset": offset, "scale": scale}

"""Decoded images on disk as uint8, so that each image is decoded once and not once per epoch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import weakref
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.utils.data import Dataset

from datamodules.batch import Signal
from datamodules.storage.files import (
    DISK_FULL,
    is_of_system,
    is_verified,
    locked,
    one_line,
    open_own,
    remedy,
    remember_verified,
    written_whole,
)
from datamodules.storage.folders import NamedFile
from datamodules.storage.images import Preparation, read_image
from datamodules.storage.parallel import in_order
from datamodules.storage.progress import counting, is_first_process, progress

_FORMAT = 1  # version of the files and of the decoding; part of the fingerprint
_ESTIMATE_FROM = 32  # images that are decoded before the size of the cache is estimated
_OTHER_FOLDER = "choose another folder with --data.init_args.cache, or null to decode the images every time"
_CLOSED_ON_EXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class CachedImages(Dataset[Signal]):
    """The images of a cache, in the order of the files.

    Every access reads the pixels of one image. Processes share the page cache, and a pickled data set contains no pixels. The
    file stays open, so that a run continues if the file is deleted or replaced by another. After a change of the file, the
    pixels of every image that is read are compared with their checksum.

    Args:
        path: File with the pixels of all images, ``(3, H, W)`` uint8 each, one after the other.
        shapes: ``(M, 2)`` heights and widths.
        names: Names of the images.
        skipped: Reasons why images could not be read, by path.
        notes: Notes on the conversion to RGB by name, for images that have any.
        checksums: ``(M,)`` CRC-32 of the pixels of every image; if None, no change of the file is allowed.
    """

    def __init__(
        self,
        path: Path,
        shapes: NDArray[np.int64],
        names: list[str],
        skipped: dict[str, str],
        notes: dict[str, str],
        checksums: NDArray[np.uint32] | None = None,
    ) -> None:
        self.path = path
        self.names = names
        self.skipped = skipped
        self.notes = notes
        self._shapes = shapes
        self._stops = (3 * shapes.prod(1)).cumsum()
        self._checksums = checksums
        self._file: _OpenFile | None = _OpenFile(path)
        self._state = self._file.state()

    def __len__(self) -> int:
        """Return the number of readable images."""
        return len(self.names)

    def __getitem__(self, index: int) -> Signal:
        """Return image ``index``, ``(3, H, W)`` uint8.

        Raises:
            ValueError: If the file was truncated or changed since the data set was created, or deleted before this process
                opened it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")  # also ends iteration
        height, width = self._shapes[index].tolist()
        pixels = np.empty((3, height, width), dtype=np.uint8)
        try:
            if self._file is None:
                self._file = _OpenFile(self.path)
            count = self._file.read(pixels.reshape(-1).data, int(self._stops[index]) - pixels.size)
            changed = self._file.state() != self._state
        except FileNotFoundError as error:
            raise ValueError(f"{self.path} was deleted during the run: {self._how_to_rebuild}") from error
        except OSError as error:
            reason = f"{one_line(error)}. {remedy(error)}"
            raise ValueError(f"{self.path} can no longer be read: {reason}, and run again.") from error
        if count < pixels.size:
            raise ValueError(
                f"{self.path} was truncated during the run, within the pixels of {self.names[index]}: {self._how_to_rebuild}"
            )
        if changed and (self._checksums is None or zlib.crc32(pixels.data) != self._checksums[index]):
            raise ValueError(
                f"{self.path} was changed during the run, in the pixels of {self.names[index]}: {self._how_to_rebuild}"
            )
        return Signal(torch.from_numpy(pixels), self.names[index])

    @property
    def _how_to_rebuild(self) -> str:
        """The fix for a cache that was changed during a run."""
        return f"delete {self.path.parent} and run again, which decodes the images again."

    @property
    def shapes(self) -> list[tuple[str, tuple[int, int]]]:
        """Name, rows and columns of every image."""
        return [
            (name, (height, width)) for name, (height, width) in zip(self.names, self._shapes.tolist(), strict=True)
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the open file, which another process opens itself."""
        return self.__dict__ | {"_file": None}


class _OpenFile:
    """A file that is read at any position, by several processes after a fork.

    It is not mapped into memory: reading a mapped file that was truncated ends the process with SIGBUS.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | _CLOSED_ON_EXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def state(self) -> tuple[int, int]:
        """Return size and modification time."""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def read(self, buffer: memoryview, offset: int) -> int:
        """Fill a buffer with the bytes from an offset on; return their number, which is smaller at the end of the file."""
        done = 0
        while done < len(buffer):
            count = self._read(buffer[done:], offset + done)  # at most 2 GB
            if not count:
                break
            done += count
        return done

    def _read(self, buffer: memoryview, offset: int) -> int:
        """Read once into a buffer and return the number of bytes."""
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [buffer], offset)
        with self._path.open("rb", buffering=0) as file:  # with its own position, which processes do not share
            file.seek(offset)
            return file.readinto(buffer) or 0


def cached(files: Sequence[NamedFile], preparation: Preparation, folder: Path, label: str) -> CachedImages:
    """Return decoded and prepared images from the cache in ``folder``; build the cache if it is missing or incomplete.

    A cache is a folder ``LABEL-FINGERPRINT``. The fingerprint depends on the names, sizes and modification times of the files
    and on the preparation. The index is written last and marks a cache as complete; until then a journal lists the decoded
    images, and a later call continues after the last one. If several processes call this function, one writes and the others
    wait. Checksums of the pixels are verified after writing and whenever the file has changed; a damaged cache is rebuilt.

    Args:
        files: The images.
        preparation: Applied to each image after decoding.
        folder: Parent folder of all caches, created if missing.
        label: Prefix of the name of the cache: letters, digits and hyphens.

    Returns:
        The readable images in the order of ``files``, possibly none. The others are listed in ``skipped``.

    Raises:
        ValueError: If ``files`` is empty, or the folder cannot be written or has not enough space.

    Example:
        ``cached([NamedFile("holiday", Path("holiday.jpg"))], Preparation(crop=178), Path("data/cache"), "mine-train")``
    """
    if not files:
        raise ValueError(f"There are no images to decode for {label}: choose a folder that contains images.")
    cache = _Files(folder / f"{label}-{_fingerprint(files, preparation)}")
    try:
        with suppress(_DamagedError):  # reported and rebuilt below, by one process
            if (images := _load(cache, files)) is not None:
                return images
        folder.mkdir(parents=True, exist_ok=True)
        with locked(cache.folder):
            try:
                if (images := _load(cache, files)) is not None:  # the process that held the lock may have built it
                    return images
            except _DamagedError as error:
                _log(f"The cache {cache.folder} {error}: rebuilding it.")
                cache.discard()
            return _build(cache, files, preparation, label)
    except OSError as error:
        if error.errno in DISK_FULL:
            problem = (
                f"The disk of {folder} became full while images were decoded, and the incomplete cache was removed"
            )
            raise ValueError(f"{problem}. Free some space, or {_OTHER_FOLDER}.") from error
        path = f" ({error.filename})" if error.filename else ""
        problem = f"The cache {cache.folder} cannot be read or written: {error.strerror or error}{path}"
        fix = remedy(error).partition(", or choose")[0].removesuffix("Choose another folder")
        raise ValueError(f"{problem}. {fix or 'Make the folder writable'}, or {_OTHER_FOLDER}.") from error


class _DamagedError(Exception):
    """A damaged cache; the message continues a sentence that starts with its path."""


class _Files:
    """The files of a cache.

    Args:
        folder: Folder of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / "index.json"
        self.pixels = folder / "pixels.bin"
        self.journal = folder / "journal.txt"
        self.verified = folder / "verified.json"

    def discard(self) -> None:
        """Remove the files, those that mark the cache as complete first."""
        for path in (self.index, self.verified, self.journal, self.pixels):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # missing, or contains other files
            self.folder.rmdir()


class _Entry(NamedTuple):
    """Entry of an image in the index and the journal.

    Attributes:
        height: Rows; 0 if the image could not be read.
        width: Columns.
        checksum: CRC-32 of the pixels.
        remark: Notes on the conversion, or the reason why the image could not be read.
    """

    height: int
    width: int
    checksum: int
    remark: str

    @property
    def size(self) -> int:
        """Bytes of the pixels."""
        return 3 * self.height * self.width


def _fingerprint(files: Sequence[NamedFile], preparation: Preparation) -> str:
    """Return a hash of the format, the preparation, and the name, size and modification time of every file."""
    facts = []
    for file in files:
        state: tuple[int, ...] = ()  # of files that cannot be read, so that they are tried again once they can
        with suppress(OSError):
            status = file.path.stat()
            if os.access(file.path, os.R_OK):
                state = (status.st_size, status.st_mtime_ns)
        facts.append((file.name, *state))
    return hashlib.sha256(json.dumps([_FORMAT, preparation, facts]).encode()).hexdigest()[:16]


def _load(cache: _Files, files: Sequence[NamedFile]) -> CachedImages | None:
    """Return the images of a complete cache after verifying it; None if there is none."""
    try:
        index = cache.index.read_bytes()
    except FileNotFoundError:
        return None
    try:
        checksum, _, body = index.partition(b"\n")
        if checksum.decode() != hashlib.sha256(body).hexdigest():
            raise ValueError
        columns = json.loads(body)
        entries = list(map(_Entry, *(columns[field] for field in _Entry._fields)))
        if any(min(entry[:2]) < 0 for entry in entries) or not len(entries) == len(columns["remark"]) == len(files):
            raise ValueError
    except (ValueError, TypeError, KeyError) as error:
        raise _DamagedError("has a damaged index") from error
    expected, actual = _total_size(entries), cache.pixels.stat().st_size if cache.pixels.exists() else 0
    if actual != expected:
        raise _DamagedError(f"has {actual:,} bytes of pixels, expected {expected:,} from its index")
    _verify(cache, index, entries)
    return _as_dataset(cache, files, entries)


def _build(cache: _Files, files: Sequence[NamedFile], preparation: Preparation, label: str) -> CachedImages:
    """Decode the images that an earlier call has not, write the index, and verify the pixels."""
    try:
        cache.folder.mkdir(exist_ok=True)
        entries = _resume(cache, len(files))
        _decode_rest(cache, files, preparation, label, entries)
        _verify(cache, _write_index(cache, entries), entries)
    except _DamagedError as error:
        cache.discard()
        raise ValueError(
            f"The cache {cache.folder} {error}, immediately after it was written: the disk may be failing, or another process "
            f"writes to the folder. The cache was removed: {_OTHER_FOLDER}."
        ) from error
    except OSError as error:
        if error.errno in DISK_FULL:
            cache.discard()
        raise
    cache.journal.unlink(missing_ok=True)
    return _as_dataset(cache, files, entries)


def _resume(cache: _Files, count: int) -> list[_Entry]:
    """Return the intact entries that an interrupted call wrote, and truncate the files after them."""
    for path in (cache.pixels, cache.journal):
        os.close(open_own(path, os.O_WRONLY | os.O_CREAT))
    entries, lines = [], []
    for line in cache.journal.read_bytes().splitlines(keepends=True)[:count]:
        if line != _journal_line(body := line[9:-1]):
            break
        entries.append(_Entry(*json.loads(body)))
        lines.append(line)
    del entries[_count_intact(cache, entries) :]
    os.truncate(cache.journal, sum(map(len, lines[: len(entries)])))
    os.truncate(cache.pixels, _total_size(entries))
    return entries


def _decode_rest(
    cache: _Files, files: Sequence[NamedFile], preparation: Preparation, label: str, entries: list[_Entry]
) -> None:
    """Decode the images that have no entry yet, write them, and append their entries."""
    resumed, resumed_size = len(entries), _total_size(entries)
    with closing(in_order(partial(_decode, preparation=preparation), files[resumed:])) as decoded:
        if preparation.crop is None:
            _append(cache, islice(decoded, max(_ESTIMATE_FROM - resumed, 0)), entries)
            size = round(_total_size(entries) / max(len(entries), 1) * len(files))  # an estimate
        else:
            size = 3 * preparation.crop**2 * len(files)
        missing, free = size - _total_size(entries), shutil.disk_usage(cache.folder).free
        if missing > free:
            if not resumed:
                cache.discard()
            raise ValueError(
                f"The decoded images need {_format_size(missing)} more in {cache.folder.parent}, but its disk has only "
                f"{_format_size(free)} free. Free some space, or {_OTHER_FOLDER}."
            )
        if resumed < len(files):
            remaining = _format_size(size - resumed_size)
            _log(f"Decoding {len(files) - resumed:,} images into {cache.folder} (about {remaining}).")
        with counting(f"decoding {label}", len(files), resumed) as show:
            _append(cache, decoded, entries, show)
    unreadable = sum(not entry.height for entry in entries)
    size_text = _format_size(_total_size(entries))
    _log(f"Decoded {len(entries) - unreadable:,} images ({size_text}); {unreadable:,} could not be read.")


def _decode(file: NamedFile, preparation: Preparation) -> tuple[_Entry, NDArray[np.uint8]]:
    """Return the entry and the prepared pixels of an image; no pixels if it cannot be read."""
    try:
        pixels, notes = read_image(file.path)
        try:
            values: NDArray[np.uint8] = preparation(pixels).contiguous().numpy()
        except (ValueError, MemoryError) as error:  # of images with an extreme aspect ratio
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{file.path} cannot be resized ({reason}): remove the file or crop it.") from error
    except ValueError as error:
        if is_of_system(error.__cause__):  # the file may be intact: the cache must not record it as unreadable
            raise ValueError(f"{error} {remedy(error.__cause__)}, and run again.") from error.__cause__
        remark = str(error).replace(
            str(file.path), "\0"
        )  # a placeholder, because the folder of the images may be moved
        return _Entry(0, 0, 0, remark), np.empty(0, dtype=np.uint8)
    _, height, width = values.shape
    return _Entry(height, width, zlib.crc32(values.data), "; ".join(notes)), values


def _append(
    cache: _Files,
    decoded: Iterable[tuple[_Entry, NDArray[np.uint8]]],
    entries: list[_Entry],
    show: Callable[[int], None] = lambda done: None,
) -> None:
    """Write images, each followed by its line in the journal, so that a killed process leaves consistent files."""
    with cache.pixels.open("r+b") as pixels, cache.journal.open("r+b") as journal:
        pixels.seek(0, os.SEEK_END)
        journal.seek(0, os.SEEK_END)
        for entry, values in decoded:
            pixels.write(values.data)
            pixels.flush()
            journal.write(_journal_line(json.dumps(entry).encode()))
            journal.flush()
            entries.append(entry)
            show(len(entries))
        os.fsync(pixels.fileno())


def _journal_line(body: bytes) -> bytes:
    """Return a line of the journal: the CRC-32 of an entry, and the entry as JSON."""
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _write_index(cache: _Files, entries: Sequence[_Entry]) -> bytes:
    """Write the index atomically and return its content: the SHA-256 of the body, and the body as JSON."""
    columns = dict(zip(_Entry._fields, zip(*entries, strict=True), strict=True))
    body = json.dumps(columns, separators=(",", ":")).encode()
    index = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    with written_whole(cache.index) as part:
        part.write_bytes(index)
    return index


def _verify(cache: _Files, index: bytes, entries: Sequence[_Entry]) -> None:
    """Compare the pixels with their checksums, unless they have not changed since this was last done."""
    checksum = index[:64].decode()
    if is_verified(cache.pixels, cache.verified, index=checksum):
        return
    if (intact := _count_intact(cache, entries)) < len(entries):
        raise _DamagedError(f"has damaged pixels, first in image {intact + 1:,}")
    remember_verified(cache.pixels, cache.verified, index=checksum)


def _count_intact(cache: _Files, entries: Sequence[_Entry]) -> int:
    """Return the number of images before the first whose pixels do not match their checksum."""
    with cache.pixels.open("rb") as file, progress(f"verifying {cache.folder.name}", _total_size(entries)) as show:
        for index, entry in enumerate(entries):
            pixels = file.read(entry.size)
            if len(pixels) < entry.size or zlib.crc32(pixels) != entry.checksum:
                return index
            show(file.tell())
    return len(entries)


def _as_dataset(cache: _Files, files: Sequence[NamedFile], entries: Sequence[_Entry]) -> CachedImages:
    """Return the images of a verified cache."""
    pairs = list(zip(files, entries, strict=True))
    readable = [(file, entry) for file, entry in pairs if entry.height]
    return CachedImages(
        cache.pixels,
        np.array([entry[:2] for _, entry in readable], dtype=np.int64).reshape(-1, 2),
        [file.name for file, _ in readable],
        {str(file.path): entry.remark.replace("\0", str(file.path)) for file, entry in pairs if not entry.height},
        {file.name: entry.remark for file, entry in readable if entry.remark},
        np.array([entry.checksum for _, entry in readable], dtype=np.uint32),
    )


def _total_size(entries: Iterable[_Entry]) -> int:
    """Return the bytes of the pixels of all images."""
    return sum(entry.size for entry in entries)


def _format_size(size: int) -> str:
    """Format a number of bytes.

    Example:
        >>> _format_size(5_480_000_000), _format_size(250_000)
        ('5.5 GB', '0.2 MB')
    """
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _log(line: str) -> None:
    """Print a line to stderr on the first process."""
    if is_first_process():
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(line)

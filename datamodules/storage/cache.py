"""Decoded images on disk, as memory-mapped uint8: every image is decoded once, not once an epoch."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import platform
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.utils.data import Dataset

from datamodules.batch import Signal
from datamodules.storage.files import FULL, is_verified, locked, open_own, remember_verified, written_whole
from datamodules.storage.folders import NamedFile
from datamodules.storage.images import Preparation, read_image
from datamodules.storage.parallel import in_order
from datamodules.storage.progress import counting, is_first_process, progress

_FORMAT = 1  # of the files, and of what decoding makes of an image
_ENOUGH = 32  # images, from which the size of all is estimated
_WAY_OUT = "choose another folder with --data.init_args.cache, or null there to decode every time"
_COMMON = platform.machine() in ("x86_64", "aarch64")
_NO_RESERVE = getattr(
    mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" and _COMMON else 0
)  # named in Python 3.13


class CachedImages(Dataset[Signal]):
    """Images that are in a cache, in the order of the files.

    Values are views of the file: nothing is read before it is used, processes share what the system keeps of it, and what is
    written to them stays in this process. Copies for other processes carry no image.

    Args:
        path: The pixels, ``(3, H, W)`` uint8 of one image after the other.
        shapes: ``(M, 2)`` rows and columns.
        names: Of the images.
        skipped: Why images could not be read, by path.
        notes: What had to be decided to make RGB of them, by name, only where there is something to say.
    """

    def __init__(
        self,
        path: Path,
        shapes: NDArray[np.int64],
        names: list[str],
        skipped: dict[str, str],
        notes: dict[str, str],
    ) -> None:
        self.path = path
        self.names = names
        self.skipped = skipped
        self.notes = notes
        self._shapes = shapes
        self._stops = (3 * shapes.prod(1)).cumsum()
        self._pixels: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        """Return the images that could be read."""
        return len(self.names)

    def __getitem__(self, index: int) -> Signal:
        """Return image ``index``, ``(3, H, W)`` uint8."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not among {len(self)} images")  # which also ends iteration
        if self._pixels is None:
            self._pixels = _mapped(self.path, int(self._stops[-1]))
        height, width = self._shapes[index].tolist()
        stop = int(self._stops[index])
        pixels = self._pixels[stop - 3 * height * width : stop]  # a tensor of this part alone has a storage of its size
        return Signal(torch.from_numpy(pixels.reshape(3, height, width)), self.names[index])

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the map, which every process opens itself."""
        return self.__dict__ | {"_pixels": None}


def cached(files: Sequence[NamedFile], preparation: Preparation, folder: Path, label: str) -> CachedImages:
    """Return images that were decoded and prepared once: now, unless they are in ``folder`` and whole.

    The cache is a folder ``LABEL-FINGERPRINT``; another list of names, another size or date of a file and another preparation
    have another one. It counts as whole when its index is there, which is written last. Until then a journal says what is
    done, and a later call goes on from there, however the earlier one ended. Of several processes one writes and the others
    wait. Pixels are read back and compared with their checksums after they are written, and again whenever the size or date
    of their file changed; a damaged cache is made anew.

    Args:
        files: The images.
        preparation: What is done to each.
        folder: Where caches are put; made if it is missing.
        label: Beginning of the name of the cache, of letters, digits and hyphens.

    Returns:
        The images that can be read, in the order of ``files``; none, if that is so. The others are in its ``skipped``.

    Raises:
        ValueError: If there are no files, or the folder cannot be written or has no room.

    Example:
        ``cached([NamedFile("holiday", Path("holiday.jpg"))], Preparation(crop=178), Path("data/cache"), "mine-train")``
    """
    if not files:
        raise ValueError(f"There are no images to decode for {label}: name a folder that holds some.")
    place = _Place(folder / f"{label}-{_fingerprint(files, preparation)}")
    try:
        with suppress(_DamagedError):  # said and fixed below, by one process
            if (whole := _opened(place, files)) is not None:
                return whole
        folder.mkdir(parents=True, exist_ok=True)
        with locked(place.folder):
            whole = _sound(place, files)  # by the process that was waited for
            return _made(place, files, preparation, label) if whole is None else whole
    except OSError as error:
        raise ValueError(_of_the_disk(error, place)) from error


class _DamagedError(Exception):
    """What is wrong with a cache, in words that follow its name."""


class _Place:
    """The files of a cache.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / "index.json"
        self.pixels = folder / "pixels.bin"
        self.journal = folder / "journal.txt"
        self.verified = folder / "verified.json"

    def discard(self) -> None:
        """Remove them, first what says that they are whole."""
        for path in (self.index, self.verified, self.journal, self.pixels):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # not ours alone, or not there
            self.folder.rmdir()


class _Entry(NamedTuple):
    """What is written down of an image.

    Attributes:
        height: Rows; 0 if it could not be read.
        width: Columns.
        checksum: CRC-32 of its pixels.
        remark: Its notes, or why it could not be read.
    """

    height: int
    width: int
    checksum: int
    remark: str

    @property
    def size(self) -> int:
        """Bytes of its pixels."""
        return 3 * self.height * self.width


def _fingerprint(files: Sequence[NamedFile], preparation: Preparation) -> str:
    """Return what tells apart caches of different content."""
    facts = [(file.name, *_state(file.path)) for file in files]
    return hashlib.sha256(json.dumps([_FORMAT, preparation, facts]).encode()).hexdigest()[:16]


def _state(path: Path) -> tuple[int, ...]:
    """Return size and date of a file; nothing if it is not there or may not be read, so that it is tried again once it is."""
    with suppress(OSError):
        facts = path.stat()
        if os.access(path, os.R_OK):
            return facts.st_size, facts.st_mtime_ns
    return ()


def _mapped(path: Path, size: int) -> NDArray[np.uint8]:
    """Return a file as an array whose changes stay in this process.

    A usual map of that kind is refused where the file is larger than the memory, as if all of it were to be changed.
    """
    try:
        with path.open("rb") as file:
            if sys.platform == "win32":
                pixels = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
            else:
                flags, rights = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
                pixels = mmap.mmap(file.fileno(), size, flags=flags, prot=rights)
    except (OSError, ValueError) as error:  # ValueError: it is shorter
        raise ValueError(f"{path} cannot be read any more ({error}): run it again to make it anew.") from error
    return np.frombuffer(pixels, dtype=np.uint8)


def _sound(place: _Place, files: Sequence[NamedFile]) -> CachedImages | None:
    """Return a cache if it is whole; say so and remove it if it is damaged."""
    try:
        return _opened(place, files)
    except _DamagedError as error:
        _say(f"The cache {place.folder} {error}: it is made anew.")
        place.discard()
        return None


def _opened(place: _Place, files: Sequence[NamedFile]) -> CachedImages | None:
    """Return a cache after seeing that it is right; None if there is no whole one."""
    try:
        text = place.index.read_bytes()
    except FileNotFoundError:
        return None
    entries = _read_index(text, len(files))
    size = place.pixels.stat().st_size if place.pixels.exists() else 0
    if size != _size(entries):
        raise _DamagedError(f"has {size:,} bytes of pixels, its index says {_size(entries):,}")
    _verify(place, text, entries)
    return _images(place, files, entries)


def _images(place: _Place, files: Sequence[NamedFile], entries: Sequence[_Entry]) -> CachedImages:
    """Return the images of a cache that is right."""
    named = list(zip(files, entries, strict=True))
    read = [(file, entry) for file, entry in named if entry.height]
    return CachedImages(
        place.pixels,
        np.array([entry[:2] for _, entry in read], dtype=np.int64).reshape(-1, 2),
        [file.name for file, _ in read],
        {str(file.path): entry.remark.replace("\0", str(file.path)) for file, entry in named if not entry.height},
        {file.name: entry.remark for file, entry in read if entry.remark},
    )


def _read_index(text: bytes, count: int) -> list[_Entry]:
    """Return what an index says of so many images, if it is whole and possible."""
    try:
        checksum, _, body = text.partition(b"\n")
        if checksum.decode() != hashlib.sha256(body).hexdigest():
            raise ValueError
        columns = json.loads(body)
        entries = list(map(_Entry, *(columns[field] for field in _Entry._fields)))
        if any(min(entry[:2]) < 0 for entry in entries) or not len(entries) == len(columns["remark"]) == count:
            raise ValueError
    except (ValueError, TypeError, KeyError) as error:
        raise _DamagedError("has a damaged index") from error
    return entries


def _write_index(place: _Place, entries: Sequence[_Entry]) -> bytes:
    """Write an index whole or not at all, and return it."""
    columns = dict(zip(_Entry._fields, zip(*entries, strict=True), strict=True))
    body = json.dumps(columns, separators=(",", ":")).encode()
    text = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    with written_whole(place.index) as part:
        part.write_bytes(text)
    return text


def _verify(place: _Place, text: bytes, entries: Sequence[_Entry]) -> None:
    """Compare the pixels with their checksums, unless that was done since they changed."""
    if is_verified(place.pixels, place.verified, index=text[:64].decode()):
        return
    right = _right(place, entries)
    if right < len(entries):
        raise _DamagedError(f"has damaged pixels, the first in image {right + 1:,}")
    remember_verified(place.pixels, place.verified, index=text[:64].decode())


def _right(place: _Place, entries: Sequence[_Entry]) -> int:
    """Return how many images are right, counted up to the first that is not."""
    done, total = 0, _size(entries)
    with place.pixels.open("rb") as file, progress(f"verifying {place.folder.name}", total) as show:
        for index, entry in enumerate(entries):
            pixels = file.read(entry.size)
            if len(pixels) < entry.size or zlib.crc32(pixels) != entry.checksum:
                return index
            done += entry.size
            show(done)
    return len(entries)


def _made(place: _Place, files: Sequence[NamedFile], preparation: Preparation, label: str) -> CachedImages:
    """Make a cache, or what is missing of it."""
    try:
        place.folder.mkdir(exist_ok=True)
        entries = _resumed(place, len(files))
        _complete(place, files, preparation, label, entries)
        _verify(place, _write_index(place, entries), entries)
    except _DamagedError as error:
        place.discard()
        raise ValueError(
            f"The cache {place.folder} {error}, just after it was written: its disk may be failing, or another process "
            f"writes there. It was removed: {_WAY_OUT}."
        ) from error
    except OSError as error:
        if error.errno in FULL:
            place.discard()
        raise
    place.journal.unlink(missing_ok=True)
    return _images(place, files, entries)


def _resumed(place: _Place, count: int) -> list[_Entry]:
    """Return what is there of an interrupted call, after cutting off what is torn or wrong."""
    for path in (place.pixels, place.journal):
        os.close(open_own(path, os.O_WRONLY | os.O_CREAT))
    lines = place.journal.read_bytes().splitlines(keepends=True)[:count]
    entries = [entry for entry in takewhile(bool, map(_entry, lines)) if entry]
    del entries[_right(place, entries) :]
    os.truncate(place.journal, sum(map(len, lines[: len(entries)])))
    os.truncate(place.pixels, _size(entries))
    return entries


def _line(entry: _Entry) -> bytes:
    """Return a line of the journal."""
    body = json.dumps(entry).encode()
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _entry(line: bytes) -> _Entry | None:
    """Return what a line of the journal says, None if it is torn."""
    body = line[9:-1]
    whole = line == b"%08x %b\n" % (zlib.crc32(body), body)
    return _Entry(*json.loads(body)) if whole else None


def _complete(
    place: _Place, files: Sequence[NamedFile], preparation: Preparation, label: str, entries: list[_Entry]
) -> None:
    """Decode the images that are not there, and append them."""
    begun, there = len(entries), _size(entries)
    with closing(in_order(partial(_decode, preparation=preparation), files[begun:])) as stream:
        if preparation.crop is None:
            _append(place, islice(stream, max(_ENOUGH - begun, 0)), entries)
        expected = _expected(entries, len(files), preparation.crop)
        _check_room(place, expected - _size(entries), keep=begun > 0)
        if begun < len(files):
            _say(f"Decoding {len(files) - begun:,} images into {place.folder} (about {_amount(expected - there)}).")
        with counting(f"decoding {label}", len(files), begun) as show:
            _append(place, stream, entries, show)
    unread = sum(not entry.height for entry in entries)
    _say(f"Decoded {len(entries) - unread:,} images ({_amount(_size(entries))}); {unread:,} could not be read.")


def _size(entries: Iterable[_Entry]) -> int:
    """Return the bytes of images."""
    return sum(entry.size for entry in entries)


def _expected(entries: Sequence[_Entry], count: int, crop: int | None) -> int:
    """Return the bytes of all images, estimated unless they have one size."""
    return round(_size(entries) / max(len(entries), 1) * count) if crop is None else 3 * crop**2 * count


def _amount(size: int) -> str:
    """Return bytes in words.

    Example:
        >>> _amount(5_480_000_000), _amount(250_000)
        ('5.5 GB', '0.2 MB')
    """
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _check_room(place: _Place, missing: int, *, keep: bool) -> None:
    """Refuse what the disk has no room for; what an earlier call wrote stays."""
    free = shutil.disk_usage(place.folder).free
    if missing <= free:
        return
    if not keep:
        place.discard()
    raise ValueError(
        f"The decoded images need {_amount(missing)} more in {place.folder.parent}, whose disk has {_amount(free)} free: "
        f"make room, {_WAY_OUT}."
    )


def _append(
    place: _Place,
    stream: Iterable[tuple[_Entry, NDArray[np.uint8]]],
    entries: list[_Entry],
    show: Callable[[int], None] = lambda done: None,
) -> None:
    """Write images and note each once it is with the system: what the journal says is there if this process is killed."""
    with place.pixels.open("r+b") as pixels, place.journal.open("r+b") as journal:
        pixels.seek(0, os.SEEK_END)
        journal.seek(0, os.SEEK_END)
        for entry, values in stream:
            pixels.write(values.data)
            pixels.flush()
            journal.write(_line(entry))
            journal.flush()
            entries.append(entry)
            show(len(entries))
        _flush_to_disk(pixels)


def _flush_to_disk(file: BinaryIO) -> None:
    """Have the system write a file before anything else says that it is whole."""
    file.flush()
    os.fsync(file.fileno())


def _decode(file: NamedFile, preparation: Preparation) -> tuple[_Entry, NDArray[np.uint8]]:
    """Return an image as it is kept, or why it cannot be."""
    try:
        pixels, notes = read_image(file.path)
    except ValueError as error:
        return _unread(file, str(error))
    try:
        values: NDArray[np.uint8] = preparation(pixels).contiguous().numpy()
    except (ValueError, MemoryError) as error:  # of a line a thousand times as long as wide
        reason = " ".join(str(error).split()) or type(error).__name__
        return _unread(file, f"{file.path} cannot be resized ({reason}): leave it out, or cut it.")
    height, width = values.shape[1:]
    return _Entry(height, width, zlib.crc32(values.data), "; ".join(notes)), values


def _unread(file: NamedFile, reason: str) -> tuple[_Entry, NDArray[np.uint8]]:
    """Return an image that cannot be kept; its path is left open, because folders move."""
    return _Entry(0, 0, 0, reason.replace(str(file.path), "\0")), np.empty(0, dtype=np.uint8)


def _say(line: str) -> None:
    """Print a line on one process."""
    if is_first_process():
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(line)


def _of_the_disk(error: OSError, place: _Place) -> str:
    """Return what an error of the disk means."""
    if error.errno in FULL:
        return (
            f"The disk of {place.folder.parent} became full while images were decoded into it, and those were removed: "
            f"make room, {_WAY_OUT}."
        )
    what = f" ({error.filename})" if error.filename else ""
    return f"The cache {place.folder} cannot be read or written: {error.strerror or error}{what}: {_WAY_OUT}."

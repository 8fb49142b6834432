"""Files that are whole or not there, whoever else writes them and however a writer ends: locks, checksums, temporary files."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor
from rich.console import Console

from datamodules.storage.progress import is_first_process, progress

FULL = (errno.ENOSPC, errno.EDQUOT)

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_CHUNK = 1 << 18  # bytes
_ABANDONED = 24 * 3600  # seconds after which a temporary file is nobody's, on disks without locks
_FOLDER = ".part-"
_NEW = 60  # seconds
_LONGEST_NAME = 230  # bytes; a file name may have 255, with a dot, a number and .part
_LOOKED_AT = 8  # temporary files that may be abandoned, beyond gaps in their numbers
_MOST_WRITERS = 1000
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a place beside a file to write to; when all is written it becomes the file, else the earlier file stays.

    The place is a new file of this writer alone: several processes may write the same file at once, the last one wins. What
    writers that were killed left of this file is removed. The file is on the disk when this returns.

    Args:
        path: The file; its folder is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, descriptor = _temporary(path)
    try:
        yield part
        flush_file(part)
        if sys.platform == "win32":
            os.close(descriptor)
            descriptor = -1
        part.replace(path)
        flush_folder(path.parent)
    except BaseException:
        if descriptor < 0 or _is_open(part, descriptor):  # its name may be that of another writer's file by now
            part.unlink(missing_ok=True)
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)  # unlocks


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time write ``path``; the lock of a process that is killed ends with it.

    Where files cannot be locked (some network disks) nobody waits, and checks of the content have to suffice.

    Args:
        path: The file or folder; the lock is ``NAME.lock`` beside it.

    Raises:
        ValueError: If the lock file is a link.
    """
    place = path.with_name(f"{path.name}.lock")
    lock = FileLock(place, fallback_to_soft=False)
    try:
        _acquire(lock, path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(refusal_of_link(place)) from error
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        with suppress(OSError):  # a waiting process notices that its file is gone
            place.unlink()
        lock.release()


def _acquire(lock: FileLock, path: Path) -> None:
    """Acquire a lock, and log if another process has to finish first."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if is_first_process():
            Console(stderr=True, soft_wrap=True).print(f"Waiting for another process, which writes {path}.")
        lock.acquire()


def mismatch(path: Path, expected: str) -> str:
    """Return in words that a file has another checksum than expected; nothing if it has that one.

    Args:
        path: The file.
        expected: ``md5:`` or ``sha256:`` and the hexadecimal digits.
    """
    kind = expected.partition(":")[0]
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file, progress(f"verifying {path.name.removesuffix('.part')}", path.stat().st_size) as show:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            show(file.tell())
    checksum = f"{kind}:{digest.hexdigest()}"
    if checksum == expected.lower():
        return ""
    return f"has the checksum {checksum}, expected {expected} ({path.stat().st_size:,} bytes)"


def is_verified(path: Path, memory: Path, **facts: str) -> bool:
    """Return whether `remember_verified` was called with these facts and the file has not changed since."""
    with suppress(OSError, ValueError):
        return bool(json.loads(memory.read_bytes()) == _state(path, facts))
    return False


def remember_verified(path: Path, memory: Path, **facts: str) -> None:
    """Remember in a small file that another was verified; where it cannot be written, it is verified every time.

    Args:
        path: The file that was verified.
        memory: The small file.
        facts: What the file was verified against.
    """
    with suppress(OSError), written_whole(memory) as part:
        part.write_text(json.dumps(_state(path, facts)), encoding="utf-8")


def _state(path: Path, facts: dict[str, str]) -> dict[str, object]:
    """Return what changes when a file does, or when it is verified against something else."""
    return {**facts, "size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}


def open_own(path: Path, flags: int) -> int:
    """Open a file, but never what a link in its place leads to, and return the descriptor.

    Raises:
        ValueError: If a link is there.
    """
    try:
        if path.is_symlink():  # where the system cannot refuse it
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        return os.open(path, flags | _NO_LINK, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ValueError(refusal_of_link(path)) from error


def refusal_of_link(path: Path) -> str:
    """Return why a link in the place of a temporary file is not written to."""
    return f"{path} is a link; a file that is written in parts must be a plain file: remove the link."


def one_line(error: object) -> str:
    """Return the message of an error in one line, without what the system adds to it."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def flush_file(path: Path) -> None:
    """Have the system write a file to the disk before anything says that it is whole."""
    descriptor = os.open(path, os.O_RDWR | _NO_LINK)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Have the system write the names in a folder to the disk, where it can."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Give a new folder in a folder, and remove it afterwards; what was left by processes that were killed is removed too.

    Args:
        parent: A folder that exists.
    """
    for left in parent.glob(f"{_FOLDER}*"):
        _remove_abandoned_folder(left)
    with tempfile.TemporaryDirectory(dir=parent, prefix=_FOLDER, ignore_cleanup_errors=True) as made:
        if sys.platform == "win32":
            yield Path(made)
            return
        descriptor = os.open(made, os.O_RDONLY | _NO_LINK)
        try:
            with suppress(OSError):  # no locks on this disk
                lock_descriptor(descriptor)
            yield Path(made)
        finally:
            os.close(descriptor)


def _remove_abandoned_folder(left: Path) -> None:
    """Remove a temporary folder whose process was killed; one that is new may not be locked yet."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK)
        try:
            changed = os.fstat(descriptor).st_mtime
            if time.time() - changed > _NEW and _is_abandoned(descriptor, changed):
                shutil.rmtree(left)
        finally:
            os.close(descriptor)


def _flush(descriptor: int) -> None:
    """Write a file to the disk, where the disk knows how; that it is full is no such case."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _temporary(path: Path) -> tuple[Path, int]:
    """Return a new empty file beside a file, and its descriptor, which locks it; remove what was abandoned."""
    name = path.name if len(os.fsencode(path.name)) <= _LONGEST_NAME else f"{zlib.crc32(os.fsencode(path.name)):08x}"
    made: tuple[Path, int] | None = None
    for number in itertools.count():
        part = path.with_name(f".{name}.{number}.part")
        if made is not None and number >= _LOOKED_AT and not os.path.lexists(part):
            return made
        _remove_abandoned(part)
        if made is None:
            made = _created(part)
        if number >= _MOST_WRITERS:
            break
    if made is not None:
        return made
    raise OSError(
        errno.EEXIST,
        f"{_MOST_WRITERS} temporary files of {path.name} are there; remove those that end in .part",
        str(path.parent),
    )


def _created(part: Path) -> tuple[Path, int] | None:
    """Return a file that this call made and locked; None if there is something already."""
    while True:
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
        except FileExistsError:
            return None
        if sys.platform == "win32":
            return part, descriptor
        with suppress(OSError):  # no locks on this disk
            lock_descriptor(descriptor)
        if _is_open(part, descriptor):
            return part, descriptor
        os.close(descriptor)  # another process took it for abandoned, before it was locked


def _remove_abandoned(part: Path) -> None:
    """Remove a temporary file whose writer was killed; leave links and whatever else is no file."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        descriptor = os.open(part, os.O_RDWR | os.O_NONBLOCK | _NO_LINK)
        try:
            facts = os.fstat(descriptor)
            if stat.S_ISREG(facts.st_mode) and _is_abandoned(descriptor, facts.st_mtime) and _is_open(part, descriptor):
                part.unlink()
        finally:
            os.close(descriptor)


def _is_abandoned(descriptor: int, changed: float) -> bool:
    """Return whether nobody writes a temporary file."""
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError:  # no locks on this disk
        return time.time() - changed > _ABANDONED


def _is_open(part: Path, descriptor: int) -> bool:
    """Return whether a path still leads to the file that is open."""
    with suppress(FileNotFoundError):
        return os.path.samestat(part.lstat(), os.fstat(descriptor))
    return False

"""Files that are either complete or missing, despite concurrent writers, killed processes and full disks."""

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

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_CHUNK = 1 << 18  # bytes
_PREFIX = ".part-"  # of temporary folders
_MAX_AGE = 24 * 3600  # seconds after which a temporary file counts as abandoned on file systems without locks
_MIN_AGE = 60  # seconds after which a temporary folder can count as abandoned
_MAX_NAME = 230  # bytes; a file name may have 255, including a dot, a number and .part
_NUM_CHECKED = 8  # numbers that are checked for abandoned temporary files, beyond gaps
_MAX_WRITERS = 1000
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary file that replaces ``path`` on success and is removed on an error.

    Each writer has its own temporary file: several processes may write the same file at once, and the last one wins. Temporary
    files of killed processes are removed. The data is flushed to disk before this returns.

    Args:
        path: The file; its folder is created if missing.

    Yields:
        The path to write to, in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, descriptor = _create_temporary(path)
    try:
        yield part
        flush_file(part)
        if sys.platform == "win32":
            os.close(descriptor)
            descriptor = -1
        part.replace(path)
        flush_folder(path.parent)
    except BaseException:
        if descriptor < 0 or _is_open(part, descriptor):  # the name may belong to another writer by now
            part.unlink(missing_ok=True)
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)  # releases the lock


def _create_temporary(path: Path) -> tuple[Path, int]:
    """Create and lock a temporary file beside a file, and remove abandoned ones; return its path and descriptor."""
    name = path.name if len(os.fsencode(path.name)) <= _MAX_NAME else f"{zlib.crc32(os.fsencode(path.name)):08x}"
    created: tuple[Path, int] | None = None
    for number in itertools.count():
        part = path.with_name(f".{name}.{number}.part")
        if created is not None and number >= _NUM_CHECKED and not os.path.lexists(part):
            return created
        _remove_abandoned(part)
        if created is None:
            created = _create(part)
        if number >= _MAX_WRITERS:
            break
    if created is not None:
        return created
    raise OSError(
        errno.EEXIST,
        f"{path.name} has {_MAX_WRITERS} temporary files; remove those that end in .part",
        str(path.parent),
    )


def _create(part: Path) -> tuple[Path, int] | None:
    """Create and lock a file; return None if the path exists."""
    while True:
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
        except FileExistsError:
            return None
        if sys.platform == "win32":
            return part, descriptor
        with suppress(OSError):  # file system without locks
            lock_descriptor(descriptor)
        if _is_open(part, descriptor):
            return part, descriptor
        os.close(descriptor)  # another process removed it as abandoned before it was locked


def _remove_abandoned(part: Path) -> None:
    """Remove a temporary file whose writer was killed; leave links and everything else that is not a regular file."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        descriptor = os.open(part, os.O_RDWR | os.O_NONBLOCK | _NO_LINK)
        try:
            status = os.fstat(descriptor)
            is_abandoned = stat.S_ISREG(status.st_mode) and _is_abandoned(descriptor, status.st_mtime)
            if is_abandoned and _is_open(part, descriptor):
                part.unlink()
        finally:
            os.close(descriptor)


def _is_abandoned(descriptor: int, modified: float) -> bool:
    """Return whether no process holds the lock; without locks, whether the last modification is long ago."""
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError:  # file system without locks
        return time.time() - modified > _MAX_AGE


def _is_open(part: Path, descriptor: int) -> bool:
    """Return whether a path still refers to the file of a descriptor."""
    with suppress(FileNotFoundError):
        return os.path.samestat(part.lstat(), os.fstat(descriptor))
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on ``path``, so that one process writes at a time; the lock of a killed process is released.

    On file systems without locks (some network disks) this does not wait, and callers must rely on checking the content.

    Args:
        path: The file or folder; the lock file is ``NAME.lock`` beside it.

    Raises:
        ValueError: If the lock file is a link.
    """
    lock_file = path.with_name(f"{path.name}.lock")
    lock = FileLock(lock_file, fallback_to_soft=False)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if is_first_process():
                Console(stderr=True, soft_wrap=True).print(f"Waiting for another process to write {path}.")
            lock.acquire()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(refusal_of_link(lock_file)) from error
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        with suppress(OSError):  # waiting processes notice that the file is gone
            lock_file.unlink()
        lock.release()


def mismatch(path: Path, expected: str) -> str:
    """Return a message if a file has another checksum than expected, else an empty string.

    Args:
        path: The file.
        expected: ``md5:`` or ``sha256:`` followed by the hexadecimal digits.
    """
    algorithm = expected.partition(":")[0]
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file, progress(f"verifying {path.name.removesuffix('.part')}", path.stat().st_size) as show:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            show(file.tell())
    checksum = f"{algorithm}:{digest.hexdigest()}"
    if checksum == expected.lower():
        return ""
    return f"has the checksum {checksum}, expected {expected} ({path.stat().st_size:,} bytes)"


def is_verified(path: Path, record: Path, **facts: str) -> bool:
    """Return whether `remember_verified` was called with the same facts, and the file has not changed since."""
    with suppress(OSError, ValueError):
        return bool(json.loads(record.read_bytes()) == _state(path, facts))
    return False


def remember_verified(path: Path, record: Path, **facts: str) -> None:
    """Record that a file was verified; if the record cannot be written, the file is verified every time.

    Args:
        path: The verified file.
        record: The JSON file to write.
        facts: What the file was verified against.
    """
    with suppress(OSError), written_whole(record) as part:
        part.write_text(json.dumps(_state(path, facts)), encoding="utf-8")


def _state(path: Path, facts: dict[str, str]) -> dict[str, object]:
    """Return the content of a record: facts, size and modification time."""
    return {**facts, "size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}


def open_own(path: Path, flags: int) -> int:
    """Open a file without following links, and return its descriptor.

    Raises:
        ValueError: If the path is a link.
    """
    try:
        if path.is_symlink():  # not every system has O_NOFOLLOW
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        return os.open(path, flags | _NO_LINK, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ValueError(refusal_of_link(path)) from error


def refusal_of_link(path: Path) -> str:
    """Return the error message for a link in the place of a temporary file."""
    return f"{path} is a link, but temporary files must be regular files: remove the link."


def one_line(error: object) -> str:
    """Return the message of an error on one line, without error number and file name."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def flush_file(path: Path) -> None:
    """Flush a file to disk, on file systems that support it; raise if the disk is full."""
    descriptor = os.open(path, os.O_RDWR | _NO_LINK)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush the names of the files in a folder to disk, where the system supports it."""
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
    """Create a temporary folder and remove it on exit; also remove those of killed processes.

    Args:
        parent: An existing folder.

    Yields:
        The path of the temporary folder in ``parent``.
    """
    for left in parent.glob(f"{_PREFIX}*"):
        _remove_abandoned_folder(left)
    with tempfile.TemporaryDirectory(dir=parent, prefix=_PREFIX, ignore_cleanup_errors=True) as folder:
        if sys.platform == "win32":
            yield Path(folder)
            return
        descriptor = os.open(folder, os.O_RDONLY | _NO_LINK)
        try:
            with suppress(OSError):  # file system without locks
                lock_descriptor(descriptor)
            yield Path(folder)
        finally:
            os.close(descriptor)


def _remove_abandoned_folder(folder: Path) -> None:
    """Remove a temporary folder whose process was killed, unless it is so new that it may not be locked yet."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK)
        try:
            modified = os.fstat(descriptor).st_mtime
            if time.time() - modified > _MIN_AGE and _is_abandoned(descriptor, modified):
                shutil.rmtree(folder)
        finally:
            os.close(descriptor)

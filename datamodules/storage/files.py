"""Files that are either complete or missing, despite concurrent writers, killed processes and full disks.

Disk errors name the file, the reason and the fix; Python's own errors while a file is written name no file.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeGuard

from filelock import FileLock, Timeout, lock_descriptor
from rich.console import Console

from datamodules.storage.progress import is_first_process, progress

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_OF_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_CHUNK = 1 << 18  # bytes
_PREFIX = ".part-"  # of temporary folders
_MAX_AGE = 24 * 3600  # seconds after which a temporary file counts as abandoned on file systems without locks
_MIN_AGE = 60  # seconds after which a temporary folder can count as abandoned
_MAX_NAME = 230  # bytes; a file name may have 255, including a dot, a number and .part
_NUM_CHECKED = 8  # numbers that are checked for abandoned temporary files, beyond gaps
_MAX_WRITERS = 1000
_PROBE = 1 << 16  # bytes that are appended to a file to see why a library could not write it
_REMINDER = 30.0  # seconds between two messages about a lock of another process
_ELSEWHERE = "or choose another folder"
_REMEDIES = {
    errno.ENOSPC: f"Free some space, {_ELSEWHERE}",
    errno.EDQUOT: f"Free some of your quota, {_ELSEWHERE}",
    errno.EFBIG: "Raise the limit on the size of files: ulimit -f unlimited",
    errno.EROFS: f"Mount it writable, {_ELSEWHERE}",
    errno.EACCES: f"Make the folder writable, {_ELSEWHERE}",
    errno.EPERM: f"Make the folder writable, {_ELSEWHERE}",
    errno.EIO: f"Check the disk, {_ELSEWHERE}",
    errno.ESTALE: f"Mount the network disk again, {_ELSEWHERE}",
    errno.EMFILE: "Raise the limit on open files (ulimit -n 4096), or lower num_workers",
    errno.ENFILE: "Close other programs: the machine has too many open files",
    errno.ENOTDIR: f"Move away the file that is in the place of a folder, {_ELSEWHERE}",
    errno.EEXIST: f"Move away the file that is in the place of a folder, {_ELSEWHERE}",
    errno.EISDIR: "Move away the folder that is in the place of the file",
}
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class UnwritableError(OSError):
    """A file that cannot be written: the message is one line with the file, the reason and the fix."""

    def __str__(self) -> str:
        """Return the message."""
        if self.errno is None:  # from a worker process, as text
            return super().__str__()
        return f"{self.filename} cannot be written: {self.strerror}. {remedy(self)}."


def remedy(error: OSError) -> str:
    """Return the fix for an error of the disk, as a sentence without its full stop.

    Example:
        >>> remedy(OSError(errno.ENOSPC, "No space left on device"))
        'Free some space, or choose another folder'
    """
    return _REMEDIES.get(error.errno or 0, "Choose another folder")


def is_of_system(error: BaseException | None) -> TypeGuard[OSError]:
    """Return whether an error comes from the system or the disk, such as too many open files, rather than a file's content."""
    return isinstance(error, OSError) and error.errno in _OF_SYSTEM


@contextmanager
def naming(path: Path, part: Path | None = None) -> Iterator[None]:
    """Name a file in errors that occur while it is written.

    Libraries report a full disk in various ways. After any error without an ``errno``, a few bytes are therefore appended to
    the temporary file: if they cannot be written either, that error is the reason.

    Args:
        path: The file that is named.
        part: The temporary file that is written in its place, if any.

    Raises:
        UnwritableError: In place of errors of the disk; errors about other files and other errors are unchanged.
    """
    try:
        yield
    except UnwritableError:
        raise
    except Exception as error:
        reason = error if isinstance(error, OSError) and error.errno is not None else _of_rust(error) or _failure(part)
        if reason is None or not _is_about(reason, path):
            raise
        raise UnwritableError(reason.errno, reason.strerror or os.strerror(reason.errno or 0), str(path)) from error


def _is_about(error: OSError, path: Path) -> bool:
    """Return whether an error names no file, or one in the folder of a path or above it."""
    if error.filename is None:
        return True
    name = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
    return name is not None and (name.parent == path.parent or path.is_relative_to(name))


def _of_rust(error: Exception) -> OSError | None:
    """Return the system error in the message of a library written in Rust, or None."""
    match = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(match[1]), os.strerror(int(match[1]))) if match else None


def _failure(part: Path | None) -> OSError | None:
    """Append to a temporary file; return the error if this fails, and None if it succeeds or there is no such file."""
    if part is None:
        return None
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_APPEND | _NO_LINK)
    except OSError as error:
        return None if error.errno == errno.ENOENT else error
    try:
        os.write(descriptor, bytes(_PROBE))
        os.write(descriptor, bytes(_PROBE))  # the write that reaches a limit is short, and only the next one fails
        os.fsync(descriptor)
    except OSError as error:
        return error
    finally:
        os.close(descriptor)
    return None


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary file that replaces ``path`` on success and is removed on an error.

    Each writer has its own temporary file: several processes may write the same file at once, and the last one wins. Temporary
    files of killed processes are removed. The data is flushed to disk before this returns.

    Args:
        path: The file; its folder is created if missing.

    Yields:
        The path to write to, in the same folder.

    Raises:
        UnwritableError: If the disk is full or the file cannot be written for another reason; the message names the file.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part, descriptor = _create_temporary(path)
    try:
        with naming(path, part):
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
            is_abandoned = stat.S_ISREG(status.st_mode) and _is_abandoned(descriptor, status.st_mtime, part.parent)
            if is_abandoned and _is_open(part, descriptor):
                part.unlink()
        finally:
            os.close(descriptor)


def _is_abandoned(descriptor: int, modified: float, folder: Path) -> bool:
    """Return whether no process holds the lock; without locks, whether the last modification is long ago."""
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError:  # file system without locks
        return _clock(folder) - modified > _MAX_AGE


def _clock(folder: Path) -> float:
    """Return the time of a file system, which on network disks may differ from the time of this machine."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files in a folder whose writers were killed."""
    for part in folder.glob(".*.part"):
        _remove_abandoned(part)


def _is_open(part: Path, descriptor: int) -> bool:
    """Return whether a path still refers to the file of a descriptor."""
    with suppress(FileNotFoundError):
        return os.path.samestat(part.lstat(), os.fstat(descriptor))
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on ``path``, so that one process writes at a time; the lock of a killed process is released.

    While another process holds it, the first process prints a message every half minute, with the holder if it is known.
    On file systems without locks (some network disks) this does not wait, and callers must rely on checking the content.

    Args:
        path: The file or folder; the lock file is ``NAME.lock`` beside it.

    Raises:
        ValueError: If the lock file is a link.
    """
    lock_file = path.with_name(f"{path.name}.lock")
    lock = FileLock(lock_file, fallback_to_soft=False)
    try:
        _acquire(lock, path, lock_file)
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


def _acquire(lock: FileLock, path: Path, lock_file: Path) -> None:
    """Acquire a lock; while it is held by another process, print a message every half minute."""
    timeout, waited = 0.0, 0.0
    while True:
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            waited += timeout
            timeout = _REMINDER
        else:
            return
        if is_first_process():
            since = f" (for {waited / 60:.1f} minutes)" if waited else ""
            message = f"Waiting for another process to write {path}{since}: {_holder(lock_file)}."
            Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(message)


def _holder(lock_file: Path) -> str:
    """Return which process holds a lock file, if it can be seen from here."""
    with suppress(OSError, ValueError, IndexError):
        inode = lock_file.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            columns = line.split()  # number, kind, mode, access, process, device:inode, first and last byte
            if columns[1] == "FLOCK" and int(columns[5].rpartition(":")[2]) == inode and int(columns[4]) > 0:
                state = Path("/proc", columns[4], "status").read_text().partition("State:")[2].split()[:2]
                stopped = ", which is stopped" if state[0] in ("T", "t") else ""
                return f"process {columns[4]} holds {lock_file}{stopped}"
    return f"a process that is not visible here holds {lock_file}; if there is none, delete that file"


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
            if _clock(folder.parent) - modified > _MIN_AGE and _is_abandoned(descriptor, modified, folder.parent):
                shutil.rmtree(folder)
        finally:
            os.close(descriptor)

"""Unpack untrusted archives, completely or not at all."""

from __future__ import annotations

import gzip
import os
import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, cast

from datamodules.storage.files import DISK_FULL, flush_folder, locked, one_line, refusal_of_link
from datamodules.storage.progress import progress

_CHUNK = 1 << 18  # bytes
_MIN_LIMIT = 10**9  # bytes that every archive may unpack to
_MAX_RATIO = 100  # unpacked bytes per byte of a larger archive
_MAX_MEMBERS = 2_000_000
_MAX_HEADER = 1 << 14  # bytes that describe one member of a tar
_MAX_PATH = 1000  # characters
_ABSOLUTE = re.compile(r"/|\\|[A-Za-z]:")
_INVALID = re.compile(  # on Windows: characters, last characters, and device names
    r"[\\:\x00-\x1f\x7f]|[. ](/|$)|(^|/)(con|prn|aux|nul|com\d|lpt\d)(\.[^/]*)?(/|$)", re.IGNORECASE
)


def extract(archive: str | Path, folder: str | Path, *, members: Collection[str] | None = None) -> Path:
    """Unpack an archive into a new folder, unless the folder exists and is not empty.

    The archive is unpacked into ``FOLDER.part``, which is renamed once it is complete, so that an existing folder is always
    complete. Files get default permissions and new modification times. A link becomes a copy of its target.

    Args:
        archive: A ``.tar``, ``.tar.gz``, ``.tgz`` or ``.zip`` file. The format is detected from its first bytes.
        folder: The folder to create.
        members: Paths in the archive of files, and of folders with all their content, to unpack; all if None.

    Returns:
        ``folder``.

    Raises:
        ValueError: If the archive is missing, damaged, truncated, encrypted or unsafe (a path or link that leads out of the
            folder, a device, a name that is invalid on some operating system, two different members of one name, more than
            100 times its own size and 1 GB), does not contain ``members``, or cannot be written. No files are left behind.

    Example:
        ``extract("data/imagenette2-320.tgz", "data/imagenette")``
    """
    archive, folder = Path(archive), Path(folder)
    try:
        if not _is_filled(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                if not _is_filled(folder):  # the process that held the lock may have unpacked it
                    _unpack(archive, folder, members)
    except Exception as error:  # decoders raise arbitrary exceptions on damaged data
        raise ValueError(_describe(error, archive, folder)) from error
    return folder


def _is_filled(folder: Path) -> bool:
    """Return whether a folder exists and is not empty."""
    return folder.exists() and any(folder.iterdir())


def _unpack(archive: Path, folder: Path, members: Collection[str] | None) -> None:
    """Unpack into ``FOLDER.part`` and rename it; remove it on failure."""
    part = folder.with_name(f"{folder.name}.part")
    if part.is_symlink():
        raise _RefusedError(f"is not unpacked: {refusal_of_link(part)}")
    if part.exists():
        shutil.rmtree(part)  # of a killed process
    part.mkdir()
    try:
        size = archive.stat().st_size
        limit = max(_MIN_LIMIT, _MAX_RATIO * size)
        with archive.open("rb") as file, progress(f"unpacking {archive.name}", size) as show:
            extraction = _Extraction(part, limit, members, lambda: show(file.tell()))
            for member in _read_members(file, limit):
                extraction.add(member)
            extraction.finish()
        if hasattr(os, "sync"):
            os.sync()  # once, instead of flushing every file
        part.replace(folder)
        flush_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class _RefusedError(Exception):
    """A problem of an archive; the message continues a sentence that starts with its path."""


class _Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: Path as stored in the archive, not checked.
        kind: ``file``, ``folder`` or ``link``.
        size: Bytes of a file; 0 for others.
        target: Path in the archive that a link points to, checked; empty for others.
        open: Open a file for reading.
    """

    name: str
    kind: str
    size: int
    target: str
    open: Callable[[], IO[bytes]]


class _Extraction:
    """An extraction into a new folder, one member at a time.

    No link is created on disk, so that only its own path can lead a member out of the folder.

    Args:
        root: The folder, empty.
        limit: Maximum total size in bytes.
        members: Paths to unpack; all if None.
        show: Called after every chunk, to update a progress bar.
    """

    def __init__(self, root: Path, limit: int, members: Collection[str] | None, show: Callable[[], None]) -> None:
        self.root, self.limit, self.show = root, limit, show
        self.selected = None if members is None else {_member_path(name) for name in members}
        self.missing = set(self.selected or ())
        self.kinds = {"": "folder"}  # of all members and the folders above them, by path
        self.contents: dict[str, object] = {}  # size and checksum of unpacked files, targets of links
        self.count = self.size = 0

    def add(self, member: _Member) -> None:
        """Check a member, and unpack it if it is selected; links are only recorded."""
        path = _member_path(member.name)
        self._account(member.name, member.size)
        parts = path.split("/")
        parents = ["/".join(parts[:end]) for end in range(len(parts))]
        for place, kind in [*((parent, "folder") for parent in parents), (path, member.kind)]:
            if self.kinds.setdefault(place, kind) != kind:
                raise _RefusedError(f"contains two different members {_quote(place)}")
        if self.selected is not None:
            matches = self.selected.intersection([*parents, path])
            self.missing -= matches
            if not matches:
                return
        if member.kind == "folder":
            (self.root / path).mkdir(parents=True, exist_ok=True)
            return
        content = member.target if member.kind == "link" else self._write(path, member)
        if self.contents.setdefault(path, content) != content:
            raise _RefusedError(f"contains two different members {_quote(path)}")

    def _account(self, name: str, size: int) -> None:
        """Count a member against the limits, before it is unpacked."""
        if size < 0:
            raise _RefusedError(f"is damaged: its member {_quote(name)} has a negative size")
        self.count += 1
        self.size += size
        if self.count > _MAX_MEMBERS:
            raise _RefusedError(f"contains more than {_MAX_MEMBERS:,} members ({_quote(name)} and others)")
        if self.size > self.limit:
            limit = f"{self.limit / 1e9:,.1f} GB, {_MAX_RATIO} times its size"
            raise _RefusedError(f"would unpack to more than {limit} (at member {_quote(name)})")

    def _write(self, path: str, member: _Member) -> object:
        """Write a file and return its size and checksum; only compute these for a duplicate."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        size = checksum = 0
        with member.open() as stream, open(os.devnull if path in self.contents else place, "wb") as file:  # noqa: PTH123
            while chunk := stream.read(_CHUNK):
                size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
                file.write(chunk)
                self.show()
        if size != member.size:
            raise _RefusedError(f"is damaged: its member {_quote(path)} has {size:,} bytes, expected {member.size:,}")
        return size, checksum

    def finish(self) -> None:
        """Replace links by copies of their targets, and check that all selected members were found."""
        for link in [path for path in self.contents if self.kinds[path] == "link"]:
            path, visited = link, set[str]()
            while self.kinds.get(path) == "link" and path not in visited:
                visited.add(path)
                path = str(self.contents.get(path, path))
            if self.kinds.get(path) != "file" or path not in self.contents:
                raise _RefusedError(f"contains a link {_quote(link)} to {_quote(path)}, which is not an unpacked file")
            self._account(link, (self.root / path).stat().st_size)
            (self.root / link).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / path, self.root / link)
        if self.missing:
            raise _RefusedError(f"does not contain {', '.join(map(_quote, sorted(self.missing)[:5]))}")
        if not any(self.root.iterdir()):
            raise _RefusedError("contains no files")


def _read_members(file: IO[bytes], limit: int) -> Iterator[_Member]:
    """Yield the members of an archive of any format in the order of their bytes; read each one before the next."""
    start = file.read(512)
    file.seek(0)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        yield from _read_zip(file)
    elif start.startswith(b"\x1f\x8b"):
        with gzip.open(file) as stream:
            yield from _read_tar(cast(IO[bytes], stream), limit)
    elif start[257:262] == b"ustar" or (start and not any(start)):
        yield from _read_tar(file, limit)
    else:
        kind = "empty" if not start else "a web page" if start.lstrip().startswith(b"<") else "not an archive"
        raise _RefusedError(f"is {kind}: use a .tar, .tar.gz, .tgz or .zip file")


def _read_zip(file: IO[bytes]) -> Iterator[_Member]:
    """Yield the members of a zip file."""
    with zipfile.ZipFile(file) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            name, size, target = info.orig_filename, info.file_size, ""  # info.filename ends at a zero byte
            mode = stat.S_IFMT(info.external_attr >> 16)
            if info.flag_bits & 1:
                raise _RefusedError(f"is encrypted (member {_quote(name)})")
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                raise _RefusedError(f"contains a device or a pipe, {_quote(name)}")
            kind = "link" if mode == stat.S_IFLNK else "folder" if name.endswith("/") else "file"
            if kind == "link":
                if size > _MAX_PATH:
                    raise _RefusedError(f"is unsafe: the target of its link {_quote(name)} has {size:,} characters")
                text = archive.read(info).decode("utf-8", "surrogateescape")
                size, target = 0, _link_target(name, text, posixpath.dirname(_member_path(name)))
            yield _Member(name, kind, size, target, partial(archive.open, info))


def _read_tar(stream: IO[bytes], limit: int) -> Iterator[_Member]:
    """Yield the members of a tar file, which Python's ``data`` filter also checks."""
    limited = _LimitedStream(stream)
    with tarfile.open(fileobj=cast(IO[bytes], limited), mode="r:", tarinfo=_StrictTarInfo) as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # which would grow with every member
            kind = "file" if info.isreg() else "folder" if info.isdir() else "link"
            if kind == "link" and not (info.issym() or info.islnk()):
                raise _RefusedError(f"contains a device or a pipe, {_quote(info.name)}")
            path, target = _member_path(info.name), ""
            if kind == "link":  # symbolic links are relative to their folder, hard links to the archive
                target = _link_target(info.name, info.linkname, posixpath.dirname(path) if info.issym() else "")
            if hasattr(tarfile, "data_filter"):  # since Python 3.11.4
                tarfile.data_filter(info, "members")
            limited.left = max(info.size, 0)
            size = info.size if kind == "file" else 0
            yield _Member(info.name, kind, size, target, cast(Callable[[], IO[bytes]], partial(tar.extractfile, info)))
            limited.left = _MAX_HEADER
    rest = 0
    while chunk := stream.read(_CHUNK):  # up to the checksum at the end of a gzip file
        rest += len(chunk)
        if rest > limit:
            raise _RefusedError("does not end after its last member")


class _StrictTarInfo(tarfile.TarInfo):
    """A tar header that raises if it is damaged; `tarfile` treats a damaged header as the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        """Return the header in a block of bytes."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):  # a block of zeros is the end
                raise
            raise tarfile.ReadError(f"{error}, expected the header of a member") from error


class _LimitedStream:
    """A stream that returns at most ``left`` bytes, so that headers can neither fill the memory nor nest indefinitely."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.tell, self.seek = stream, stream.tell, stream.seek
        self.left = _MAX_HEADER

    def read(self, size: int) -> bytes:
        """Return the next bytes; raise if more than ``left`` are requested."""
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"the header of a member has more than {_MAX_HEADER:,} bytes")
        self.left -= size
        return self.stream.read(size)


def _member_path(name: str) -> str:
    """Return the normalized path of a member; raise if it is unsafe.

    Example:
        >>> _member_path("./photos//a.jpg"), _member_path("./")
        ('photos/a.jpg', '')
    """
    return _safe_path(name, f"the path of its member {_quote(name)}")


def _link_target(name: str, target: str, folder: str) -> str:
    """Return the path in the archive that a link points to, given relative to a folder; raise if it is unsafe."""
    path = target if _ABSOLUTE.match(target) else posixpath.normpath(posixpath.join(folder, target))
    return _safe_path(path, f"the target {_quote(target)} of its link {_quote(name)}")


def _safe_path(path: str, description: str) -> str:
    """Return a path without ``.`` and repeated slashes; raise if it leads out of its folder or is invalid on some system."""
    normalized = "/".join(part for part in path.split("/") if part not in ("", "."))
    if _ABSOLUTE.match(path):
        problem = "is absolute"
    elif ".." in re.split(r"[/\\]", path):
        problem = "leads out of its folder"
    elif len(path) > _MAX_PATH:
        problem = f"has {len(path):,} characters"
    elif _INVALID.search(normalized):
        problem = "is invalid on some operating systems"
    else:
        return normalized
    raise _RefusedError(f"is unsafe: {description} {problem}")


def _quote(name: str) -> str:
    """Quote a name for an error message: on one line, shortened if necessary."""
    return ascii(name if len(name) <= 100 else f"{name[:97]}...")


def _describe(error: Exception, archive: Path, folder: Path) -> str:
    """Return the message of an error with its context and a fix."""
    if isinstance(error, _RefusedError):
        return f"{archive} {error}. Nothing was unpacked; download the archive again."
    if isinstance(error, FileNotFoundError) and not archive.exists():
        return f"There is no archive {archive}: choose an existing file or enable the download."
    if isinstance(error, NotADirectoryError) and folder.exists():
        return f"{archive} cannot be unpacked: {folder} is a file. Move it away or choose another folder."
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        problem = f"The disk of {folder.parent} became full while {archive} was unpacked"
        return f"{problem}. Free some space or choose another folder."
    if isinstance(error, OSError) and error.strerror:
        path = f" ({error.filename})" if error.filename else ""
        return f"{archive} cannot be unpacked into {folder}: {error.strerror}{path}."
    return f"{archive} is damaged or truncated ({one_line(error)}). Nothing was unpacked; download the archive again."

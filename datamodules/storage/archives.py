"""Archives, unpacked completely or not at all, and without trust in their content."""

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
from pathlib import Path
from typing import IO, NamedTuple, cast

from datamodules.storage.files import FULL, flush_folder, locked, one_line, refusal_of_link
from datamodules.storage.progress import progress

_CHUNK = 1 << 18  # bytes
_USUAL = 10**9  # bytes, never a bomb
_RATIO = 100  # bytes unpacked per byte of an archive, above which it is one
_MOST_MEMBERS = 2_000_000
_MOST_HEADERS = 1 << 14  # bytes that describe one member of a tar
_LONGEST_PATH = 1000  # characters
_ABSOLUTE = re.compile(r"/|\\|[A-Za-z]:")
_UNSAFE = re.compile(  # characters, ends of names, and names of devices on Windows
    r"[\\:\x00-\x1f\x7f]|[. ](/|$)|(^|/)(con|prn|aux|nul|com\d|lpt\d)(\.[^/]*)?(/|$)", re.IGNORECASE
)


class _Member(NamedTuple):
    """What an archive says of a member: a file with a size, a folder, or a link to a path in the archive."""

    name: str
    kind: str
    size: int
    target: str
    open: Callable[[], IO[bytes]]


class _RefusedError(Exception):
    """What is wrong with an archive, in words that follow its name."""


def extract(archive: str | Path, folder: str | Path, *, members: Collection[str] | None = None) -> Path:
    """Return a folder with the content of an archive, unpacked unless it is there.

    It is unpacked into ``FOLDER.part``, which gets its name when it is complete: a folder that is there and not empty is the
    result of an earlier call and returned as it is. Files get new permissions and dates; links become copies of the file of
    the archive that they lead to.

    Args:
        archive: A ``.tar``, ``.tar.gz``, ``.tgz`` or ``.zip``; its first bytes count, not its name.
        folder: The folder to create.
        members: Files, and folders with all below them, to unpack, as paths in the archive; all if None.

    Returns:
        ``folder``.

    Raises:
        ValueError: If the archive is missing, damaged, cut off, encrypted or hostile (a path or link that leads out, a
            device, a name that is not safe everywhere, two different members of one name, more than 100 times its own size
            and 1 GB), has no such members, or cannot be written. Nothing is left of it then.

    Example:
        ``extract("data/imagenette2-320.tgz", "data/imagenette")``
    """
    archive, folder = Path(archive), Path(folder)
    try:
        if not _is_filled(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                if not _is_filled(folder):  # by the process that was waited for
                    _unpack(archive, folder, members)
    except Exception as error:  # what decoders raise of damaged data is not foreseeable
        raise ValueError(_message(archive, folder, error)) from error
    return folder


def _is_filled(folder: Path) -> bool:
    """Return whether a folder is there and not empty."""
    return folder.exists() and any(folder.iterdir())


def _unpack(archive: Path, folder: Path, members: Collection[str] | None) -> None:
    """Fill a folder completely, or leave nothing."""
    part = folder.with_name(f"{folder.name}.part")
    if part.is_symlink():
        raise _RefusedError(f"is not unpacked: {refusal_of_link(part)}")
    if part.exists():
        shutil.rmtree(part)  # of a process that was killed
    part.mkdir()
    try:
        size = archive.stat().st_size
        with archive.open("rb") as file, progress(f"unpacking {archive.name}", size) as show:
            filling = _Filling(part, max(_USUAL, _RATIO * size), members, lambda: show(file.tell()))
            for member in _members(file, filling.limit):
                filling.add(member)
            filling.finish()
        if hasattr(os, "sync"):
            os.sync()  # once, not for each of a hundred thousand files
        part.replace(folder)
        flush_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class _Filling:
    """A new folder that takes one member after the other.

    No link is ever made in it, so that a path can lead out of it by its own words only.

    Args:
        root: The folder, empty.
        limit: Bytes that it may take.
        members: What to unpack, all if None.
        show: Called as the work goes on.
    """

    def __init__(self, root: Path, limit: int, members: Collection[str] | None, show: Callable[[], None]) -> None:
        self.root, self.limit, self.show = root, limit, show
        self.wanted = None if members is None else {_path(name) for name in members}
        self.missing = set(self.wanted or ())
        self.kinds = {"": "folder"}
        self.contents: dict[str, object] = {}  # checksums of files and targets of links, of what is unpacked
        self.count = self.size = 0

    def add(self, member: _Member) -> None:
        """Unpack a member, or raise what is wrong with it."""
        path = _path(member.name)
        self._account(member.name, member.size)
        parts = path.split("/")
        above = ["/".join(parts[:end]) for end in range(len(parts))]
        for place, kind in [*((folder, "folder") for folder in above), (path, member.kind)]:
            if self.kinds.setdefault(place, kind) != kind:
                raise _RefusedError(f"has two different members {_shown(place)}")
        if self.wanted is not None:
            found = self.wanted.intersection([*above, path])
            self.missing -= found
            if not found:
                return
        if member.kind == "folder":
            (self.root / path).mkdir(parents=True, exist_ok=True)
            return
        content = member.target if member.kind == "link" else self._write(path, member)
        if self.contents.setdefault(path, content) != content:
            raise _RefusedError(f"has two different members {_shown(path)}")

    def finish(self) -> None:
        """Copy files to where links to them are, and check that all is there."""
        for link in [path for path in self.contents if self.kinds[path] == "link"]:
            path, passed = link, set[str]()
            while self.kinds.get(path) == "link" and path not in passed:
                passed.add(path)
                path = str(self.contents.get(path, path))
            if self.kinds.get(path) != "file" or path not in self.contents:
                problem = f"to {_shown(path)}, which is no file that is unpacked with it"
                raise _RefusedError(f"has a link {_shown(link)} {problem}")
            self._account(link, (self.root / path).stat().st_size)
            (self.root / link).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / path, self.root / link)
        if self.missing:
            raise _RefusedError(f"has no member {', '.join(map(_shown, sorted(self.missing)[:5]))}")
        if not any(self.root.iterdir()):
            raise _RefusedError("holds no files")

    def _account(self, name: str, size: int) -> None:
        """Count a member, before it is unpacked."""
        if size < 0:
            raise _RefusedError(f"is damaged: its member {_shown(name)} has a negative size")
        self.count += 1
        self.size += size
        if self.count > _MOST_MEMBERS:
            raise _RefusedError(f"has more than {_MOST_MEMBERS:,} members, which no data set needs: {_shown(name)} ...")
        if self.size > self.limit:
            limit = f"{self.limit / 1e9:,.1f} GB, {_RATIO} times its size"
            raise _RefusedError(f"would unpack to more than {limit} (at member {_shown(name)})")

    def _write(self, path: str, member: _Member) -> object:
        """Write a file, unless one of this name came before, and return its checksum."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        size = checksum = 0
        with member.open() as stream, open(os.devnull if path in self.contents else place, "wb") as file:  # noqa: PTH123
            while chunk := stream.read(_CHUNK):
                size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
                file.write(chunk)
                self.show()
        if size != member.size:
            raise _RefusedError(f"is damaged: its member {_shown(path)} is not as long as it says")
        return size, checksum


def _path(name: str) -> str:
    """Return the path of a member without ``.`` and doubled slashes, if it stays inside on any system.

    Example:
        >>> _path("./photos//a.jpg"), _path("./")
        ('photos/a.jpg', '')
    """
    if fault := _fault(name):
        raise _RefusedError(f"has a member whose path {fault}, {_shown(name)}")
    return "/".join(_parts(name))


def _target(name: str, target: str, folder: str = "") -> str:
    """Return the path in the archive that a link leads to, which its target states relative to a folder."""
    path = target if _ABSOLUTE.match(target) else posixpath.normpath(posixpath.join(folder, target))
    if fault := _fault(path):
        raise _RefusedError(f"has a link {_shown(name)} to {_shown(target)}, which {fault}")
    return "/".join(_parts(path))


def _parts(name: str) -> list[str]:
    """Return the names in a path."""
    return [part for part in name.split("/") if part not in ("", ".")]


def _fault(name: str) -> str:
    """Return what is wrong with a path on some system; nothing if it stays inside on all."""
    if _ABSOLUTE.match(name):
        return "is an absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "leads out of its folder"
    if len(name) > _LONGEST_PATH:
        return f"is a path of {len(name):,} characters"
    return "is not safe on every system" if _UNSAFE.search("/".join(_parts(name))) else ""


def _shown(name: str) -> str:
    """Return a name for a message of one line."""
    return ascii(name if len(name) <= 100 else f"{name[:97]}...")


def _members(file: IO[bytes], limit: int) -> Iterator[_Member]:
    """Yield the members of an archive of any kind, in the order of their bytes; each must be read before the next."""
    start = file.read(512)
    file.seek(0)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        with zipfile.ZipFile(file) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
                yield _zip_member(archive, info)
    elif start.startswith(b"\x1f\x8b"):
        with gzip.open(file) as stream:
            yield from _tar_members(cast(IO[bytes], stream), limit)
    elif start[257:262] == b"ustar" or (start and not any(start)):
        yield from _tar_members(file, limit)
    else:
        what = "is empty" if not start else "is a web page" if start.lstrip().startswith(b"<") else "is no archive"
        raise _RefusedError(f"{what}: .tar, .tar.gz, .tgz and .zip can be unpacked")


class _Header(tarfile.TarInfo):
    """A header of a tar, of which two blocks of zeros alone are the end: tarfile takes any damage for it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """Return the header in a block of bytes."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError(f"{error} where a member should begin") from error


class _Rationed:
    """A stream of which ``left`` bytes can be read: headers can neither fill the memory nor nest forever."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.tell, self.seek = stream, stream.tell, stream.seek
        self.left = _MOST_HEADERS

    def read(self, size: int) -> bytes:
        """Return bytes of the ration."""
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"more than {_MOST_HEADERS:,} bytes describe a member")
        self.left -= size
        return self.stream.read(size)


def _tar_members(stream: IO[bytes], limit: int) -> Iterator[_Member]:
    """Yield the members of a tar."""
    rationed = _Rationed(stream)
    with tarfile.open(fileobj=cast(IO[bytes], rationed), mode="r:", tarinfo=_Header) as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]
            rationed.left = max(info.size, 0)
            yield _tar_member(tar, info)
            rationed.left = _MOST_HEADERS
    rest = 0
    while chunk := stream.read(_CHUNK):  # the checksum of gzip is at its end
        rest += len(chunk)
        if rest > limit:
            raise _RefusedError("does not end after its last member")


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    """Return a member of a tar, after Python's filter for data, a second check behind ours."""
    kind = "file" if info.isreg() else "folder" if info.isdir() else "link"
    if kind == "link" and not (info.issym() or info.islnk()):
        raise _RefusedError(f"has a member that is a device or a pipe, {_shown(info.name)}")
    path, target = _path(info.name), ""
    if kind == "link":
        target = _target(info.name, info.linkname, posixpath.dirname(path) if info.issym() else "")
    if hasattr(tarfile, "data_filter"):  # Python 3.11.4
        tarfile.data_filter(info, "members")
    size = info.size if kind == "file" else 0
    return _Member(info.name, kind, size, target, lambda: cast(IO[bytes], tar.extractfile(info)))


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    """Return a member of a zip."""
    name = info.orig_filename  # filename ends at a zero byte
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits & 1:
        raise _RefusedError(f"is encrypted (member {_shown(name)})")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        raise _RefusedError(f"has a member that is a device or a pipe, {_shown(name)}")
    if kind != stat.S_IFLNK:
        return _Member(name, "folder" if name.endswith("/") else "file", info.file_size, "", lambda: archive.open(info))
    if info.file_size > _LONGEST_PATH:
        raise _RefusedError(f"has a link {_shown(name)} to a path of {info.file_size:,} characters")
    target = _target(name, archive.read(info).decode("utf-8", "surrogateescape"), posixpath.dirname(_path(name)))
    return _Member(name, "link", 0, target, lambda: archive.open(info))


def _message(archive: Path, folder: Path, error: Exception) -> str:
    """Return what is wrong with an archive, and the way out."""
    again = "Nothing was unpacked; take it from its source again."
    if isinstance(error, _RefusedError):
        return f"{archive} {error}. {again}"
    if isinstance(error, FileNotFoundError) and not archive.exists():
        return f"There is no archive {archive}: name another file, or have it downloaded."
    if isinstance(error, NotADirectoryError) and folder.exists():
        return f"{folder}, where {archive} should be unpacked, is a file: move it away, or choose another folder."
    if isinstance(error, OSError) and error.errno in FULL:
        disk = f"The disk of {folder.parent} became full while {archive} was unpacked"
        return f"{disk}: make room or choose another folder."
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{archive} cannot be unpacked into {folder}: {error.strerror}{where}."
    return f"{archive} is damaged or cut off ({one_line(error)}). {again}"

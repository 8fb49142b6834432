"""Archives unpacked whole or not at all, with no trust in what they say."""

from __future__ import annotations

import gzip
import os
import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple, cast

from datamodules.files import FULL, flush_folder, locked, refusal_of_link
from datamodules.progress import progress

_CHUNK = 1 << 18  # bytes
_USUAL = 10**9  # bytes, never a bomb
_RATIO = 100  # bytes unpacked per byte of an archive, above which it is one
_MOST_MEMBERS = 2_000_000
_MOST_HEADERS = 1 << 14  # bytes that describe one member of a tar
_LONGEST_PATH = 1000  # characters
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices on Windows


class _Member(NamedTuple):
    """What an archive says of a member.

    Attributes:
        name: As the archive spells it.
        kind: What it is.
        size: Bytes of a file.
        target: Of a link: a path in the archive.
        read: Opens the content of a file.
    """

    name: str
    kind: Literal["file", "folder", "link"]
    size: int
    target: str
    read: Callable[[], IO[bytes]]


class _RefusedError(Exception):
    """What is wrong with an archive, in words that follow its name."""


def extract(archive: str | Path, folder: str | Path, *, members: Collection[str] | None = None) -> Path:
    """Return a folder with the content of an archive, unpacked unless it is there.

    It is unpacked into ``FOLDER.part``, which gets its name when it is whole: a folder that is there and not empty is the
    result of an earlier call and returned as it is. Files get new permissions and dates; links become copies of the file of
    the archive that they lead to.

    Args:
        archive: A ``.tar``, ``.tar.gz``, ``.tgz`` or ``.zip``; its first bytes count, not its name.
        folder: What to make.
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
        if _is_filled(folder):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if not _is_filled(folder):  # by the process that was waited for
                _unpack(archive, folder, members)
    except Exception as error:  # what decoders raise of damaged data is not foreseeable
        raise ValueError(_told(archive, folder, error)) from error
    return folder


def _is_filled(folder: Path) -> bool:
    """Return whether a folder is there and not empty."""
    return folder.exists() and any(folder.iterdir())


def _unpack(archive: Path, folder: Path, members: Collection[str] | None) -> None:
    """Make a folder whole, or leave nothing."""
    part = folder.with_name(f"{folder.name}.part")
    if part.is_symlink():
        raise _RefusedError(f"is not unpacked: {refusal_of_link(part)}")
    if part.exists():
        shutil.rmtree(part)  # of a process that was killed
    part.mkdir()
    try:
        with archive.open("rb") as file, progress(f"unpacking {archive.name}", archive.stat().st_size) as show:
            filling = _Filling(part, archive.stat().st_size, members, lambda: show(file.tell()))
            for member in _members(file, archive):
                filling.add(member)
            filling.finish()
        if hasattr(os, "sync"):
            os.sync()  # once, not for each of a hundred thousand files
        part.replace(folder)
        flush_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class _Filling:
    """A new folder that takes members one after the other, and the sum of what they take.

    No link is ever made in it, so that no path can lead out of it but by its own words.

    Args:
        root: The folder, empty.
        archive_size: Bytes.
        members: What to unpack, all if None.
        show: Called as the work goes on.
    """

    def __init__(
        self, root: Path, archive_size: int, members: Collection[str] | None, show: Callable[[], None]
    ) -> None:
        self.root = root
        self.limit = max(_USUAL, _RATIO * archive_size)
        self.wanted = None if members is None else {_path(name) for name in members}
        self.missing = set(self.wanted or ())
        self.show = show
        self.kinds: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.count = self.size = 0

    def add(self, member: _Member) -> None:
        """Take a member, or raise what is wrong with it."""
        path = _path(member.name)
        self._account(member.name, member.size)
        self._state(path, member.kind)
        if not self._is_wanted(path):
            return
        if member.kind == "folder":
            (self.root / path).mkdir(parents=True, exist_ok=True)
        elif member.kind == "file":
            self._write(path, member)
        elif self.links.setdefault(path, member.target) != member.target:
            raise _RefusedError(f"has two different members {_shown(path)}")

    def finish(self) -> None:
        """Make the links copies, and see that all is there."""
        for link in self.links:
            source = self.root / self._end(link)
            self._account(link, source.stat().st_size)
            (self.root / link).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, self.root / link)
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
            raise _RefusedError(
                f"would unpack to more than {self.limit / 1e9:,.1f} GB, {_RATIO} times its size (at member {_shown(name)})"
            )

    def _state(self, path: str, kind: str) -> None:
        """Note what is at a path and that folders are above it; refuse two kinds in one place."""
        above = posixpath.dirname(path)
        if above and self.kinds.get(above) != "folder":
            self._state(above, "folder")
        if (self.kinds.setdefault(path, kind) if path else "folder") != kind:
            raise _RefusedError(f"has two different members {_shown(path)}")

    def _is_wanted(self, path: str) -> bool:
        """Return whether a path, or a folder that it is in, was asked for."""
        if self.wanted is None:
            return True
        parts = path.split("/")
        hits = self.wanted & {"/".join(parts[: end + 1]) for end in range(len(parts))}
        self.missing -= hits
        return bool(hits)

    def _write(self, path: str, member: _Member) -> None:
        """Write a file, or compare it with the one of the same name that came before."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        again = place.exists()
        size = 0
        with member.read() as stream, place.open("rb" if again else "xb") as file:
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
                if not again:
                    file.write(chunk)
                elif file.read(len(chunk)) != chunk:
                    raise _RefusedError(f"has two different members {_shown(path)}")
                self.show()
            if again and file.read(1):
                raise _RefusedError(f"has two different members {_shown(path)}")
        if size != member.size:
            raise _RefusedError(f"is damaged: its member {_shown(path)} is not as long as it says")

    def _end(self, link: str) -> str:
        """Return the file that a link leads to, over further links."""
        path, passed = link, set[str]()
        while path in self.links and path not in passed:
            passed.add(path)
            path = self.links[path]
        if self.kinds.get(path) != "file" or not (self.root / path).is_file():
            raise _RefusedError(
                f"has a link {_shown(link)} to {_shown(path)}, which is no file that is unpacked with it"
            )
        return path


def _path(name: str) -> str:
    """Return the path of a member without ``.`` and doubled slashes, if it stays inside on any system.

    Example:
        >>> _path("./photos//a.jpg"), _path("./")
        ('photos/a.jpg', '')
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or re.match(r"[A-Za-z]:|\\", name):
        raise _RefusedError(f"has a member with an absolute path, {_shown(name)}")
    if ".." in re.split(r"[/\\]", name):
        raise _RefusedError(f"has a member that leads out of its folder, {_shown(name)}")
    if len(name) > _LONGEST_PATH:
        raise _RefusedError(f"has a member with a path of {len(name):,} characters, {_shown(name)}")
    if re.search(r"[\\:\x00-\x1f\x7f]", name) or any(part[-1] in ". " or _RESERVED.fullmatch(part) for part in parts):
        raise _RefusedError(f"has a member whose name is not safe on every system, {_shown(name)}")
    return "/".join(parts)


def _target(name: str, target: str, folder: str = "") -> str:
    """Return the path in the archive that a link leads to.

    Args:
        name: Of the link.
        target: What it says.
        folder: Where that begins.
    """
    if target.startswith("/") or re.match(r"[A-Za-z]:|\\", target):
        raise _RefusedError(f"has a link {_shown(name)} to the absolute path {_shown(target)}")
    try:
        return _path(posixpath.normpath(posixpath.join(folder, target)))
    except _RefusedError as error:
        raise _RefusedError(f"has a link {_shown(name)} that leads out of its folder, to {_shown(target)}") from error


def _shown(name: str) -> str:
    """Return a name for a message of one line."""
    return ascii(name if len(name) <= 100 else f"{name[:97]}...")


def _members(file: IO[bytes], archive: Path) -> Iterator[_Member]:
    """Yield the members of an archive of any kind, in the order of their bytes."""
    start = file.read(512)
    file.seek(0)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        yield from _zip_members(file)
    elif start.startswith(b"\x1f\x8b"):
        with gzip.open(file) as stream:
            yield from _tar_members(cast(IO[bytes], stream), archive.stat().st_size)
    elif start[257:262] == b"ustar" or (start and not any(start)):
        yield from _tar_members(file, archive.stat().st_size)
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
    """A stream of which no more is read than was allowed, so that headers can neither fill the memory nor nest forever.

    Args:
        stream: What is read.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.left = 0
        self.tell = stream.tell
        self.seek = stream.seek

    def read(self, size: int) -> bytes:
        """Return bytes of the ration."""
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"more than {_MOST_HEADERS:,} bytes describe a member")
        self.left -= size
        return self.stream.read(size)


def _tar_members(stream: IO[bytes], limit: int) -> Iterator[_Member]:
    """Yield the members of a tar; its content must be read before the next one."""
    rationed = _Rationed(stream)
    rationed.left = _MOST_HEADERS
    with tarfile.open(fileobj=cast(IO[bytes], rationed), mode="r:", tarinfo=_Header) as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]
            rationed.left = max(info.size, 0)
            yield _tar_member(tar, info)
            rationed.left = _MOST_HEADERS
    rest = 0
    while chunk := stream.read(_CHUNK):  # the checksum of gzip is at its end
        rest += len(chunk)
        if rest > max(_USUAL, _RATIO * limit):
            raise _RefusedError("does not end after its last member")


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    """Return a member of a tar, after the filter of Python for data, a second wall behind ours."""
    kind: Literal["file", "folder", "link"] = "file" if info.isreg() else "folder" if info.isdir() else "link"
    if kind == "link" and not (info.issym() or info.islnk()):
        raise _RefusedError(f"has a member that is a device or a pipe, {_shown(info.name)}")
    path, target = _path(info.name), ""
    if kind == "link":
        target = _target(info.name, info.linkname, posixpath.dirname(path) if info.issym() else "")
    if hasattr(tarfile, "data_filter"):  # Python 3.11.4
        tarfile.data_filter(info, "members")
    size = info.size if kind == "file" else 0
    return _Member(info.name, kind, size, target, lambda: cast(IO[bytes], tar.extractfile(info)))


def _zip_members(file: IO[bytes]) -> Iterator[_Member]:
    """Yield the members of a zip."""
    with zipfile.ZipFile(file) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            yield _zip_member(archive, info)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    """Return a member of a zip."""
    name = info.orig_filename  # filename ends at a zero byte
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits & 1:
        raise _RefusedError(f"is encrypted (member {_shown(name)})")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        raise _RefusedError(f"has a member that is a device or a pipe, {_shown(name)}")
    if kind == stat.S_IFLNK:
        if info.file_size > _LONGEST_PATH:
            raise _RefusedError(f"has a link {_shown(name)} to a path of {info.file_size:,} characters")
        target = _target(name, archive.read(info).decode("utf-8", "surrogateescape"), posixpath.dirname(_path(name)))
        return _Member(name, "link", 0, target, lambda: archive.open(info))
    return _Member(name, "folder" if name.endswith("/") else "file", info.file_size, "", lambda: archive.open(info))


def _told(archive: Path, folder: Path, error: Exception) -> str:
    """Return what is wrong with an archive, and the way out."""
    if isinstance(error, _RefusedError):
        return f"{archive} {error}. Nothing was unpacked; take it from its source again."
    if isinstance(error, FileNotFoundError) and not archive.exists():
        return f"There is no archive {archive}: name another file, or have it downloaded."
    if isinstance(error, NotADirectoryError) and folder.exists():
        return f"{folder}, where {archive} should be unpacked, is a file: move it away, or choose another folder."
    if isinstance(error, OSError) and error.errno in FULL:
        return (
            f"The disk of {folder.parent} became full while {archive} was unpacked: make room or choose another folder."
        )
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{archive} cannot be unpacked into {folder}: {error.strerror}{where}."
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{archive} is damaged or cut off ({reason}). Nothing was unpacked; take it from its source again."

"""Files from the web: whole and the right ones, or a message that says how to get them by hand."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib import error as web
from urllib import request
from urllib.parse import urlsplit

from datamodules.files import FULL, flush_folder, locked, open_own, refusal_of_link, written_whole
from datamodules.progress import progress

_CHUNK = 1 << 18  # bytes
_DIGITS = {"md5": 32, "sha256": 64}
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that another attempt may change
_HEADWAY = 1 << 20  # bytes, after which the attempts count from the start: large files outlive many broken connections


class Source(NamedTuple):
    """A file on the web.

    Attributes:
        url: Its address, ``https://`` or ``http://``.
        filename: Its name here, without folders.
        checksum: ``md5:`` or ``sha256:`` and the hexadecimal digits.
        size: Bytes, where they are known: a server that has another file is found out before anything is fetched.
    """

    url: str
    filename: str
    checksum: str
    size: int | None = None


class _Version(NamedTuple):
    """Which file a part belongs to, as far as the server said; whatever it did not say is None."""

    url: str
    checksum: str
    etag: str | None
    modified: str | None
    length: int | None

    @property
    def validator(self) -> str | None:
        """What ``If-Range`` takes: a strong ETag or a date."""
        strong = self.etag if self.etag and not self.etag.startswith("W/") else None
        return strong or self.modified

    def may_be(self, other: _Version) -> bool:
        """Return whether nothing that is known of both differs."""
        return all(one == two for one, two in zip(self, other, strict=True) if one is not None and two is not None)


class _BrokenOffError(Exception):
    """Why a file did not come whole this time; another attempt may help."""


def download(
    source: Source,
    folder: str | Path,
    *,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Return a file of the web, fetched unless it is there.

    A file is taken for whole only under its own name, which it gets when its checksum is right; ``NAME.verified`` remembers
    that, so that it is not read again while its size and its date of change stay. Until then it is ``NAME.part``, which a
    later call continues. Of several processes one fetches and the others wait. A file that somebody else put there is
    verified and never removed.

    Args:
        source: The file.
        folder: Where it is put; made if it is missing.
        attempts: How often in a row the connection may break off, with pauses of 1, 2, 4, ... seconds.
        timeout: Seconds without a byte after which the connection counts as broken off.
        pause: What waits so many seconds.

    Returns:
        The path of the file.

    Raises:
        ValueError: If the source is malformed, the file is not the expected one, or the disk has no room.
        ConnectionError: If it cannot be fetched. Every message says what to fetch by hand and where to put it.

    Example:
        ``download(Source("https://example.org/a.tgz", "a.tgz", "md5:d41d8cd98f00b204e9800998ecf8427e"), "data")``
    """
    _check(source)
    path = Path(folder) / source.filename
    try:
        if path.exists():
            return _found(source, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            if path.exists():  # by the process that was waited for
                return _found(source, path)
            _fetch(source, path, attempts, timeout, pause)
    except ConnectionError:
        raise
    except OSError as error:
        raise ValueError(_of_the_disk(error, source, path)) from error
    return path


def _check(source: Source) -> None:
    """Refuse a source that says no file."""
    if urlsplit(source.url).scheme not in ("https", "http"):
        raise ValueError(f"The address {source.url!r} must begin with https:// or http://.")
    if source.filename in ("", ".", "..") or re.search(r"[/\\\0]", source.filename):
        raise ValueError(f"The file name {source.filename!r} of {source.url} must be a name without folders.")
    kind, _, digits = source.checksum.partition(":")
    if not re.fullmatch(r"[0-9a-fA-F]+", digits) or _DIGITS.get(kind) != len(digits):
        raise ValueError(
            f"The checksum {source.checksum!r} of {source.url} must be md5: and 32 or sha256: and 64 hexadecimal digits."
        )


def _by_hand(source: Source, path: Path) -> str:
    """Return the way out."""
    return f"fetch {source.url} by hand and put it at {path}"


def _found(source: Source, path: Path) -> Path:
    """Return a file that is there after seeing that it is the right one."""
    if not path.is_file():
        raise ValueError(f"{path} is no file: move it away, or choose another folder.")
    if _remembered(path) == _state(source, path):
        return path
    found = _digest(source, path)
    if found != source.checksum.lower():
        raise ValueError(
            f"{path} has the checksum {found}, expected {source.checksum} ({path.stat().st_size:,} bytes): it is cut off, "
            f"damaged or another version. Delete it to have it fetched anew, or {_by_hand(source, path)}."
        )
    _remember(source, path)
    return path


def _digest(source: Source, path: Path) -> str:
    """Return the checksum of a file, of the kind that is expected."""
    kind = source.checksum.partition(":")[0]
    digest = hashlib.new(kind, usedforsecurity=False)
    done = 0
    with path.open("rb") as file, progress(f"verifying {source.filename}", path.stat().st_size) as show:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            show(done)
    return f"{kind}:{digest.hexdigest()}"


def _state(source: Source, path: Path) -> dict[str, object]:
    """Return what changes when a file does, or what is expected of it."""
    facts = path.stat()
    return {"checksum": source.checksum.lower(), "size": facts.st_size, "mtime_ns": facts.st_mtime_ns}


def _remembered(path: Path) -> object:
    """Return the state in which a file was verified; None if it was not."""
    try:
        return json.loads(path.with_name(f"{path.name}.verified").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _remember(source: Source, path: Path) -> None:
    """Write down that a file was verified, where its folder can be written."""
    with contextlib.suppress(OSError):
        _write(path.with_name(f"{path.name}.verified"), json.dumps(_state(source, path)))


def _write(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


class _Part:
    """What is there of a file, and the note of its version beside it.

    Args:
        path: The file as it will be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self.note = path.with_name(f"{path.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self, source: Source) -> _Version | None:
        """Return what the part is a part of; without a note of this source, or beyond its end, it is removed."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            version = _Version(**json.loads(self.note.read_text(encoding="utf-8")))
            of_source = (version.url, version.checksum) == (source.url, source.checksum)
            if of_source and 0 < self.size <= (self.size if version.length is None else version.length):
                return version
        self.discard()
        return None

    def begin(self, version: _Version) -> None:
        """Start from nothing."""
        self.discard()
        _write(self.note, json.dumps(version._asdict()))

    def discard(self) -> None:
        """Remove both."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _fetch(source: Source, path: Path, attempts: int, timeout: float, pause: Callable[[float], None]) -> None:
    """Put a file in its place, in as many attempts as it takes."""
    part = _Part(path)
    if part.path.is_symlink():
        raise ValueError(refusal_of_link(part.path))
    continued = part.version(source) is not None
    failures, furthest = 0, part.size
    while True:
        try:
            _attempt(source, path, part, timeout)
            if _accepted(source, path, part, again=continued):
                return
            continued, failures, furthest = False, 0, 0  # pieces of two versions: once more, from nothing
        except _BrokenOffError as error:
            continued = continued or part.size > 0
            failures = 1 if part.size >= furthest + _HEADWAY else failures + 1
            furthest = max(furthest, part.size)
            if failures >= attempts:
                kept = (
                    f"The {part.size:,} bytes that came are kept: run it again to go on" if part.size else "Try again"
                )
                raise ConnectionError(
                    f"{source.filename} could not be fetched from {source.url} in {attempts} attempts: {error}. "
                    f"{kept}, or {_by_hand(source, path)}."
                ) from error
            pause(2.0 ** (failures - 1))


def _accepted(source: Source, path: Path, part: _Part, *, again: bool) -> bool:
    """Move a whole file to its place; remove a wrong one, and return False if it is worth another try."""
    found = _digest(source, part.path)
    if found == source.checksum.lower():
        part.path.replace(path)
        flush_folder(path.parent)
        part.discard()
        _remember(source, path)
        return True
    size, page = part.size, _is_page(part.path)
    part.discard()
    if again:
        return False
    what = "a web page, not the file" if page else "another version of the file, or a damaged one"
    raise ValueError(
        f"{source.filename} from {source.url} has the checksum {found}, expected {source.checksum} ({size:,} bytes): the "
        f"server sent {what}. It was removed. Try again later, or {_by_hand(source, path)}."
    )


def _is_page(path: Path) -> bool:
    """Return whether a file looks like HTML."""
    with path.open("rb") as file:
        return file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _attempt(source: Source, path: Path, part: _Part, timeout: float) -> None:
    """Fetch what is missing of a file."""
    known = part.version(source)
    if known is not None and part.size == known.length:
        return  # killed while it was verified
    offset = part.size
    with _answer(source, path, part, known, timeout) as response:
        version, start = _described(source, response)
        if response.status == 206 and (start != offset or known is None or not known.may_be(version)):
            part.discard()
            raise _BrokenOffError("the server went on with another version of the file")
        length = source.size if version.length is None else version.length
        _check_length(source, path, part, length, start)
        if start == 0:
            part.begin(version)
        _receive(source, path, part, response, length)


def _answer(
    source: Source, path: Path, part: _Part, known: _Version | None, timeout: float
) -> http.client.HTTPResponse:
    """Ask for a file from where its part ends, and return what the server answers."""
    headers = {"User-Agent": "generalizable-inr", "Accept-Encoding": "identity"}
    if known is not None:
        headers["Range"] = f"bytes={part.size}-"
        if known.validator:
            headers["If-Range"] = known.validator
    try:
        return _opener().open(request.Request(source.url, headers=headers), timeout=timeout)  # type: ignore[no-any-return]  # noqa: S310
    except web.HTTPError as error:
        error.close()
        answer = f"the server answered {error.code} {_words(error.reason)}"
        if error.code == 416:
            part.discard()
        if error.code in (*_PASSING, 416):
            raise _BrokenOffError(answer) from error
        raise ConnectionError(
            f"{source.url} cannot be fetched: {answer}. "
            f"Find {source.filename} elsewhere ({source.checksum}) and put it at {path}."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise ConnectionError(_of_the_certificate(reason, source, path)) from error
        raise _BrokenOffError(f"{urlsplit(source.url).hostname} cannot be reached ({_words(reason)})") from error


def _opener() -> request.OpenerDirector:
    """Return what follows redirections and proxies, by HTTP and HTTPS alone."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler,
        request.UnknownHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPRedirectHandler,
        request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _described(source: Source, response: http.client.HTTPResponse) -> tuple[_Version, int]:
    """Return which file an answer belongs to, and at which byte it starts."""
    headers = response.headers
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        start, length = (int(span[1]), span[2]) if span else (-1, "*")
    else:
        start, length = 0, headers.get("Content-Length", "*")
    total = int(length) if re.fullmatch(r"\d+", length) else None
    return _Version(source.url, source.checksum, headers.get("ETag"), headers.get("Last-Modified"), total), start


def _check_length(source: Source, path: Path, part: _Part, length: int | None, start: int) -> None:
    """Refuse a file of another length, or one that the disk has no room for; nothing was written yet."""
    if length is None:
        return
    if source.size is not None and length != source.size:
        part.discard()
        raise ValueError(
            f"{source.url} has {length:,} bytes, expected {source.size:,}: the server has another version of "
            f"{source.filename}. Find the right one ({source.checksum}) and put it at {path}."
        )
    free = shutil.disk_usage(part.path.parent).free + (part.size - start)  # a part that is begun anew makes room
    if length - start > free:
        raise ValueError(
            f"{source.filename} needs {(length - start) / 1e6:,.1f} MB; the disk of {path.parent} has {free / 1e6:,.1f} MB "
            "free. Make room or choose another folder."
        )


def _receive(source: Source, path: Path, part: _Part, response: http.client.HTTPResponse, length: int | None) -> None:
    """Append what comes to the part."""
    descriptor = open_own(part.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with os.fdopen(descriptor, "ab") as file, progress(source.filename, length) as show:
        for chunk in _chunks(response, part):
            file.write(chunk)
            show(file.tell())
            if length is not None and file.tell() > length:
                break
        file.flush()
        os.fsync(file.fileno())
    if length is None or part.size == length:
        return
    if part.size < length:
        raise _BrokenOffError(f"the connection broke off after {part.size:,} of {length:,} bytes")
    part.discard()
    raise ValueError(
        f"{source.url} sends more than the expected {length:,} bytes: the server has another version of {source.filename}. "
        f"Nothing was kept. Find the right one ({source.checksum}) and put it at {path}."
    )


def _chunks(response: http.client.HTTPResponse, part: _Part) -> Iterator[bytes]:
    """Yield the body of an answer; what goes wrong with the disk in between is not its business."""
    while True:
        try:
            chunk = response.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenOffError(f"the connection broke off after {part.size:,} bytes ({_words(error)})") from error
        if not chunk:
            return
        yield chunk


def _of_the_certificate(error: ssl.SSLCertVerificationError, source: Source, path: Path) -> str:
    """Return what a certificate that is not trusted means."""
    return (
        f"The certificate of {urlsplit(source.url).hostname} is not trusted ({error.verify_message}): see that the clock is "
        "right, let SSL_CERT_FILE name the certificates of your network if it inspects connections, "
        f"or {_by_hand(source, path)}."
    )


def _of_the_disk(error: OSError, source: Source, path: Path) -> str:
    """Return what an error of the disk means, after making room if it is full."""
    if error.errno not in FULL:
        return f"{path} cannot be read or written: {_words(error)}. Make its folder writable or choose another."
    _Part(path).discard()
    return (
        f"The disk of {path.parent} became full while {source.filename} was fetched, and what had come was removed. "
        "Make room or choose another folder."
    )


def _words(error: object) -> str:
    """Return an error in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__

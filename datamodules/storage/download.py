"""Files from the web: complete and verified, or a message that says how to fetch them by hand."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib import request
from urllib.parse import urlsplit

from datamodules.storage import files
from datamodules.storage.progress import progress

_CHUNK = 1 << 18  # bytes
_TRANSIENT = (408, 416, 425, 429, 500, 502, 503, 504)  # answers that another attempt may change
_HEADWAY = 1 << 20  # bytes, after which attempts are counted anew: large files outlive many broken connections


class Source(NamedTuple):
    """A file on the web.

    Attributes:
        url: Its address, ``https://`` or ``http://``.
        filename: Its local name, without folders.
        checksum: ``md5:`` or ``sha256:`` and the hexadecimal digits.
        size: Bytes, if known: a server that has another file is then noticed before anything is fetched.
    """

    url: str
    filename: str
    checksum: str
    size: int | None = None


class _BrokenOffError(Exception):
    """Why a file did not arrive completely; another attempt may help."""


def download(
    source: Source,
    folder: str | Path,
    *,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Return the path of a file of the web, fetched unless it is there.

    A file gets its name only when its checksum is right; ``NAME.verified`` remembers that, so that it is not read again while
    its size and modification time stay. Until then it is ``NAME.part``, which a later call resumes. Of several processes one
    fetches and the others wait. A file that somebody else put there is verified and never removed.

    Args:
        source: The file.
        folder: Where it is put; created if it is missing.
        attempts: How often in a row the connection may break, with pauses of 1, 2, 4, ... seconds.
        timeout: Seconds without a byte after which the connection counts as broken.
        pause: Waits for a number of seconds.

    Raises:
        ValueError: If the source is malformed, the file is not the expected one, or the disk has no room.
        ConnectionError: If it cannot be fetched. Every message says what to fetch by hand and where to put it.
    """
    transfer = _Transfer(source, path := Path(folder) / source.filename)
    try:
        if path.exists():
            return transfer.verified()
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(path):
            return transfer.verified() if path.exists() else transfer.run(attempts, timeout, pause)
    except ConnectionError:
        raise
    except OSError as error:
        what = f"{path} cannot be read or written: {files.one_line(error)}. Make its folder writable or choose another."
        if error.errno in files.FULL:
            transfer.discard()
            what = f"The disk of {path.parent} became full while {source.filename} was fetched, and what had come was "
            what += "removed. Make room or choose another folder."
        raise ValueError(what) from error


class _Transfer:
    """A file, the bytes so far in ``NAME.part``, and in ``NAME.part.json`` what they are a part of."""

    def __init__(self, source: Source, path: Path) -> None:
        if urlsplit(source.url).scheme not in ("https", "http"):
            raise ValueError(f"The address {source.url!r} must begin with https:// or http://.")
        if source.filename in ("", ".", "..") or re.search(r"[/\\\0]", source.filename):
            raise ValueError(f"The file name {source.filename!r} of {source.url} must be a name without folders.")
        if not re.fullmatch(r"md5:[0-9a-fA-F]{32}|sha256:[0-9a-fA-F]{64}", source.checksum):
            right = "md5: and 32 or sha256: and 64 hexadecimal digits"
            raise ValueError(f"The checksum {source.checksum!r} of {source.url} must be {right}.")
        self.source, self.path, self.expected = source, path, source.checksum.lower()
        ends = (".part", ".part.json", ".verified")
        self.part, self.note, self.memory = (path.with_name(path.name + end) for end in ends)
        self.by_hand = f"fetch {source.url} by hand and put it at {path}"
        self.elsewhere = f"Find {source.filename} elsewhere ({source.checksum}) and put it at {path}"

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.part.stat().st_size if self.part.exists() else 0

    def discard(self) -> None:
        """Remove what is there."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def verified(self) -> Path:
        """Return the path of the file after checking that it is the right one."""
        if not self.path.is_file():
            raise ValueError(f"{self.path} is no file: move it away, or choose another folder.")
        if not files.is_verified(self.path, self.memory, checksum=self.expected):
            if wrong := files.mismatch(self.path, self.source.checksum):
                what = f"{self.path} {wrong}: it is cut off, damaged or another version"
                raise ValueError(f"{what}. Delete it to have it fetched anew, or {self.by_hand}.")
            files.remember_verified(self.path, self.memory, checksum=self.expected)
        return self.path

    def run(self, attempts: int, timeout: float, pause: Callable[[float], None]) -> Path:
        """Fetch the file, in as many attempts as it takes, and return its path."""
        if self.part.is_symlink():
            raise ValueError(files.refusal_of_link(self.part))
        resumed, failures, furthest = bool(self._known()), 0, self.size
        while True:
            try:
                self._attempt(timeout)
                if self._accept(again=resumed):
                    return self.path
                resumed, failures, furthest = False, 0, 0  # pieces of two versions: once more, from nothing
            except _BrokenOffError as error:
                resumed = resumed or self.size > 0
                failures = 1 if self.size >= furthest + _HEADWAY else failures + 1
                furthest = max(furthest, self.size)
                if failures >= attempts:
                    kept = self.size and f"The {self.size:,} bytes that came are kept: run it again to go on"
                    what = f"{self.source.filename} could not be fetched from {self.source.url} in {attempts} attempts"
                    raise ConnectionError(f"{what}: {error}. {kept or 'Try again'}, or {self.by_hand}.") from error
                pause(2.0 ** (failures - 1))

    def _known(self) -> dict[str, Any]:
        """Return what the part is a part of; if that is another source or unknown, discard it and return nothing."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            note: dict[str, Any] = json.loads(self.note.read_bytes())
            same = (note["url"], note["checksum"]) == (self.source.url, self.source.checksum)
            if same and 0 < self.size <= (note["length"] or self.size):
                return note
        self.discard()
        return {}

    def _attempt(self, timeout: float) -> None:
        """Fetch what is missing."""
        known = self._known()
        if known and self.size == known["length"]:
            return  # killed while it was verified
        with self._request(known, timeout) as response:
            start, length, headers = 0, response.headers.get("Content-Length", ""), response.headers
            if response.status == 206:
                span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
                start, length = (int(span[1]), span[2]) if span else (-1, "")
            total = int(length) if length.isdecimal() else None
            note = {"url": self.source.url, "checksum": self.source.checksum, "length": total}
            note |= {"etag": headers["ETag"], "modified": headers["Last-Modified"]}
            differs = any(None not in (known.get(key), note[key]) and known[key] != note[key] for key in note)
            if response.status == 206 and (start != self.size or not known or differs):
                self.discard()
                raise _BrokenOffError("the server went on with another version of the file")
            if (total := self.source.size if total is None else total) is not None:
                self._check_length(total, start)
            if start == 0:
                self.discard()
                with files.written_whole(self.note) as file:
                    file.write_text(json.dumps(note), encoding="utf-8")
            self._receive(response, total)

    def _request(self, known: dict[str, Any], timeout: float) -> http.client.HTTPResponse:
        """Request the file from where its part ends."""
        headers = {"User-Agent": "generalizable-inr", "Accept-Encoding": "identity"}
        if known:
            headers["Range"] = f"bytes={self.size}-"
            etag = known.get("etag") or "W/"
            if validator := known.get("modified") if etag.startswith("W/") else etag:
                headers["If-Range"] = validator
        asked, host = request.Request(self.source.url, headers=headers), urlsplit(self.source.url).hostname  # noqa: S310
        try:
            return request.urlopen(asked, timeout=timeout)  # type: ignore[no-any-return]  # noqa: S310 - the scheme was checked
        except request.HTTPError as error:
            error.close()
            answer = f"the server answered {error.code} {files.one_line(error.reason)}"
            if error.code == 416:
                self.discard()
            if error.code in _TRANSIENT:
                raise _BrokenOffError(answer) from error
            raise ConnectionError(f"{self.source.url} cannot be fetched: {answer}. {self.elsewhere}.") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if not isinstance(reason, ssl.SSLCertVerificationError):
                raise _BrokenOffError(f"{host} cannot be reached ({files.one_line(reason)})") from error
            what = f"The certificate of {host} is not trusted ({reason.verify_message}): see that the clock is right"
            what += ", let SSL_CERT_FILE name the certificates of your network if it inspects connections"
            raise ConnectionError(f"{what}, or {self.by_hand}.") from error

    def _check_length(self, length: int, start: int) -> None:
        """Raise if the file has another length or the disk no room for it, before anything is written."""
        if self.source.size not in (None, length):
            self.discard()
            what = f"{self.source.url} has {length:,} bytes, expected {self.source.size:,}"
            raise ValueError(f"{what}: the server has another version. {self.elsewhere}.")
        free = shutil.disk_usage(self.path.parent).free + (self.size - start)  # a part that is begun anew makes room
        if length - start > free:
            room = f"the disk of {self.path.parent} has {free / 1e6:,.1f} MB free. Make room or choose another folder."
            raise ValueError(f"{self.source.filename} needs {(length - start) / 1e6:,.1f} MB; {room}")

    def _receive(self, response: http.client.HTTPResponse, length: int | None) -> None:
        """Append to the part what arrives."""
        broken, descriptor = "", files.open_own(self.part, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with os.fdopen(descriptor, "ab") as file, progress(self.source.filename, length) as show:
            while length is None or file.tell() <= length:
                try:
                    chunk = response.read1(_CHUNK)
                except (OSError, http.client.HTTPException) as error:  # of the connection: those of the disk pass
                    broken, chunk = f" ({files.one_line(error)})", b""
                if not chunk:
                    break
                file.write(chunk)
                show(file.tell())
            file.flush()
            os.fsync(file.fileno())
        if broken or self.size < (length or 0):
            of = "" if length is None else f" of {length:,}"
            raise _BrokenOffError(f"the connection broke off after {self.size:,}{of} bytes{broken}")
        if length is not None and self.size > length:
            self.discard()
            what = f"{self.source.url} sends more than the expected {length:,} bytes, of which none is kept"
            raise ValueError(f"{what}: the server has another version. {self.elsewhere}.")

    def _accept(self, *, again: bool) -> bool:
        """Move a complete file to its place; discard a wrong one, and return False if another attempt may help."""
        if wrong := files.mismatch(self.part, self.source.checksum):
            with self.part.open("rb") as file:
                page = file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html"))
            self.discard()
            if again:
                return False
            what = "a web page, not the file" if page else "another version of the file, or a damaged one"
            what = f"{self.source.filename} from {self.source.url} {wrong}: the server sent {what}"
            raise ValueError(f"{what}. It was removed. Try again later, or {self.by_hand}.")
        self.part.replace(self.path)
        files.flush_folder(self.path.parent)
        self.discard()
        files.remember_verified(self.path, self.memory, checksum=self.expected)
        return True

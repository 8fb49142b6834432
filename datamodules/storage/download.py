"""Download files over HTTP: resume interrupted transfers, retry, and verify checksums."""

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
_TRANSIENT = (408, 416, 425, 429, 500, 502, 503, 504)  # HTTP statuses that are worth a retry
_HEADWAY = 1 << 20  # bytes of progress that reset the count of failed attempts


class Source(NamedTuple):
    """A file on the web.

    Attributes:
        url: Address, ``https://`` or ``http://``.
        filename: Local file name, without folders.
        checksum: ``md5:`` or ``sha256:`` followed by the hexadecimal digits.
        size: Size in bytes, if known. A server that reports another size is rejected before the transfer starts.
    """

    url: str
    filename: str
    checksum: str
    size: int | None = None


class _InterruptedError(Exception):
    """A transfer that failed but may succeed when retried."""


def download(
    source: Source,
    folder: str | Path,
    *,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Download a file unless it exists, and return its path.

    The file is written to ``NAME.part`` and renamed once its checksum is correct; a later call resumes an incomplete one.
    ``NAME.verified`` records the verification, so that the checksum is computed again only if the size or modification time
    changes. If several processes call this function, one downloads and the others wait. An existing file is verified but never
    removed.

    Args:
        source: The file to download.
        folder: Destination folder, created if missing.
        attempts: Maximum number of consecutive failures, with pauses of 1, 2, 4, ... seconds in between.
        timeout: Seconds without data after which a connection is considered broken.
        pause: Function that waits for a number of seconds.

    Raises:
        ValueError: If the source is malformed, the file has another checksum or size, or the disk is full.
        ConnectionError: If the download fails. The message states the URL and the path for a manual download.
    """
    if urlsplit(source.url).scheme not in ("https", "http"):
        raise ValueError(f"The URL {source.url!r} is not supported: use https:// or http://.")
    if source.filename in ("", ".", "..") or re.search(r"[/\\\0]", source.filename):
        raise ValueError(f"The file name {source.filename!r} of {source.url} is invalid: use a name without folders.")
    if not re.fullmatch(r"md5:[0-9a-fA-F]{32}|sha256:[0-9a-fA-F]{64}", source.checksum):
        allowed = "md5: and 32, or sha256: and 64 hexadecimal digits"
        raise ValueError(f"The checksum {source.checksum!r} of {source.url} is invalid: use {allowed}.")
    transfer = _Transfer(source, path := Path(folder) / source.filename)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.locked(path):
                if not path.exists():  # the process that held the lock may have downloaded it
                    transfer.run(attempts, timeout, pause)
        transfer.verify()
    except ConnectionError:
        raise
    except OSError as error:
        problem = f"{path} cannot be read or written: {files.one_line(error)}. {files.remedy(error)}."
        if error.errno in files.DISK_FULL:
            transfer.discard()
            problem = f"The disk of {path.parent} became full while {source.filename} was downloaded, and the incomplete file "
            problem += "was removed. Free some space or choose another folder."
        raise ValueError(problem) from error
    return path


class _Transfer:
    """The transfer of one file: its first bytes in ``NAME.part``, and in ``NAME.part.json`` what they are a part of."""

    def __init__(self, source: Source, path: Path) -> None:
        self.source, self.path = source, path
        endings = (".part", ".part.json", ".verified")
        self.part, self.metadata, self.record = (path.with_name(path.name + ending) for ending in endings)
        self.manual = f"To download it manually, save {source.url} ({source.checksum}) as {path}."

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self.part.stat().st_size if self.part.exists() else 0

    def discard(self) -> None:
        """Remove the incomplete file."""
        self.part.unlink(missing_ok=True)
        self.metadata.unlink(missing_ok=True)

    def verify(self) -> None:
        """Raise if the complete file has another checksum, unless it was verified before."""
        if not self.path.is_file():
            raise ValueError(f"{self.path} is not a file: move it away or choose another folder.")
        if not files.is_verified(self.path, self.record, checksum=self.source.checksum.lower()):
            if problem := files.mismatch(self.path, self.source.checksum):
                problem = f"{self.path} {problem}: it is truncated, damaged or another version"
                raise ValueError(f"{problem}. Delete it to download it again. {self.manual}")
            files.remember_verified(self.path, self.record, checksum=self.source.checksum.lower())

    def run(self, attempts: int, timeout: float, pause: Callable[[float], None]) -> None:
        """Download the file in as many attempts as needed, verify it and move it to its path."""
        if self.part.is_symlink():
            raise ValueError(files.refusal_of_link(self.part))
        resumed, failures, furthest = bool(self._known()), 0, self.size
        while True:
            try:
                self._attempt(timeout)
            except _InterruptedError as error:
                resumed = resumed or self.size > 0
                failures = 1 if self.size >= furthest + _HEADWAY else failures + 1
                furthest = max(furthest, self.size)
                if failures >= attempts:
                    problem = f"{self.source.filename} could not be downloaded in {attempts} attempts: {error}"
                    advice = f"Run again to resume after the {self.size:,} bytes received" if self.size else "Try again"
                    raise ConnectionError(f"{problem}. {advice}. {self.manual}") from error
                pause(2.0 ** (failures - 1))
                continue
            if not (problem := files.mismatch(self.part, self.source.checksum)):
                break
            with self.part.open("rb") as file:
                is_web_page = file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html"))
            self.discard()
            if not resumed:
                received = "a web page, not the file" if is_web_page else "another version, or a damaged file"
                problem = f"{self.source.filename} {problem}: the server sent {received}"
                raise ValueError(f"{problem}. It was removed; try again later. {self.manual}")
            resumed, failures, furthest = False, 0, 0  # parts of two versions: download it once more from the start
        self.part.replace(self.path)
        files.flush_folder(self.path.parent)
        self.discard()
        files.remember_verified(self.path, self.record, checksum=self.source.checksum.lower())

    def _known(self) -> dict[str, Any]:
        """Return the metadata of the incomplete file; discard it and return an empty dict if it is not of this source."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            known: dict[str, Any] = json.loads(self.metadata.read_bytes())
            same = (known["url"], known["checksum"]) == (self.source.url, self.source.checksum)
            if same and 0 < self.size <= (known["length"] or self.size):
                return known
        self.discard()
        return {}

    def _attempt(self, timeout: float) -> None:
        """Request the missing bytes and append them; start over if the server does not resume."""
        known = self._known()
        if known and self.size == known["length"]:
            return  # complete: an earlier process stopped before it was verified
        with self._open(known, timeout) as response:
            start, length, headers = 0, response.headers.get("Content-Length", ""), response.headers
            if response.status == 206:
                content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
                start, length = (int(content_range[1]), content_range[2]) if content_range else (-1, "")
            total = int(length) if length.isdecimal() else None
            metadata = {"url": self.source.url, "checksum": self.source.checksum, "length": total}
            metadata |= {"etag": headers["ETag"], "modified": headers["Last-Modified"]}
            changed = any(None not in (known.get(key), new) and known[key] != new for key, new in metadata.items())
            if response.status == 206 and (start != self.size or not known or changed):
                self.discard()
                raise _InterruptedError("the server resumed with another version of the file")
            if (total := self.source.size if total is None else total) is not None:
                self._check_size(total, start)
            if start == 0:
                self.discard()
                with files.written_whole(self.metadata) as file:
                    file.write_text(json.dumps(metadata), encoding="utf-8")
            self._receive(response, total)

    def _open(self, known: dict[str, Any], timeout: float) -> http.client.HTTPResponse:
        """Send a request for the bytes that follow the incomplete file, and return the response."""
        headers = {"User-Agent": "generalizable-inr", "Accept-Encoding": "identity"}
        if known:
            headers["Range"] = f"bytes={self.size}-"
            etag = known.get("etag") or "W/"
            if validator := known.get("modified") if etag.startswith("W/") else etag:  # weak ETags validate no range
                headers["If-Range"] = validator
        try:
            http_request = request.Request(self.source.url, headers=headers)  # noqa: S310 - the scheme was checked
            return request.urlopen(http_request, timeout=timeout)  # type: ignore[no-any-return]  # noqa: S310
        except request.HTTPError as error:
            error.close()
            answer = f"the server answered {error.code} {files.one_line(error.reason)}"
            if error.code == 416:  # the incomplete file is longer than the file
                self.discard()
            if error.code in _TRANSIENT:
                raise _InterruptedError(answer) from error
            raise ConnectionError(f"{self.source.url} cannot be downloaded: {answer}. {self.manual}") from error
        except (OSError, http.client.HTTPException) as error:
            host, reason = urlsplit(self.source.url).hostname, getattr(error, "reason", error)
            if not isinstance(reason, ssl.SSLCertVerificationError):
                raise _InterruptedError(f"{host} cannot be reached ({files.one_line(reason)})") from error
            problem = f"The certificate of {host} is not trusted ({reason.verify_message}): check the system clock"
            advice = "set SSL_CERT_FILE to the certificates of your network if it inspects connections"
            raise ConnectionError(f"{problem}, or {advice}. {self.manual}") from error

    def _check_size(self, total: int, start: int) -> None:
        """Raise if the file has another size or does not fit on the disk, before anything is written."""
        if self.source.size not in (None, total):
            self.discard()
            problem = f"{self.source.url} has {total:,} bytes, expected {self.source.size:,}"
            raise ValueError(f"{problem}: the server has another version. {self.manual}")
        free = shutil.disk_usage(self.path.parent).free + (self.size - start)  # starting over frees the incomplete file
        if total - start > free:
            available = f"the disk of {self.path.parent} has {free / 1e6:,.1f} MB free"
            problem = f"{self.source.filename} needs {(total - start) / 1e6:,.1f} MB; {available}"
            raise ValueError(f"{problem}. Free some space or choose another folder.")

    def _receive(self, response: http.client.HTTPResponse, total: int | None) -> None:
        """Append the body of a response to the incomplete file."""
        problem, descriptor = "", files.open_own(self.part, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with os.fdopen(descriptor, "ab") as file, progress(self.source.filename, total) as show:
            while total is None or file.tell() <= total:
                try:
                    chunk = response.read1(_CHUNK)
                except (OSError, http.client.HTTPException) as error:  # of the connection; disk errors propagate
                    problem, chunk = f" ({files.one_line(error)})", b""
                if not chunk:
                    break
                file.write(chunk)
                show(file.tell())
            file.flush()
            os.fsync(file.fileno())
        if problem or self.size < (total or 0):
            of_total = "" if total is None else f" of {total:,}"
            raise _InterruptedError(f"the connection broke after {self.size:,}{of_total} bytes{problem}")
        if total is not None and self.size > total:
            self.discard()
            problem = f"{self.source.url} sends more than the expected {total:,} bytes, which were discarded"
            raise ValueError(f"{problem}: the server has another version. {self.manual}")

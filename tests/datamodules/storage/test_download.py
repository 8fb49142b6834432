"""Downloads are complete and verified, or fail with a clear message, whatever the server, disk or another process does."""

import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections import namedtuple

import pytest
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from server import serving, unused_port

from datamodules.storage import download as module
from datamodules.storage import files
from datamodules.storage import progress as bars
from datamodules.storage.download import Source, download
from datamodules.storage.files import locked
from datamodules.storage.progress import progress

UNKNOWN = "a process that is not visible here holds {}; if there is none, delete that file."
BODY = random.Random(1).randbytes(700_001)
OTHER = random.Random(2).randbytes(700_001)


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    """Bypass the proxies of this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def site():
    with serving() as site:
        yield site


def _source(url, body=BODY, kind="sha256", size=None, filename="data.bin"):
    return Source(url, filename, f"{kind}:{hashlib.new(kind, body).hexdigest()}", size)


def _listing(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def _refusal(source, folder, kind=ValueError, **options):
    """Return the error message of a download and the pauses before it."""
    pauses = []
    with pytest.raises(kind) as caught:
        download(source, folder, pause=pauses.append, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder / source.filename) in message or str(folder) in message
    return message, pauses


def _no_pause(seconds):
    raise AssertionError(f"paused for {seconds} s")


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_file_is_complete_and_downloaded_once(site, tmp_path, kind):
    source = _source(site.put("/a", BODY), kind=kind, size=len(BODY))
    path = download(source, tmp_path / "new" / "folder", pause=_no_pause)
    assert path == tmp_path / "new" / "folder" / "data.bin"
    assert path.read_bytes() == BODY
    assert _listing(path.parent) == ["data.bin", "data.bin.verified"]
    assert download(source, path.parent) == path
    assert len(site.requests) == 1


def test_checksum_is_case_insensitive(site, tmp_path):
    source = _source(site.put("/a", BODY))
    source = source._replace(checksum=f"sha256:{source.checksum[7:].upper()}")
    assert download(source, tmp_path).read_bytes() == BODY


def test_empty_file_is_downloaded(site, tmp_path):
    assert download(_source(site.put("/a", b""), b"", size=0), tmp_path).read_bytes() == b""


def test_verified_file_is_not_read_again_until_it_changes(site, tmp_path, monkeypatch):
    source = _source(site.put("/a", BODY))
    path = download(source, tmp_path)
    digests = []
    original = files.mismatch
    monkeypatch.setattr(files, "mismatch", lambda *args: digests.append(1) or original(*args))
    download(source, tmp_path)
    assert not digests
    os.utime(path, ns=(0, 0))
    download(source, tmp_path)
    download(source, tmp_path)
    assert len(digests) == 1
    (tmp_path / "data.bin.verified").write_text("[" * 9)
    download(source, tmp_path)
    assert len(digests) == 2
    path.write_bytes(OTHER)
    with pytest.raises(ValueError, match="has the checksum"):
        download(source, tmp_path)
    assert path.read_bytes() == OTHER


def test_other_checksum_is_verified_again(site, tmp_path):
    url = site.put("/a", BODY)
    download(_source(url), tmp_path)
    message, _ = _refusal(_source(url, OTHER), tmp_path)
    assert _source(url, OTHER).checksum in message
    download(_source(url, kind="md5"), tmp_path, pause=_no_pause)
    assert len(site.requests) == 1


def test_manually_downloaded_file_needs_no_server(tmp_path):
    (tmp_path / "data.bin").write_bytes(BODY)
    source = _source(f"http://127.0.0.1:{unused_port()}/a")
    assert download(source, tmp_path, pause=_no_pause).read_bytes() == BODY


def test_wrong_manually_downloaded_file_is_reported_and_kept(tmp_path):
    (tmp_path / "data.bin").write_bytes(BODY[:-1])
    source = _source(f"http://127.0.0.1:{unused_port()}/a", kind="md5")
    message, _ = _refusal(source, tmp_path)
    for part in (source.checksum, hashlib.md5(BODY[:-1]).hexdigest(), source.url, "700,000 bytes", "Delete it"):
        assert part in message
    assert _listing(tmp_path) == ["data.bin"]


def test_file_in_read_only_folder_is_used(site, tmp_path, monkeypatch):
    path = download(_source(site.put("/a", BODY)), tmp_path)
    (tmp_path / "data.bin.verified").unlink()

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "written_whole", refuse)
    assert download(_source(site.root + "/a"), tmp_path) == path
    assert _listing(tmp_path) == ["data.bin"]


@pytest.mark.parametrize("etag", ['"one"', 'W/"one"', None])
@pytest.mark.parametrize("modified", ["Mon, 01 Jan 2024 00:00:00 GMT", None])
def test_broken_connection_is_resumed(site, tmp_path, etag, modified):
    url = site.put("/a", BODY, etag=etag, modified=modified, cuts=[100_000, 50_000])
    pauses = []
    assert download(_source(url), tmp_path, pause=pauses.append).read_bytes() == BODY
    assert site.ranges == [None, "bytes=100000-", "bytes=150000-"]
    validator = etag if etag == '"one"' else modified
    assert [request[2] for request in site.requests] == [None, validator, validator]
    assert pauses == [1, 2]
    assert _listing(tmp_path) == ["data.bin", "data.bin.verified"]


def test_later_call_resumes(site, tmp_path):
    source = _source(site.put("/a", BODY, cuts=[1000, 2000]))
    message, pauses = _refusal(source, tmp_path, ConnectionError, attempts=2)
    assert pauses == [1]
    for part in ("2 attempts", "3,000 of 700,001 bytes", "resume after the 3,000 bytes received", source.url):
        assert part in message
    assert _listing(tmp_path) == ["data.bin.part", "data.bin.part.json"]
    assert (tmp_path / "data.bin.part").read_bytes() == BODY[:3000]
    assert download(source, tmp_path, pause=_no_pause).read_bytes() == BODY
    assert site.ranges[-1] == "bytes=3000-"
    assert _listing(tmp_path) == ["data.bin", "data.bin.verified"]


def test_progress_resets_the_number_of_attempts(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_HEADWAY", 1000)
    pauses = []
    source = _source(site.put("/a", BODY, cuts=[1000] * 6 + [999, 10]))
    download(source, tmp_path, attempts=4, pause=pauses.append)
    assert pauses == [1] * 6 + [2, 4]


def test_server_without_ranges_restarts_the_download(site, tmp_path):
    url = site.put("/a", BODY, ranges=False, cuts=[300_000])
    assert download(_source(url), tmp_path, pause=lambda _: None).read_bytes() == BODY
    assert site.ranges == [None, "bytes=300000-"]


def test_changed_etag_restarts_the_download(site, tmp_path):
    url = site.put("/a", OTHER, etag='"old"', cuts=[1000])
    _refusal(_source(url), tmp_path, ConnectionError, attempts=1)
    site.put("/a", BODY, etag='"new"')
    assert download(_source(url), tmp_path, pause=_no_pause).read_bytes() == BODY
    assert site.requests[-1][1:] == ("bytes=1000-", '"old"', 200)


def test_changed_file_without_etag_is_downloaded_again(site, tmp_path):
    url = site.put("/a", OTHER, etag=None, cuts=[1000])
    _refusal(_source(url), tmp_path, ConnectionError, attempts=1)
    site.put("/a", BODY, etag=None)
    assert download(_source(url), tmp_path, pause=_no_pause).read_bytes() == BODY
    assert site.ranges == [None, "bytes=1000-", None]


@pytest.mark.parametrize("span", ["bytes 0-9/10", "bytes 999-700000/700001", "bytes 1000-700000/900000", "junk"])
def test_response_with_another_range_is_not_appended(site, tmp_path, span):
    url = site.put("/a", BODY, cuts=[1000])
    _refusal(_source(url), tmp_path, ConnectionError, attempts=1)
    site.put("/a", BODY, span=span)
    assert download(_source(url), tmp_path, pause=lambda _: None).read_bytes() == BODY
    assert site.ranges == [None, "bytes=1000-", None]


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        (BODY + b"more", {}),
        (OTHER[:5000], {"url": "http://elsewhere/a"}),
        (OTHER[:5000], {"checksum": "md5:" + 32 * "0"}),
        (OTHER[:5000], None),
        (b"", {}),
    ],
)
def test_partial_file_of_another_source_is_discarded(site, tmp_path, part, changes):
    source = _source(site.put("/a", BODY))
    (tmp_path / "data.bin.part").write_bytes(part)
    note = {"url": source.url, "checksum": source.checksum, "etag": '"one"', "modified": None, "length": len(BODY)}
    text = "{" if changes is None else json.dumps(note | changes)
    (tmp_path / "data.bin.part.json").write_text(text)
    assert download(source, tmp_path, pause=_no_pause).read_bytes() == BODY
    assert site.ranges == [None]


def test_partial_file_longer_than_the_file_is_discarded(site, tmp_path):
    url = site.put("/a", OTHER, etag=None, length="none")
    (tmp_path / "data.bin.part").write_bytes(OTHER)
    note = {"url": url, "checksum": _source(url).checksum, "etag": None, "modified": None, "length": None}
    (tmp_path / "data.bin.part.json").write_text(json.dumps(note))
    site.put("/a", BODY, etag=None)
    assert download(_source(url), tmp_path, pause=lambda _: None).read_bytes() == BODY
    assert [request[3] for request in site.requests] == [416, 200]


def test_complete_partial_file_is_only_verified(site, tmp_path):
    source = _source(site.put("/a", BODY))
    (tmp_path / "data.bin.part").write_bytes(BODY)
    note = {"url": source.url, "checksum": source.checksum, "etag": '"one"', "modified": None, "length": len(BODY)}
    (tmp_path / "data.bin.part.json").write_text(json.dumps(note))
    assert download(source, tmp_path).read_bytes() == BODY
    assert not site.requests


@pytest.mark.parametrize("status", [429, 500, 503])
def test_transient_errors_are_retried_with_growing_pauses(site, tmp_path, status):
    pauses = []
    url = site.put("/a", BODY, statuses=[status] * 4)
    assert download(_source(url), tmp_path, pause=pauses.append).read_bytes() == BODY
    assert pauses == [1, 2, 4, 8]
    site.put("/a", BODY, statuses=[status] * 5)
    message, pauses = _refusal(_source(url), tmp_path / "again", ConnectionError)
    assert f"answered {status}" in message
    assert pauses == [1, 2, 4, 8]
    assert _listing(tmp_path / "again") == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_permanent_errors_are_not_retried(site, tmp_path, status):
    source = _source(site.put("/a", BODY, statuses=[status]))
    message, pauses = _refusal(source, tmp_path, ConnectionError)
    assert f"answered {status}" in message
    assert source.checksum in message
    assert not pauses
    assert _listing(tmp_path) == []


def test_redirects_keep_the_range(site, tmp_path):
    target = site.put("/b", BODY, cuts=[1000])
    source = _source(site.put("/a", redirect=target))
    assert download(source, tmp_path, pause=lambda _: None).read_bytes() == BODY
    assert [(path, byte_range) for path, byte_range, *_ in site.requests] == [
        ("/a", None),
        ("/b", None),
        ("/a", "bytes=1000-"),
        ("/b", "bytes=1000-"),
    ]


def test_redirects_to_local_files_and_in_circles_are_not_followed(site, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(BODY)
    for target in (secret.as_uri(), site.root + "/a"):
        _refusal(_source(site.put("/a", redirect=target)), tmp_path / "folder", ConnectionError)
        assert _listing(tmp_path / "folder") == []


def test_wrong_file_is_reported_and_removed(site, tmp_path):
    source = _source(site.put("/a", OTHER), kind="md5")
    message, pauses = _refusal(source, tmp_path)
    for part in (source.checksum, hashlib.md5(OTHER).hexdigest(), source.url, "removed", "manually"):
        assert part in message
    assert not pauses
    assert _listing(tmp_path) == []


def test_web_page_instead_of_the_file_is_reported(site, tmp_path):
    message, _ = _refusal(_source(site.put("/a", b"\n<!DOCTYPE html><p>Quota exceeded")), tmp_path)
    assert "a web page" in message


def test_wrong_resumed_file_is_downloaded_once_more(site, tmp_path):
    message, _ = _refusal(_source(site.put("/a", OTHER, cuts=[1000])), tmp_path)
    assert "has the checksum" in message
    assert site.ranges == [None, "bytes=1000-", None]
    assert _listing(tmp_path) == []


def test_wrong_size_is_reported_before_the_transfer(site, tmp_path):
    message, _ = _refusal(_source(site.put("/a", BODY), size=700_000), tmp_path)
    assert "700,001 bytes, expected 700,000" in message
    assert _listing(tmp_path) == []


def test_body_shorter_than_announced_counts_as_interrupted(site, tmp_path):
    message, _ = _refusal(_source(site.put("/a", BODY, length=800_000, ranges=False)), tmp_path, ConnectionError)
    assert "700,001 of 800,000 bytes" in message
    assert "data.bin" not in _listing(tmp_path)


def test_body_longer_than_announced_is_a_wrong_file(site, tmp_path):
    message, _ = _refusal(_source(site.put("/a", BODY, length=1000)), tmp_path)
    assert "(1,000 bytes)" in message
    assert _listing(tmp_path) == []


@pytest.mark.parametrize("behaviour", [{"length": "none"}, {"chunked": True}])
def test_file_of_unknown_length_is_complete(site, tmp_path, behaviour):
    url = site.put("/a", BODY, cuts=[40_000], **behaviour)
    source = _source(url, size=len(BODY))
    assert download(source, tmp_path, pause=lambda _: None).read_bytes() == BODY
    assert site.ranges == [None, "bytes=40000-"]


def test_body_longer_than_expected_is_discarded(site, tmp_path):
    message, _ = _refusal(_source(site.put("/a", BODY * 2, length="none"), size=len(BODY)), tmp_path)
    assert "more than the expected 700,001 bytes" in message
    assert _listing(tmp_path) == []


def test_silent_server_times_out(site, tmp_path):
    stall = threading.Event()
    source = _source(site.put("/a", BODY, cuts=[1000, 0], stall=stall))
    message, pauses = _refusal(source, tmp_path, ConnectionError, attempts=2, timeout=0.2)
    stall.set()
    assert "timed out" in message
    assert len(pauses) == 1


def test_offline_error_states_url_and_path(tmp_path):
    source = _source(f"http://127.0.0.1:{unused_port()}/a")
    message, pauses = _refusal(source, tmp_path, ConnectionError)
    assert "Connection refused" in message
    assert f"save {source.url} ({source.checksum}) as {tmp_path / 'data.bin'}" in message
    assert len(pauses) == 4
    assert _listing(tmp_path) == []


def test_unknown_host_is_reported(tmp_path, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    message, _ = _refusal(_source("http://data.example/a"), tmp_path, ConnectionError)
    assert "data.example cannot be reached (Name or service not known)" in message


@pytest.mark.skipif(shutil.which("openssl") is None, reason="requires openssl")
def test_untrusted_certificate_is_reported(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=127.0.0.1"]
    command = ["openssl", "req", "-x509", *kind, "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(context) as site:
        message, pauses = _refusal(_source(site.put("/a", BODY)), tmp_path / "folder", ConnectionError)
    assert "certificate of 127.0.0.1 is not trusted (self" in message
    assert "SSL_CERT_FILE" in message
    assert not pauses
    assert _listing(tmp_path / "folder") == []


def test_free_disk_space_is_checked_before_the_transfer(site, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(700_000))
    message, _ = _refusal(_source(site.put("/whole", BODY)), tmp_path)
    assert "needs 0.7 MB" in message
    assert _listing(tmp_path) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(700_001))
    source = _source(site.put("/a", BODY, cuts=[500_001]))
    _refusal(source, tmp_path, ConnectionError, attempts=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(199_999))
    _refusal(source, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(200_000))
    assert download(source, tmp_path, pause=_no_pause).read_bytes() == BODY


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_no_files(site, tmp_path, monkeypatch, code):
    def full(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    message, pauses = _refusal(_source(site.put("/a", BODY)), tmp_path)
    assert "became full" in message
    assert "Free some space" in message
    assert not pauses
    assert _listing(tmp_path) == []


def test_paths_that_cannot_be_written_are_reported(site, tmp_path):
    source = _source(site.put("/a", BODY))
    (tmp_path / "file").touch()
    message, _ = _refusal(source, tmp_path / "file")
    assert "cannot be read or written" in message
    (tmp_path / "data.bin").mkdir()
    message, _ = _refusal(source, tmp_path)
    assert "is not a file" in message


def test_keyboard_interrupt_keeps_the_received_bytes(site, tmp_path):
    source = _source(site.put("/a", BODY, cuts=[1000]))

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(source, tmp_path, pause=interrupt)
    assert _listing(tmp_path) == ["data.bin.part", "data.bin.part.json"]
    assert download(source, tmp_path).read_bytes() == BODY
    assert site.ranges == [None, "bytes=1000-"]


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/a", "file:///etc/passwd", "data:,a", "a.bin", ""])
def test_other_schemes_are_rejected(tmp_path, url):
    with pytest.raises(ValueError, match="use https:// or http://"):
        download(_source(url), tmp_path)


@pytest.mark.parametrize("filename", ["", "..", ".", "../a", "/a", "a/b", "a\\b", "a\0"])
def test_file_names_with_folders_are_rejected(site, tmp_path, filename):
    with pytest.raises(ValueError, match="without folders"):
        download(_source(site.root + "/a", filename=filename), tmp_path)


@pytest.mark.parametrize("checksum", ["", "md5:", "md5:12", "sha1:" + 40 * "0", "md5:" + 32 * "g", 32 * "0"])
def test_malformed_checksums_are_rejected(tmp_path, checksum):
    with pytest.raises(ValueError, match="hexadecimal digits"):
        download(Source("http://127.0.0.1/a", "a", checksum), tmp_path)


def _start(count, *args):
    """Start forked processes that download, because imports take many seconds."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=download, args=args, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    return processes


def test_one_of_three_processes_downloads(site, tmp_path, capfd):
    source = _source(site.put("/a", BODY, cuts=[300_000]))
    for process in _start(3, source, tmp_path):
        process.join(60)
        assert process.exitcode == 0
    output = capfd.readouterr()
    assert "━" not in output.out + output.err  # no progress bar without a terminal
    assert output.err.count("Waiting for another process") <= 2
    assert (tmp_path / "data.bin").read_bytes() == BODY
    assert site.ranges == [None, "bytes=300000-"]
    assert _listing(tmp_path) == ["data.bin", "data.bin.verified"]


def test_killed_process_leaves_a_partial_file_and_no_lock(site, tmp_path):
    stall = threading.Event()
    source = _source(site.put("/a", BODY, cuts=[400_000], stall=stall))
    (process,) = _start(1, source, tmp_path)
    part = tmp_path / "data.bin.part"
    waiting = threading.Event()
    for _ in range(600):
        if part.exists() and part.stat().st_size > 100_000:
            break
        waiting.wait(0.05)
    process.kill()
    process.join(60)
    stall.set()
    received = part.stat().st_size
    assert not (tmp_path / "data.bin").exists()
    assert download(source, tmp_path, pause=_no_pause).read_bytes() == BODY
    assert site.ranges == [None, f"bytes={received}-"]
    assert _listing(tmp_path) == ["data.bin", "data.bin.verified"]


def test_lock_is_exclusive(tmp_path):
    holders, counts, never = [], [], threading.Event()

    def enter():
        for _ in range(50):
            with locked(tmp_path / "a"):
                holders.append(1)
                never.wait(0.001)
                counts.append(len(holders))
                holders.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [1] * 200
    assert _listing(tmp_path) == []


def test_waiting_for_a_lock_names_the_holder(tmp_path, capfd):
    acquired = threading.Event()

    def wait():
        with locked(tmp_path / "a"):
            acquired.set()

    with locked(tmp_path / "a"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not acquired.wait(0.3)
    waiting.join()
    assert acquired.is_set()
    [line] = capfd.readouterr().err.splitlines()
    start = f"Waiting for another process to write {tmp_path / 'a'}: "
    holders = (f"process {os.getpid()} holds {tmp_path / 'a.lock'}.", UNKNOWN.format(tmp_path / "a.lock"))
    assert line in [start + holder for holder in holders]


def _hold(path, acquired):
    with locked(path):
        acquired.set()
        threading.Event().wait(60)


def test_lock_of_a_stopped_process_is_named_and_that_of_a_killed_one_released(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(files, "_REMINDER", 0.05)
    context = multiprocessing.get_context("fork")
    acquired, entered = context.Event(), threading.Event()
    process = context.Process(target=_hold, args=(tmp_path / "a", acquired))
    process.start()

    def wait():
        with locked(tmp_path / "a"):
            entered.set()

    try:
        assert acquired.wait(60)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(0.4)
    finally:
        process.kill()
    assert entered.wait(60)
    waiting.join(60)
    process.join(60)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) > 1
    stopped = f"process {process.pid} holds {tmp_path / 'a.lock'}, which is stopped."
    first, *others = (line.partition(": ") for line in lines)
    assert first[0] == f"Waiting for another process to write {tmp_path / 'a'}"
    assert first[2] in (stopped, UNKNOWN.format(tmp_path / "a.lock"))
    assert all(re.fullmatch(r".*/a \(for \d+\.\d minutes\)", other[0]) for other in others)
    assert _listing(tmp_path) == []


def test_lock_file_of_a_killed_process_is_taken_over(tmp_path, capfd):
    (tmp_path / "a.lock").write_text("left by another host")
    with locked(tmp_path / "a"):
        pass
    assert _listing(tmp_path) == []
    assert not capfd.readouterr().err


def test_file_systems_without_locks_are_used_without(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path / "a"):
        assert _listing(tmp_path) == ["a.lock"]
    assert _listing(tmp_path) == []


def test_progress_bar_continues_after_resuming(site, tmp_path, monkeypatch):
    calls = []

    class Bar:
        def __init__(self, *_, **options):
            self.disabled = options["disable"]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def add_task(self, label, total, completed):
            calls.append((label, total, self.disabled))

        def update(self, _, completed):
            calls.append(completed)

    monkeypatch.setattr(bars, "Progress", Bar)
    source = _source(site.put("/a", BODY, cuts=[1000]))
    download(source, tmp_path, pause=lambda _: None)
    starts = [index for index, entry in enumerate(calls) if isinstance(entry, tuple)]
    assert [calls[index] for index in starts] == [
        ("data.bin", 700_001, True),
        ("data.bin", 700_001, True),
        ("verifying data.bin", 700_001, True),
    ]
    assert calls[1] == 1000
    assert calls[starts[1] + 1] > 1000
    assert calls[starts[2] - 1] == calls[-1] == 700_001


@pytest.mark.parametrize(("rank", "terminal", "shown"), [(0, True, True), (1, True, False), (0, False, False)])
def test_progress_bar_is_shown_by_the_first_process_on_a_terminal(monkeypatch, rank, terminal, shown):
    written = io.StringIO()
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    monkeypatch.setattr(bars, "Console", lambda **_: Console(file=written, force_terminal=terminal, width=120))
    with progress("a[b]", 4_000_000) as show:
        show(1_000_000)
    assert ("a[b]" in written.getvalue() and "1.0/4.0 MB" in written.getvalue()) == shown
    assert bool(written.getvalue()) == shown

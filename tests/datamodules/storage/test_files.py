"""Atomic writes with concurrent writers, links, killed processes and full disks."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from program import REPOSITORY

from composers.checkpoint import WholeFiles
from datamodules.storage import download as web
from datamodules.storage.files import open_own, temporary_folder, written_whole

KILLED = """
import sys, time
from pathlib import Path
from datamodules.storage.files import written_whole
with written_whole(Path(sys.argv[1])) as part:
    part.write_text("half")
    print(part, flush=True)
    time.sleep(60)
"""


def _listing(folder):
    return sorted(path.name for path in folder.iterdir())


def _writing(path):
    """Start a process that writes half a file, and return it and its temporary file."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    with process.stdout as output:
        return process, Path(output.readline().strip())


def test_last_of_two_writers_wins(tmp_path):
    path = tmp_path / "face.png"
    first, last = written_whole(path), written_whole(path)
    first_part, last_part = first.__enter__(), last.__enter__()
    assert first_part != last_part
    first_part.write_text("first")
    last_part.write_text("last")
    first.__exit__(None, None, None)
    assert path.read_text() == "first"
    last.__exit__(None, None, None)
    assert path.read_text() == "last"
    assert _listing(tmp_path) == ["face.png"]


def test_concurrent_writers_leave_one_complete_file(tmp_path):
    path, errors = tmp_path / "code.safetensors", []

    def write(letter):
        try:
            for _ in range(10):
                with written_whole(path) as part, part.open("w") as file:
                    file.write(letter * 1000)
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not errors
    assert len(set(path.read_text())) == 1
    assert len(path.read_text()) == 1000
    assert _listing(tmp_path) == ["code.safetensors"]


@pytest.mark.parametrize("link", [".face.png.0.part", "face.png.part"])
def test_link_in_place_of_a_temporary_file_is_not_followed(tmp_path, link):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / link).symlink_to(victim)
    with written_whole(tmp_path / "face.png") as part:
        part.write_text("image")
    assert victim.read_text() == "mine"
    assert (tmp_path / "face.png").read_text() == "image"
    assert not (tmp_path / "face.png").is_symlink()
    assert (tmp_path / link).is_symlink()


@pytest.mark.slow
def test_only_temporary_files_of_killed_processes_are_removed(tmp_path):
    path = tmp_path / "face.png"
    path.write_text("earlier")
    running, active = _writing(path)
    killed, abandoned = _writing(path)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert abandoned.is_file()
        assert path.read_text() == "earlier"
        with written_whole(path) as part:
            part.write_text("new")
        assert path.read_text() == "new"
        assert active.is_file()
        assert not abandoned.exists()
    finally:
        running.kill()
        running.wait()
    with written_whole(path) as part:
        part.write_text("newer")
    assert _listing(tmp_path) == ["face.png"]


def test_only_old_temporary_files_are_removed_without_locks(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    new, old = tmp_path / ".face.png.0.part", tmp_path / ".face.png.1.part"
    for part in (new, old):
        part.write_text("half")
    os.utime(old, (0, time.time() - 100_000))
    with written_whole(tmp_path / "face.png") as part:
        part.write_text("whole")
    assert _listing(tmp_path) == [".face.png.0.part", "face.png"]


def test_file_mode_respects_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "face.png") as part:
            part.write_text("whole")
    finally:
        os.umask(before)
    assert (tmp_path / "face.png").stat().st_mode & 0o777 == 0o640


def test_file_is_flushed_before_and_its_folder_after_renaming(tmp_path, monkeypatch):
    calls, (fsync, replace) = [], (os.fsync, Path.replace)

    def recorded_fsync(descriptor):
        calls.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def recorded_replace(path, target):
        calls.append("replace")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    with written_whole(tmp_path / "face.png") as part:
        part.write_text("whole")
    assert calls == [str(part), "replace", str(tmp_path)]


def test_files_with_long_names_are_written(tmp_path):
    path = tmp_path / ("a" * 255)
    with written_whole(path) as part:
        part.write_text("whole")
    assert path.read_text() == "whole"


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_full_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch, where):
    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"state_dict": {"a": torch.zeros(2)}}, path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "write":
        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        WholeFiles().save_checkpoint({"state_dict": {"a": torch.ones(2)}}, path)
    assert path.read_bytes() == before
    assert _listing(tmp_path) == ["last.ckpt"]


def test_temporary_folders_of_killed_processes_are_removed(tmp_path):
    old, new = tmp_path / ".part-old", tmp_path / ".part-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "half").touch()
    os.utime(old, (0, time.time() - 100))
    with temporary_folder(tmp_path) as work:
        assert _listing(tmp_path) == sorted([".part-new", work.name])
        os.utime(work, (0, time.time() - 100))
        with temporary_folder(tmp_path):
            assert work.is_dir()
    assert _listing(tmp_path) == [".part-new"]


def test_open_does_not_follow_links(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(ValueError, match=r"link is a link, .* remove the link"):
        open_own(tmp_path / "link", os.O_WRONLY | os.O_APPEND)


@pytest.mark.parametrize("name", ["data.bin.part", "data.bin.lock"])
def test_download_does_not_follow_links(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / name).symlink_to(victim)
    source = web.Source("http://127.0.0.1:9/data.bin", "data.bin", f"md5:{'0' * 32}")
    with pytest.raises(ValueError, match=rf"{name} is a link"):
        web.download(source, tmp_path, attempts=1, pause=lambda seconds: None)
    assert victim.read_text() == "mine"

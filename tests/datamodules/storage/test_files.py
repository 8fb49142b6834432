"""Temporary files: two writers, links in their place, writers that were killed, full disks."""

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
    """Start a process that writes half of a file, and return it and its temporary file."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    with process.stdout as told:
        return process, Path(told.readline().strip())


def test_two_writers_of_one_file_both_succeed_and_the_last_wins(tmp_path):
    path = tmp_path / "face.png"
    first, last = written_whole(path), written_whole(path)
    one, other = first.__enter__(), last.__enter__()
    assert one != other
    one.write_text("first")
    other.write_text("last")
    first.__exit__(None, None, None)
    assert path.read_text() == "first"
    last.__exit__(None, None, None)
    assert path.read_text() == "last"
    assert _listing(tmp_path) == ["face.png"]


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    path, failed = tmp_path / "code.safetensors", []

    def write(letter):
        try:
            for _ in range(10):
                with written_whole(path) as part, part.open("w") as file:
                    file.write(letter * 1000)
        except Exception as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed
    assert len(set(path.read_text())) == 1
    assert len(path.read_text()) == 1000
    assert _listing(tmp_path) == ["code.safetensors"]


@pytest.mark.parametrize("planted", [".face.png.0.part", "face.png.part"])
def test_a_link_in_the_place_of_a_temporary_file_is_never_written_through(tmp_path, planted):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / planted).symlink_to(victim)
    with written_whole(tmp_path / "face.png") as part:
        part.write_text("image")
    assert victim.read_text() == "mine"
    assert (tmp_path / "face.png").read_text() == "image"
    assert not (tmp_path / "face.png").is_symlink()
    assert (tmp_path / planted).is_symlink()


@pytest.mark.slow
def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    path = tmp_path / "face.png"
    path.write_text("earlier")
    living, held = _writing(path)
    killed, left = _writing(path)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.is_file()
        assert path.read_text() == "earlier"
        with written_whole(path) as part:
            part.write_text("new")
        assert path.read_text() == "new"
        assert held.is_file()
        assert not left.exists()
    finally:
        living.kill()
        living.wait()
    with written_whole(path) as part:
        part.write_text("newer")
    assert _listing(tmp_path) == ["face.png"]


def test_without_locks_only_old_files_are_taken_for_abandoned(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    new, old = tmp_path / ".face.png.0.part", tmp_path / ".face.png.1.part"
    for left in (new, old):
        left.write_text("half")
    os.utime(old, (0, time.time() - 100_000))
    with written_whole(tmp_path / "face.png") as part:
        part.write_text("whole")
    assert _listing(tmp_path) == [".face.png.0.part", "face.png"]


def test_the_mode_of_a_file_respects_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "face.png") as part:
            part.write_text("whole")
    finally:
        os.umask(before)
    assert (tmp_path / "face.png").stat().st_mode & 0o777 == 0o640


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path, monkeypatch):
    done, (fsync, replace) = [], (os.fsync, Path.replace)

    def flushed(descriptor):
        done.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def replaced(path, target):
        done.append("replaced")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", replaced)
    with written_whole(tmp_path / "face.png") as part:
        part.write_text("whole")
    assert done == [str(part), "replaced", str(tmp_path)]


def test_long_names_have_temporary_files(tmp_path):
    path = tmp_path / ("a" * 255)
    with written_whole(path) as part:
        part.write_text("whole")
    assert path.read_text() == "whole"


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, where):
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
    left, new = tmp_path / ".part-left", tmp_path / ".part-new"
    for folder in (left, new):
        folder.mkdir()
        (folder / "half").touch()
    os.utime(left, (0, time.time() - 100))
    with temporary_folder(tmp_path) as work:
        assert _listing(tmp_path) == sorted([".part-new", work.name])
        os.utime(work, (0, time.time() - 100))
        with temporary_folder(tmp_path):
            assert work.is_dir()
    assert _listing(tmp_path) == [".part-new"]


def test_files_that_are_continued_are_not_opened_through_links(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(ValueError, match=r"link is a link; .* remove the link"):
        open_own(tmp_path / "link", os.O_WRONLY | os.O_APPEND)


@pytest.mark.parametrize("name", ["data.bin.part", "data.bin.lock"])
def test_a_download_refuses_links(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / name).symlink_to(victim)
    source = web.Source("http://127.0.0.1:9/data.bin", "data.bin", f"md5:{'0' * 32}")
    with pytest.raises(ValueError, match=rf"{name} is a link"):
        web.download(source, tmp_path, attempts=1, pause=lambda seconds: None)
    assert victim.read_text() == "mine"

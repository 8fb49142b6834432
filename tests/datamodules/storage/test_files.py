"""Atomic writes with concurrent writers, links, killed processes and full disks."""

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from disks import limited, protect, small_disk
from matplotlib.figure import Figure
from PIL import Image
from program import REPOSITORY
from safetensors.torch import save_file

from composers.checkpoint import WholeFiles
from datamodules.storage import download as web
from datamodules.storage.files import UnwritableError, open_own, temporary_folder, written_whole
from modalities.audio import save_wav
from tools.export.programs import write_program

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


def _content():
    """Return a megabyte that does not compress."""
    return np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)


def _figure(part):
    figure = Figure(figsize=(6, 6), dpi=100)
    figure.figimage(_content())
    figure.savefig(part, format="png")


def _array(part):
    with part.open("wb") as file:
        np.save(file, _content())


def _output(part):
    with part.open("wb") as file:
        command = ["head", "-c", "2000000", "/dev/zero"]
        subprocess.run(command, stdout=file, check=True, stderr=subprocess.DEVNULL)


WRITERS = {
    "bytes": lambda part: part.write_bytes(_content()),
    "text": lambda part: part.write_text("1" * 2_000_000),
    "Pillow": lambda part: Image.fromarray(_content()).save(part, format="PNG"),
    "torch": lambda part: torch.save(torch.from_numpy(_content()).double(), part),
    "safetensors": lambda part: save_file({"values": torch.from_numpy(_content()).double()}, part),
    "soundfile": lambda part: soundfile.write(part, _content().reshape(-1) / 256, 8000, subtype="DOUBLE", format="WAV"),
    "matplotlib": _figure,
    "numpy": _array,
    "process": _output,
}
QUICK = ("bytes", "safetensors", "process")
SOME_WRITERS = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in WRITERS]
IGNORED = "ignore::pytest.PytestUnraisableExceptionWarning"  # of files that the library could not close


def _assert_named(folder, write, problem):
    """Write a file that does not fit; check the message, that the earlier file is intact, and that nothing is left."""
    path = folder / "result.bin"
    path.write_bytes(b"earlier")
    with pytest.raises(UnwritableError) as caught, written_whole(path) as part:
        write(part)
    assert str(caught.value) == f"{path} cannot be written: {problem}."
    gc.collect()  # of files that the library could not close, whose warnings this test ignores
    assert path.read_bytes() == b"earlier"
    assert _listing(folder) == ["result.bin"]


@pytest.mark.filterwarnings(IGNORED)
@pytest.mark.parametrize("library", SOME_WRITERS)
def test_limit_on_file_sizes_names_the_file(tmp_path, library):
    with limited("RLIMIT_FSIZE", 200_000):
        _assert_named(
            tmp_path, WRITERS[library], "File too large. Raise the limit on the size of files: ulimit -f unlimited"
        )


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Return a folder with 512 kB of space."""
    with small_disk(tmp_path_factory.mktemp("disk"), "512k") as folder:
        yield folder


@pytest.mark.filterwarnings(IGNORED)
@pytest.mark.parametrize("library", SOME_WRITERS)
def test_full_disk_names_the_file(disk, library):
    _assert_named(disk, WRITERS[library], "No space left on device. Free some space, or choose another folder")


def test_read_only_disk_names_the_file(tmp_path):
    with small_disk(tmp_path / "disk") as folder:
        protect(folder)
        path = folder / "below" / "result.bin"
        with pytest.raises(UnwritableError) as caught, written_whole(path) as part:
            part.write_text("")
    expected = "Read-only file system. Mount it writable, or choose another folder."
    assert str(caught.value) == f"{path} cannot be written: {expected}"


def test_too_many_open_files_name_the_file(tmp_path):
    path = tmp_path / "result.bin"
    with limited("RLIMIT_NOFILE", 3), pytest.raises(UnwritableError) as caught, written_whole(path) as part:
        part.write_text("")
    expected = "Too many open files. Raise the limit on open files (ulimit -n 4096), or lower num_workers."
    assert str(caught.value) == f"{path} cannot be written: {expected}"


def test_errors_that_are_not_of_the_file_are_unchanged(tmp_path):
    for error in (ValueError("wrong"), FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/a")):
        with pytest.raises(type(error)) as caught, written_whole(tmp_path / "a"):
            raise error
        assert caught.value is error
    assert _listing(tmp_path) == []


def test_age_of_temporary_files_is_measured_by_the_clock_of_their_disk(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # the clock of this machine is decades ahead
    (tmp_path / ".face.png.0.part").write_text("half")
    (tmp_path / ".part-new").mkdir()
    with written_whole(tmp_path / "face.png") as part:
        part.write_text("whole")
    with temporary_folder(tmp_path):
        pass
    assert _listing(tmp_path) == [".face.png.0.part", ".part-new", "face.png"]


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


def _write_checkpoint(path):
    WholeFiles().save_checkpoint({"weights": torch.zeros(5000)}, path)


def _write_recording(path):
    save_wav(torch.zeros(1, 20000), 16000, path)


def _write_program(path):
    write_program(torch.export.export(torch.nn.Linear(50, 100), (torch.zeros(1, 50),)), path)


@pytest.mark.parametrize("write", [_write_checkpoint, _write_recording, _write_program])
def test_no_view_of_a_buffer_outlives_a_failed_write(tmp_path, write):
    with limited("RLIMIT_FSIZE", 1000), pytest.raises(OSError, match="File too large") as caught:
        write(tmp_path / "result.bin")
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb)]
    buffers = [value for frame in frames for value in frame.f_locals.values() if isinstance(value, BytesIO)]
    assert buffers
    for buffer in buffers:
        buffer.close()  # refused while there are views


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

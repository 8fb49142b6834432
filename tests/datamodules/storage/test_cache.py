"""A cache equals reading and preparing the images, even after interruptions, damage and full disks."""

import errno
import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from disks import limited
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader

from datamodules.storage import cache as module
from datamodules.storage.cache import cached
from datamodules.storage.folders import NamedFile
from datamodules.storage.images import Preparation, read_image

AS_IT_IS = Preparation()
SQUARE = Preparation(short_side=9, crop=8)
MODES = ("RGB", "L", "RGBA", "CMYK", "P", "1")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def files(tmp_path):
    """Return 12 images of six modes and 12 sizes, with names of two parts."""
    generator = np.random.default_rng(0)
    (tmp_path / "source").mkdir()
    images = []
    for index in range(12):
        mode = MODES[index % len(MODES)]
        path = tmp_path / "source" / f"{index}.{'tif' if mode == 'CMYK' else 'png'}"
        levels = generator.integers(0, 256, (9 + index, 31 - 2 * index, 4), dtype=np.uint8)
        Image.fromarray(levels, "RGBA").convert("RGB" if mode == "CMYK" else mode).convert(mode).save(path)
        images.append(NamedFile(f"class{index % 3}/image{11 - index}", path))
    return images


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "cache"


@pytest.fixture
def reads(monkeypatch):
    """Return the list of paths that are read from now on."""
    return _watch(monkeypatch)


def _watch(monkeypatch, before=lambda number: None):
    """Record the path of every image that is read; call ``before`` with the number of earlier ones."""
    paths, lock = [], threading.Lock()

    def read(path):
        with lock:
            number = len(paths)
            paths.append(path)
        before(number)
        return read_image(path)

    monkeypatch.setattr(module, "read_image", read)
    return paths


def _interrupt_at(monkeypatch, path):
    """Raise KeyboardInterrupt when an image is read."""

    def read(current):
        if current == path:
            raise KeyboardInterrupt
        return read_image(current)

    monkeypatch.setattr(module, "read_image", read)


def _caches(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.exists() else []


def _only(folder):
    [cache] = _caches(folder)
    return cache


def _check(images, files, preparation=AS_IT_IS):
    """Compare a cache with reading the files."""
    assert len(images) == len(files)
    assert images.names == [file.name for file in files]
    for file, (values, name, seed, *_) in zip(files, images, strict=True):
        assert (name, seed) == (file.name, 0)
        assert values.dtype == torch.uint8
        assert torch.equal(values, preparation(read_image(file.path).pixels))


def _refusal(*arguments):
    """Return the error message, after checking that it is one line that names the option."""
    with pytest.raises(ValueError, match=r"--data\.init_args\.cache") as caught:
        cached(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _flip(path, position=100):
    """Flip one bit of a file, and change its modification time."""
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("preparation", [AS_IT_IS, Preparation(smallest=15), SQUARE], ids=["as-is", "smallest", "crop"])
def test_values_equal_reading(files, folder, preparation):
    images = cached(files, preparation, folder, "mine-train")
    _check(images, files, preparation)
    assert images.skipped == {}
    expected = {file.name: "; ".join(read_image(file.path).notes) for file in files}
    assert images.notes == {name: note for name, note in expected.items() if note}
    assert set(images.notes.values()) == {"transparency composited over white", "CMYK converted"}
    assert _only(folder).name.startswith("mine-train-")
    assert sorted(path.name for path in _only(folder).iterdir()) == ["index.json", "pixels.bin", "verified.json"]
    assert not [path for path in folder.iterdir() if path.is_file()]


def test_pixels_are_stored_contiguously(files, folder):
    cached(files, AS_IT_IS, folder, "a")
    expected = b"".join(read_image(file.path).pixels.numpy().tobytes() for file in files)
    assert (_only(folder) / "pixels.bin").read_bytes() == expected


def test_indices_out_of_range_raise(files, folder):
    images = cached(files, AS_IT_IS, folder, "a")
    for index in (-1, 12, 10**20):
        with pytest.raises(IndexError):
            images[index]


def test_writing_to_values_does_not_change_the_file(files, folder):
    images = cached(files, AS_IT_IS, folder, "a")
    before = (_only(folder) / "pixels.bin").read_bytes()
    values = images[3].values
    values.fill_(77)
    assert not (images[3].values == 77).all()
    assert (_only(folder) / "pixels.bin").read_bytes() == before
    _check(cached(files, AS_IT_IS, folder, "a"), files)


def test_storage_of_an_image_has_only_its_pixels(files, folder):
    values = cached(files, AS_IT_IS, folder, "a")[3].values
    assert values.untyped_storage().nbytes() == values.numel()


def test_cache_may_be_larger_than_the_memory(tmp_path):
    path = tmp_path / "sparse.bin"
    path.touch()
    try:
        os.truncate(path, 1 << 40)
    except OSError:
        pytest.skip("requires sparse files of 1 TiB")
    shapes = np.array([[1 << 19, 1 << 19], [4, 5]])
    assert module.CachedImages(path, shapes, ["large", "small"], {}, {})[1].values.sum() == 0


def test_images_are_decoded_once(files, folder, reads):
    cached(files, AS_IT_IS, folder, "a")
    assert sorted(reads) == sorted(file.path for file in files)
    _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert len(reads) == 12


def test_moved_folder_of_images_has_the_same_cache(files, folder, tmp_path, reads):
    files[5].path.write_bytes(b"no image")
    cached(files, AS_IT_IS, folder, "a")
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    moved = [file._replace(path=tmp_path / "elsewhere" / file.path.name) for file in files]
    images = cached(moved, AS_IT_IS, folder, "a")
    assert len(reads) == 12
    [(path, reason)] = images.skipped.items()
    assert path == str(moved[5].path)
    assert reason.startswith(f"{path} is not an image")


def _changed_date(files):
    os.utime(files[7].path, ns=(1, 1))
    return files, AS_IT_IS


def _changed_size(files):
    status = files[7].path.stat()
    with files[7].path.open("ab") as file:
        file.write(b"\0")
    os.utime(files[7].path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return files, AS_IT_IS


@pytest.mark.parametrize(
    "change",
    [
        _changed_date,
        _changed_size,
        lambda files: (files[:-1], AS_IT_IS),
        lambda files: (files[::-1], AS_IT_IS),
        lambda files: ([files[0]._replace(name="other"), *files[1:]], AS_IT_IS),
        lambda files: (files, Preparation(smallest=40)),
    ],
    ids=["date", "size", "fewer", "order", "name", "preparation"],
)
def test_every_change_creates_another_cache(files, folder, change):
    cached(files, AS_IT_IS, folder, "a")
    files, preparation = change(files)
    _check(cached(files, preparation, folder, "a"), files, preparation)
    assert len(_caches(folder)) == 2


def test_missing_image_is_read_once_it_exists(files, folder, tmp_path):
    files[2].path.rename(tmp_path / "away")
    assert cached(files, AS_IT_IS, folder, "a").skipped.keys() == {str(files[2].path)}
    (tmp_path / "away").rename(files[2].path)
    _check(cached(files, AS_IT_IS, folder, "a"), files)


def test_unreadable_images_are_reported_and_skipped(files, folder, reads):
    files[0].path.write_bytes(b"")
    files[6].path.write_bytes(files[6].path.read_bytes()[:60])
    readable = [file for index, file in enumerate(files) if index not in (0, 6)]
    for _ in range(2):
        images = cached(files, AS_IT_IS, folder, "a")
        _check(images, readable)
        assert list(images.skipped) == [str(files[0].path), str(files[6].path)]
        for path, reason in images.skipped.items():
            with pytest.raises(ValueError, match=" ") as caught:
                read_image(path)
            assert reason == str(caught.value)
    assert len(reads) == 12


def test_no_readable_images(files, folder):
    for file in files:
        file.path.write_bytes(b"<html>")
    for _ in range(2):
        images = cached(files, SQUARE, folder, "a")
        assert (len(images), list(images), images.names, len(images.skipped)) == (0, [], [], 12)


def test_image_that_cannot_be_resized_is_skipped(files, folder, monkeypatch):
    def resize(image, short_side):
        raise MemoryError if image.shape[1] == 12 else ValueError("too\nlong")

    monkeypatch.setattr("datamodules.storage.images.resize_short_side", resize)
    images = cached(files, Preparation(smallest=13), folder, "a")
    small = [file for file in files if min(read_image(file.path).pixels.shape[1:]) < 13]
    assert list(images.skipped) == [str(file.path) for file in small]
    reasons = list(images.skipped.values())
    assert reasons[0] == f"{files[0].path} cannot be resized (too long): remove the file or crop it."
    assert reasons[3] == f"{files[3].path} cannot be resized (MemoryError): remove the file or crop it."


def test_empty_list_of_files_is_rejected(folder):
    with pytest.raises(ValueError, match="no images to decode for mine"):
        cached([], AS_IT_IS, folder, "mine")
    assert not folder.exists()


@pytest.mark.parametrize("stop", [0, 1, 7, 11])
def test_interrupted_call_is_resumed(files, folder, monkeypatch, stop):
    complete = folder.with_name("complete")
    cached(files, AS_IT_IS, complete, "a")
    with monkeypatch.context() as patch:
        _interrupt_at(patch, files[stop].path)
        with pytest.raises(KeyboardInterrupt):
            cached(files, AS_IT_IS, folder, "a")
    assert not (_only(folder) / "index.json").exists()
    reads = _watch(monkeypatch)
    _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert sorted(reads) == sorted(file.path for file in files[stop:])
    for name in ("pixels.bin", "index.json"):
        assert (_only(folder) / name).read_bytes() == (_only(complete) / name).read_bytes()


def _interrupted(files, folder, monkeypatch, stop):
    """Write the first ``stop`` images of a cache, and return its folder."""
    with monkeypatch.context() as patch:
        _interrupt_at(patch, files[stop].path)
        with pytest.raises(KeyboardInterrupt):
            cached(files, AS_IT_IS, folder, "a")
    return _only(folder)


@pytest.mark.parametrize("name", ["pixels.bin", "journal.txt"])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 0.5, 0.77, 0.999])
def test_truncated_files_are_resumed(files, folder, monkeypatch, name, share):
    place = _interrupted(files, folder, monkeypatch, 9)
    ends = {
        "pixels.bin": np.cumsum([read_image(file.path).pixels.numel() for file in files[:9]]),
        "journal.txt": np.cumsum([len(line) for line in (place / "journal.txt").read_bytes().splitlines(True)]),
    }[name]
    position = int(ends[-1] * share)
    os.truncate(place / name, position)
    reads = _watch(monkeypatch)
    _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert len(reads) == 12 - (ends <= position).sum()


def test_call_interrupted_twice_is_resumed(files, folder, monkeypatch):
    place = _interrupted(files, folder, monkeypatch, 4)
    for name in ("pixels.bin", "journal.txt"):
        os.truncate(place / name, (place / name).stat().st_size - 3)
    _interrupted(files, folder, monkeypatch, 8)
    reads = _watch(monkeypatch)
    _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert sorted(reads) == sorted(file.path for file in files[8:])


@pytest.mark.parametrize("name", ["pixels.bin", "journal.txt"])
def test_missing_partial_files_are_written_again(files, folder, monkeypatch, name):
    place = _interrupted(files, folder, monkeypatch, 5)
    (place / name).unlink()
    reads = _watch(monkeypatch)
    _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert len(reads) == 12


@pytest.mark.parametrize("name", ["pixels.bin", "journal.txt"])
def test_damaged_partial_files_are_detected(files, folder, monkeypatch, name):
    place = _interrupted(files, folder, monkeypatch, 9)
    _flip(place / name, (place / name).stat().st_size // 2)
    reads = _watch(monkeypatch)
    _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert 3 < len(reads) < 12


def test_trailing_bytes_are_discarded(files, folder, monkeypatch):
    place = _interrupted(files, folder, monkeypatch, 9)
    for name in ("pixels.bin", "journal.txt"):
        with (place / name).open("ab") as file:
            file.write(b"\0" * 5000)
    reads = _watch(monkeypatch)
    _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert len(reads) == 3


def test_call_interrupted_before_the_index_is_resumed(files, folder, monkeypatch, reads):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cached(files, AS_IT_IS, folder, "a")
    _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert len(reads) == 12


def _build_slowly(files, folder, monkeypatch, pause, counts):
    """Build a cache with a pause before each image, and report the number of images that were read."""
    reads = _watch(monkeypatch, lambda number: time.sleep(pause))
    cached(files, AS_IT_IS, folder, "a")
    counts.put(len(reads))


def test_killed_process_is_resumed(files, folder, monkeypatch):
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_build_slowly, args=(files, folder, monkeypatch, 0.1, fork.Queue()))
    process.start()
    deadline = time.monotonic() + 20
    while not (_caches(folder) and len(list(_only(folder).glob("journal.txt"))) and _lines(folder) >= 4):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = _lines(folder)
    assert 4 <= done < 12
    reads = _watch(monkeypatch)
    _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert len(reads) == 12 - done


def _lines(folder):
    return (_only(folder) / "journal.txt").read_bytes().count(b"\n")


def test_one_of_two_processes_decodes(files, folder, monkeypatch):
    fork = multiprocessing.get_context("fork")
    counts = fork.Queue()
    both = [fork.Process(target=_build_slowly, args=(files, folder, monkeypatch, 0.03, counts)) for _ in range(2)]
    for process in both:
        process.start()
    assert sorted(counts.get(timeout=20) for _ in both) == [0, 12]
    for process in both:
        process.join()
    _check(cached(files, AS_IT_IS, folder, "a"), files)


@pytest.fixture
def lines(monkeypatch):
    """Return a function that returns the printed lines, without a terminal."""
    written = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda stderr, **options: Console(file=written, width=60, **options))
    return lambda: written.getvalue().splitlines()


def test_flipped_bit_is_detected_and_fixed(files, folder, lines, reads):
    cached(files, AS_IT_IS, folder, "a")
    _flip(_only(folder) / "pixels.bin")
    _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert len(reads) == 24
    assert lines()[2] == f"The cache {_only(folder)} has damaged pixels, first in image 1: rebuilding it."
    assert len(lines()) == 5


def test_pixels_are_verified_once_and_after_changes(files, folder, monkeypatch):
    counts = []
    original = module._count_intact

    def count_intact(cache, entries):
        counts.append(len(entries))
        return original(cache, entries)

    monkeypatch.setattr(module, "_count_intact", count_intact)
    cached(files, AS_IT_IS, folder, "a")
    assert counts == [0, 12]  # to resume, and after writing
    cached(files, AS_IT_IS, folder, "a")
    assert len(counts) == 2
    os.utime(_only(folder) / "pixels.bin", ns=(0, 0))
    for _ in range(2):
        _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert len(counts) == 3
    (_only(folder) / "verified.json").write_text("{" * 9)
    cached(files, AS_IT_IS, folder, "a")
    assert len(counts) == 4


def _change_index(place, change):
    """Change the index, and update its checksum."""
    columns = json.loads((place / "index.json").read_bytes().partition(b"\n")[2])
    change(columns)
    body = json.dumps(columns).encode()
    checksum = module.hashlib.sha256(body).hexdigest().encode()
    (place / "index.json").write_bytes(checksum + b"\n" + body)


def _negate(columns):
    columns["height"][0], columns["width"][0] = -columns["height"][0], -columns["width"][0]


def _shorten(place, files):
    """Remove the last image from the index and the pixels."""
    last = read_image(files[-1].path).pixels.numel()
    os.truncate(place / "pixels.bin", (place / "pixels.bin").stat().st_size - last)
    _change_index(place, lambda columns: [column.pop() for column in columns.values()])


def test_cache_of_fewer_images_is_rebuilt(files, folder, lines):
    cached(files, AS_IT_IS, folder, "a")
    _shorten(_only(folder), files)
    _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert lines()[2] == f"The cache {_only(folder)} has a damaged index: rebuilding it."


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: _flip(place / "index.json"),
        lambda place: _flip(place / "index.json", 3),
        lambda place: (place / "index.json").write_bytes(b""),
        lambda place: (place / "index.json").write_bytes(b"\xff\xfe" * 40),
        lambda place: os.truncate(place / "index.json", 300),
        lambda place: os.truncate(place / "pixels.bin", 300),
        lambda place: os.truncate(place / "pixels.bin", 10**6),
        lambda place: (place / "pixels.bin").unlink(),
        lambda place: _change_index(place, _negate),
        lambda place: _change_index(place, lambda columns: columns["height"].__setitem__(3, 2**62)),
        lambda place: _change_index(place, lambda columns: columns["checksum"].__setitem__(3, 5)),
        lambda place: _change_index(place, lambda columns: columns["height"].pop()),
        lambda place: _change_index(place, lambda columns: columns["remark"].append("")),
        lambda place: _change_index(place, lambda columns: columns.pop("width")),
    ],
    ids=[
        "body",
        "checksum",
        "empty",
        "noise",
        "short",
        "cut",
        "longer",
        "gone",
        "negative",
        "huge",
        "crc",
        "fewer",
        "more",
        "column",
    ],
)
def test_damaged_cache_is_rebuilt(files, folder, lines, damage):
    cached(files, AS_IT_IS, folder, "a")
    before = (_only(folder) / "index.json").read_bytes()
    damage(_only(folder))
    _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert (_only(folder) / "index.json").read_bytes() == before
    assert lines()[2].startswith(f"The cache {_only(folder)} has ")
    assert lines()[2].endswith(": rebuilding it.")
    assert len(lines()) == 5


def test_cache_without_an_index_is_rebuilt(files, folder, reads):
    cached(files, AS_IT_IS, folder, "a")
    (_only(folder) / "index.json").unlink()
    _check(cached(files, AS_IT_IS, folder, "a"), files)
    assert len(reads) == 24


def test_disk_that_does_not_return_what_was_written(files, folder, monkeypatch):
    original = module._write_index

    def write(cache, entries):
        _flip(cache.pixels)
        return original(cache, entries)

    monkeypatch.setattr(module, "_write_index", write)
    assert "immediately after it was written" in _refusal(files, AS_IT_IS, folder, "a")
    assert not _caches(folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_no_files(files, folder, monkeypatch, code):
    class Full:
        """A file that fails in the middle of an image."""

        def __init__(self, file):
            self.file, self.left = file, 5000

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, values):
            self.left -= len(bytes(values))
            if self.left < 0:
                self.file.write(bytes(values)[:30])
                raise OSError(code, os.strerror(code))
            return self.file.write(values)

    original = Path.open

    def opened(path, mode="r", **options):
        file = original(path, mode, **options)
        return Full(file) if path.name == "pixels.bin" and "+" in mode else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        message = _refusal(files, AS_IT_IS, folder, "a")
    assert f"The disk of {folder} became full" in message
    assert not list(folder.iterdir())
    _check(cached(files, AS_IT_IS, folder, "a"), files)


def _free(monkeypatch, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, free))


def test_disk_space_of_crops_is_exact(files, folder, monkeypatch, reads):
    size = 12 * 3 * 8 * 8
    _free(monkeypatch, size - 1)
    assert str(folder) in _refusal(files, SQUARE, folder, "a")
    assert len(reads) == 0
    assert not list(folder.iterdir())
    _free(monkeypatch, size)
    _check(cached(files, SQUARE, folder, "a"), files, SQUARE)


def test_resumed_images_need_no_more_disk_space(files, folder, monkeypatch):
    with monkeypatch.context() as patch:
        _interrupt_at(patch, files[4].path)
        with pytest.raises(KeyboardInterrupt):
            cached(files, SQUARE, folder, "a")
    _free(monkeypatch, 8 * 3 * 8 * 8 - 1)
    _refusal(files, SQUARE, folder, "a")
    _free(monkeypatch, 8 * 3 * 8 * 8)
    reads = _watch(monkeypatch)
    _check(cached(files, SQUARE, folder, "a"), files, SQUARE)
    assert len(reads) == 8


def test_disk_space_is_estimated_from_the_first_images(files, folder, monkeypatch):
    many = [NamedFile(f"{turn}-{file.name}", file.path) for turn in range(10) for file in files]  # 120 images
    sizes = [read_image(file.path).pixels.numel() for file in many]
    rest = sum(sizes[:32]) / 32 * 88
    _free(monkeypatch, rest - 1)
    message = _refusal(many, AS_IT_IS, folder, "a")
    assert f"need {rest / 1e6:,.1f} MB more in {folder}" in message
    assert not list(folder.iterdir())
    _free(monkeypatch, rest + 1)
    _check(cached(many, AS_IT_IS, folder, "a"), many)


@pytest.mark.parametrize("at", ["folder", "parent"])
def test_folder_that_is_a_file_is_rejected(files, folder, at):
    folder.parent.mkdir() if at == "folder" else None
    (folder if at == "folder" else folder.parent).write_text("here")
    assert str(folder) in _refusal(files, AS_IT_IS, folder, "a")


def test_folder_that_cannot_be_created_is_reported(files, folder, monkeypatch):
    original = Path.mkdir

    def mkdir(path, *args, **options):
        if path == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        original(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert f"Permission denied ({folder})" in _refusal(files, AS_IT_IS, folder, "a")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_reported(files, folder):
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    assert "Permission denied" in _refusal(files, AS_IT_IS, folder, "a")


def test_complete_cache_on_a_read_only_disk_is_used(files, folder, monkeypatch):
    cached(files, AS_IT_IS, folder, "a")
    os.utime(_only(folder) / "pixels.bin", ns=(0, 0))

    def refuse(path, *_, **__):
        raise PermissionError(errno.EROFS, "Read-only file system", str(path))

    for name in ("mkdir", "write_text", "touch", "unlink", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    _check(cached(files, AS_IT_IS, folder, "a"), files)


def test_pickled_data_set_has_no_pixels(files, folder):
    images = cached(files, AS_IT_IS, folder, "a")
    _check(images, files)
    pickled = pickle.dumps(images)
    assert len(pickled) < 2000 < (_only(folder) / "pixels.bin").stat().st_size
    _check(pickle.loads(pickled), files)


def _read_error(images, index=0):
    """Return the error message for an image that can no longer be read, which is one line."""
    with pytest.raises(ValueError, match="run again") as caught:
        images[index]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("pickled", [False, True])
def test_cache_truncated_during_use_is_reported(files, folder, pickled):
    images = cached(files, AS_IT_IS, folder, "a")
    images = pickle.loads(pickle.dumps(images)) if pickled else images
    pixels = _only(folder) / "pixels.bin"
    images[0]
    os.truncate(pixels, 10)
    fix = f"delete {pixels.parent} and run again, which decodes the images again."
    expected = f"{pixels} was truncated during the run, within the pixels of {files[0].name}: {fix}"
    assert _read_error(images) == expected
    assert _read_error(images, 11).startswith(f"{pixels} was truncated during the run")


def test_cache_truncated_between_batches_is_reported_by_a_worker(files, folder):
    images = cached(files, SQUARE, folder, "a")
    loader = iter(DataLoader(images, batch_size=1, num_workers=1, prefetch_factor=1, multiprocessing_context="fork"))
    next(loader)
    os.truncate(_only(folder) / "pixels.bin", 10)
    with pytest.raises(ValueError, match=r"pixels\.bin was truncated during the run"):
        list(loader)


def test_byte_changed_during_use_is_reported_for_its_image_only(files, folder):
    images = cached(files, AS_IT_IS, folder, "a")
    expected = [item.values for item in images]
    pixels = _only(folder) / "pixels.bin"
    _flip(pixels, 100)
    fix = f"delete {pixels.parent} and run again, which decodes the images again."
    assert _read_error(images) == f"{pixels} was changed during the run, in the pixels of {files[0].name}: {fix}"
    for index in range(1, 12):
        assert torch.equal(images[index].values, expected[index])


def test_cache_deleted_or_replaced_during_use_is_read_on(files, folder):
    images, other = (
        cached(files, AS_IT_IS, folder, "a"),
        pickle.loads(pickle.dumps(cached(files, AS_IT_IS, folder, "a"))),
    )
    pixels = _only(folder) / "pixels.bin"
    shutil.rmtree(folder)
    _check(images, files)
    assert _read_error(other).startswith(f"{pixels} was deleted during the run: ")
    pixels.parent.mkdir(parents=True)
    pixels.write_bytes(b"another file")
    _check(images, files)
    assert _read_error(other).startswith(f"{pixels} was truncated during the run")


@pytest.mark.parametrize(
    ("code", "fix"), [(errno.EIO, "Check the disk"), (errno.ESTALE, "Mount the network disk again")]
)
def test_failing_disk_is_reported_with_the_cache(files, folder, monkeypatch, code, fix):
    images = cached(files, AS_IT_IS, folder, "a")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "preadv", fail)
    pixels = _only(folder) / "pixels.bin"
    expected = f"{pixels} can no longer be read: {os.strerror(code)}. {fix}, or choose another folder, and run again."
    assert _read_error(images) == expected


def test_images_are_read_without_preadv(files, folder, monkeypatch):
    monkeypatch.delattr(os, "preadv")
    _check(cached(files, AS_IT_IS, folder, "a"), files)


def test_too_many_open_files_are_not_recorded_as_unreadable_images(files, folder, monkeypatch):
    def exhausted(path):
        try:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}.") from error

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_image", exhausted)
        with pytest.raises(ValueError, match=r"Too many open files\. Raise the limit .*, and run again\."):
            cached(files, AS_IT_IS, folder, "a")
    _check(cached(files, AS_IT_IS, folder, "a"), files)


def test_limit_on_file_sizes_is_reported_and_the_cache_continued(files, folder):
    with limited("RLIMIT_FSIZE", 3000):
        message = _refusal(files, AS_IT_IS, folder, "a")
    assert "File too large" in message
    assert "Raise the limit on the size of files: ulimit -f unlimited" in message
    _check(cached(files, AS_IT_IS, folder, "a"), files)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_workers_read_the_same_images(files, folder, start):
    images = cached(files, SQUARE, folder, "a")
    batches = list(DataLoader(images, batch_size=4, num_workers=2, multiprocessing_context=start))
    expected = torch.stack([SQUARE(read_image(file.path).pixels) for file in files])
    assert torch.equal(torch.cat([batch.values for batch in batches]), expected)
    assert [name for batch in batches for name in batch.name] == [file.name for file in files]


def test_two_lines_are_logged_without_a_terminal(files, folder, lines, monkeypatch):
    files[1].path.write_bytes(b"")
    cached(files, SQUARE, folder, "a[b]")
    assert lines() == [
        f"Decoding 12 images into {_only(folder)} (about 0.0 MB).",
        "Decoded 11 images (0.0 MB); 1 could not be read.",
    ]
    cached(files, SQUARE, folder, "a[b]")
    assert len(lines()) == 2
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    cached(files, AS_IT_IS, folder, "a")
    assert len(lines()) == 2

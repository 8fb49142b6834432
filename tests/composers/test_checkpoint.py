"""Checkpoint files: names of bundled weights, the newest file of a run, and content that is refused."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from program import REPOSITORY

import composers
from composers.checkpoint import located, newest, read


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"start.a": torch.zeros(1).expand(1 << 40)}, "start.a is not a dense tensor"),
        ({"start.a": torch.eye(3).to_sparse()}, "start.a is not a dense tensor"),
        ({"start.a\x1b[2J": 3}, r"start\.a\\x1b\[2J in its `state_dict` is not a tensor"),
        ({3: torch.zeros(1)}, "a name in its `state_dict` is not a string"),
    ],
)
def test_states_that_are_not_plain_weights_are_refused(tmp_path, state, message):
    torch.save({"state_dict": state, "composer": {}}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=rf"odd\.ckpt is not a checkpoint of this software: {message}"):
        read(tmp_path / "odd.ckpt")


def test_compressed_records_are_refused_before_they_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(1 << 24))
    with pytest.raises(ValueError, match=r"bomb\.ckpt is damaged \(its records are compressed"):
        read(tmp_path / "bomb.ckpt")


def test_files_that_are_not_checkpoints_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*nowhere\.ckpt"):
        read(tmp_path / "nowhere.ckpt")
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        read(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "good.ckpt")
    good = (tmp_path / "good.ckpt").read_bytes()
    for content in (
        b"",
        b"hello world",
        b"model:\n  class_path: X\n",
        bytes(range(256)),
        good[:-1],
        good[: len(good) // 2],
    ):
        (tmp_path / "bad.ckpt").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.ckpt is truncated or not a checkpoint"):
            read(tmp_path / "bad.ckpt")
    torch.save({"state_dict": {}, "path": Path()}, tmp_path / "object.ckpt")
    with pytest.raises(ValueError, match=r"object\.ckpt holds an object, pathlib[\w.]+, which could run code"):
        read(tmp_path / "object.ckpt")
    torch.save({"weights": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt is not a checkpoint of this software: it has no `state_dict`"):
        read(tmp_path / "other.ckpt")


def test_newest_checkpoint_is_the_one_written_last(tmp_path):
    for age, version in enumerate(("version_3", "version_11", "version_2")):
        path = tmp_path / version / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save({"state_dict": {}}, path)
        os.utime(path, (0, 1000 - age))
    assert newest(tmp_path) == tmp_path / "version_3" / "checkpoints" / "last.ckpt"
    os.utime(path, (0, 2000))
    assert newest(str(tmp_path)) == path
    with pytest.raises(FileNotFoundError, match=r"no \*/checkpoints/last\.ckpt in .*never"):
        newest(tmp_path / "never")


def test_bundled_weights_are_loaded_by_name():
    composer = composers.load("photos_ipc")
    assert located("photos_ipc") == REPOSITORY / "weights" / "photos_ipc" / "weights.ckpt"
    assert located("photos_ipc").stat().st_size < 8e6
    assert composer.network.value_dim == 3
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint photos_icp: .* bundled weights: photos_ipc, "):
        located("photos_icp")

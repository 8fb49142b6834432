"""The check of data sets of shapes: counts, missing and damaged files, and dropped rows."""

import csv

import numpy as np
import pytest
from shape_files import write_balls, write_deep_sdf

from tools.check.__main__ import main

NAMES = [f"ball{index}" for index in range(10)]


def _check(capsys, *args):
    """Return the exit status and the output of the check."""
    status = 0
    try:
        main([*map(str, args)])
    except SystemExit as error:
        status = error.code
    return status, capsys.readouterr().out


def test_a_complete_folder_passes(tmp_path, capsys):
    write_balls(tmp_path, NAMES)
    status, text = _check(capsys, "--data=datamodules.ShapeFolder", f"--data.root={tmp_path}")
    assert status == 0
    assert "train: 9 shapes, all readable" in text
    assert "val, test: 1 shapes, all readable" in text


def test_damaged_shapes_are_counted_and_listed(tmp_path, capsys):
    write_balls(tmp_path, NAMES)
    (tmp_path / "ball3.safetensors").write_bytes(b"")
    path = tmp_path / "ball5.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32("nan").tobytes()
    path.write_bytes(content)
    args = ("--data=datamodules.ShapeFolder", f"--data.root={tmp_path}")
    status, text = _check(capsys, *args, f"--csv={tmp_path / 'problems.csv'}")
    assert status == 1
    assert "2 unreadable" in text
    assert "on_bad_shape skip" in text
    with (tmp_path / "problems.csv").open(newline="") as file:
        paths = {row["path"] for row in csv.DictReader(file)}
    assert paths == {str(tmp_path / f"ball{index}.safetensors") for index in (3, 5)}
    status, text = _check(capsys, *args, "--decode=false")  # headers do not show NaN
    assert "1 unreadable" in text


def test_missing_files_of_deep_sdf_and_dropped_rows_are_counted(tmp_path, capsys):
    write_deep_sdf(tmp_path, {"train": ["a", "b", "c"], "test": ["d"]})
    folder = tmp_path / "SdfSamples" / "Set" / "balls"
    (folder / "b.npz").unlink()
    with np.load(folder / "d.npz") as file:
        pos, neg = file["pos"], file["neg"]
    pos[:7, 0] = np.nan
    np.savez(folder / "d.npz", pos=pos, neg=neg)
    splits = [f"--data.{split}_split={tmp_path / split}.json" for split in ("train", "test")]
    status, text = _check(capsys, "--data=datamodules.DeepSDF", f"--data.root={tmp_path}", *splits)
    assert status == 1
    assert "train: 3 shapes, 1 unreadable" in text
    assert "val, test: 1 shapes, all readable" in text
    assert "Set/balls/b has no samples" in text
    assert "NaN: 7 rows with NaN dropped in 1 shapes" in text


def test_missing_splits_end_the_check(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--data=datamodules.DeepSDF", f"--data.root={tmp_path}"])
    assert exit_info.value.code == 1
    assert "train_split is None" in capsys.readouterr().err

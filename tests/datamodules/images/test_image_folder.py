"""Folders of images: splits by folder or at random, crops, and training through the command line."""

import numpy as np
import pytest
import torch
from PIL import Image
from program import refused, run, tiny

from datamodules.images.image_folder import ImageFolder
from datamodules.storage.images import read_image


def fill(folder, count, size=(40, 30), kind="png"):
    """Write images of a constant colour with ``size`` rows and columns, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.full((*size, 3), 5 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.{kind}")
    return folder


def names(data, split):
    """Return the image names of a split."""
    return [file.name for file in data.files(split)]


def test_a_random_split_has_the_requested_ratios(tmp_path):
    fill(tmp_path / "a", 15)
    fill(tmp_path / "b", 15)
    data = ImageFolder(str(tmp_path), val_ratio=0.2, test_ratio=0.1)
    splits = [names(data, split) for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [21, 6, 3]
    assert sorted(name for split in splits for name in split) == sorted(
        f"{folder}/{number:03d}.png" for folder in "ab" for number in range(15)
    )
    assert all(split == sorted(split) for split in splits)


def test_a_random_split_depends_only_on_seed_and_names(tmp_path):
    folder, copy = (fill(tmp_path / name, 20) for name in ("folder", "copy"))
    first, same, other = (
        names(ImageFolder(str(root), split_seed=seed), "val") for root, seed in ((folder, 0), (copy, 0), (folder, 1))
    )
    assert first == same != other
    before = set(names(ImageFolder(str(folder), val_ratio=0.5), "val"))
    (folder / "001.png").unlink()
    after = set(names(ImageFolder(str(folder), val_ratio=0.5), "val"))
    assert len(before - after) <= 1  # the others keep their split


def test_validation_images_are_tested_if_test_ratio_is_zero(tmp_path):
    data = ImageFolder(str(fill(tmp_path, 10)), val_ratio=0.3)
    assert names(data, "test") == names(data, "val")
    assert len(names(data, "train")) == 7


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train", "val", "test"), (3, 2, 1)),
        (("train", "validation"), (3, 2, 2)),
        (("training", "test"), (3, 2, 2)),
    ],
    ids=str,
)
def test_folders_named_after_splits_define_the_splits(tmp_path, folders, expected):
    for folder, count in zip(folders, (3, 2, 1), strict=False):
        fill(tmp_path / folder / "deeper", count)
    data = ImageFolder(str(tmp_path))
    assert tuple(len(names(data, split)) for split in ("train", "val", "test")) == expected
    assert names(data, "train")[0] == "deeper/000.png"


def test_a_single_folder_train_does_not_define_a_split(tmp_path):
    fill(tmp_path / "train", 10)
    data = ImageFolder(str(tmp_path))
    assert len(names(data, "train")) == 9
    assert names(data, "val")[0].startswith("train/")


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (3, 16, 16)),
        ({"crop": "random"}, (3, 38, 29)),  # int(29 * 40 / 30)
        ({"crop": "random", "crop_scale": None}, (3, 40, 30)),
        ({"crop": "random", "crop_scale": 1.0}, (3, 21, 16)),
        ({"flip": True}, (3, 16, 16)),
    ],
    ids=str,
)
def test_training_images_are_resized_for_their_crops(tmp_path, options, shape):
    data = ImageFolder(str(fill(tmp_path / "images", 4)), size=16, cache=None, batch_size=2, **options)
    data.setup("fit")
    assert tuple(data.train_set[0].values.shape) == shape
    assert tuple(data.val_set[0].values.shape) == (3, 16, 16)
    batch = data.to_coordinates(next(iter(data.train_dataloader())))
    assert batch.observation.signal.shape == (2, 3, 16, 16)


def test_small_images_are_enlarged_for_crops(tmp_path):
    data = ImageFolder(str(fill(tmp_path, 3, (5, 9))), size=16, crop="random", crop_scale=None, cache=None)
    assert data.preparation("train")(read_image(tmp_path / "000.png").pixels).shape == (3, 16, 28)


def test_central_crops_are_flipped_too(tmp_path):
    gradient = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, :, None] * 9, (16, 16, 3))
    for number in range(12):
        Image.fromarray(gradient).save(tmp_path / f"{number}.png")
    data = ImageFolder(str(tmp_path), size=16, flip=True, cache=None, batch_size=10)
    data.setup("fit")
    signals = data.to_coordinates(next(iter(data.train_dataloader()))).observation.signal
    assert {bool(signal[0, 0, 0] < signal[0, 0, -1]) for signal in signals} == {True, False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_ratio": 0.0}, "val_ratio is 0.0"),
        ({"val_ratio": 0.6, "test_ratio": 0.5}, "test_ratio 0.5"),
        ({"crop_scale": 0.9}, "crop_scale is 0.9"),
        ({"size": 0}, "size is 0"),
    ],
    ids=str,
)
def test_arguments_out_of_range_raise_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(**options)


def test_a_missing_or_empty_folder_raises_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere: set --data\.init_args\.root"):
        ImageFolder(str(tmp_path / "nowhere")).setup("fit")
    with pytest.raises(ValueError, match="contains no images"):
        ImageFolder(str(tmp_path)).setup("fit")


@pytest.mark.slow
def test_the_command_line_trains_and_tests_on_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(10):
        pixels = torch.randint(0, 256, (24, 20, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(images / f"{number}.jpg")
    data = ["--data=datamodules.ImageFolder", "--data.root=images", "--data.size=8", "--data.batch_size=3"]
    args = [*tiny("ipc"), *data, "--data.crop=random", "--data.cache=cache", "--data.num_workers=1"]
    printed = run("fit", *args)
    assert "ImageFolder (3, 8, 8), 9 training and 1 validation items" in printed
    assert "at random with split_seed 0" in printed
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert "Mean over 1 instances" in run("test", *args, "--ckpt_path", "last")


def test_an_unreadable_image_in_a_worker_is_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "images" / "train", 6)
    fill(tmp_path / "images" / "val", 1)
    (tmp_path / "images" / "train" / "003.png").write_bytes(b"\x89PNG")
    data = ["--data=datamodules.ImageFolder", "--data.root=images", "--data.size=8", "--data.batch_size=3"]
    message = refused("fit", *tiny("ipc"), *data, "--data.cache=null", "--data.num_workers=1")
    assert "003.png is not an image" in message
    assert "--data.init_args.on_bad_file skip" in message

"""Anybody's images: splits by folders or drawn, crops, and the program on them."""

import numpy as np
import pytest
import torch
from PIL import Image
from program import refused, run, tiny

from datamodules.images.image_folder import ImageFolder
from datamodules.storage.images import read_image


def fill(folder, count, size=(40, 30), kind="png"):
    """Write images of one colour each, ``size`` rows and columns."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.full((*size, 3), 5 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.{kind}")
    return folder


def names(data, split):
    """Return the names of a split."""
    return [file.name for file in data.files(split)]


def test_a_folder_is_split_by_a_draw_that_has_exact_parts(tmp_path):
    fill(tmp_path / "a", 15)
    fill(tmp_path / "b", 15)
    data = ImageFolder(str(tmp_path), val_ratio=0.2, test_ratio=0.1)
    splits = [names(data, split) for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [21, 6, 3]
    assert sorted(name for split in splits for name in split) == sorted(
        f"{folder}/{number:03d}.png" for folder in "ab" for number in range(15)
    )
    assert all(split == sorted(split) for split in splits)


def test_the_draw_depends_on_the_seed_and_the_names_alone(tmp_path):
    here, there = (fill(tmp_path / name, 20) for name in ("here", "there"))
    first, again, other = (
        names(ImageFolder(str(folder), split_seed=seed), "val") for folder, seed in ((here, 0), (there, 0), (here, 1))
    )
    assert first == again != other
    before = set(names(ImageFolder(str(here), val_ratio=0.5), "val"))
    (here / "001.png").unlink()
    after = set(names(ImageFolder(str(here), val_ratio=0.5), "val"))
    assert len(before - after) <= 1  # the others stay where they are


def test_without_a_ratio_for_the_test_validation_serves(tmp_path):
    data = ImageFolder(str(fill(tmp_path, 10)), val_ratio=0.3)
    assert names(data, "test") == names(data, "val")
    assert len(names(data, "train")) == 7


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        (("train", "val", "test"), (3, 2, 1)),
        (("train", "validation"), (3, 2, 2)),
        (("training", "test"), (3, 2, 2)),
    ],
    ids=str,
)
def test_folders_named_after_splits_are_the_splits(tmp_path, folders, found):
    for folder, count in zip(folders, (3, 2, 1), strict=False):
        fill(tmp_path / folder / "deeper", count)
    data = ImageFolder(str(tmp_path))
    assert tuple(len(names(data, split)) for split in ("train", "val", "test")) == found
    assert names(data, "train")[0] == "deeper/000.png"


def test_a_folder_train_alone_is_no_split(tmp_path):
    fill(tmp_path / "train", 10)
    data = ImageFolder(str(tmp_path))
    assert len(names(data, "train")) == 9
    assert names(data, "val")[0].startswith("train/")


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (3, 16, 16)),
        ({"crop": "random"}, (3, 39, 29)),
        ({"crop": "random", "crop_scale": None}, (3, 40, 30)),
        ({"crop": "random", "crop_scale": 1.0}, (3, 21, 16)),
        ({"flip": True}, (3, 16, 16)),
    ],
    ids=str,
)
def test_training_images_are_prepared_for_their_crops(tmp_path, options, shape):
    data = ImageFolder(str(fill(tmp_path / "here", 4)), size=16, cache=None, batch_size=2, **options)
    data.setup("fit")
    wanted = (3, 38, 29) if shape == (3, 39, 29) else shape  # int(29 * 40 / 30)
    assert tuple(data.train_set[0].values.shape) == wanted
    assert tuple(data.val_set[0].values.shape) == (3, 16, 16)
    batch = data.to_coordinates(next(iter(data.train_dataloader())))
    assert batch.observation.signal.shape == (2, 3, 16, 16)


def test_small_images_are_enlarged_for_crops(tmp_path):
    data = ImageFolder(str(fill(tmp_path, 3, (5, 9))), size=16, crop="random", crop_scale=None, cache=None)
    assert data.preparation("train")(read_image(tmp_path / "000.png").pixels).shape == (3, 16, 28)


def test_flips_happen_with_central_crops_too(tmp_path):
    gradient = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, :, None] * 9, (16, 16, 3))
    for number in range(12):
        Image.fromarray(gradient).save(tmp_path / f"{number}.png")
    data = ImageFolder(str(tmp_path), size=16, flip=True, cache=None, batch_size=10)
    data.setup("fit")
    signals = data.to_coordinates(next(iter(data.train_dataloader()))).observation.signal
    rising = {bool(signal[0, 0, 0] < signal[0, 0, -1]) for signal in signals}
    assert rising == {True, False}


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
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(**options)


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere: set --data\.init_args\.root"):
        ImageFolder(str(tmp_path / "nowhere")).setup("fit")
    with pytest.raises(ValueError, match="contains no images"):
        ImageFolder(str(tmp_path)).setup("fit")


@pytest.mark.slow
def test_the_program_trains_and_tests_on_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(10):
        pixels = torch.randint(0, 256, (24, 20, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(images / f"{number}.jpg")
    data = ["--data=datamodules.ImageFolder", "--data.root=images", "--data.size=8", "--data.batch_size=3"]
    told = [*tiny("ipc"), *data, "--data.crop=random", "--data.cache=cache", "--data.num_workers=1"]
    printed = run("fit", *told)
    assert "ImageFolder (3, 8, 8), 9 training and 1 validation items" in printed
    assert "at random with split_seed 0" in printed
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert "Mean over 1 instances" in run("test", *told, "--ckpt_path", "last")


def test_the_program_names_a_image_that_a_worker_cannot_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "images" / "train", 6)
    fill(tmp_path / "images" / "val", 1)
    (tmp_path / "images" / "train" / "003.png").write_bytes(b"\x89PNG")
    data = ["--data=datamodules.ImageFolder", "--data.root=images", "--data.size=8", "--data.batch_size=3"]
    message = refused("fit", *tiny("ipc"), *data, "--data.cache=null", "--data.num_workers=1")
    assert "003.png is no image" in message
    assert "--data.init_args.on_bad_file skip" in message

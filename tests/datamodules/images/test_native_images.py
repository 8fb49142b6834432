"""Images at their own resolution, of every data set of images, with and without a cache."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import datamodules
from datamodules import DIV2K, FFHQ, CelebA, ImageFolder, ImageNette, SamplePhotos, SRBenchmark, SuperResolution
from datamodules.images.base import ImageSet
from datamodules.images.native import NativeImages
from datamodules.storage.images import read_image

TALL, WIDE = (30, 20), (22, 40)  # rows and columns

# Files of training and of testing, and arguments, of every data set of image files.
LAYOUTS = {
    ImageNette: (
        ["imagenette/imagenette2-320/train/n01/a.png", "imagenette/imagenette2-320/train/n02/b.png"],
        ["imagenette/imagenette2-320/val/n01/c.png", "imagenette/imagenette2-320/val/n01/d.png"],
        {"partial": True},
    ),
    CelebA: (
        ["celeba/000001.jpg", "celeba/000002.jpg"],
        ["celeba/182638.jpg", "celeba/182639.jpg"],
        {"partial": True},
    ),
    FFHQ: (["ffhq/00000.png", "ffhq/00001.png"], ["ffhq/60000.png", "ffhq/60001.png"], {"partial": True}),
    ImageFolder: (["train/a.png", "train/b.png"], ["val/c.png", "val/d.png"], {"crop": "random"}),
    DIV2K: (
        ["div2k/DIV2K_train_HR/0001.png", "div2k/DIV2K_train_HR/0002.png"],
        ["div2k/DIV2K_valid_HR/0801.png", "div2k/DIV2K_valid_HR/0802.png"],
        {"partial": True, "low_resolution": False},
    ),
    SRBenchmark: ([], ["Set5/HR/baby.png", "Set5/HR/bird.png"], {"partial": True}),
}
SPLITS = [(kind, split) for kind, (train, *_) in LAYOUTS.items() for split in (["train"] if train else []) + ["test"]]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder, with published sizes that the small images do not have left out."""
    monkeypatch.chdir(tmp_path)
    for kind in (CelebA, FFHQ):
        monkeypatch.setattr(kind, "shape", None)


def _write(path, size, seed, mode="RGB"):
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def _put(kind):
    """Write the images of a data set and return their paths by split."""
    train, test, _ = LAYOUTS[kind]
    for files in (train, test):
        for seed, (file, size) in enumerate(zip(files, (TALL, WIDE), strict=False)):
            _write(Path("data", file), size, seed)
    return {"train": [Path("data", file) for file in train], "test": [Path("data", file) for file in test]}


def _data(kind, **arguments):
    """Return a data module with images of 16 pixels in its own use."""
    return kind(**{"root": "data", "size": 16, "cache": None} | LAYOUTS[kind][2] | arguments)


def _items(images):
    """Return all items of a data set."""
    return [images[index] for index in range(len(images))]


def test_every_data_set_of_image_files_is_tested():
    kinds = {getattr(datamodules, name) for name in datamodules.__all__}
    files = {kind for kind in kinds if issubclass(kind, ImageSet) and not inspect.isabstract(kind)}
    assert files == set(LAYOUTS)
    assert {kind for kind in kinds if issubclass(kind, NativeImages)} == {*LAYOUTS, SamplePhotos}


@pytest.mark.parametrize("cache", [None, "data/cache"])
@pytest.mark.parametrize(("kind", "split"), SPLITS)
def test_images_keep_their_own_size(kind, split, cache):
    paths = _put(kind)[split]
    data = _data(kind, cache=cache)
    data.prepare_native([split])
    items = _items(data.native_images(split))
    assert [tuple(item.values.shape) for item in items] == [(3, *TALL), (3, *WIDE)]
    for item, path in zip(items, paths, strict=True):
        assert path.as_posix().endswith(item.name)
        assert item.values.dtype == torch.uint8
        assert torch.equal(item.values, read_image(path).pixels)


@pytest.mark.parametrize("cache", [None, "data/cache"])
@pytest.mark.parametrize(("kind", "split"), SPLITS)
def test_unreadable_images_are_skipped_or_raise_an_error(kind, split, cache):
    paths = _put(kind)[split]
    paths[0].write_bytes(paths[0].read_bytes()[:60])
    data = _data(kind, cache=cache, on_bad_file="skip")
    [item] = _items(data.native_images(split))
    assert torch.equal(item.values, read_image(paths[1]).pixels)
    assert list(data.skipped) == [str(paths[0])]
    with pytest.raises(ValueError, match=paths[0].name):
        _items(_data(kind, cache=cache).native_images(split))


def test_skipped_images_are_reported_and_left_out_of_super_resolution(capsys):
    paths = _put(ImageFolder)
    paths["train"][0].write_bytes(b"")
    paths["test"][1].write_bytes(b"")
    data = SuperResolution(_data(ImageFolder, on_bad_file="skip"), size=8, num_queries=16, val_scales=[2], repeat=3)
    data.prepare_data()
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (3, 1)
    assert set(data.skipped) == {str(paths["train"][0]), str(paths["test"][1])}
    assert "Skipped 2 unreadable images" in capsys.readouterr().err


def test_square_crops_are_not_cached_for_super_resolution(monkeypatch):
    _put(ImageFolder)
    images = _data(ImageFolder, cache="data/cache")
    monkeypatch.setattr(images, "images", None)  # which returns square crops
    data = SuperResolution(images, size=8, num_queries=16)
    data.prepare_data()
    assert len(list(Path("data/cache").glob("*/index.json"))) == 2
    data.setup("fit")
    assert data.train_set[0].values.shape == (3, *TALL)


def test_bundled_photographs_need_no_preparation():
    data = SuperResolution(SamplePhotos(size=32), size=8, num_queries=16)
    data.prepare_data()
    data.setup("validate")
    assert len(data.val_set) == 4
    assert list(Path().iterdir()) == []


def _converted():
    """Write images of unusual formats, and return their pixels in 8-bit RGB by name."""
    folder = Path("data/val")
    rgb = np.random.default_rng(0).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    grey, alpha = rgb[..., 0], rgb[..., 1]
    deep = grey.astype(np.uint16) * 257
    expected = {}
    for name, image in {
        "grey.png": Image.fromarray(grey),
        "deep.png": Image.fromarray(deep),
        "alpha.png": Image.fromarray(np.dstack([rgb, alpha])),
        "cmyk.tif": Image.fromarray(rgb).convert("CMYK"),
    }.items():
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
        expected[name] = np.dstack([grey] * 3)
    opacity = alpha[..., None] / 255
    expected["alpha.png"] = rgb * opacity + 255 * (1 - opacity)
    expected["cmyk.tif"] = rgb
    return expected


@pytest.mark.parametrize("cache", [None, "data/cache"])
def test_grey_deep_transparent_and_cmyk_images_are_converted(cache):
    expected = _converted()
    _write(Path("data/train/a.png"), TALL, 1)
    images = _data(ImageFolder, cache=cache)
    data = SuperResolution(images, size=6, num_queries=16, val_scales=[2])
    data.prepare_data()
    data.setup("validate")
    pairs = {pair.name.removesuffix("-x2"): pair for pair in (data.val_set[index] for index in range(4))}
    assert pairs.keys() == expected.keys()
    for name, pair in pairs.items():
        assert (tuple(pair.low.shape), tuple(pair.high.shape)) == ((3, 6, 7), (3, 12, 14))
        difference = pair.high.permute(1, 2, 0).double() - torch.from_numpy(np.array(expected[name], dtype=float))
        assert difference.abs().max() <= 1

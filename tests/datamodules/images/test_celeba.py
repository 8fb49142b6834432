"""CelebA in folders and from a local server: folder layouts, the split by number, and errors."""

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from server import serving

from datamodules import CelebA
from datamodules.storage.download import Source

LAYOUTS = (
    "celeba/img_align_celeba",
    "img_align_celeba/img_align_celeba",
    "img_align_celeba",
    "CelebA_aligned",
    "celeba",
)
NUMBERS = {"train": range(1, 6), "val": range(6, 8), "test": range(8, 11)}
NAMES = {split: [f"{number:06}.jpg" for number in numbers] for split, numbers in NUMBERS.items()}


def _jpeg(seed, width=178, height=218):
    """Return a JPEG with an asymmetric pattern; every third is grey."""
    noise = torch.randint(256, (3, 10, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    image = Image.fromarray(noise.permute(1, 2, 0).numpy()).resize((width, height))
    content = io.BytesIO()
    (image.convert("L") if seed % 3 == 0 else image).save(content, "JPEG")
    return content.getvalue()


FILES = {f"{number:06}.jpg": _jpeg(number) for number in range(1, 11)}


def _zip():
    """Return an archive with the published layout."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in FILES.items():
            archive.writestr(f"img_align_celeba/{name}", data)
    return content.getvalue()


ARCHIVE = _zip()


def _put(folder, files=FILES):
    """Write images into a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        Path(folder, name).write_bytes(data)


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch):
    """Work in an empty folder, reduce CelebA to ten images, and return a local server that provides them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(CelebA, "numbers", NUMBERS)
    with serving() as site:
        url = site.put("/celeba.zip", ARCHIVE)
        source = Source(url, "img_align_celeba.zip", f"md5:{hashlib.md5(ARCHIVE).hexdigest()}")
        monkeypatch.setattr(CelebA, "source", source)
        yield site


def _ready(stage="fit", **arguments):
    """Return the data module after the calls of the trainer."""
    data = CelebA(**{"size": 24, "cache": None} | arguments)
    data.prepare_data()
    data.setup(stage)
    return data


def _items(dataset):
    """Return the pixels of all images by name."""
    return {item.name: item.values for item in (dataset[index] for index in range(len(dataset)))}


def _setup_error(kind=ValueError, **arguments):
    """Return the error message of setting up the data module."""
    with pytest.raises(kind) as raised:
        _ready(**arguments)
    return str(raised.value)


def test_counts_source_and_shape_are_the_published_ones(monkeypatch):
    monkeypatch.undo()
    data = CelebA()
    names = {split: data.expected(split) for split in ("train", "val", "test")}
    assert {split: len(expected) for split, expected in names.items()} == {"train": 162770, "val": 19867, "test": 19962}
    assert {split: data.count(split) for split in names} == {"train": 162770, "val": 19867, "test": 19962}
    all_names = [name for split_names in names.values() for name in split_names]
    assert all_names == [f"{number:06}.jpg" for number in range(1, 202600)]
    assert data.source.filename == "img_align_celeba.zip"
    assert data.source.checksum == "md5:00d2c5bc6d35e252742224ab0c1e8fcb"
    assert data.source.url == "https://s3-us-west-1.amazonaws.com/udacity-dlnfd/datasets/celeba.zip"
    assert data.shape == (218, 178)
    assert data.signal_shape == (3, 178, 178)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_detected_and_split_by_number(site, layout):
    _put(f"data/{layout}")
    data = _ready()
    assert list(_items(data.train_set)) == NAMES["train"]
    assert list(_items(data.val_set)) == NAMES["val"]
    data.setup("test")
    assert list(_items(data.test_set)) == NAMES["test"]
    assert [path for _, path in data.files("train")] == [Path("data", layout, name) for name in NAMES["train"]]
    assert site.requests == []


def test_layouts_are_searched_in_order():
    for layout in LAYOUTS:
        _put(f"data/{layout}")
    for layout in LAYOUTS:
        assert {path.parent for _, path in CelebA().files("val")} == {Path("data", layout)}
        for name in FILES:
            Path("data", layout, name).unlink()


def test_folders_without_numbered_images_are_ignored():
    _put("data/celeba", {"list_eval_partition.txt": b"", "12345.jpg": b"", "000001.jpg.txt": b"", "face.jpg": b""})
    _put("data/CelebA_aligned")
    assert {path.parent.name for _, path in CelebA().files("test")} == {"CelebA_aligned"}


def test_validation_can_use_the_test_split():
    _put("data/celeba")
    data = _ready(validation="test")
    assert list(_items(data.val_set)) == NAMES["test"]
    assert data.count("val") == 3
    data.setup("test")
    assert list(_items(data.test_set)) == NAMES["test"]


@pytest.mark.parametrize("cache", [None, "data/cache"])
def test_training_and_validation_use_the_central_square(cache):
    _put("data/celeba")
    data = _ready(cache=cache, size=178)
    for name, values in (_items(data.train_set) | _items(data.val_set)).items():
        image = Image.open(io.BytesIO(FILES[name])).convert("RGB").crop((0, 20, 178, 198))
        assert values.permute(1, 2, 0).numpy().tobytes() == image.tobytes()
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(data.to_coordinates(batch).observation.signal[1], data.val_set[1].values / 255)
    small = _ready(cache=cache, size=50)
    for name, values in (_items(small.train_set) | _items(small.val_set)).items():
        image = Image.open(io.BytesIO(FILES[name])).convert("RGB").resize((50, 61), Image.Resampling.BILINEAR)
        assert values.permute(1, 2, 0).numpy().tobytes() == image.crop((0, 6, 50, 56)).tobytes()  # round(5.5) is 6


def test_the_archive_is_downloaded_once(site):
    assert list(_items(_ready().train_set)) == NAMES["train"]
    assert list(_items(_ready("test").test_set)) == NAMES["test"]
    assert len(site.requests) == 1
    assert Path("data/img_align_celeba/img_align_celeba/000010.jpg").read_bytes() == FILES["000010.jpg"]


@pytest.mark.parametrize(
    ("failure", "kind", "expected"),
    [("gone", ConnectionError, "answered 404"), ("page", ValueError, "sent a web page, not the file")],
)
def test_a_failing_mirror_raises_an_error_with_the_official_source(site, failure, kind, expected):
    if failure == "gone":
        site.pages.clear()
    else:
        site.pages["/celeba.zip"].body = b"<!DOCTYPE html>too many"
    message = _setup_error(kind, root="sets")
    official = "https://drive.google.com/drive/folders/0B7EVK8r0v71pTUZsaXdaSnZBZzg"
    archive = f"img_align_celeba.zip ({CelebA.source.checksum})"
    for part in (expected, official, archive, "to sets/img_align_celeba.zip."):
        assert part in message
    assert list(Path("sets").iterdir()) == []


def test_an_existing_archive_is_unpacked_without_a_download(site):
    _put("data", {"img_align_celeba.zip": ARCHIVE})
    assert len(_ready(download=False).train_set) == 5
    assert site.requests == []


def test_missing_images_raise_an_error_with_folders_and_fixes(site):
    message = _setup_error(download=False)
    places = ", ".join(f"data/{layout}" for layout in LAYOUTS)
    for part in (f"none of {places} contains", "download true", "drive.google.com", "to data/img_align_celeba.zip"):
        assert part in message
    assert site.requests == []


def test_incomplete_splits_raise_an_error_unless_partial():
    _put("data/celeba")
    Path("data/celeba/000003.jpg").unlink()
    message = _setup_error()
    for part in ("4 images for split train", "5 are expected", "partial true"):
        assert part in message
    assert list(_items(_ready(partial=True).train_set)) == [name for name in NAMES["train"] if name != "000003.jpg"]


def test_images_of_the_wrong_size_raise_an_error():
    _put("data/celeba", {name: _jpeg(1, 218, 178) for name in FILES})
    message = _setup_error()
    for part in ("data/celeba/000001.jpg has 178 x 218 pixels", "218 x 178"):
        assert part in message

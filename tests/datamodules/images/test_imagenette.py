"""ImageNette from a local server: a small archive with the published layout, its splits, and training crops."""

import hashlib
import io
import math
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from program import REPOSITORY, TESTS, column, rows, run
from server import serving, unused_port

from datamodules import ImageNette
from datamodules.loading import Addressed, AddressSampler
from datamodules.storage.download import Source, download

SIZE = 16
# Mode, width and height of each image; one is smaller than the crops.
TRAIN = {
    "n01440764/n01440764_10026.JPEG": ("RGB", 43, 32),
    "n01440764/ILSVRC2012_val_00000293.JPEG": ("L", 32, 39),
    "n01440764/n01440764_9.JPEG": ("RGB", 32, 32),
    "n02102040/n02102040_1.JPEG": ("CMYK", 35, 32),
    "n02102040/n02102040_2.JPEG": ("RGB", 12, 17),
    "n03888257/n03888257_7.JPEG": ("RGB", 32, 51),
    "n03888257/n03888257_8.JPEG": ("RGB", 44, 33),
}
VAL = {
    "n01440764/n01440764_10040.JPEG": ("RGB", 45, 32),
    "n01440764/n01440764_30.JPEG": ("RGB", 12, 11),
    "n02102040/n02102040_22.JPEG": ("CMYK", 32, 41),
    "n03888257/n03888257_31.JPEG": ("L", 37, 32),
}
SPLITS = {"train": TRAIN, "val": VAL}
LAYOUTS = ("imagenette/imagenette2-320", "imagenette", "imagenette2-320", ".")


def _jpeg(mode, width, height, seed):
    """Return a JPEG of noise."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(256, (width * height * bands,), generator=generator, dtype=torch.uint8)
    content = io.BytesIO()
    Image.frombytes(mode, (width, height), noise.numpy().tobytes()).save(content, "JPEG", quality=90)
    return content.getvalue()


FILES = {
    f"{split}/{name}": _jpeg(*kind, seed)
    for split, images in SPLITS.items()
    for seed, (name, kind) in enumerate(images.items())
}


def _archive(**others):
    """Return a .tgz with the published layout and further members."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in [*((f"imagenette2-320/{name}", data) for name, data in FILES.items()), *others.items()]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


ARCHIVE = _archive()


def _put(folder):
    """Write the images below a folder."""
    for name, data in FILES.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _source(url, content=ARCHIVE):
    """Return the `Source` of an archive."""
    return Source(url, "imagenette2-320.tgz", f"md5:{hashlib.md5(content).hexdigest()}")


@pytest.fixture(autouse=True)
def _miniature(tmp_path, monkeypatch):
    """Work in an empty folder, reduce ImageNette to a few images, and disable the network and pauses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(download.__kwdefaults__, "pause", lambda seconds: None)
    monkeypatch.setattr(ImageNette, "published", {"train": len(TRAIN), "val": len(VAL), "test": len(VAL)})
    monkeypatch.setattr(ImageNette, "source", _source(f"http://127.0.0.1:{unused_port()}/a"))


@pytest.fixture
def site(monkeypatch):
    """Return a local server that provides the archive."""
    with serving() as site:
        monkeypatch.setattr(ImageNette, "source", _source(site.put("/imagenette2-320.tgz", ARCHIVE)))
        yield site


@pytest.fixture
def placed():
    """Write the images into the default folder."""
    _put("data/imagenette/imagenette2-320")


def _ready(stage="fit", **arguments):
    """Return the data module after the calls of the trainer."""
    data = ImageNette(**{"size": SIZE, "cache": None, "batch_size": 2} | arguments)
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


def _decoded(split, name):
    """Return an image as decoded by Pillow."""
    return Image.open(io.BytesIO(FILES[f"{split}/{name}"])).convert("RGB")


def _scaled(image, short_side):
    """Return an image with the given shorter side, resized as published."""
    width, height = image.size
    if width <= height:
        return image.resize((short_side, short_side * height // width), Image.Resampling.BILINEAR)
    return image.resize((short_side * width // height, short_side), Image.Resampling.BILINEAR)


def _values(image):
    """Return an image as ``(3, H, W)``, pixel by pixel."""
    width, height = image.size
    pixels = [[image.getpixel((x, y)) for x in range(width)] for y in range(height)]
    return torch.tensor(pixels, dtype=torch.uint8).permute(2, 0, 1)


def _center(image):
    """Return the central square of an image."""
    left, top = (round((extent - SIZE) / 2) for extent in image.size)
    return _values(image.crop((left, top, left + SIZE, top + SIZE)))


def _crops(data, epoch=0, world_size=1):
    """Return the training crops of an epoch by name, collected from all processes."""
    crops = {}
    for rank in range(world_size):
        sampler = AddressSampler(len(data.train_set), shuffle=True, seed=0, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        items = Addressed(data.train_set, data.augmentation, 0)
        batch = data.to_coordinates(data.collate([items[address] for address in sampler]), training=True)
        crops |= dict(zip(batch.names, batch.observation.signal, strict=True))
    return crops


def test_counts_source_and_shape_are_the_published_ones(monkeypatch):
    monkeypatch.undo()
    assert ImageNette.published == {"train": 9469, "val": 3925, "test": 3925}
    assert ImageNette.source.url == "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz"
    assert ImageNette.source.filename == "imagenette2-320.tgz"
    assert ImageNette.source.checksum == "md5:3df6f0d01a2c9592104656642f5e78a3"
    assert ImageNette().signal_shape == (3, 178, 178)


@pytest.mark.parametrize("cache", [None, "data/cache"])
def test_the_archive_is_downloaded_once_and_split(site, cache):
    data = _ready(cache=cache)
    assert list(_items(data.train_set)) == sorted(TRAIN)
    assert list(_items(data.val_set)) == sorted(VAL)
    assert len(site.requests) == 1
    assert Path("data/imagenette2-320.tgz").read_bytes() == ARCHIVE
    assert Path("data/imagenette/imagenette2-320/train/n01440764/n01440764_9.JPEG").is_file()
    second = _ready("test", cache=cache)
    assert list(_items(second.test_set)) == sorted(VAL)
    Path("data/imagenette2-320.tgz").unlink()
    _ready(cache=cache)
    assert len(site.requests) == 1


def test_an_interrupted_download_is_resumed(site):
    site.pages["/imagenette2-320.tgz"].cuts = [1000]
    assert len(_ready().train_set) == len(TRAIN)
    assert site.ranges == [None, "bytes=1000-"]


def test_an_archive_with_a_wrong_checksum_is_not_unpacked(site):
    site.pages["/imagenette2-320.tgz"].body = ARCHIVE[:-1] + b"?"
    message = _setup_error()
    for part in (ImageNette.source.checksum, site.root, "data/imagenette2-320.tgz"):
        assert part in message
    assert list(Path("data").iterdir()) == []


def test_a_malicious_archive_is_not_unpacked(monkeypatch, tmp_path):
    content = _archive(**{"../evil.JPEG": b"evil"})
    monkeypatch.setattr(ImageNette, "source", _source("http://127.0.0.1/a", content))
    Path("data").mkdir()
    Path("data/imagenette2-320.tgz").write_bytes(content)
    assert "leads out of its folder" in _setup_error()
    remaining = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert remaining == {"data", "data/imagenette2-320.tgz", "data/imagenette2-320.tgz.verified"}


def test_a_failing_download_raises_an_error_with_the_source():
    message = _setup_error(ConnectionError)
    for part in ("127.0.0.1 cannot be reached", ImageNette.source.url, "as data/imagenette2-320.tgz"):
        assert part in message


def test_missing_images_raise_an_error_with_folders_and_fixes(site):
    message = _setup_error(download=False, root="sets")
    folders = "sets/imagenette/imagenette2-320, sets/imagenette, sets/imagenette2-320, sets contains"
    for part in (folders, "download true", ImageNette.source.url, "to sets/imagenette2-320.tgz"):
        assert part in message
    assert site.requests == []


def test_an_existing_archive_is_unpacked_without_a_download(site):
    Path("data").mkdir()
    Path("data/imagenette2-320.tgz").write_bytes(ARCHIVE)
    assert len(_ready(download=False).train_set) == len(TRAIN)
    assert site.requests == []


def test_an_unrelated_folder_at_the_target_raises_an_error():
    Path("data/imagenette").mkdir(parents=True)
    Path("data/imagenette/notes.txt").write_text("mine")
    Path("data/imagenette2-320.tgz").write_bytes(ARCHIVE)
    assert (
        "unpacked into data/imagenette; if that folder exists and contains something else, move it away"
        in _setup_error()
    )
    assert Path("data/imagenette/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_detected(layout):
    _put(f"data/{layout}")
    data = _ready()
    assert list(_items(data.train_set)) == sorted(TRAIN)
    assert {path for _, path in data.files("val")} == {Path("data", layout, "val", name) for name in VAL}


def test_layouts_are_searched_in_order():
    for layout in LAYOUTS:
        _put(f"data/{layout}")
    for layout in LAYOUTS:
        path = ImageNette().files("train")[0].path
        assert path == Path("data", layout, "train", min(TRAIN))
        path.parents[1].rename("elsewhere-" + layout.replace("/", "-"))


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_a_wrong_number_of_images_raises_an_error_unless_partial(placed, change):
    path = Path("data/imagenette/imagenette2-320/val", min(VAL))
    if change == "more":
        path.with_name("other.JPEG").write_bytes(path.read_bytes())
    else:
        path.unlink()
    count = len(VAL) + (1 if change == "more" else -1)
    message = _setup_error()
    for part in (f"{count} images for split val", f"{len(VAL)} are expected", "data", "partial true"):
        assert part in message
    assert len(_ready(partial=True).val_set) == count


@pytest.mark.parametrize("cache", [None, "data/cache"])
@pytest.mark.parametrize("evaluation", ["resized", "matched"])
def test_evaluation_uses_the_central_square(placed, cache, evaluation):
    items = _items(_ready("validate", cache=cache, evaluation=evaluation).val_set)
    assert len(items) == len(VAL)
    for name, values in items.items():
        image = _decoded("val", name)
        if evaluation == "resized" or min(image.size) < SIZE:
            image = _scaled(image, SIZE)
        assert torch.equal(values, _center(image))
    grey = items["n03888257/n03888257_31.JPEG"]
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])


@pytest.mark.parametrize("cache", [None, "data/cache"])
@pytest.mark.parametrize("flip", [True, False])
def test_training_uses_random_crops_at_the_original_resolution(placed, cache, flip):
    data = _ready(cache=cache, flip=flip)
    images = {name: _decoded("train", name) for name in TRAIN}
    images["n02102040/n02102040_2.JPEG"] = _scaled(images["n02102040/n02102040_2.JPEG"], SIZE)
    positions, num_flipped = set(), 0
    for epoch in range(6):
        crops = _crops(data, epoch)
        assert sorted(crops) == sorted(TRAIN)
        for name, crop in crops.items():
            windows = (
                (_values(images[name]) / 255).unfold(1, SIZE, 1).unfold(2, SIZE, 1)
            )  # (3, tops, lefts, SIZE, SIZE)
            matches = {
                (flipped, *position.tolist())
                for flipped, window in ((False, crop), (True, crop.flip(-1)))
                for position in (windows == window[:, None, None]).all(-1).all(-1).all(0).nonzero()
            }
            assert len(matches) == 1
            positions |= {(name, *position) for _, *position in matches}
            num_flipped += max(matches)[0]
    assert len(positions) > 30  # of 42
    assert 10 < num_flipped < 32 if flip else num_flipped == 0


def test_crops_depend_on_epoch_and_image_only(placed):
    data = _ready(partial=True, cache="data/cache")
    first, second = _crops(data), _crops(data, epoch=1)
    assert not any(torch.equal(first[name], second[name]) for name in first)
    Path("data/imagenette/imagenette2-320/train", max(TRAIN)).unlink()  # six images are divisible by 2 and 3
    expected = _crops(_ready(partial=True))
    for world_size in (2, 3):
        actual = _crops(_ready(partial=True), world_size=world_size)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    batches = {}
    for num_workers in (0, 2):
        data = _ready(num_workers=num_workers, batch_size=3, partial=True)
        batches[num_workers] = [data.to_coordinates(batch, training=True) for batch in data.train_dataloader()]
    assert [len(loaded) for loaded in batches.values()] == [2, 2]
    for batch, other in zip(*batches.values(), strict=True):
        assert batch.names == other.names
        assert torch.equal(batch.observation.signal, other.observation.signal)
        for name, crop in zip(batch.names, batch.observation.signal, strict=True):
            assert torch.equal(crop, expected[name])


def test_validation_and_test_use_the_same_images(placed):
    data = _ready("test")
    assert {file.path for file in data.files("test")} == {file.path for file in data.files("val")}
    assert data.preparation("test") == data.preparation("val")


def _experiment(path):
    """Write a config with the bundled data config and a tiny composer."""
    config = yaml.safe_load((TESTS / "configs" / "tiny.yaml").read_text())
    config["data"] = {"init_args": {"size": SIZE, "batch_size": 2, "coordinate_noise": "per_instance"}}
    bases = ("composers/transformer_ipc.yaml", "data/imagenette.yaml")
    config["_base_"] = [str(REPOSITORY / "configs" / name) for name in bases]
    Path(path).write_text(yaml.safe_dump(config))


def test_the_command_line_downloads_and_trains(site):
    _experiment("tiny.yaml")
    run("fit", "--config", "tiny.yaml", "--trainer.max_epochs", 2)
    table = Path("runs/unnamed/version_0/metrics.csv")
    assert max(int(row["step"]) for row in rows(table)) == 2 * (len(TRAIN) // 2) - 1
    assert len(column(table, "val/psnr")) == 2
    assert all(math.isfinite(value) for value in column(table, "val/psnr"))
    assert len(site.requests) == 1
    assert len(list(Path("data/cache").glob("imagenette-*/index.json"))) == 2

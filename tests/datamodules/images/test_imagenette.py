"""ImageNette from a server of this machine: the published layout in miniature, its splits, and what training sees of it."""

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
    """Return a .tgz of the published layout, and of other members."""
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


def _of(url, content=ARCHIVE):
    """Return a source of an archive."""
    return Source(url, "imagenette2-320.tgz", f"md5:{hashlib.md5(content).hexdigest()}")


@pytest.fixture(autouse=True)
def _miniature(tmp_path, monkeypatch):
    """Let few images be all of ImageNette, in an empty folder and without network or pauses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(download.__kwdefaults__, "pause", lambda seconds: None)
    monkeypatch.setattr(ImageNette, "published", {"train": len(TRAIN), "val": len(VAL), "test": len(VAL)})
    monkeypatch.setattr(ImageNette, "source", _of(f"http://127.0.0.1:{unused_port()}/a"))


@pytest.fixture
def site(monkeypatch):
    """Return a server that has the archive."""
    with serving() as site:
        monkeypatch.setattr(ImageNette, "source", _of(site.put("/imagenette2-320.tgz", ARCHIVE)))
        yield site


@pytest.fixture
def placed():
    """Put the images where they are looked for."""
    _put("data/imagenette/imagenette2-320")


def _ready(stage="fit", **arguments):
    """Return the data set after what the trainer calls."""
    data = ImageNette(**{"size": SIZE, "cache": None, "batch_size": 2} | arguments)
    data.prepare_data()
    data.setup(stage)
    return data


def _items(dataset):
    return {item.name: item.values for item in (dataset[index] for index in range(len(dataset)))}


def _refusal(kind=ValueError, **arguments):
    """Return why the data set cannot be made ready."""
    with pytest.raises(kind) as caught:
        _ready(**arguments)
    return str(caught.value)


def _opened(split, name):
    """Return an image as Pillow reads it."""
    return Image.open(io.BytesIO(FILES[f"{split}/{name}"])).convert("RGB")


def _scaled(image, short_side):
    """Return an image with this shorter side, as published."""
    width, height = image.size
    if width <= height:
        return image.resize((short_side, short_side * height // width), Image.Resampling.BILINEAR)
    return image.resize((short_side * width // height, short_side), Image.Resampling.BILINEAR)


def _values(image):
    """Return an image as ``(3, H, W)``, pixel by pixel."""
    width, height = image.size
    pixels = [[image.getpixel((x, y)) for x in range(width)] for y in range(height)]
    return torch.tensor(pixels, dtype=torch.uint8).permute(2, 0, 1)


def _middle(image):
    """Return the square in the middle."""
    left, top = (round((extent - SIZE) / 2) for extent in image.size)
    return _values(image.crop((left, top, left + SIZE, top + SIZE)))


def _crops(data, epoch=0, world_size=1):
    """Return what training sees in an epoch, by name, together from several processes."""
    seen = {}
    for rank in range(world_size):
        sampler = AddressSampler(len(data.train_set), shuffle=True, seed=0, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        items = Addressed(data.train_set, data.augmentation, 0)
        batch = data.to_coordinates(data.collate([items[address] for address in sampler]), training=True)
        seen |= dict(zip(batch.names, batch.observation.signal, strict=True))
    return seen


def test_it_is_what_was_published(monkeypatch):
    monkeypatch.undo()
    assert ImageNette.published == {"train": 9469, "val": 3925, "test": 3925}
    assert ImageNette.source.url == "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz"
    assert ImageNette.source.filename == "imagenette2-320.tgz"
    assert ImageNette.source.checksum == "md5:3df6f0d01a2c9592104656642f5e78a3"
    assert ImageNette().signal_shape == (3, 178, 178)


@pytest.mark.parametrize("cache", [None, "data/cache"])
def test_it_is_downloaded_once_and_split(site, cache):
    data = _ready(cache=cache)
    assert list(_items(data.train_set)) == sorted(TRAIN)
    assert list(_items(data.val_set)) == sorted(VAL)
    assert len(site.requests) == 1
    assert Path("data/imagenette2-320.tgz").read_bytes() == ARCHIVE
    assert Path("data/imagenette/imagenette2-320/train/n01440764/n01440764_9.JPEG").is_file()
    again = _ready("test", cache=cache)
    assert list(_items(again.test_set)) == sorted(VAL)
    Path("data/imagenette2-320.tgz").unlink()
    _ready(cache=cache)
    assert len(site.requests) == 1


def test_a_download_that_breaks_off_goes_on(site):
    site.pages["/imagenette2-320.tgz"].cuts = [1000]
    assert len(_ready().train_set) == len(TRAIN)
    assert site.ranges == [None, "bytes=1000-"]


def test_another_archive_is_refused_and_not_unpacked(site):
    site.pages["/imagenette2-320.tgz"].body = ARCHIVE[:-1] + b"?"
    message = _refusal()
    for told in (ImageNette.source.checksum, site.root, "data/imagenette2-320.tgz"):
        assert told in message
    assert list(Path("data").iterdir()) == []


def test_a_hostile_archive_leaves_nothing(monkeypatch, tmp_path):
    content = _archive(**{"../evil.JPEG": b"evil"})
    monkeypatch.setattr(ImageNette, "source", _of("http://127.0.0.1/a", content))
    Path("data").mkdir()
    Path("data/imagenette2-320.tgz").write_bytes(content)
    assert "leads out of its folder" in _refusal()
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"data", "data/imagenette2-320.tgz", "data/imagenette2-320.tgz.verified"}


def test_without_network_it_says_what_to_fetch_by_hand():
    message = _refusal(ConnectionError)
    for told in ("127.0.0.1 cannot be reached", ImageNette.source.url, "as data/imagenette2-320.tgz"):
        assert told in message


def test_without_a_download_it_says_where_it_looked_and_the_way_out(site):
    message = _refusal(download=False, root="sets")
    places = "sets/imagenette/imagenette2-320, sets/imagenette, sets/imagenette2-320, sets has"
    for told in (places, "download true", ImageNette.source.url, "put it at sets/imagenette2-320.tgz"):
        assert told in message
    assert site.requests == []


def test_an_archive_that_was_put_there_is_unpacked_without_a_download(site):
    Path("data").mkdir()
    Path("data/imagenette2-320.tgz").write_bytes(ARCHIVE)
    assert len(_ready(download=False).train_set) == len(TRAIN)
    assert site.requests == []


def test_a_folder_in_the_way_is_named():
    Path("data/imagenette").mkdir(parents=True)
    Path("data/imagenette/notes.txt").write_text("mine")
    Path("data/imagenette2-320.tgz").write_bytes(ARCHIVE)
    assert "unpacked into data/imagenette; if that is there, and is something else, move it away" in _refusal()
    assert Path("data/imagenette/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found(layout):
    _put(f"data/{layout}")
    data = _ready()
    assert list(_items(data.train_set)) == sorted(TRAIN)
    assert {path for _, path in data.files("val")} == {Path("data", layout, "val", name) for name in VAL}


def test_layouts_have_an_order():
    for layout in LAYOUTS:
        _put(f"data/{layout}")
    for layout in LAYOUTS:
        found = ImageNette().files("train")[0].path
        assert found == Path("data", layout, "train", min(TRAIN))
        found.parents[1].rename("elsewhere-" + layout.replace("/", "-"))


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_another_count_is_refused_unless_that_is_wanted(placed, change):
    path = Path("data/imagenette/imagenette2-320/val", min(VAL))
    if change == "more":
        path.with_name("other.JPEG").write_bytes(path.read_bytes())
    else:
        path.unlink()
    count = len(VAL) + (1 if change == "more" else -1)
    message = _refusal()
    for told in (f"{count} images of the split val", f"{len(VAL)}", "data", "partial true"):
        assert told in message
    assert len(_ready(partial=True).val_set) == count


@pytest.mark.parametrize("cache", [None, "data/cache"])
@pytest.mark.parametrize("evaluation", ["resized", "matched"])
def test_evaluation_sees_the_square_in_the_middle(placed, cache, evaluation):
    items = _items(_ready("validate", cache=cache, evaluation=evaluation).val_set)
    assert len(items) == len(VAL)
    for name, values in items.items():
        image = _opened("val", name)
        if evaluation == "resized" or min(image.size) < SIZE:
            image = _scaled(image, SIZE)
        assert torch.equal(values, _middle(image))
    grey = items["n03888257/n03888257_31.JPEG"]
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])


@pytest.mark.parametrize("cache", [None, "data/cache"])
@pytest.mark.parametrize("flip", [True, False])
def test_training_sees_windows_of_the_images_as_they_are(placed, cache, flip):
    data = _ready(cache=cache, flip=flip)
    whole = {name: _opened("train", name) for name in TRAIN}
    whole["n02102040/n02102040_2.JPEG"] = _scaled(whole["n02102040/n02102040_2.JPEG"], SIZE)
    places, mirrored = set(), 0
    for epoch in range(6):
        crops = _crops(data, epoch)
        assert sorted(crops) == sorted(TRAIN)
        for name, crop in crops.items():
            windows = (_values(whole[name]) / 255).unfold(1, SIZE, 1).unfold(2, SIZE, 1)  # (3, tops, lefts, SIZE, SIZE)
            found = {
                (turned, *place.tolist())
                for turned, view in ((False, crop), (True, crop.flip(-1)))
                for place in (windows == view[:, None, None]).all(-1).all(-1).all(0).nonzero()
            }
            assert len(found) == 1
            places |= {(name, *place[1:]) for place in found}
            mirrored += max(found)[0]
    assert len(places) > 30  # of 42
    assert 10 < mirrored < 32 if flip else mirrored == 0


def test_crops_depend_on_epoch_and_image_alone(placed):
    data = _ready(partial=True, cache="data/cache")
    alone, other = _crops(data), _crops(data, epoch=1)
    assert sum(torch.equal(alone[name], other[name]) for name in alone) == 0
    Path("data/imagenette/imagenette2-320/train", max(TRAIN)).unlink()  # six can be shared by 2 and 3
    whole = _crops(_ready(partial=True))
    for world_size in (2, 3):
        shared = _crops(_ready(partial=True), world_size=world_size)
        assert shared.keys() == whole.keys()
        assert all(torch.equal(shared[name], whole[name]) for name in whole)
    batches = {}
    for workers in (0, 2):
        loaded = _ready(num_workers=workers, batch_size=3, partial=True)
        batches[workers] = [loaded.to_coordinates(batch, training=True) for batch in loaded.train_dataloader()]
    assert [len(found) for found in batches.values()] == [2, 2]
    for one, two in zip(*batches.values(), strict=True):
        assert one.names == two.names
        assert torch.equal(one.observation.signal, two.observation.signal)
        for name, crop in zip(one.names, one.observation.signal, strict=True):
            assert torch.equal(crop, whole[name])


def test_test_and_validation_are_the_same_images(placed):
    data = _ready("test")
    assert {file.path for file in data.files("test")} == {file.path for file in data.files("val")}
    assert data.preparation("test") == data.preparation("val")


def _experiment(path):
    """Write a config of the shipped data set and a tiny composer."""
    config = yaml.safe_load((TESTS / "configs" / "tiny.yaml").read_text())
    config["data"] = {"init_args": {"size": SIZE, "batch_size": 2, "coordinate_noise": "per_instance"}}
    shipped = ("composers/transformer_ipc.yaml", "data/imagenette.yaml")
    config["_base_"] = [str(REPOSITORY / "configs" / name) for name in shipped]
    Path(path).write_text(yaml.safe_dump(config))


def test_the_program_downloads_and_trains(site):
    _experiment("tiny.yaml")
    run("fit", "--config", "tiny.yaml", "--trainer.max_epochs", 2)
    table = Path("runs/unnamed/version_0/metrics.csv")
    assert max(int(row["step"]) for row in rows(table)) == 2 * (len(TRAIN) // 2) - 1
    assert len(column(table, "val/psnr")) == 2
    assert all(math.isfinite(value) for value in column(table, "val/psnr"))
    assert len(site.requests) == 1
    assert len(list(Path("data/cache").glob("imagenette-*/index.json"))) == 2

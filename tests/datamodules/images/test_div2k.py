"""DIV2K from a local server: small archives with the published layout, splits, and published low resolutions."""

import hashlib
import io
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from server import serving, unused_port

from datamodules import DIV2K, SuperResolution
from datamodules.storage.download import Source, download

NUMBERS = {"train": range(1, 4), "valid": range(801, 805)}
SIZE = (24, 36)  # rows and columns, multiples of all scales
SCALES = (2, 3, 4)


def _png(seed, size=SIZE):
    """Return a PNG of smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC).save(content, "PNG")
    return content.getvalue()


def _archived():
    """Return the members of every archive by name, with their content."""
    members = {"DIV2K_train_HR": {f"DIV2K_train_HR/{n:04}.png": _png(n) for n in NUMBERS["train"]}}
    members["DIV2K_valid_HR"] = {f"DIV2K_valid_HR/{n:04}.png": _png(n) for n in NUMBERS["valid"]}
    for scale in SCALES:
        small = tuple(extent // scale for extent in SIZE)
        members[f"DIV2K_valid_LR_bicubic_X{scale}"] = {
            f"DIV2K_valid_LR_bicubic/X{scale}/{n:04}x{scale}.png": _png(1000 * scale + n, small)
            for n in NUMBERS["valid"]
        }
    return members


MEMBERS = _archived()


def _zipped(members):
    """Return a zip archive of some members."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


ARCHIVES = {name: _zipped(members) for name, members in MEMBERS.items()}


def _source(name, url):
    """Return the `Source` of a small archive."""
    content = ARCHIVES[name]
    return Source(url, f"{name}.zip", f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


def _put(folder, names=MEMBERS):
    """Write the content of archives into a folder."""
    for name in names:
        for member, data in MEMBERS[name].items():
            path = Path(folder, member)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


@pytest.fixture(autouse=True)
def _miniature(tmp_path, monkeypatch):
    """Work in an empty folder, reduce DIV2K to seven images, and disable the network and pauses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(download.__kwdefaults__, "pause", lambda seconds: None)
    monkeypatch.setattr(DIV2K, "numbers", NUMBERS)
    url = f"http://127.0.0.1:{unused_port()}"
    monkeypatch.setattr(DIV2K, "archives", {name: _source(name, f"{url}/{name}.zip") for name in ARCHIVES})


@pytest.fixture
def site(monkeypatch):
    """Return a local server that provides the archives."""
    with serving() as site:
        sources = {name: _source(name, site.put(f"/{name}.zip", content)) for name, content in ARCHIVES.items()}
        monkeypatch.setattr(DIV2K, "archives", sources)
        yield site


def _data(**arguments):
    """Return the data module, without a cache unless given, whose first two held-out images are for validation."""
    return DIV2K(**{"cache": None, "val_count": 2} | arguments)


def _paths(site):
    """Return the names of the archives that were requested."""
    return [Path(request[0]).stem for request in site.requests]


def _names(dataset):
    """Return the names of all items."""
    return [dataset[index].name for index in range(len(dataset))]


def _pixels(member):
    """Return an archived image."""
    data = next(members[member] for members in MEMBERS.values() if member in members)
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)


def _refusal(call, kind=ValueError):
    """Return the message of the error that a call raises."""
    with pytest.raises(kind) as raised:
        call()
    return str(raised.value)


def test_archives_and_counts_are_the_published_ones(monkeypatch):
    monkeypatch.undo()
    data = DIV2K()
    assert [data.count(split) for split in ("train", "val", "test")] == [800, 10, 100]
    assert data.expected("train")[-1] == "0800.png"
    assert (data.expected("val")[0], data.expected("test")[-1]) == ("0801.png", "0900.png")
    folder = "https://data.vision.ee.ethz.ch/cvl/DIV2K/"
    assert [source.url for source in data.sources] == [f"{folder}{name}.zip" for name in ARCHIVES]
    assert [source.filename for source in data.sources] == [f"{name}.zip" for name in ARCHIVES]
    assert all(source.checksum.startswith("sha256:") and source.size for source in data.sources)
    assert len({source.checksum for source in data.sources}) == 5
    assert sum(source.size for source in data.sources) / 1e9 == pytest.approx(4.18, abs=0.01)


@pytest.mark.parametrize("cache", [None, "data/cache"])
def test_all_archives_are_downloaded_once_and_split(site, cache):
    data = _data(cache=cache)
    data.prepare_native(("train", "val", "test"))
    assert _paths(site) == list(ARCHIVES)
    assert _names(data.native_images("train")) == ["0001.png", "0002.png", "0003.png"]
    assert _names(data.native_images("val")) == ["0801.png", "0802.png"]
    assert _names(data.native_images("test")) == ["0801.png", "0802.png", "0803.png", "0804.png"]
    assert torch.equal(data.native_images("test")[3].values, _pixels("DIV2K_valid_HR/0804.png"))
    assert Path("data/DIV2K_train_HR.zip").read_bytes() == ARCHIVES["DIV2K_train_HR"]
    _data().prepare_native(("test",))
    assert len(site.requests) == 5


@pytest.mark.parametrize(
    ("stage", "options", "expected"),
    [
        ("test", {}, list(ARCHIVES)[1:]),
        ("validate", {"low_resolution": False}, ["DIV2K_valid_HR"]),
        ("fit", {"low_resolution": False}, ["DIV2K_train_HR", "DIV2K_valid_HR"]),
    ],
    ids=str,
)
def test_a_stage_downloads_only_what_it_reads(site, stage, options, expected):
    data = _data(**options)
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=stage))
    data.fetch()
    assert _paths(site) == expected


def test_an_interrupted_download_is_resumed(site):
    site.pages["/DIV2K_valid_HR.zip"].cuts = [500]
    data = _data()
    data.fetch()
    assert site.ranges.count("bytes=500-") == 1
    assert len(data.native_images("test")) == 4


def test_an_archive_with_a_wrong_checksum_is_not_unpacked(site):
    page = site.pages["/DIV2K_train_HR.zip"]
    page.body = page.body[:-1] + b"?"
    message = _refusal(_data().fetch)
    for part in (DIV2K.archives["DIV2K_train_HR"].checksum, site.root, "data/DIV2K_train_HR.zip"):
        assert part in message
    assert "low_resolution" not in message
    assert list(Path("data").iterdir()) == []


def test_a_server_with_another_version_is_refused_before_the_transfer(site):
    site.pages["/DIV2K_train_HR.zip"].body += b"more"
    assert "the server has another version" in _refusal(_data().fetch)


def test_a_failing_download_raises_an_error_with_the_source_and_an_alternative():
    message = _refusal(_data().fetch, ConnectionError)
    for part in ("127.0.0.1 cannot be reached", DIV2K.archives["DIV2K_train_HR"].url, "as data/DIV2K_train_HR.zip"):
        assert part in message
    _put("data/div2k", ("DIV2K_train_HR", "DIV2K_valid_HR"))
    assert "--data.init_args.low_resolution false" in _refusal(_data().fetch, ConnectionError)
    _data(low_resolution=False).fetch()


def test_missing_images_raise_an_error_with_folders_and_fixes():
    message = _refusal(lambda: _data(download=False, root="sets").files("val"))
    places = "sets/div2k/DIV2K_valid_HR/DIV2K_valid_HR, sets/div2k/DIV2K_valid_HR, sets/DIV2K/DIV2K_valid_HR"
    for part in ("DIV2K_valid_HR was not found in sets", places, "0801.png", "download true", "into sets."):
        assert part in message
    for source in DIV2K.archives.values():
        assert f"{source.url} ({source.checksum})" in message


def test_existing_archives_are_unpacked_without_a_download(site):
    Path("data").mkdir()
    for name, content in ARCHIVES.items():
        Path(f"data/{name}.zip").write_bytes(content)
    data = _data(download=False)
    data.fetch()
    assert len(data.files("train")) == 3
    assert site.requests == []


@pytest.mark.parametrize("folder", ["data/div2k", "data/DIV2K", "data"])
def test_every_layout_is_detected_and_not_downloaded_again(site, folder):
    _put(folder)
    data = _data()
    data.fetch()
    assert site.requests == []
    assert {file.path.parent for file in data.files("train")} == {Path(folder, "DIV2K_train_HR")}
    assert data.low_resolution_folder("test", 3) == Path(folder, "DIV2K_valid_LR_bicubic/X3")


def test_a_wrong_number_of_images_raises_an_error_unless_partial():
    _put("data/div2k")
    Path("data/div2k/DIV2K_valid_HR/0803.png").unlink()
    message = _refusal(lambda: _data().native_images("test"))
    for part in ("3 images for split test", "4 are expected", "partial true"):
        assert part in message
    data = _data(partial=True)
    assert _names(data.native_images("test")) == ["0801.png", "0802.png", "0804.png"]
    assert _names(data.low_resolution_images("test", 2)) == ["0801.png", "0802.png", "0804.png"]


@pytest.mark.parametrize("count", [0, 101])
def test_a_val_count_out_of_range_raises_an_error(count):
    with pytest.raises(ValueError, match=rf"val_count is {count}, but must be in \[1, 100\]"):
        DIV2K(val_count=count)


@pytest.mark.parametrize("cache", [None, "data/cache"])
@pytest.mark.parametrize("scale", SCALES)
def test_published_low_resolutions_are_in_the_order_of_the_images(cache, scale):
    _put("data/div2k")
    data = _data(cache=cache)
    images, small = data.native_images("test"), data.low_resolution_images("test", float(scale))
    assert _names(small) == _names(images)
    for item in (small[index] for index in range(len(small))):
        member = f"DIV2K_valid_LR_bicubic/X{scale}/{Path(item.name).stem}x{scale}.png"
        assert torch.equal(item.values, _pixels(member))
    assert data.notes[f"low resolution at scale {scale}"].startswith("published")


def test_scales_without_published_images_have_no_low_resolution():
    _put("data/div2k", ("DIV2K_train_HR", "DIV2K_valid_HR", "DIV2K_valid_LR_bicubic_X2"))
    data = _data()
    for scale in (1.0, 2.5, 3.0, 6.0):
        assert data.low_resolution_images("test", scale) is None
    assert data.low_resolution_images("train", 2.0) is None
    assert data.notes["low resolution at scale 3"] == "Pillow, bicubic"
    assert _data(low_resolution=False).low_resolution_images("test", 2.0) is None


@pytest.mark.parametrize("cache", [None, "data/cache"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "all missing"])
def test_damaged_low_resolutions_raise_an_error_with_file_and_fix(cache, damage):
    _put("data/div2k")
    folder = Path("data/div2k/DIV2K_valid_LR_bicubic/X3")
    path = folder / "0802x3.png"
    reasons = {"missing": "is missing", "truncated": "is corrupt or truncated", "empty": "is empty"}
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        for image in list(folder.iterdir()) if damage == "all missing" else [path]:
            image.unlink()
    data = _data(cache=cache, on_bad_file="skip")  # which is about images of the high resolution
    data.native_images("test")
    message = _refusal(lambda: data.low_resolution_images("test", 3.0))
    number = 4 if damage == "all missing" else 1
    assert f"{number} of 4 published images at scale 3 in {folder}" in message
    assert f"{path} {reasons.get(damage, 'is missing')}" in message
    assert f"Move {folder} away to obtain them again" in message
    assert "--data.init_args.low_resolution false" in message
    assert len(data.low_resolution_images("test", 2.0)) == 4


def test_a_damaged_folder_that_was_unpacked_is_unpacked_again_after_it_was_moved(site):
    data = _data()
    data.fetch()
    unpacked = Path("data/div2k/DIV2K_valid_LR_bicubic_X2")
    (unpacked / "DIV2K_valid_LR_bicubic/X2/0801x2.png").unlink()
    assert f"Move {unpacked} away" in _refusal(lambda: data.low_resolution_images("test", 2.0))
    unpacked.rename("elsewhere")
    data.fetch()
    assert len(data.low_resolution_images("test", 2.0)) == 4
    assert len(site.requests) == 5


@pytest.mark.parametrize("cache", [None, "data/cache"])
def test_skipped_images_are_also_skipped_among_the_low_resolutions(cache):
    _put("data/div2k")
    Path("data/div2k/DIV2K_valid_HR/0802.png").write_bytes(b"")
    data = _data(cache=cache, on_bad_file="skip")
    assert _names(data.native_images("test")) == ["0801.png", "0803.png", "0804.png"]
    assert _names(data.low_resolution_images("test", 4.0)) == ["0801.png", "0803.png", "0804.png"]


def _pairs(**options):
    """Return the data module of super-resolution of the images, set up for testing."""
    data = SuperResolution(_data(**options), size=8, num_queries=16, scales=(1, 3), test_scales=[2, 3, 6])
    data.setup("test")
    return data


@pytest.mark.parametrize("cache", [None, "data/cache"])
def test_super_resolution_observes_published_images_and_pillow_elsewhere(cache):
    _put("data/div2k")
    pairs = _pairs(cache=cache).test_set
    assert len(pairs) == 3 * 4
    high = _pixels("DIV2K_valid_HR/0803.png")
    for index, scale in ((2, 2), (6, 3)):
        pair = pairs[index]
        assert (pair.name, pair.scale) == (f"0803.png-x{scale}", scale)
        assert torch.equal(pair.low, _pixels(f"DIV2K_valid_LR_bicubic/X{scale}/0803x{scale}.png"))
        assert torch.equal(pair.high, high)
    expected = Image.open(io.BytesIO(MEMBERS["DIV2K_valid_HR"]["DIV2K_valid_HR/0803.png"]))
    expected = np.array(expected.resize((6, 4), Image.Resampling.BICUBIC))
    assert torch.equal(pairs[10].low, torch.from_numpy(expected).permute(2, 0, 1))


def test_the_low_resolution_of_another_image_raises_an_error():
    _put("data/div2k")
    path = Path("data/div2k/DIV2K_valid_LR_bicubic/X2/0803x2.png")
    path.write_bytes(_png(5, (18, 12)))
    with pytest.raises(ValueError, match=r"0803\.png has 24 x 36 pixels.*scale 2 18 x 12.*do not belong together"):
        _pairs().test_set[2]


def test_images_are_decoded_before_set_up_and_only_at_their_own_resolution(monkeypatch):
    _put("data/div2k")
    data = SuperResolution(_data(cache="data/cache"), size=8, num_queries=16, scales=(1, 3))
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    data.prepare_data()
    caches = sorted(path.parent.name.rpartition("-")[0] for path in Path("data/cache").glob("*/index.json"))
    assert caches == ["div2k", "div2k", "div2k-x2", "div2k-x3", "div2k-x4"]
    monkeypatch.setattr("datamodules.storage.cache.read_image", None)
    data.setup("fit")
    assert data.train_set[0].values.shape == (3, *SIZE)
    assert data.val_set[0].low.shape == (3, 12, 18)


def test_errors_name_the_options_of_the_wrapped_data_module():
    _put("data/div2k")
    path = Path("data/div2k/DIV2K_valid_HR/0804.png")
    path.write_bytes(path.read_bytes()[:-30])
    pairs = _pairs().test_set
    assert "Pass --data.init_args.images.init_args.on_bad_file skip" in _refusal(lambda: pairs[3])
    path.unlink()
    assert "Pass --data.init_args.images.init_args.partial true" in _refusal(_pairs)

"""FFHQ: folder layouts, the common split, splits by lists, and invalid lists."""

import hashlib
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules import FFHQ
from datamodules.images import ffhq

NUMBERS = (0, 3, 999, 1000, 59_999, 60_000, 69_999)
NAMES = [f"{number:05}.png" for number in NUMBERS]
LAYOUTS = ("ffhq/images1024x1024", "ffhq", "images1024x1024")


def _png(seed, size=40):
    """Return a PNG of noise."""
    noise = torch.randint(256, (size, size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    content = io.BytesIO()
    Image.fromarray(noise.numpy()).save(content, "PNG")
    return content.getvalue()


FILES = {name: _png(number) for name, number in zip(NAMES, NUMBERS, strict=True)}


def _place(name, thousands):
    """Return the path of an image relative to its folder."""
    return f"{name[:2]}000/{name}" if thousands else name


def _put(folder, thousands=False):
    """Write the images into a folder, or into its subfolders of a thousand images."""
    for name, data in FILES.items():
        path = Path(folder, _place(name, thousands))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    """Work in an empty folder, with images of 40 pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FFHQ, "shape", (40, 40))


def _ready(stage="fit", **arguments):
    """Return the data module after the calls of the trainer."""
    data = FFHQ(**{"size": 16, "cache": None} | arguments)
    data.prepare_data()
    data.setup(stage)
    return data


def _items(dataset):
    """Return the pixels of all images by name."""
    return {item.name: item.values for item in (dataset[index] for index in range(len(dataset)))}


def _write_lists(training, validation):
    """Write two lists and return the arguments that name them."""
    arguments = {"training_list": "train.txt", "validation_list": "val.txt"}
    for path, text in zip(arguments.values(), (training, validation), strict=True):
        Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())
    return arguments


def _setup_error(kind=ValueError, **arguments):
    """Return the error message of setting up the data module."""
    with pytest.raises(kind) as raised:
        _ready(**arguments)
    return str(raised.value)


def test_the_common_split_is_by_number(monkeypatch):
    monkeypatch.undo()
    data = FFHQ()
    assert data.expected("train") == [f"{number:05}.png" for number in range(60_000)]
    assert data.expected("val") == data.expected("test") == [f"{number:05}.png" for number in range(60_000, 70_000)]
    assert [data.count(split) for split in ("train", "val", "test")] == [60_000, 10_000, 10_000]
    assert data.shape == (1024, 1024)
    assert data.signal_shape == (3, 178, 178)
    assert data.notes["split"].startswith("common split, not that of the IPC paper")


@pytest.mark.parametrize("thousands", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_detected(layout, thousands):
    _put(f"data/{layout}", thousands)
    data = _ready(partial=True)
    assert list(_items(data.train_set)) == NAMES[:5]
    assert list(_items(data.val_set)) == NAMES[5:]
    data.setup("test")
    assert list(_items(data.test_set)) == NAMES[5:]
    assert [path for _, path in data.files("val")] == [
        Path("data", layout, _place(name, thousands)) for name in NAMES[5:]
    ]


def test_layouts_are_searched_in_order():
    for layout in LAYOUTS:
        _put(f"data/{layout}")
    for layout in LAYOUTS:
        assert {path.parent for _, path in FFHQ().files("val")} == {Path("data", layout)}
        for name in FILES:
            Path("data", layout, name).unlink()


def test_other_files_are_ignored():
    _put("data/ffhq", thousands=True)
    for name in ("LICENSE.txt", "0.png", "00001.jpg", "00000/000001.png", "thumbnails128x128/00001.png", "70000.png"):
        Path("data/ffhq", name).parent.mkdir(exist_ok=True)
        Path("data/ffhq", name).write_bytes(b"")
    data = FFHQ()
    assert [name for name, _ in [*data.files("train"), *data.files("val")]] == NAMES


@pytest.mark.parametrize("cache", [None, "data/cache"])
def test_images_are_resized_without_augmentation(cache):
    _put("data/ffhq")
    data = _ready(cache=cache, partial=True)
    items = _items(data.train_set) | _items(data.val_set)
    assert list(items) == NAMES
    for name, values in items.items():
        image = Image.open(io.BytesIO(FILES[name])).resize((16, 16), Image.Resampling.BILINEAR)
        assert values.permute(1, 2, 0).numpy().tobytes() == image.tobytes()
    assert data.random_crop is None
    assert data.augmentation is None


@pytest.mark.parametrize(
    ("training", "validation"),
    [
        ("60000\n00003\n01000\n", "69999\n00000\n"),
        ("01000.png\n00003.png\n60000.png", "00000.png\n69999.png"),
        ("ffhq/00003.png\n/home/me/images1024x1024/60000/60000.png\n01000/01000\n", "a b/69999.png\n./00000.png\n"),
        (b"\xef\xbb\xbf00003\r\n\r\n  01000.jpg  \r\nimages\\60000.png\r\n", b"69999\r\n00000\r\n\r\n"),
    ],
    ids=["numbers", "files", "folders", "windows"],
)
def test_lists_define_the_split(training, validation):
    _put("data/ffhq")
    data = _ready(**_write_lists(training, validation))
    assert list(_items(data.train_set)) == ["00003.png", "01000.png", "60000.png"]
    assert list(_items(data.val_set)) == ["00000.png", "69999.png"]
    data.setup("test")
    assert list(_items(data.test_set)) == ["00000.png", "69999.png"]
    assert [data.count(split) for split in ("train", "val", "test")] == [3, 2, 2]
    assert data.notes["split"] == "custom lists"


def test_the_lists_of_the_paper_are_recognised(monkeypatch):
    assert ffhq.IPC_LISTS == ("401d325a5096f3991903d50225b22ff8", "15db1dc277960fff9d41f37673219e15")
    _put("data/ffhq")
    arguments = _write_lists("60000\n00003\n", "00000\n")
    paths = list(arguments.values())
    digests = tuple(hashlib.md5(Path(path).read_bytes()).hexdigest() for path in paths)
    monkeypatch.setattr(ffhq, "IPC_LISTS", digests)
    assert _ready(**arguments).notes["split"] == "random lists of the IPC paper"
    swapped = dict(zip(arguments, reversed(paths), strict=True))
    assert _ready(**swapped).notes["split"] == "custom lists"
    Path("train.txt").write_text("60000\n00999\n")
    assert _ready(**arguments).notes["split"] == "custom lists"


@pytest.mark.parametrize(
    ("training", "validation", "expected"),
    [
        ("00000\n00003\n\n00000.png\n", "69999", ["train.txt, line 4", "00000.png", "line 1", "Remove"]),
        ("00000\n", "69999\nx/69999", ["val.txt, line 2", "69999.png", "line 1"]),
        ("00999\n00003\n", "69999\n60000\n00003\n", ["val.txt, line 3", "00003.png", "train.txt, line 2"]),
        ("", "69999", ["training_list train.txt", "is empty"]),
        ("00000", " \n\n", ["validation_list val.txt", "is empty"]),
        ("00000\n70000\n", "69999", ["train.txt, line 2", "'70000'", "00000 to 69999"]),
        ("00000\n3\n", "69999", ["train.txt, line 2", "'3'"]),
        ("00000\n", "69999\n\n00003 60000", ["val.txt, line 3", "'00003 60000'"]),
        ("00000\n", b"69999\n\xff\xfe0\n", ["val.txt, line 2"]),
        ("00000\n", "6999\u0669", ["val.txt, line 1"]),
    ],
    ids=["duplicate", "duplicate-held-out", "shared", "empty", "blank", "too-high", "short", "two", "binary", "digits"],
)
def test_invalid_lists_raise_an_error(training, validation, expected):
    message = _setup_error(**_write_lists(training, validation))  # without images, since lists are read first
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_a_missing_list_raises_an_error():
    arguments = _write_lists("00000", "69999")
    Path("val.txt").unlink()
    message = _setup_error(**arguments)
    for part in ("validation_list val.txt", "No such file", "one image name per line"):
        assert part in message


@pytest.mark.parametrize("argument", ["training_list", "validation_list"])
def test_a_single_list_raises_an_error(argument):
    with pytest.raises(
        ValueError, match=r"training_list is .* and validation_list is .*: pass both, or neither"
    ) as raised:
        FFHQ(**{argument: "mine.txt"})
    assert "mine.txt" in str(raised.value)


def test_missing_listed_images_raise_an_error_unless_partial():
    _put("data/ffhq")
    arguments = _write_lists("00000\n00001\n00003\n", "69999\n")
    message = _setup_error(**arguments)
    for part in ("2 images for split train", "3 are expected", "partial true"):
        assert part in message
    assert list(_items(_ready(partial=True, **arguments).train_set)) == ["00000.png", "00003.png"]


def test_an_incomplete_common_split_raises_an_error_unless_partial():
    _put("data/ffhq")
    message = _setup_error()
    for part in ("5 images for split train", "60,000 are expected", "partial true"):
        assert part in message


def test_missing_images_raise_an_error_with_folders_and_source():
    Path("sets/ffhq/00000").mkdir(parents=True)
    message = _setup_error(root="sets")
    places = ", ".join(f"sets/{layout}" for layout in LAYOUTS)
    for part in (f"none of {places} contains", "https://github.com/NVlabs/ffhq-dataset", "into sets/ffhq."):
        assert part in message


def test_images_of_the_wrong_size_raise_an_error(monkeypatch):
    monkeypatch.setattr(FFHQ, "shape", (1024, 1024))
    _put("data/ffhq")
    message = _setup_error(partial=True)
    assert "data/ffhq/00000.png has 40 x 40 pixels" in message
    assert "1024 x 1024" in message

"""What data sets of images have in common: what a split is, bad files, and crops on the device."""

import re
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.base import CoordinateDataModule
from datamodules.batch import Signal
from datamodules.images.base import DecodedImages, ImageSet, Uncut, UncutBatch, collate_images, unreadable
from datamodules.storage.folders import NamedFile
from datamodules.storage.images import Preparation, RandomCrop, image_files, read_image

SIZE = 8


class Shelf(ImageSet):
    """Images in a folder per split, of which training sees random crops."""

    def __init__(self, root="shelf", **options):
        super().__init__(SIZE, root, **({"cache": None, "batch_size": 3} | options))
        self.random_crop = RandomCrop(SIZE)

    def files(self, split):
        return [NamedFile(place.stem, path) for path, place in image_files(self.root / split)]

    def preparation(self, split):
        return Preparation(smallest=SIZE) if split == "train" else super().preparation(split)


def make_image(path, height=11, width=14, seed=0, mode="RGB"):
    """Write a noise image and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "L": ()}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return path


@pytest.fixture
def shelf(tmp_path):
    """Return a folder of seven training images, each of a size of its own, and three of the other splits."""
    for number in range(7):
        make_image(tmp_path / "train" / f"{number}.png", 9 + number, 20 - number, seed=number)
    for split, start in (("val", 10), ("test", 20)):
        for number in range(3):
            make_image(tmp_path / split / f"{number}.png", 16, 13, seed=start + number)
    return tmp_path


def made(shelf, stage="fit", **options):
    """Return a data module that is set up."""
    data = Shelf(shelf, **options)
    data.prepare_data()
    data.setup(stage)
    return data


def found_in(crop, image):
    """Return where a crop, or its mirror image, lies in an image: (top, left, mirrored), or None."""
    for mirrored in (False, True):
        wanted = crop.flip(-1) if mirrored else crop
        for top in range(image.shape[1] - SIZE + 1):
            for left in range(image.shape[2] - SIZE + 1):
                if torch.equal(image[:, top : top + SIZE, left : left + SIZE], wanted):
                    return top, left, mirrored
    return None


def crops_of(data, epoch=0):
    """Return the training crops of an epoch by name, as uint8."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    crops = {}
    for batch in loader:
        made = data.to_coordinates(batch)
        for name, signal in zip(made.names, made.observation.signal, strict=True):
            crops[name] = (signal * 255).round().to(torch.uint8)
    return crops


@pytest.mark.parametrize("cached", [False, True], ids=["decoded", "cached"])
def test_training_sees_crops_of_its_images_and_their_mirror_images(shelf, tmp_path, cached):
    data = made(shelf, cache=str(tmp_path / "cache") if cached else None)
    places = {}
    for epoch in range(6):
        for name, crop in crops_of(data, epoch).items():
            place = found_in(crop, read_image(shelf / "train" / f"{name}.png").pixels)
            assert place is not None
            places.setdefault(name, set()).add(place)
    assert len(places) == 7
    assert len(set.union(*places.values())) > 20
    assert {mirrored for found in places.values() for *_, mirrored in found} == {False, True}


@pytest.mark.parametrize("other", [{"num_workers": 2}, {"batch_size": 7}, {"cache": "cache"}], ids=str)
def test_crops_depend_on_epoch_and_image_alone(shelf, tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    first, second = (crops_of(made(shelf, **options), epoch=2) for options in ({"batch_size": 1}, other))
    assert set(second) <= set(first)
    assert len(second) >= 6
    assert all(torch.equal(crop, first[name]) for name, crop in second.items())
    later = crops_of(made(shelf, batch_size=1), epoch=3)
    assert any(not torch.equal(later[name], crop) for name, crop in first.items())


def test_whole_images_are_collated_without_padding():
    items = [Uncut(torch.full((3, 2 + n, 5), n, dtype=torch.uint8), f"p{n}", 40 + n) for n in range(3)]
    batch = collate_images(items)
    assert isinstance(batch, UncutBatch)
    assert batch.pixels.tolist() == [0] * 30 + [1] * 45 + [2] * 60
    assert batch[1:] == ([(3, 2, 5), (3, 3, 5), (3, 4, 5)], ["p0", "p1", "p2"], [40, 41, 42])


def test_others_are_stacked():
    items = [Signal(torch.full((3, SIZE, SIZE), n, dtype=torch.uint8), f"p{n}", n) for n in range(2)]
    batch = collate_images(items)
    assert batch.values.shape == (2, 3, SIZE, SIZE)
    assert list(batch.name) == ["p0", "p1"]


def test_evaluation_sees_the_square_in_the_middle_of_the_resized_image(shelf):
    data = made(shelf)
    [batch] = data.val_dataloader()
    coordinates = data.to_coordinates(batch)
    assert coordinates.names == ["0", "1", "2"]
    assert coordinates.shape == (SIZE, SIZE)
    for name, signal in zip(coordinates.names, coordinates.observation.signal, strict=True):
        with Image.open(shelf / "val" / f"{name}.png") as image:  # 16 x 13
            resized = image.resize((SIZE, 16 * SIZE // 13), Image.Resampling.BILINEAR)
        square = np.asarray(resized)[round((resized.height - SIZE) / 2) :][:SIZE]
        assert torch.equal((signal * 255).round().to(torch.uint8), torch.from_numpy(square.copy()).permute(2, 0, 1))


def test_stages_fill_their_own_splits(shelf):
    for stage, splits in (("fit", {"train", "val"}), ("validate", {"val"}), ("test", {"test"}), ("predict", {"test"})):
        data = made(shelf, stage)
        assert {name for name in ("train", "val", "test") if hasattr(data, f"{name}_set")} == splits


def test_the_training_items_that_codes_are_measured_on_are_crops(shelf):
    data = made(shelf)
    batches = list(islice(data.training_batches(5), 5))
    crops = crops_of(data)
    assert sum(len(batch.names) for batch in batches) == 5
    for batch in batches:
        assert batch.shape == (SIZE, SIZE)
        for name, signal in zip(batch.names, batch.observation.signal, strict=True):
            assert name not in crops or torch.equal((signal * 255).round().to(torch.uint8), crops[name])


def test_an_unreadable_image_stops_the_set_up_where_it_can_be_seen(shelf, tmp_path):
    (shelf / "train" / "3.png").write_text("no image")
    with pytest.raises(
        ValueError, match=r"1 of 7 images of the split train(?s:.*)3\.png is no image(?s:.*)on_bad_file skip"
    ):
        made(shelf, cache=str(tmp_path / "cache"))


def test_an_unreadable_image_in_the_middle_of_an_epoch_is_named(shelf):
    (shelf / "train" / "3.png").write_bytes((shelf / "train" / "3.png").read_bytes()[:150])
    with pytest.raises(ValueError, match=r"3\.png is damaged or cut off.*on_bad_file skip"):
        list(made(shelf).train_dataloader())


@pytest.mark.parametrize("cached", [False, True], ids=["decoded", "cached"])
def test_unreadable_images_are_left_out_and_counted(shelf, tmp_path, capsys, cached):
    for number in (1, 4):
        (shelf / "train" / f"{number}.png").write_bytes(b"")
    data = made(shelf, cache=str(tmp_path / "cache") if cached else None, on_bad_file="skip")
    assert len(data.train_set) == 5
    assert set(data.skipped) == {str(shelf / "train" / f"{number}.png") for number in (1, 4)}
    assert set(crops_of(data)) <= {"0", "2", "3", "5", "6"}
    told = capsys.readouterr().err
    assert re.search(r"Skipped 2 unreadable images \(.*1\.png, .*4\.png\)", told)


def test_a_split_of_which_nothing_can_be_read_is_refused(shelf):
    for path in (shelf / "val").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="3 of 3 images of the split val cannot be read"):
        made(shelf, on_bad_file="skip")


def test_unreadable_reads_everything(shelf):
    (shelf / "test" / "1.png").write_bytes((shelf / "test" / "1.png").read_bytes()[:100])
    files = Shelf(shelf).files("test")
    assert list(unreadable(files)) == [str(shelf / "test" / "1.png")]


def test_an_empty_split_is_refused(shelf):
    for path in (shelf / "val").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"Shelf has no images of the split val.*tools\.check"):
        made(shelf)


def test_another_number_than_published_is_refused_unless_that_is_wanted(shelf, monkeypatch):
    monkeypatch.setattr(Shelf, "published", {"train": 1200, "val": 3})
    with pytest.raises(ValueError, match=r"7 images of the split train.*published are 1,200.*partial true"):
        made(shelf)
    assert len(made(shelf, partial=True).train_set) == 7


def test_another_size_than_published_is_refused(shelf, monkeypatch):
    monkeypatch.setattr(Shelf, "shape", (16, 13))
    made(shelf, "test")
    with pytest.raises(ValueError, match=r"0\.png has 9 x 20 pixels, the images of Shelf have 16 x 13"):
        made(shelf)


def test_only_the_splits_of_a_stage_are_decoded_ahead(shelf, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Shelf, "images", lambda self, split: seen.append(split))
    Shelf(shelf, cache=str(tmp_path)).prepare_data()
    assert seen == ["train", "val"]
    Shelf(shelf).prepare_data()
    assert seen == ["train", "val"]


def test_decoded_images_are_prepared(shelf):
    files = Shelf(shelf).files("train")
    images = DecodedImages(files, Preparation(crop=4))
    assert len(images) == 7
    for file, image in zip(files, images, strict=False):
        pixels = read_image(file.path).pixels
        top, left = ((extent - 4) // 2 + ((extent - 4) % 4 == 3) for extent in pixels.shape[1:])  # halves to even
        assert torch.equal(image.values, pixels[:, top : top + 4, left : left + 4])
        assert image.name == file.name


def test_a_size_below_one_is_refused():
    class Other(Shelf):
        def __init__(self):
            ImageSet.__init__(self, size=0)

    with pytest.raises(ValueError, match="size is 0"):
        Other()


def test_it_is_a_data_module_like_any_other(shelf):
    data = Shelf(shelf)
    assert isinstance(data, CoordinateDataModule)
    assert (data.signal_shape, data.spec.domain.coord_dim, data.spec.value_dim) == ((3, SIZE, SIZE), 2, 3)

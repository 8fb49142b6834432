"""The base class of image data sets: splits, unreadable files, and crops on the device."""

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


class SplitFolders(ImageSet):
    """Images in one folder per split, with random crops in training."""

    def __init__(self, root="images", **options):
        super().__init__(SIZE, root, **({"cache": None, "batch_size": 3} | options))
        self.random_crop = RandomCrop(SIZE)

    def files(self, split):
        return [NamedFile(relative.stem, path) for path, relative in image_files(self.root / split)]

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
def folder(tmp_path):
    """Return a folder with seven training images of different sizes, and three images for each other split."""
    for number in range(7):
        make_image(tmp_path / "train" / f"{number}.png", 9 + number, 20 - number, seed=number)
    for split, start in (("val", 10), ("test", 20)):
        for number in range(3):
            make_image(tmp_path / split / f"{number}.png", 16, 13, seed=start + number)
    return tmp_path


def set_up(folder, stage="fit", **options):
    """Return a data module that is set up for a stage."""
    data = SplitFolders(folder, **options)
    data.prepare_data()
    data.setup(stage)
    return data


def locate(crop, image):
    """Return the position (top, left, flipped) of a crop in an image; None if it is not part of it."""
    for flipped in (False, True):
        upright = crop.flip(-1) if flipped else crop
        for top in range(image.shape[1] - SIZE + 1):
            for left in range(image.shape[2] - SIZE + 1):
                if torch.equal(image[:, top : top + SIZE, left : left + SIZE], upright):
                    return top, left, flipped
    return None


def crops_of(data, epoch=0):
    """Return the training crops of an epoch by name, as uint8."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    crops = {}
    for batch in loader:
        coordinates = data.to_coordinates(batch)
        for name, signal in zip(coordinates.names, coordinates.observation.signal, strict=True):
            crops[name] = (signal * 255).round().to(torch.uint8)
    return crops


@pytest.mark.parametrize("cached", [False, True], ids=["decoded", "cached"])
def test_training_uses_random_crops_and_flips(folder, tmp_path, cached):
    data = set_up(folder, cache=str(tmp_path / "cache") if cached else None)
    positions = {}
    for epoch in range(6):
        for name, crop in crops_of(data, epoch).items():
            position = locate(crop, read_image(folder / "train" / f"{name}.png").pixels)
            assert position is not None
            positions.setdefault(name, set()).add(position)
    assert len(positions) == 7
    assert len(set.union(*positions.values())) > 20
    assert {flipped for *_, flipped in set.union(*positions.values())} == {False, True}


@pytest.mark.parametrize("other", [{"num_workers": 2}, {"batch_size": 7}, {"cache": "cache"}], ids=str)
def test_crops_depend_on_epoch_and_image_only(folder, tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    first, second = (crops_of(set_up(folder, **options), epoch=2) for options in ({"batch_size": 1}, other))
    assert set(second) <= set(first)
    assert len(second) >= 6
    assert all(torch.equal(crop, first[name]) for name, crop in second.items())
    later = crops_of(set_up(folder, batch_size=1), epoch=3)
    assert any(not torch.equal(later[name], crop) for name, crop in first.items())


def test_uncut_images_are_collated_without_padding():
    items = [Uncut(torch.full((3, 2 + n, 5), n, dtype=torch.uint8), f"p{n}", 40 + n) for n in range(3)]
    batch = collate_images(items)
    assert isinstance(batch, UncutBatch)
    assert batch.pixels.tolist() == [0] * 30 + [1] * 45 + [2] * 60
    assert batch[1:] == ([(3, 2, 5), (3, 3, 5), (3, 4, 5)], ["p0", "p1", "p2"], [40, 41, 42])


def test_images_of_equal_size_are_stacked():
    items = [Signal(torch.full((3, SIZE, SIZE), n, dtype=torch.uint8), f"p{n}", n) for n in range(2)]
    batch = collate_images(items)
    assert batch.values.shape == (2, 3, SIZE, SIZE)
    assert list(batch.name) == ["p0", "p1"]


def test_evaluation_uses_the_central_square_of_the_resized_image(folder):
    data = set_up(folder)
    [batch] = data.val_dataloader()
    coordinates = data.to_coordinates(batch)
    assert coordinates.names == ["0", "1", "2"]
    assert coordinates.shape == (SIZE, SIZE)
    for name, signal in zip(coordinates.names, coordinates.observation.signal, strict=True):
        with Image.open(folder / "val" / f"{name}.png") as image:  # 16 x 13
            resized = image.resize((SIZE, 16 * SIZE // 13), Image.Resampling.BILINEAR)
        square = np.asarray(resized)[round((resized.height - SIZE) / 2) :][:SIZE]
        assert torch.equal((signal * 255).round().to(torch.uint8), torch.from_numpy(square.copy()).permute(2, 0, 1))


def test_stages_create_only_their_splits(folder):
    for stage, splits in (("fit", {"train", "val"}), ("validate", {"val"}), ("test", {"test"}), ("predict", {"test"})):
        data = set_up(folder, stage)
        assert {name for name in ("train", "val", "test") if hasattr(data, f"{name}_set")} == splits


def test_training_batches_for_evaluation_are_crops(folder):
    data = set_up(folder)
    batches = list(islice(data.training_batches(5), 5))
    crops = crops_of(data)
    assert sum(len(batch.names) for batch in batches) == 5
    for batch in batches:
        assert batch.shape == (SIZE, SIZE)
        for name, signal in zip(batch.names, batch.observation.signal, strict=True):
            assert name not in crops or torch.equal((signal * 255).round().to(torch.uint8), crops[name])


def test_an_unreadable_image_raises_an_error_at_set_up_with_a_cache(folder, tmp_path):
    (folder / "train" / "3.png").write_text("not an image")
    with pytest.raises(
        ValueError, match=r"1 of 7 images for split train(?s:.*)3\.png is not an image(?s:.*)on_bad_file skip"
    ):
        set_up(folder, cache=str(tmp_path / "cache"))


def test_an_unreadable_image_raises_an_error_in_the_loader_without_a_cache(folder):
    (folder / "train" / "3.png").write_bytes((folder / "train" / "3.png").read_bytes()[:150])
    with pytest.raises(ValueError, match=r"3\.png is corrupt or truncated.*on_bad_file skip"):
        list(set_up(folder).train_dataloader())


@pytest.mark.parametrize("cached", [False, True], ids=["decoded", "cached"])
def test_unreadable_images_are_skipped_and_logged(folder, tmp_path, capsys, cached):
    for number in (1, 4):
        (folder / "train" / f"{number}.png").write_bytes(b"")
    data = set_up(folder, cache=str(tmp_path / "cache") if cached else None, on_bad_file="skip")
    assert len(data.train_set) == 5
    assert set(data.skipped) == {str(folder / "train" / f"{number}.png") for number in (1, 4)}
    assert set(crops_of(data)) <= {"0", "2", "3", "5", "6"}
    log = capsys.readouterr().err
    assert re.search(r"Skipped 2 unreadable images \(.*1\.png, .*4\.png\)", log)


def test_a_split_without_readable_images_raises_an_error(folder):
    for path in (folder / "val").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="3 of 3 images for split val cannot be read"):
        set_up(folder, on_bad_file="skip")


def test_unreadable_decodes_all_images(folder):
    (folder / "test" / "1.png").write_bytes((folder / "test" / "1.png").read_bytes()[:100])
    files = SplitFolders(folder).files("test")
    assert list(unreadable(files)) == [str(folder / "test" / "1.png")]


def test_an_empty_split_raises_an_error(folder):
    for path in (folder / "val").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"SplitFolders has no images for split val.*tools\.check"):
        set_up(folder)


def test_a_wrong_number_of_images_raises_an_error_unless_partial(folder, monkeypatch):
    monkeypatch.setattr(SplitFolders, "published", {"train": 1200, "val": 3})
    with pytest.raises(ValueError, match=r"7 images for split train.*1,200 are expected.*partial true"):
        set_up(folder)
    assert len(set_up(folder, partial=True).train_set) == 7


def test_images_of_the_wrong_size_raise_an_error(folder, monkeypatch):
    monkeypatch.setattr(SplitFolders, "shape", (16, 13))
    set_up(folder, "test")
    with pytest.raises(ValueError, match=r"0\.png has 9 x 20 pixels, but the images of SplitFolders have 16 x 13"):
        set_up(folder)


def test_prepare_data_decodes_only_the_splits_of_the_stage(folder, tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(SplitFolders, "images", lambda self, split: decoded.append(split))
    SplitFolders(folder, cache=str(tmp_path)).prepare_data()
    assert decoded == ["train", "val"]
    SplitFolders(folder).prepare_data()
    assert decoded == ["train", "val"]


def test_decoded_images_are_preprocessed(folder):
    files = SplitFolders(folder).files("train")
    images = DecodedImages(files, Preparation(crop=4))
    assert len(images) == 7
    for file, image in zip(files, images, strict=False):
        pixels = read_image(file.path).pixels
        top, left = ((extent - 4) // 2 + ((extent - 4) % 4 == 3) for extent in pixels.shape[1:])  # round half to even
        assert torch.equal(image.values, pixels[:, top : top + 4, left : left + 4])
        assert image.name == file.name


def test_a_size_below_1_raises_an_error():
    class Other(SplitFolders):
        def __init__(self):
            ImageSet.__init__(self, size=0)

    with pytest.raises(ValueError, match="size is 0"):
        Other()


def test_an_image_set_is_a_coordinate_data_module(folder):
    data = SplitFolders(folder)
    assert isinstance(data, CoordinateDataModule)
    assert (data.signal_shape, data.spec.domain.coord_dim, data.spec.value_dim) == ((3, SIZE, SIZE), 2, 3)

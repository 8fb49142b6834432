"""Super-resolution as a data module: addressed items, coordinates of drawn pixels, borders, and wrapped data."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from datamodules import ImageFolder, SamplePhotos, SampleSpeech, SuperResolution
from datamodules.base import CoordinateDataModule
from datamodules.batch import Signal
from datamodules.domain import CellGrid
from datamodules.images.augmentation import ImageAugmentation
from datamodules.images.degradation import Bicubic, Realistic
from datamodules.images.native import NativeImages
from datamodules.images.pairs import Pair
from datamodules.images.sample_photos import HELD_OUT_PHOTOGRAPHS, MORE_PHOTOGRAPHS, TRAINING_PHOTOGRAPHS, photograph
from datamodules.loading import InMemory
from datamodules.spec import DataSpec
from modalities.images import Images
from modalities.super_resolution import SuperResolvedImages

SIZE = 6


class FewImages(NativeImages, CoordinateDataModule):
    """Images in memory, at their own resolution; every second scale has published images of a low resolution."""

    def __init__(self, images, published=None):
        super().__init__()
        self.given, self.published = images, published or {}

    @property
    def spec(self):
        """Images of any size."""
        return DataSpec(CellGrid.unit(2), 3, (3, -1, -1), Images(), None)

    def native_images(self, split):
        """Return the images, the same for every split."""
        return InMemory(self.given)

    def low_resolution_images(self, split, scale):
        """Return what was given for a scale."""
        return None if scale not in self.published else InMemory(self.published[scale])


def _noise(rows, columns, seed=0, name=None):
    """Return an image of noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (3, rows, columns), generator=generator, dtype=torch.uint8)
    return Signal(pixels, name or f"image{seed}")


def _ramps(rows, columns, name="ramps"):
    """Return an image whose first channel grows with the row, the second with the column, the third with both."""
    row, column = torch.meshgrid(torch.linspace(10, 240, rows), torch.linspace(10, 240, columns), indexing="ij")
    return Signal(torch.stack((row, column, (row + column) / 2)).round().to(torch.uint8), name)


def _data(images=None, stage="fit", **options):
    """Return a small data module, set up."""
    images = images or [_noise(30 + 3 * seed, 40 - seed, seed) for seed in range(8)]
    images = images if isinstance(images, CoordinateDataModule) else FewImages(images)
    arguments = {"size": SIZE, "num_queries": 20, "batch_size": 4, "val_scales": [2.0]} | options
    data = SuperResolution(images, **arguments)
    data.setup(stage)
    return data


def _epoch(data, epoch=0):
    """Return the training items of an epoch by instance."""
    loader, items = data.train_dataloader(), {}
    loader.sampler.set_epoch(epoch)
    for batch in loader:
        for index, instance in enumerate(batch.instance.tolist()):
            items[instance] = [batch.low[index], batch.high[index], batch.drawn[index], batch.scale[index]]
    return items


def _same(items, others):
    """Return whether two sets of items are bit-equal."""
    return items.keys() == others.keys() and all(
        torch.equal(part, other) for key in items for part, other in zip(items[key], others[key], strict=True)
    )


def _trainer(rank, world_size):
    """Return what a data module reads of the trainer in one of several processes."""
    progress = SimpleNamespace(current=SimpleNamespace(ready=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    state = SimpleNamespace(fn="fit")
    return SimpleNamespace(
        global_rank=rank, world_size=world_size, state=state, overfit_batches=0, fit_loop=loop, training=True
    )


@pytest.mark.parametrize(
    "options", [{}, {"degradation": Realistic()}, {"augment": ImageAugmentation(shuffle_colors=0.5)}]
)
def test_items_depend_on_epoch_and_image_only(options):
    data = _data(repeat=2, **options)
    first = _epoch(data)
    assert len(first) == 16
    assert _same(first, _epoch(data))
    assert _same(first, _epoch(_data(repeat=2, batch_size=1, **options)))
    later = _epoch(data, 1)
    assert all(not torch.equal(later[key][2], item[2]) for key, item in first.items())
    assert not torch.equal(first[0][2], first[8][2])  # the second time of an image in an epoch


def test_items_do_not_depend_on_workers():
    assert _same(_epoch(_data(degradation=Realistic())), _epoch(_data(degradation=Realistic(), num_workers=2)))


def test_items_do_not_depend_on_processes():
    one, shared = _epoch(_data()), {}
    for rank in range(2):
        data = _data(batch_size=2)
        data.trainer = _trainer(rank, 2)
        mine = _epoch(data)
        assert len(mine) == 4
        shared |= mine
    assert _same(shared, one)


def test_items_depend_on_the_seed(monkeypatch):
    first = _epoch(_data())
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    other = _epoch(_data())
    assert not any(torch.equal(first[key][2], other[key][2]) for key in first)


def test_drawn_pixels_have_their_coordinates_and_cells():
    data = _data()
    items = next(iter(data.train_dataloader()))
    batch = data.to_coordinates(items, training=True)
    assert batch.shape is None
    assert batch.query.coords.shape == (4, 20, 4)
    assert batch.query.mask is None
    assert batch.observation.index.tolist() == items.instance.tolist()
    for instance in range(4):
        rows, columns = items.size[instance].tolist()
        for query in range(20):
            row, column = divmod(int(items.drawn[instance, query]), columns)
            expected = [(2 * row + 1) / rows - 1, (2 * column + 1) / columns - 1, 2 / rows, 2 / columns]
            assert batch.query.coords[instance, query].tolist() == pytest.approx(expected, abs=1e-6)
            assert torch.equal(batch.query.values[instance, query], items.high[instance, :, query].float() / 255)
    assert torch.equal(batch.observation.signal, items.low.float() / 255)
    coords, values = batch.observation.samples[:2]
    assert coords.shape == (SIZE**2, 4)
    assert coords[0].tolist() == pytest.approx([1 / SIZE - 1, 1 / SIZE - 1, 2 / SIZE, 2 / SIZE], abs=1e-6)
    assert torch.equal(values[:, 7], batch.observation.signal[:, :, 1, 1])


def _interpolated(observed, coords):
    """Return the bilinear interpolation ``(B, N, C)`` of images at coordinates ``(B, N, 4)``."""
    grid = coords[..., :2].flip(-1).unsqueeze(1)
    return functional.grid_sample(observed, grid, padding_mode="border", align_corners=False)[:, :, 0].mT


def _shift_error(batch, shift):
    """Return the largest error of the interpolated observation, read at coordinates moved by pixels of the observation.

    Pixels within two pixels of the observation from its border are left out, where interpolation is not linear.
    """
    observed, coords = batch.observation.signal, batch.query.coords.expand(len(batch.observation.signal), -1, -1)
    size = torch.tensor(observed.shape[2:])
    inside = (coords[..., :2].abs() < 1 - 4 / size).all(-1)
    moved = coords[..., :2] + 2 * torch.tensor(shift) / size
    errors = (_interpolated(observed, moved) - batch.query.values).abs().amax(-1)
    return errors[inside].max().item()


@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.parametrize("symmetries", ["all", "none"])
def test_resolutions_are_aligned_to_a_quarter_of_a_pixel(stage, symmetries):
    options = {"size": 16, "scales": (1.0, 3.0), "num_queries": 200, "symmetries": symmetries}
    data = _data([_ramps(50, 50) for _ in range(8)], stage, test_scales=[2.0, 2.3, 3.0], **options)
    loader = data.train_dataloader() if stage == "fit" else data.test_dataloader()
    for items in loader:
        batch = data.to_coordinates(items, training=stage == "fit")
        tolerance = (
            1.1 / 255
        )  # both are rounded; a pixel of the observation differs from the next by at least 4.7 levels
        assert _shift_error(batch, (0.0, 0.0)) < tolerance
        for shift in ((0.25, 0.0), (-0.25, 0.0), (0.0, 0.25), (0.0, -0.25)):
            assert _shift_error(batch, shift) > 1.3 * tolerance


def test_whole_images_have_all_coordinates_and_a_border_that_does_not_count():
    image = _noise(25, 38)
    data = _data([image], "test", test_scales=[2.0, 2.5, 4.0])
    loader = data.test_dataloader()
    assert len(loader) == 3
    for items, scale, border in zip(loader, (2.0, 2.5, 4.0), (2, 3, 4), strict=True):
        batch = data.to_coordinates(items)
        rows, columns = round(25 // scale * scale), round(38 // scale * scale)
        assert batch.shape == (rows, columns)
        assert batch.names == [f"image0-x{scale:g}"]
        assert batch.observation.index is None
        assert torch.equal(batch.query.coords, CellGrid.unit(2).coords((rows, columns)))
        values = batch.query.values.mT.unflatten(-1, batch.shape)[0]
        assert torch.equal(values, image.values[:, :rows, :columns].float() / 255)
        inner = batch.query.mask[0].view(rows, columns)
        assert inner[border:-border, border:-border].all()
        assert inner.sum() == (rows - 2 * border) * (columns - 2 * border)


@pytest.mark.parametrize(("border", "pixels"), [("none", 0), ("scale", 2), ("scale+6", 8)])
def test_borders_of_the_protocols(border, pixels):
    data = _data([_noise(40, 50)], "validate", border=border)
    batch = data.to_coordinates(next(iter(data.val_dataloader())))
    if border == "none":
        assert batch.query.mask is None
    else:
        assert batch.query.mask.sum() == (40 - 2 * pixels) * (50 - 2 * pixels)


def test_a_border_that_leaves_nothing_is_refused():
    data = _data([_noise(16, 40, name="strip.png")], "validate", border="scale+6")
    message = (
        r"strip\.png-x2 has 16 x 40 pixels; a border of 8 on all sides leaves none to measure: set border to none, or"
    )
    with pytest.raises(ValueError, match=message):
        data.to_coordinates(next(iter(data.val_dataloader())))


def test_published_low_resolutions_are_asked_for_at_every_scale():
    images, low = [_noise(25, 30, seed) for seed in range(2)], [_noise(12, 15, seed) for seed in (7, 8)]
    data = _data(FewImages(images, {2.0: low}), "test", test_scales=[2.0, 3.0])
    assert torch.equal(data.test_set[1].low, low[1].values)
    assert torch.equal(data.test_set[1].high, images[1].values[:, :24, :30])
    expected = Bicubic()(images[1].values[:, :24, :30], (8, 10), torch.Generator())
    assert torch.equal(data.test_set[3].low, expected)


def test_the_specification_states_channels_scales_and_cells():
    data = _data(channels=1, scales=(1, 3))
    assert data.spec.signal_shape == (1, SIZE, SIZE)
    assert (data.spec.value_dim, data.spec.domain, data.spec.scales) == (1, CellGrid.unit(2), (1.0, 3.0))
    assert data.spec.num_instances == 8
    assert isinstance(data.spec.modality, SuperResolvedImages)
    batch = data.to_coordinates(next(iter(data.train_dataloader())), training=True)
    assert batch.observation.signal.shape == (4, 1, SIZE, SIZE)
    assert batch.query.values.shape == (4, 20, 1)


def test_random_items_have_the_shapes_of_training_items():
    data = _data()
    items, random = next(iter(data.train_dataloader())), data.random_items(4)
    assert isinstance(random, Pair)
    for field in ("low", "high", "drawn", "size"):
        assert getattr(items, field).shape == getattr(random, field).shape
        assert getattr(items, field).dtype == getattr(random, field).dtype
    first, second = (data.to_coordinates(some, training=True) for some in (items, random))
    assert first.query.coords.shape == second.query.coords.shape


def test_graded_squares_are_trained_on_whole():
    images = [_noise(25, 24 + seed, seed) for seed in range(6)]
    data = _data(images, crop=False, symmetries="mirror", scales=(1, 4), batch_size=2)
    first, later = _epoch(data), _epoch(data, 1)
    assert [first[index][3].item() * SIZE for index in range(6)] == pytest.approx([6, 10, 13, 17, 20, 24])
    for index in first:
        assert first[index][3] == later[index][3]
        assert not torch.equal(first[index][2], later[index][2])
        low = data.train_set[index].low
        assert any(torch.equal(first[index][0], image) for image in (low, low.flip(-1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size is 0, num_queries 20, repeat 1: all must be at least 1"),
        ({"num_queries": 0}, "num_queries 0"),
        ({"repeat": 0}, "repeat 0"),
        ({"scales": (0.9, 4.0)}, r"scales is \[0.9, 4.0\]: give the smallest and the largest.*at least 1"),
        ({"scales": (3.0, 2.0)}, r"scales is \[3.0, 2.0\]"),
        ({"scales": (1.0, float("inf"))}, r"scales is \[1.0, inf\]"),
        (
            {"num_queries": 37},
            r"num_queries is 37, but a crop of size 6 at scale 1 has 36 pixels: set num_queries to at most that",
        ),
        ({"num_queries": 145, "scales": (2.0, 4.0)}, "crop of size 6 at scale 2 has 144 pixels"),
        ({"val_scales": []}, r"val_scales is \[\]: give at least one scale, all at least 1"),
        ({"test_scales": [2.0, 0.5]}, r"test_scales is \[2.0, 0.5\]"),
        ({"crop": False, "repeat": 2}, "repeat is 2 and augment None, but both belong to random crops"),
        (
            {"crop": False, "augment": ImageAugmentation(rotate=True)},
            "set crop to true, or repeat to 1 and augment to null",
        ),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        _data(**arguments)


def test_other_signals_are_refused():
    with pytest.raises(
        ValueError, match=r"images is SampleSpeech, which does not offer images.*datamodules\.ImageFolder"
    ):
        SuperResolution(SampleSpeech())


def test_photographs_are_native_and_resized_but_never_enlarged():
    photos = SamplePhotos(size=128, scales=(1.0, 2.5), extended=True)
    train = photos.native_images("train")
    names = TRAINING_PHOTOGRAPHS + MORE_PHOTOGRAPHS
    by_name = dict(train.images)
    assert all(torch.equal(by_name[name], photograph(name)) for name in names)
    for name in names:
        side = min(photograph(name).shape[1:])
        for target in (128, 320):
            assert (f"{name}-{target}" in by_name) == (target < side)
            if target < side:
                assert min(by_name[f"{name}-{target}"].shape[1:]) == target
    assert dict(train.shapes) == {name: tuple(pixels.shape[1:]) for name, pixels in train.images}
    for split in ("val", "test"):
        assert [name for name, _ in photos.native_images(split).images] == list(HELD_OUT_PHOTOGRAPHS)
    assert not {name.partition("-")[0] for name in by_name} & set(HELD_OUT_PHOTOGRAPHS)
    few = SamplePhotos(size=128, scales=(1.0,)).native_images("train")
    assert {name.partition("-")[0] for name, _ in few.images} == set(TRAINING_PHOTOGRAPHS)


def test_photographs_are_wrapped():
    data = _data(SamplePhotos(size=128, scales=(1.0,)))
    assert len(data.train_set) > 2 * len(TRAINING_PHOTOGRAPHS) - 2
    assert [data.val_set[index].name for index in range(2)] == ["astronaut-x2", "coffee-x2"]
    assert data.notes is data.images.notes
    batch = data.to_coordinates(next(iter(data.train_dataloader())), training=True)
    assert batch.query.values.std() > 0.05


KINDS = ("colour", "grey", "cmyk", "deep", "alpha", "palette")


def _write(folder, kind, shape):
    """Write an image of a kind of file."""
    pixels = _noise(*shape, seed=KINDS.index(kind)).values.permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    if kind == "deep":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    elif kind == "cmyk":
        image.convert("CMYK").save(folder / "cmyk.jpg")
    elif kind == "alpha":
        image.putalpha(Image.fromarray(pixels[..., 1]))
        image.save(folder / "alpha.png")
    else:
        image.convert({"grey": "L", "palette": "P", "colour": "RGB"}[kind]).save(folder / f"{kind}.png")


@pytest.fixture
def folder(tmp_path):
    """Return a folder with training images of several kinds and sizes, and one image to validate."""
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
    for index, kind in enumerate(KINDS):
        _write(tmp_path / "images" / "train", kind, (26 + 3 * index, 41 - 2 * index))
    _write(tmp_path / "images" / "val", "grey", (31, 27))
    return tmp_path / "images"


@pytest.mark.parametrize("cached", [False, True], ids=["decoded", "cached"])
@pytest.mark.parametrize("channels", [1, 3])
def test_folders_of_images_of_any_kind_and_size_are_wrapped(folder, tmp_path, cached, channels):
    images = ImageFolder(str(folder), cache=str(tmp_path / "cache") if cached else None)
    data = _data(images, batch_size=6, repeat=2, channels=channels)
    assert len(data.train_set) == 12
    assert sorted(data.train_set[index].values.shape[1] for index in range(6)) == [26, 29, 32, 35, 38, 41]
    items = _epoch(data)
    assert len(items) == 12
    assert all(item[0].shape == (channels, SIZE, SIZE) for item in items.values())
    assert data.val_set[0].low.shape == (channels, 15, 13)
    assert "by folders" in data.notes["split"]


def test_a_file_smaller_than_a_crop_is_found_from_the_message(folder, tmp_path):
    (folder / "train" / "old").mkdir()
    Image.fromarray(np.zeros((9, 40, 3), np.uint8)).save(folder / "train" / "old" / "icon.png")
    message = (
        r"The image old/icon\.png has 9 x 40 pixels; size 6 at scale 2 takes 12 x 12: lower size or scales, or remove"
    )
    with pytest.raises(ValueError, match=message):  # at set-up
        _data(ImageFolder(str(folder), cache=str(tmp_path / "cache")), scales=(2.0, 4.0))
    uncached = _data(ImageFolder(str(folder), cache=None), scales=(2.0, 4.0), batch_size=1)
    with pytest.raises(ValueError, match=message):
        list(uncached.train_dataloader())


def test_unreadable_files_are_refused_or_skipped_with_a_message(folder, capsys):
    broken = folder / "train" / "colour.png"
    broken.write_bytes(broken.read_bytes()[:200])
    uncached = _data(ImageFolder(str(folder), cache=None), batch_size=1)
    with pytest.raises(ValueError, match=r"colour\.png is corrupt or truncated.*on_bad_file skip"):
        list(uncached.train_dataloader())
    data = _data(ImageFolder(str(folder), cache=None, on_bad_file="skip"))
    assert len(data.train_set) == 5
    assert list(data.skipped) == [str(broken)]
    assert "Skipped 1 unreadable images" in capsys.readouterr().err


def test_a_missing_folder_is_named():
    with pytest.raises(ValueError, match="There is no folder nowhere"):
        _data(ImageFolder("nowhere"))


def test_images_of_one_size_are_evaluated_together_and_others_refused():
    same = SuperResolution(
        FewImages([_noise(20, 30), _noise(20, 30, seed=1)]), size=SIZE, num_queries=9, test_scales=[2.0]
    )
    same.setup("test")
    batch = same.to_coordinates(same.collate([same.test_set[0], same.test_set[1]]))
    assert batch.observation.signal.shape == (2, 3, 10, 15)
    assert batch.query.values.shape == (2, 600, 3)
    others = SuperResolution(FewImages([_noise(20, 30), _noise(20, 32)]), size=SIZE, num_queries=9, test_scales=[2.0])
    others.setup("test")
    with pytest.raises(ValueError, match="set eval_batch_size to 1"):
        others.collate([others.test_set[0], others.test_set[1]])


def test_batches_do_not_mix_scales():
    data = SuperResolution(FewImages([_noise(10, 10)]), size=SIZE, num_queries=9, test_scales=[1.9, 2.0], border="none")
    data.setup("test")
    with pytest.raises(ValueError, match="different sizes or scales"):
        data.collate([data.test_set[0], data.test_set[1]])


def test_rounding_does_not_lose_a_pixel():
    data = SuperResolution(FewImages([_noise(33, 66)]), size=SIZE, num_queries=9, test_scales=[1.1])
    data.setup("test")
    assert data.test_set[0].low.shape == (3, 30, 60)
    assert data.test_set[0].high.shape == (3, 33, 66)


@pytest.mark.parametrize(("crop", "border"), [(True, "scale"), (False, "none")])
def test_images_that_are_too_small_for_evaluation_are_refused_at_set_up(crop, border):
    class Decoded(FewImages):
        def native_images(self, split):
            """Return the images with their shapes."""
            images = super().native_images(split)
            images.shapes = [(item.name, tuple(item.values.shape[1:])) for item in self.given]
            return images

    images = Decoded([_noise(80, 80), _noise(20, 20, name="small")])
    data = SuperResolution(images, size=SIZE, num_queries=9, test_scales=[8.0], crop=crop, border=border)
    with pytest.raises(ValueError, match="The image small has 20 x 20 pixels, too few for evaluation at scale 8"):
        data.setup("test")


def test_random_degradations_need_random_crops():
    with pytest.raises(ValueError, match="degradation is Realistic"):
        SuperResolution(FewImages([]), size=SIZE, num_queries=9, crop=False, degradation=Realistic())

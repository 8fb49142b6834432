"""The photographs bundled with scikit-image."""

import socket
from itertools import islice, permutations

import pytest
import torch

from datamodules import SamplePhotos
from datamodules.batch import Signal
from datamodules.domain import Grid
from datamodules.images.sample_photos import HELD_OUT_PHOTOGRAPHS, MORE_PHOTOGRAPHS, TRAINING_PHOTOGRAPHS, photograph
from datamodules.storage.images import RandomCrop

SIZE = 16


def _items(dataset):
    """Return the items of an epoch."""
    return [dataset[index] for index in range(len(dataset))]


@pytest.fixture(scope="module")
def photos():
    """Return a data module of small photographs, set up without network."""

    def fail(*args, **kwargs):
        raise OSError("the network is disabled in this test")

    photograph.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", fail)
        patch.setattr(socket, "create_connection", fail)
        data = SamplePhotos(size=SIZE, crops_per_epoch=70, scales=(1.0, 1.3, 2.0), batch_size=8)
        data.setup("fit")
    return data


def test_held_out_are_two_full_photographs_and_16_crops_of_each(photos):
    names = [item.name for item in _items(photos.val_set)]
    crops = [f"{row}{column}" for row in range(4) for column in range(4)]
    assert names == [
        name for photo in ("astronaut", "coffee") for name in (photo, *(f"{photo}-{crop}" for crop in crops))
    ]
    assert len(names) == len(set(names)) == 34
    assert [item.name for item in _items(photos.test_set)] == names
    for item in _items(photos.val_set):
        assert item.values.shape == (3, SIZE, SIZE)
        assert item.values.dtype == torch.uint8


def test_fixed_crops_are_the_central_squares_of_a_grid():
    data = SamplePhotos(size=100)  # the squares of coffee, 400 x 600, have 100 pixels and are not resized
    data.setup("test")
    items = {item.name: item.values for item in _items(data.test_set)}
    image = photograph("coffee")
    for row in range(4):
        for column in range(4):
            top, left = 100 * row, 150 * column + 25
            assert torch.equal(items[f"coffee-{row}{column}"], image[:, top : top + 100, left : left + 100])


def test_held_out_photographs_are_never_trained_on(photos):
    training = {item.name for item in _items(photos.train_set)}
    assert training == set(TRAINING_PHOTOGRAPHS)
    assert len(training) >= 6
    assert not training & set(HELD_OUT_PHOTOGRAPHS)
    images = {name: photograph(name) for name in (*training, *HELD_OUT_PHOTOGRAPHS)}
    for held_out in HELD_OUT_PHOTOGRAPHS:
        assert not any(torch.equal(images[name], images[held_out]) for name in training)


@pytest.mark.parametrize("name", [*TRAINING_PHOTOGRAPHS, *HELD_OUT_PHOTOGRAPHS])
def test_photographs_have_three_channels_and_contrast(name):
    image = photograph(name)
    assert image.shape[0] == 3
    assert image.dtype == torch.uint8
    assert min(image.shape[1:]) >= 256
    assert image.float().std() > 5


def test_training_images_have_all_scales_and_the_epoch_length(photos):
    assert len(photos.train_set) == 70
    sides = [min(photos.train_set[index].values.shape[1:]) for index in range(36)]
    assert sorted(set(sides)) == [16, 21, 32]
    assert all(sides.count(side) == len(TRAINING_PHOTOGRAPHS) for side in (16, 21, 32))
    assert torch.equal(photos.train_set[36].values, photos.train_set[0].values)


def test_scaled_photographs_keep_their_aspect_ratio(photos):
    for index in range(36):
        item = photos.train_set[index]
        height, width = photograph(item.name).shape[1:]
        side = min(item.values.shape[1:])
        assert item.values.shape[1] == pytest.approx(height * side / min(height, width), abs=0.51)
        assert item.values.shape[2] == pytest.approx(width * side / min(height, width), abs=0.51)


def test_crops_have_the_right_size_and_content_at_every_scale(photos):
    for index in range(36):
        item = photos.train_set[index]
        crop = RandomCrop(SIZE)(item, torch.Generator().manual_seed(index)).values
        assert crop.shape == (3, SIZE, SIZE)
        windows = item.values.unfold(1, SIZE, 1).unfold(2, SIZE, 1)  # (3, tops, lefts, SIZE, SIZE)
        assert any(
            (windows == window[:, None, None]).flatten(3).all(-1).all(0).any() for window in (crop, crop.flip(-1))
        )


def test_crops_reach_every_position_and_are_flipped_half_of_the_time(photos):
    pixels = torch.arange(6 * 5).reshape(1, 6, 5).expand(3, 6, 5)
    item = photos.train_set[0]._replace(values=pixels)
    corners, num_flipped = set(), 0
    for seed in range(400):
        crop = RandomCrop(4)(item, torch.Generator().manual_seed(seed)).values[0]
        num_flipped += int(crop[0, 0] > crop[0, 1])
        corners.add(int(crop.min()))
    assert corners == {5 * top + left for top in range(3) for left in range(2)}
    assert 150 < num_flipped < 250
    crops = [RandomCrop(4, flip=False)(item, torch.Generator().manual_seed(seed)).values for seed in range(50)]
    assert all(crop[0, 0, 0] < crop[0, 0, 1] for crop in crops)


def test_colour_channels_are_shuffled_only_if_requested():
    item = Signal(torch.arange(3).view(3, 1, 1).expand(3, 6, 5), "flags")
    orders = {
        shuffled: {
            tuple(
                RandomCrop(4, shuffle_colors=shuffled)(item, torch.Generator().manual_seed(seed))
                .values[:, 0, 0]
                .tolist()
            )
            for seed in range(100)
        }
        for shuffled in (False, True)
    }
    assert orders == {False: {(0, 1, 2)}, True: set(permutations(range(3)))}
    assert SamplePhotos(shuffle_colors=True).augmentation.shuffle_colors


def test_held_out_images_are_deterministic(photos):
    other = SamplePhotos(size=SIZE)
    other.setup("test")
    for first, second in zip(_items(photos.val_set), _items(other.val_set), strict=True):
        assert first.name == second.name
        assert torch.equal(first.values, second.values)


def test_training_batches_depend_only_on_the_epoch(photos):
    first, second = (next(iter(photos.train_dataloader())) for _ in range(2))
    assert first.values.shape == (8, 3, SIZE, SIZE)
    assert torch.equal(first.values, second.values)
    loader = photos.train_dataloader()
    loader.sampler.set_epoch(1)
    assert not torch.equal(next(iter(loader)).values, first.values)


def test_held_out_batches_become_coordinates(photos):
    batch = photos.to_coordinates(next(iter(photos.val_dataloader())))
    assert photos.signal_shape == batch.observation.signal.shape[1:] == (3, SIZE, SIZE)
    assert batch.shape == (SIZE, SIZE)
    assert batch.query.values.shape == (8, SIZE * SIZE, 3)
    assert 0 <= batch.query.values.min() < batch.query.values.max() <= 1


def test_iteration_stops_after_the_last_image(photos):
    assert sum(1 for _ in islice(photos.val_set, 100)) == 34
    with pytest.raises(IndexError):
        photos.val_set[34]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"crops_per_epoch": 0}, "crops_per_epoch"),
        ({"scales": (0.5,)}, "scales"),
        ({"scales": ()}, "scales"),
    ],
    ids=str,
)
def test_arguments_out_of_range_raise_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplePhotos(**arguments)


def test_source_signals_are_what_held_out_images_are_resized_from(photos):
    sizes = {"astronaut": (512, 512), "coffee": (400, 600), "astronaut-21": (128, 128), "coffee-03": (100, 100)}
    for item in _items(photos.test_set):
        source = photos.source_signal(item.name)
        assert source.dtype == torch.uint8
        assert source.shape == (3, *sizes.get(item.name, source.shape[1:]))
        assert torch.equal(photos.source_signal(item.name, (SIZE, SIZE)), item.values)
    pixels = photograph("coffee")
    assert torch.equal(photos.source_signal("coffee-03"), pixels[:, :100, 475:575])
    assert torch.equal(photos.source_signal("coffee-03", (100, 100)), pixels[:, :100, 475:575])
    assert photos.source_signal("coffee-03", (100, 101)) is None


def test_extended_photographs_are_used_for_training_only():
    photos = SamplePhotos(size=SIZE, extended=True)
    photos.setup("fit")
    names = {name for name, _ in photos.train_set.images}
    assert names == {*TRAINING_PHOTOGRAPHS, *MORE_PHOTOGRAPHS}
    assert not names & set(HELD_OUT_PHOTOGRAPHS)
    assert photograph("grace_hopper").shape == (3, 600, 512)


def test_finer_training_crops_are_observed_at_the_size_of_the_model_and_compared_at_positions_within_pixels():
    photos = SamplePhotos(size=SIZE, detail=2, batch_size=4, crops_per_epoch=8)
    photos.setup("fit")
    items = next(iter(photos.train_dataloader()))
    assert items.values.shape == (4, 3, 2 * SIZE, 2 * SIZE)
    queries = [photos.to_coordinates(items, training=True, step=step) for step in range(24)]
    observed = queries[0].observation.signal
    assert observed.shape == (4, 3, SIZE, SIZE)
    assert all(batch.observation.signal.equal(observed) for batch in queries)
    centres = Grid.unit(2).coords((SIZE, SIZE))
    finer = Grid.unit(2).coords((2 * SIZE, 2 * SIZE)).view(2 * SIZE, 2 * SIZE, 2)
    phases = {}
    for batch in queries:
        if batch.shape is not None:
            assert torch.allclose(batch.query.coords, centres)
            assert torch.allclose(batch.query.values, observed.flatten(2).mT)
            continue
        [phase] = [
            (row, column)
            for row in range(2)
            for column in range(2)
            if torch.allclose(batch.query.coords, finer[row::2, column::2].reshape(-1, 2), atol=1e-6)
        ]
        phases[phase] = batch.query.values
    assert len(phases) >= 3
    for (row, column), values in phases.items():
        assert torch.allclose(values, items.values[:, :, row::2, column::2].float().div(255).flatten(2).mT)
    assert 4 <= sum(batch.shape is None for batch in queries) <= 20


def test_subsets_are_drawn_from_finer_crops_as_from_observed_ones():
    photos, all_photos = (
        SamplePhotos(size=SIZE, detail=2, batch_size=2, crops_per_epoch=2, coordinate_subset=subset)
        for subset in (5, None)
    )
    photos.setup("fit")
    items = next(iter(photos.train_dataloader()))
    for step in range(6):
        query, every = (data.to_coordinates(items, training=True, step=step).query for data in (photos, all_photos))
        assert query.coords.shape == (5, 2)
        assert query.values.shape == (2, 5, 3)
        places = [(every.coords == coord).all(-1).nonzero().item() for coord in query.coords]
        assert len(set(places)) == 5
        assert torch.equal(query.values, every.values[:, places])


def test_evaluation_and_statistics_of_training_data_use_the_size_of_the_model():
    photos = SamplePhotos(size=SIZE, detail=2)
    photos.setup("fit")
    batch = next(photos.training_batches(8))
    assert batch.observation.signal.shape[2:] == batch.shape == (SIZE, SIZE)
    assert photos.to_coordinates(next(iter(photos.val_dataloader()))).shape == (SIZE, SIZE)


def test_photographs_too_small_for_a_scale_are_left_out_of_it():
    photos = SamplePhotos(size=64, scales=(1.0, 4.0), detail=2)
    photos.setup("fit")
    sides = {(name, min(pixels.shape[1:])) for name, pixels in photos.train_set.images}
    assert ("chelsea", 128) in sides
    assert ("chelsea", 512) not in sides
    assert ("retina", 512) in sides

"""Conversion of raw signals to coordinate batches, and data loaders."""

import math

import pytest
import torch
from coordinates import cell_size, grid
from jsonargparse import ArgumentParser
from torch.utils.data import Dataset, default_collate

from datamodules import CoordinateDataModule
from datamodules.batch import Signal
from datamodules.domain import CellGrid, Grid
from datamodules.randomness import seed_at
from datamodules.spec import DataSpec, Modality

SHAPE = (3, 4, 6)


class _Images(Dataset):
    """Random images, named by their index."""

    def __init__(self, length, shape=SHAPE):
        self.values = torch.randint(256, (length, *shape), generator=torch.Generator().manual_seed(1)).to(torch.uint8)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return Signal(self.values[index], f"image {index}")


class _Data(CoordinateDataModule):
    """Ten training and seven held-out images."""

    spec = DataSpec(Grid.unit(2), 3, SHAPE, Modality())

    def setup(self, stage):
        self.train_set, self.val_set, self.test_set = _Images(10), _Images(7), _Images(5)


class _Recordings(_Data):
    """Signals with one axis."""

    spec = DataSpec(Grid.unit(1), 1, (1, 9), Modality())


def _set_up(**arguments):
    data = _Data(**arguments)
    data.setup("fit")
    return data


def _collated(seeds=(1, 2, 3)):
    """Return a batch of the raw images with these indices and seeds."""
    images = _Images(10)
    return Signal(torch.stack([images[seed].values for seed in seeds]), [str(s) for s in seeds], torch.tensor(seeds))


def test_coordinates_and_values_of_all_pixels():
    raw = _collated()
    batch = _set_up().to_coordinates(raw)
    assert batch.shape == (4, 6)
    assert batch.names == ["1", "2", "3"]
    assert torch.equal(batch.query.coords, grid((4, 6)))
    assert batch.query.mask is None
    for instance in range(3):
        for place in range(24):
            for channel in range(3):
                expected = int(raw.values[instance, channel, place // 6, place % 6]) / 255
                assert batch.query.values[instance, place, channel].item() == pytest.approx(expected, abs=1e-7)
    assert torch.equal(batch.observation.signal, raw.values / 255)
    assert torch.equal(batch.observation.samples.coords, batch.query.coords)
    assert torch.equal(batch.observation.samples.values, batch.query.values)


def test_floating_point_signals_are_not_scaled():
    recordings = Signal(torch.randn(2, 1, 9), ["a", "b"], torch.tensor([1, 2]))
    batch = _Recordings().to_coordinates(recordings)
    assert batch.shape == (9,)
    assert torch.equal(batch.query.coords, grid((9,)))
    assert torch.equal(batch.query.values.squeeze(-1), recordings.values.squeeze(1))


def test_range_of_coordinates_is_that_of_the_domain():
    class Long(_Data):
        spec = DataSpec(Grid(((-3.0, 3.0), (0.0, 1.0))), 3, SHAPE, Modality())

    rows, columns = Long().to_coordinates(_collated()).query.coords.view(4, 6, 2).unbind(-1)
    assert torch.equal(rows[:, :1], grid((4,), -3.0, 3.0))
    assert torch.equal(columns[0, :, None], grid((6,), 0.0, 1.0))


def test_noise_is_added_to_positions_but_not_to_cell_sizes():
    class Cells(_Data):
        spec = DataSpec(CellGrid.unit(2), 3, SHAPE, Modality())

    coords = Cells(coordinate_noise="per_instance").to_coordinates(_collated(), training=True).query.coords
    assert coords.shape == (3, 24, 4)
    assert (coords[..., 2:] == torch.tensor(cell_size((4, 6)))).all()
    noise = coords[..., :2] - grid((4, 6))
    assert 0 < noise.abs().max() <= 0.25 + 1e-6


def test_evaluation_has_no_noise_and_no_subsets():
    data = _set_up(coordinate_noise="per_instance", coordinate_subset=0.5)
    plain = _set_up().to_coordinates(_collated())
    for batch in (data.to_coordinates(_collated()), data.on_after_batch_transfer(_collated(), 0)):
        assert torch.equal(batch.query.coords, plain.query.coords)
        assert torch.equal(batch.query.values, plain.query.values)
        assert batch.shape == (4, 6)


def test_noise_per_instance_stays_within_the_cell():
    batch = _set_up(coordinate_noise="per_instance").to_coordinates(_collated(range(10)), training=True)
    noise = (batch.query.coords - grid((4, 6))) / torch.tensor(cell_size((4, 6)))
    assert noise.shape == (10, 24, 2)
    assert noise.abs().max() <= 0.5 + 1e-6
    assert (noise.abs().amax(dim=(0, 1)) > 0.45).all()
    assert len({tuple(instance.flatten().tolist()) for instance in noise}) == 10


def test_noise_of_an_instance_depends_on_its_seed_only():
    data = _set_up(coordinate_noise="per_instance")
    together = data.to_coordinates(_collated((4, 7, 2)), training=True, step=3).query
    for place, seed in enumerate((4, 7, 2)):
        torch.manual_seed(seed)
        alone = data.to_coordinates(_collated((seed,)), training=True, step=8).query
        assert torch.equal(alone.coords[0], together.coords[place])
        assert torch.equal(alone.values[0], together.values[place])


def test_shared_noise_is_shared_and_changes_every_step():
    data = _set_up(coordinate_noise="shared")
    first, again, later = (data.to_coordinates(_collated(), training=True, step=step).query for step in (1, 1, 2))
    other_instances = data.to_coordinates(_collated((5, 6)), training=True, step=1).query
    assert first.coords.shape == (24, 2)
    assert torch.equal(first.coords, again.coords)
    assert torch.equal(first.coords, other_instances.coords)
    assert not torch.equal(first.coords, later.coords)
    assert ((first.coords - grid((4, 6))).abs() <= torch.tensor(cell_size((4, 6))) / 2 + 1e-6).all()


def test_noise_and_subsets_depend_on_the_global_seed(monkeypatch):
    data = _set_up(coordinate_noise="shared", coordinate_subset=0.5)
    first = data.to_coordinates(_collated(), training=True).query.coords
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(data.to_coordinates(_collated(), training=True).query.coords, first)


@pytest.mark.parametrize(("size", "count"), [(0.25, 6), (0.1, 2), (7, 7), (100, 24), (1.0, 24), (1, 1)])
@pytest.mark.parametrize("noise", ["none", "per_instance", "shared"])
def test_subsets_keep_values_at_their_coordinates(size, count, noise):
    data = _set_up(coordinate_subset=size, coordinate_noise=noise)
    raw = _collated()
    query = data.to_coordinates(raw, training=True, step=4).query
    assert query.coords.shape == ((3, count, 2) if noise == "per_instance" else (count, 2))
    assert query.values.shape == (3, count, 3)
    for instance in range(3):
        for place in range(count):
            row, column = (query.coords[instance] if query.coords.dim() == 3 else query.coords)[place].tolist()
            pixel = raw.values[instance, :, math.floor((row + 1) / 2 * 4), math.floor((column + 1) / 2 * 6)]
            assert torch.equal(query.values[instance, place], pixel / 255)


def test_subset_has_no_shape_and_changes_every_step():
    data = _set_up(coordinate_subset=0.5)
    first, again, later = (data.to_coordinates(_collated(), training=True, step=step) for step in (1, 1, 2))
    assert first.shape is None
    assert torch.equal(first.query.coords, again.query.coords)
    assert not torch.equal(first.query.coords, later.query.coords)
    assert first.observation.signal.shape == (3, *SHAPE)  # encoders get the complete signal


def test_evaluation_loaders_return_all_items_in_order():
    data = _set_up(batch_size=2, eval_batch_size=3)
    for loader, count in ((data.val_dataloader(), 7), (data.test_dataloader(), 5)):
        names = [name for batch in loader for name in batch.name]
        assert names == [f"image {index}" for index in range(count)]
    assert next(iter(data.val_dataloader())).values.shape == (3, *SHAPE)
    assert next(iter(_set_up(batch_size=2).val_dataloader())).values.shape == (2, *SHAPE)


def test_training_loader_shuffles_and_drops_the_last_items():
    loader = _set_up(batch_size=4).train_dataloader()
    names = [name for batch in loader for name in batch.name]
    assert len(loader) == 2
    assert len(set(names)) == 8
    assert names != sorted(names)
    loader.sampler.set_epoch(1)
    batch = next(iter(loader))
    numbers = [int(name.split()[1]) for name in batch.name]
    assert batch.seed.tolist() == [seed_at(0, "item", 1, number) for number in numbers]


def test_only_training_items_are_augmented():
    data = _set_up(batch_size=2)
    data.augmentation = lambda item, generator: item._replace(name="augmented")
    assert set(next(iter(data.train_dataloader())).name) == {"augmented"}
    assert list(next(iter(data.val_dataloader())).name) == ["image 0", "image 1"]


def test_batch_size_above_the_number_of_items_is_rejected():
    with pytest.raises(ValueError, match=r"batch_size 11 on 1 device.* the 10 training items"):
        _set_up(batch_size=11).train_dataloader()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_batch_size": 0}, "eval_batch_size 0"),
        ({"num_workers": -1}, "num_workers -1"),
        ({"coordinate_subset": 0}, "coordinate_subset is 0"),
        ({"coordinate_subset": -0.5}, "coordinate_subset is -0.5"),
        ({"coordinate_subset": 1.5}, "coordinate_subset is 1.5"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        _Data(**arguments)


def test_command_line_parses_counts_and_ratios():
    parser = ArgumentParser()
    parser.add_class_arguments(_Data, "data")
    sizes = [
        parser.parse_string(f"data: {{coordinate_subset: {text}}}").data.coordinate_subset for text in ("64", "0.5")
    ]
    assert [type(size) for size in sizes] == [int, float]


def test_padding_is_masked():
    values = torch.rand(3, 1, 6)
    batch = default_collate(
        [Signal(row, str(n), n, length) for n, (row, length) in enumerate(zip(values, (4, -1, 0), strict=True))]
    )
    data = _Recordings(coordinate_subset=4)
    coordinates = data.to_coordinates(batch)
    expected = torch.tensor([[True] * 4 + [False] * 2, [True] * 6, [False] * 6])
    assert torch.equal(coordinates.query.mask, expected)
    assert coordinates.observation.samples.mask is coordinates.query.mask
    query = data.to_coordinates(batch, training=True, step=3).query
    indices = ((query.coords[:, 0] + 1) * 3 - 0.5).round().long()
    assert torch.equal(query.mask, expected[:, indices])


def test_padding_of_the_last_axis_is_masked():
    batch = default_collate([Signal(torch.rand(2, 2, 3), "a", 0, 1), Signal(torch.rand(2, 2, 3), "b", 1, 3)])
    mask = _set_up().to_coordinates(batch).query.mask
    assert mask.tolist() == [[True, False, False] * 2, [True] * 6]


def test_mask_is_none_without_padding():
    assert _set_up().to_coordinates(_collated()).query.mask is None


class _Halved(_Data):
    """Images that a model observes at half their resolution."""

    spec = DataSpec(CellGrid.unit(2), 3, (3, 2, 3), Modality())

    def observe(self, signal):
        return torch.nn.functional.avg_pool2d(signal, 2)


@pytest.mark.parametrize("training", [False, True])
def test_an_observation_of_lower_resolution(training):
    batch = _Halved(coordinate_subset=7).to_coordinates(_collated(), training=training)
    assert batch.query.values.shape == (3, 7 if training else 24, 3)
    assert batch.observation.signal.shape == (3, 3, 2, 3)
    assert torch.equal(batch.observation.samples.coords, CellGrid.unit(2).coords((2, 3)))
    assert torch.equal(batch.observation.samples.values, batch.observation.signal.flatten(2).mT)

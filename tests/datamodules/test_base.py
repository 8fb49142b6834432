"""From raw signals to coordinate batches, and the loaders on the way."""

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
    """Random images that know their number."""

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


class _Sound(_Data):
    """Signals with one axis."""

    spec = DataSpec(Grid.unit(1), 1, (1, 9), Modality())


def _make(**arguments):
    data = _Data(**arguments)
    data.setup("fit")
    return data


def _collated(seeds=(1, 2, 3)):
    """Return a batch of raw images with these seeds; the image of a seed is always the same."""
    images = _Images(10)
    return Signal(torch.stack([images[seed].values for seed in seeds]), [str(s) for s in seeds], torch.tensor(seeds))


def test_coordinates_and_values_of_every_pixel():
    raw = _collated()
    batch = _make().to_coordinates(raw)
    assert batch.shape == (4, 6)
    assert batch.names == ["1", "2", "3"]
    assert torch.equal(batch.query.coords, grid((4, 6)))
    assert batch.query.mask is None
    for instance in range(3):
        for place in range(24):
            for channel in range(3):
                wanted = int(raw.values[instance, channel, place // 6, place % 6]) / 255
                assert batch.query.values[instance, place, channel].item() == pytest.approx(wanted, abs=1e-7)
    assert torch.equal(batch.observation.signal, raw.values / 255)
    assert torch.equal(batch.observation.samples.coords, batch.query.coords)
    assert torch.equal(batch.observation.samples.values, batch.query.values)


def test_floating_point_signals_stand_for_themselves():
    sound = Signal(torch.randn(2, 1, 9), ["a", "b"], torch.tensor([1, 2]))
    batch = _Sound().to_coordinates(sound)
    assert batch.shape == (9,)
    assert torch.equal(batch.query.coords, grid((9,)))
    assert torch.equal(batch.query.values.squeeze(-1), sound.values.squeeze(1))


def test_the_range_of_coordinates_belongs_to_the_data():
    class Long(_Data):
        spec = DataSpec(Grid(((-3.0, 3.0), (0.0, 1.0))), 3, SHAPE, Modality())

    rows, columns = Long().to_coordinates(_collated()).query.coords.view(4, 6, 2).unbind(-1)
    assert torch.equal(rows[:, :1], grid((4,), -3.0, 3.0))
    assert torch.equal(columns[0, :, None], grid((6,), 0.0, 1.0))


def test_noise_moves_positions_and_leaves_cells_alone():
    class Cells(_Data):
        spec = DataSpec(CellGrid.unit(2), 3, SHAPE, Modality())

    coords = Cells(coordinate_noise="per_instance").to_coordinates(_collated(), training=True).query.coords
    assert coords.shape == (3, 24, 4)
    assert (coords[..., 2:] == torch.tensor(cell_size((4, 6)))).all()
    moved = coords[..., :2] - grid((4, 6))
    assert 0 < moved.abs().max() <= 0.25 + 1e-6


def test_evaluation_draws_nothing():
    data = _make(coordinate_noise="per_instance", coordinate_subset=0.5)
    plain = _make().to_coordinates(_collated())
    for batch in (data.to_coordinates(_collated()), data.on_after_batch_transfer(_collated(), 0)):
        assert torch.equal(batch.query.coords, plain.query.coords)
        assert torch.equal(batch.query.values, plain.query.values)
        assert batch.shape == (4, 6)


def test_noise_per_instance_stays_in_the_cell_of_each_axis():
    batch = _make(coordinate_noise="per_instance").to_coordinates(_collated(range(10)), training=True)
    moved = (batch.query.coords - grid((4, 6))) / torch.tensor(cell_size((4, 6)))
    assert moved.shape == (10, 24, 2)
    assert moved.abs().max() <= 0.5 + 1e-6
    assert (moved.abs().amax(dim=(0, 1)) > 0.45).all()
    assert len({tuple(instance.flatten().tolist()) for instance in moved}) == 10


def test_noise_of_an_instance_does_not_depend_on_the_others():
    data = _make(coordinate_noise="per_instance")
    together = data.to_coordinates(_collated((4, 7, 2)), training=True, step=3).query
    for place, seed in enumerate((4, 7, 2)):
        torch.manual_seed(seed)
        alone = data.to_coordinates(_collated((seed,)), training=True, step=8).query
        assert torch.equal(alone.coords[0], together.coords[place])
        assert torch.equal(alone.values[0], together.values[place])


def test_shared_noise_keeps_the_coordinates_shared_and_changes_every_step():
    data = _make(coordinate_noise="shared")
    first, again, later = (data.to_coordinates(_collated(), training=True, step=step).query for step in (1, 1, 2))
    other_instances = data.to_coordinates(_collated((5, 6)), training=True, step=1).query
    assert first.coords.shape == (24, 2)
    assert torch.equal(first.coords, again.coords)
    assert torch.equal(first.coords, other_instances.coords)
    assert not torch.equal(first.coords, later.coords)
    assert ((first.coords - grid((4, 6))).abs() <= torch.tensor(cell_size((4, 6))) / 2 + 1e-6).all()


def test_draws_of_another_seed_are_others(monkeypatch):
    data = _make(coordinate_noise="shared", coordinate_subset=0.5)
    first = data.to_coordinates(_collated(), training=True).query.coords
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(data.to_coordinates(_collated(), training=True).query.coords, first)


@pytest.mark.parametrize(("wanted", "count"), [(0.25, 6), (0.1, 2), (7, 7), (100, 24), (1.0, 24), (1, 1)])
@pytest.mark.parametrize("noise", ["none", "per_instance", "shared"])
def test_subsets_keep_values_at_their_coordinates(wanted, count, noise):
    data = _make(coordinate_subset=wanted, coordinate_noise=noise)
    raw = _collated()
    query = data.to_coordinates(raw, training=True, step=4).query
    assert query.coords.shape == ((3, count, 2) if noise == "per_instance" else (count, 2))
    assert query.values.shape == (3, count, 3)
    for instance in range(3):
        for place in range(count):
            row, column = (query.coords[instance] if query.coords.dim() == 3 else query.coords)[place].tolist()
            pixel = raw.values[instance, :, math.floor((row + 1) / 2 * 4), math.floor((column + 1) / 2 * 6)]
            assert torch.equal(query.values[instance, place], pixel / 255)


def test_a_subset_has_no_shape_and_changes_every_step():
    data = _make(coordinate_subset=0.5)
    first, again, later = (data.to_coordinates(_collated(), training=True, step=step) for step in (1, 1, 2))
    assert first.shape is None
    assert torch.equal(first.query.coords, again.query.coords)
    assert not torch.equal(first.query.coords, later.query.coords)
    assert first.observation.signal.shape == (3, *SHAPE)  # the tokenizer still sees everything


def test_evaluation_loaders_give_every_item_once_in_order():
    data = _make(batch_size=2, eval_batch_size=3)
    for loader, count in ((data.val_dataloader(), 7), (data.test_dataloader(), 5)):
        names = [name for batch in loader for name in batch.name]
        assert names == [f"image {index}" for index in range(count)]
    assert next(iter(data.val_dataloader())).values.shape == (3, *SHAPE)
    assert next(iter(_make(batch_size=2).val_dataloader())).values.shape == (2, *SHAPE)


def test_the_training_loader_shuffles_and_drops_the_rest():
    loader = _make(batch_size=4).train_dataloader()
    names = [name for batch in loader for name in batch.name]
    assert len(loader) == 2
    assert len(set(names)) == 8
    assert names != sorted(names)
    loader.sampler.set_epoch(1)
    batch = next(iter(loader))
    numbers = [int(name.split()[1]) for name in batch.name]
    assert batch.seed.tolist() == [seed_at(0, "item", 1, number) for number in numbers]


def test_only_training_items_are_augmented():
    data = _make(batch_size=2)
    data.augmentation = lambda item, generator: item._replace(name="augmented")
    assert set(next(iter(data.train_dataloader())).name) == {"augmented"}
    assert list(next(iter(data.val_dataloader())).name) == ["image 0", "image 1"]


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match=r"batch_size 11 on 1 device.* the 10 training items"):
        _make(batch_size=11).train_dataloader()


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
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        _Data(**arguments)


def test_the_command_line_can_ask_for_a_count_of_coordinates():
    parser = ArgumentParser()
    parser.add_class_arguments(_Data, "data")
    found = [
        parser.parse_string(f"data: {{coordinate_subset: {text}}}").data.coordinate_subset for text in ("64", "0.5")
    ]
    assert [type(number) for number in found] == [int, float]


def test_padding_is_masked_wherever_samples_are():
    values = torch.rand(3, 1, 6)
    batch = default_collate(
        [Signal(row, str(n), n, length) for n, (row, length) in enumerate(zip(values, (4, -1, 0), strict=True))]
    )
    data = _Sound(coordinate_subset=4)
    made = data.to_coordinates(batch)
    wanted = torch.tensor([[True] * 4 + [False] * 2, [True] * 6, [False] * 6])
    assert torch.equal(made.query.mask, wanted)
    assert made.observation.samples.mask is made.query.mask
    chosen = data.to_coordinates(batch, training=True, step=3)
    places = ((chosen.query.coords[:, 0] + 1) * 3 - 0.5).round().long()
    assert torch.equal(chosen.query.mask, wanted[:, places])


def test_padding_of_the_last_of_several_axes():
    batch = default_collate([Signal(torch.rand(2, 2, 3), "a", 0, 1), Signal(torch.rand(2, 2, 3), "b", 1, 3)])
    mask = _make().to_coordinates(batch).query.mask
    assert mask.tolist() == [[True, False, False] * 2, [True] * 6]


def test_without_padding_there_is_no_mask():
    assert _make().to_coordinates(_collated()).query.mask is None

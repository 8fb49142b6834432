"""Order and random numbers of items depend only on seed, epoch and index."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from datamodules.batch import Signal
from datamodules.loading import Addressed, AddressSampler
from datamodules.randomness import generator_at, seed_at


class _Items(Dataset):
    """Ten items, filled with their index."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return Signal(torch.full((1, 4), float(index)), f"item {index}")


def _augment(item, generator):
    return item._replace(values=item.values + torch.rand(4, generator=generator))


def _batches(sampler, batch_size):
    """Return the complete batches of one process as lists of addresses."""
    addresses = list(sampler)
    return [addresses[t * batch_size : (t + 1) * batch_size] for t in range(len(addresses) // batch_size)]


def _global_batches(size, world_size, total, epoch, *, shuffle=True):
    """Return the global batches, each as the set of addresses of all processes."""
    processes = []
    for rank in range(world_size):
        sampler = AddressSampler(size, shuffle=shuffle, seed=5, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        processes.append(_batches(sampler, total // world_size))
    assert len({len(batches) for batches in processes}) == 1
    return [frozenset(address for batch in step for address in batch) for step in zip(*processes, strict=True)]


@given(st.integers(8, 60), st.sampled_from([4, 8]), st.integers(0, 3))
def test_global_batches_do_not_depend_on_the_number_of_processes(size, total, epoch):
    alone = _global_batches(size, 1, total, epoch)
    assert len(alone) == size // total
    assert all(len(batch) == total for batch in alone)
    for world_size in (2, 4):
        assert _global_batches(size, world_size, total, epoch) == alone


@given(st.integers(1, 40), st.integers(1, 5))
def test_unshuffled_epoch_has_every_item_once(size, world_size):
    all_addresses = []
    for rank in range(world_size):
        sampler = AddressSampler(size, shuffle=False, seed=5, rank=rank, world_size=world_size)
        addresses = list(sampler)
        assert len(addresses) == len(sampler)
        assert addresses == sorted(addresses)
        all_addresses += addresses
    assert sorted(all_addresses) == [(0, index) for index in range(size)]


@given(st.integers(1, 40), st.integers(1, 5))
def test_shuffled_epoch_has_no_item_twice_and_equal_shares(size, world_size):
    samplers = [
        AddressSampler(size, shuffle=True, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert {len(sampler) for sampler in samplers} == {size // world_size}
    addresses = [address for sampler in samplers for address in sampler]
    assert len(set(addresses)) == len(addresses) == size - size % world_size


def test_every_epoch_has_all_items_in_another_order():
    sampler = AddressSampler(50, shuffle=True, seed=5)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        addresses = list(sampler)
        assert {address_epoch for address_epoch, _ in addresses} == {epoch}
        orders.append([index for _, index in addresses])
        assert sorted(orders[-1]) == list(range(50))
    assert orders[0] != orders[1] != orders[2] != list(range(50))
    sampler.set_epoch(1)
    assert [index for _, index in sampler] == orders[1]


def test_order_depends_on_the_seed_and_not_on_the_global_state():
    first = list(AddressSampler(50, shuffle=True, seed=5))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert list(AddressSampler(50, shuffle=True, seed=5)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert list(AddressSampler(50, shuffle=True, seed=6)) != first


@pytest.mark.parametrize("shuffle", [True, False])
def test_skip_applies_to_the_first_epoch_only(shuffle):
    complete = list(AddressSampler(10, shuffle=shuffle, seed=5, rank=1, world_size=2))
    sampler = AddressSampler(10, shuffle=shuffle, seed=5, rank=1, world_size=2, skip=2)
    assert len(sampler) == 5
    assert list(sampler) == complete[2:]
    assert list(sampler) == complete


def test_items_get_a_seed():
    item = Addressed(_Items(), None, seed=5)[3, 7]
    assert item.seed == seed_at(5, "item", 3, 7)
    assert item.name == "item 7"
    assert torch.equal(item.values, torch.full((1, 4), 7.0))


def test_augmentation_depends_on_seed_epoch_and_index_only():
    addressed = Addressed(_Items(), _augment, seed=5)
    first = addressed[3, 7]
    torch.manual_seed(99)
    addressed[0, 1]
    assert torch.equal(addressed[3, 7].values, first.values)
    expected = torch.rand(4, generator=generator_at(5, "augmentation", 3, 7)) + 7
    torch.testing.assert_close(first.values, expected.unsqueeze(0))
    for other in (addressed[4, 7], addressed[3, 8], Addressed(_Items(), _augment, seed=6)[3, 7]):
        assert not torch.equal(other.values % 1, first.values % 1)
        assert other.seed != first.seed


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_items_do_not_depend_on_the_number_of_workers():
    epochs = []
    for num_workers in (0, 2):
        sampler = AddressSampler(10, shuffle=True, seed=5)
        loader = DataLoader(
            Addressed(_Items(), _augment, seed=5), batch_size=4, sampler=sampler, num_workers=num_workers
        )
        sampler.set_epoch(2)
        epochs.append(list(loader))
    for alone, workers in zip(*epochs, strict=True):
        assert torch.equal(alone.values, workers.values)
        assert torch.equal(alone.seed, workers.seed)
        assert list(alone.name) == list(workers.name)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 5, 33])
def test_every_held_out_item_counts_in_one_process(size, world_size):
    samplers = [
        AddressSampler(size, shuffle=False, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert all(len(sampler) for sampler in samplers)
    counted = [index for sampler in samplers if not sampler.repeats for _, index in sampler]
    assert sorted(counted) == list(range(size))


def test_epochs_of_training_hold_complete_optimizer_steps():
    samplers = [AddressSampler(30, shuffle=True, seed=0, rank=rank, world_size=2, step_size=4) for rank in range(2)]
    whole = AddressSampler(30, shuffle=True, seed=0, step_size=8)
    assert [len(sampler) for sampler in samplers] == [12, 12]
    assert [address for pair in zip(*samplers, strict=True) for address in pair] == list(whole)

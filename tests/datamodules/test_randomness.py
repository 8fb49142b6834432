"""Addressed seeds and generators."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.randomness import generator_at, global_seed, seed_at

ADDRESSES = st.lists(st.one_of(st.integers(-5, 2**40), st.text("ab,'", max_size=3)), max_size=4).map(tuple)


@given(ADDRESSES, ADDRESSES)
def test_seeds_are_equal_if_and_only_if_addresses_are(first, second):
    assert (seed_at(*first) == seed_at(*second)) == (first == second)


@given(ADDRESSES)
def test_seeds_are_valid_for_generators(address):
    assert 0 <= seed_at(*address) < 2**63
    assert generator_at(*address).initial_seed() == seed_at(*address)


def test_seeds_are_the_same_in_all_processes_and_versions():
    assert seed_at(0, "crop", 3, 17) == 8981178211410481577  # a change would affect every run


def test_neighbouring_addresses_are_independent():
    assert len({seed_at(0, "item", epoch, index) for epoch, index in product(range(50), range(50))}) == 2500
    assert seed_at(1, 23) != seed_at(12, 3)
    assert seed_at("1") != seed_at(1)
    draws = torch.stack([torch.rand(100, generator=generator_at(0, "item", index)) for index in range(30)])
    assert (torch.corrcoef(draws) - torch.eye(30)).abs().max() < 0.5


def test_generators_do_not_change_the_global_state():
    state = torch.get_rng_state()
    first = torch.rand(5, generator=generator_at(0, "noise"))
    torch.rand(3)
    assert torch.equal(torch.rand(5, generator=generator_at(0, "noise")), first)
    torch.set_rng_state(state)
    generator_at(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("variable", "expected"), [(None, 0), ("0", 0), ("17", 17)])
def test_global_seed(monkeypatch, variable, expected):
    if variable is not None:
        monkeypatch.setenv("PL_GLOBAL_SEED", variable)
    assert global_seed() == expected

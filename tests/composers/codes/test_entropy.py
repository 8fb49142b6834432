"""Entropy coding: exact round trips, sizes close to the entropy, and damaged streams."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composers.codes.distribution import INERTIAS, SHAPES, TOTAL, learned_row, standard_row
from composers.codes.entropy import IndexDecoder, IndexEncoder, empirical_entropy

FAR = 1 << 45


def _coded(indices, row):
    """Return the stream of indices, after checking that it decodes to them."""
    encoder = IndexEncoder()
    encoder.encode(indices, row)
    decoder = IndexDecoder(encoder.content())
    assert np.array_equal(decoder.decode(len(indices), row), indices)
    decoder.finish()
    return encoder.content()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.integers(-40, 300), st.integers(-FAR, FAR)), max_size=60),
    st.sampled_from([4, 6, 8, 16]),
    st.sampled_from(SHAPES),
    st.sampled_from(INERTIAS),
)
def test_any_indices_round_trip(indices, bits, shape, inertia):
    _coded(np.array(indices, np.int64), standard_row(shape, 2**bits, inertia))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-9, 70), min_size=1, max_size=60), st.integers(1, 64))
def test_learned_distributions_of_any_indices_round_trip(indices, levels):
    row = learned_row([np.array(indices, np.int64)], levels, True)
    assert row.frequencies.sum() == TOTAL
    assert row.frequencies.min() >= 1
    assert len(row.frequencies) == levels + 2
    _coded(np.array([*indices, -1000, 1000], np.int64), row)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("distribution", ["normal", "laplace"])
@pytest.mark.parametrize("seed", range(3))
def test_sizes_are_within_five_per_cent_of_the_empirical_entropy(bits, distribution, seed):
    generator = np.random.default_rng(seed)
    scale = 2**bits / 8 / (1 if distribution == "normal" else 2**0.5)
    training, held_out = (
        np.rint(getattr(generator, distribution)(2 ** (bits - 1), scale, count)).astype(np.int64)
        for count in (40000, 12000)
    )
    size = 8 * len(_coded(held_out, learned_row([training], 2**bits, False)))
    entropy = empirical_entropy([held_out])
    assert 0.99 * entropy <= size <= 1.05 * entropy
    standard = standard_row("gaussian" if distribution == "normal" else "laplace", 2**bits)
    assert 8 * len(_coded(held_out, standard)) <= 1.05 * entropy


def test_the_empirical_entropy_is_that_of_a_histogram():
    assert empirical_entropy([np.array([1, 1, 2, 3])]) == pytest.approx(4 * 1.5)
    assert empirical_entropy([np.array([5, 5]), np.array([1, 2])]) == pytest.approx(2)


def test_sixteen_bits_cost_eight_more_than_eight():
    generator = np.random.default_rng(0)
    fine = np.rint(generator.normal(1 << 15, 1 << 13, 4000)).astype(np.int64)
    eight, sixteen = (
        8 * len(_coded(part, standard_row("gaussian", levels))) for part, levels in ((fine >> 8, 256), (fine, 1 << 16))
    )
    assert sixteen - eight == pytest.approx(8 * 4000, rel=0.01)


def test_standard_distributions_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for shape in SHAPES:
        for bits in (4, 6, 8, 16):
            digest.update(standard_row(shape, 2**bits).frequencies.astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == "6a8c8b885f818dc4"


def test_streams_that_end_early_or_late_are_refused():
    row, indices = standard_row("gaussian", 256), np.arange(100, 160)
    content = _coded(indices, row)
    with pytest.raises(ValueError, match="whole number of words"):
        IndexDecoder(content[:-1])
    decoder = IndexDecoder(content + bytes(8))
    decoder.decode(len(indices), row)
    with pytest.raises(ValueError, match="holds more numbers"):
        decoder.finish()

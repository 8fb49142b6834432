"""Distributions that adapt to a file: exact updates, sizes on other scales than those of training, and bounds."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composers.codes.distribution import INERTIAS, TOTAL, Distribution, learned_row, standard_row, standard_rows
from composers.codes.entropy import IndexDecoder, IndexEncoder, empirical_entropy

ADAPTIVE = [inertia for inertia in INERTIAS if inertia]


def _stream(indices, row):
    """Return the stream of indices, after checking that it decodes to them."""
    encoder = IndexEncoder()
    encoder.encode(indices, row)
    decoder = IndexDecoder(encoder.content())
    assert np.array_equal(decoder.decode(len(indices), row), indices)
    decoder.finish()
    return encoder.content()


def _normal(levels, count, seed, scale=1.0, shift=0.0):
    """Return indices with so many standard deviations of a row as scale and shift."""
    deviations = shift + scale * np.random.default_rng(seed).normal(size=count)
    return np.rint(levels / 2 + levels / 8 * deviations).astype(np.int64)


def _matched(bits, count=256):
    """Return the row of training codes that all have the same distribution."""
    return learned_row([_normal(2**bits, 64, seed) for seed in range(count)], 2**bits, False)


@given(
    st.lists(st.integers(0, 17), min_size=1, max_size=80),
    st.sampled_from(ADAPTIVE),
    st.booleans(),
    st.sampled_from([4, 6]),
)
@settings(max_examples=60, deadline=None)
def test_updates_are_those_of_a_naive_reference(symbols, inertia, ordered, bits):
    row = standard_row("laplace", 2**bits, inertia)._replace(ordered=ordered)
    last = row.levels + 1
    width = max(1, row.levels // (4 + len(symbols).bit_length())) if ordered else 1
    shares = [inertia * Fraction(int(frequency), TOTAL) for frequency in row.frequencies]
    for symbol in symbols:
        for offset in range(1 - width, width):
            shares[min(max(symbol + offset, 0), last)] += Fraction(width - abs(offset), width**2)
    assert sum(shares) == inertia + len(symbols)
    spare = TOTAL - len(shares)
    expected = np.array([int(spare * share / sum(shares)) + 1 for share in shares])
    actual = row.updated(np.bincount(symbols, minlength=last + 1))
    assert actual.sum() == TOTAL
    assert actual.min() >= 1
    expected[expected.argmax()] += TOTAL - expected.sum()
    assert np.array_equal(actual, expected)


def test_updates_are_the_same_on_every_machine():
    actual = standard_row("between", 256, 8).updated(np.arange(258) % 7)
    assert actual.dtype == np.int32
    assert actual[[0, 1, 100, 128, 257]].tolist() == [2820, 508, 1019, 1044, 3927]


def test_updates_of_the_largest_counts_do_not_overflow():
    for row in standard_rows(511, False):
        counts = np.zeros(len(row.frequencies), np.int64)
        counts[[0, 40, 200]] = (1 << 28) // 3
        frequencies = row.updated(counts)
        assert frequencies.sum() == TOTAL
        assert frequencies.min() >= 1


def test_blocks_cover_all_symbols_and_grow():
    sizes = [block.stop - block.start for block in standard_row("gaussian", 16, 8).blocks(3750)]
    assert sum(sizes) == 3750
    assert sizes[:9] == [4] * 9
    assert len(sizes) == 50
    assert list(standard_row("gaussian", 16).blocks(3750)) == [slice(0, 3750)]
    assert not list(standard_row("gaussian", 16, 8).blocks(0))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_encoder_and_decoder_update_alike_in_every_row_of_a_stream(data):
    rows, parts = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        levels, is_integer = data.draw(st.sampled_from([1, 2, 7, 16, 100, 256, 5000])), data.draw(st.booleans())
        rows.append(data.draw(st.sampled_from(standard_rows(levels, is_integer))))
        some = st.one_of(st.integers(-3, levels + 3), st.just(levels // 2), st.integers(-70_000, 70_000))
        parts.append(np.array(data.draw(st.lists(some, max_size=300)), np.int64))
    encoder = IndexEncoder()
    for part, row in zip(parts, rows, strict=True):
        encoder.encode(part, row)
    decoder = IndexDecoder(encoder.content())
    for part, row in zip(parts, rows, strict=True):
        assert np.array_equal(decoder.decode(len(part), row), part)
    decoder.finish()


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0), (2, 0), (1, 1), (0.5, -1)])
def test_codes_of_another_scale_or_mean_are_within_five_per_cent_of_the_empirical_entropy(bits, scale, shift):
    row, held_out = _matched(bits, 64), _normal(2**bits, 4000, 1000, scale, shift)
    entropy = empirical_entropy([held_out])
    assert 8 * len(_stream(held_out, row)) <= 1.05 * entropy
    assert 8 * len(_stream(held_out, row._replace(inertia=0))) > 1.07 * entropy


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("count", [64, 4000])
def test_updates_cost_at_most_half_a_per_cent_where_codes_match_the_table(bits, count):
    row = _matched(bits)
    codes = [_normal(2**bits, count, seed) for seed in range(1000, 1000 + 40000 // count)]
    static = row._replace(inertia=0)
    assert sum(map(row.cost, codes)) <= 1.005 * sum(map(static.cost, codes))


def test_training_codes_that_differ_from_each_other_have_a_small_inertia():
    shifts = np.random.default_rng(0).normal(size=64)
    codes = [_normal(64, 64, seed, 0.4, shift) for seed, shift in enumerate(shifts)]
    row = learned_row(codes, 64, False)
    assert row.inertia == min(ADAPTIVE)
    held_out = [_normal(64, 64, seed, 0.4, shift) for seed, shift in enumerate(shifts, start=1000)]
    static = row._replace(inertia=0)
    assert sum(map(row.cost, held_out)) < 0.85 * sum(map(static.cost, held_out))


def test_numbers_that_are_mostly_equal_have_a_static_distribution():
    generator = np.random.default_rng(0)
    codes = [128 + 40 * generator.integers(0, 30, 64) * (generator.random(64) < 0.02) for _ in range(64)]
    assert learned_row(codes, 256, False).inertia == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-2, 40), min_size=1, max_size=8),
    st.integers(1, 200),
    st.sampled_from([1, 6, 16, 32, 4096]),
    st.booleans(),
    st.sampled_from(INERTIAS),
)
def test_no_indices_take_fewer_bits_than_the_bound(pattern, repeats, levels, is_integer, inertia):
    rows = [row for row in standard_rows(levels, is_integer) if row.inertia == inertia]
    indices = np.array(pattern * repeats, np.int64)
    for row in rows:
        escapes = np.isin(row.symbols(indices), (0, row.levels + 1)).sum()
        assert row.least_bits(len(indices)) <= row.cost(indices) + 2 * escapes + 1e-6


def test_the_cost_is_the_size_of_the_stream():
    indices = _normal(64, 5000, 3)
    for row in (standard_row("gaussian", 64, inertia) for inertia in INERTIAS):
        inside = np.clip(indices, 0, 63)
        assert 8 * len(_stream(inside, row)) == pytest.approx(row.cost(inside), abs=96)


def test_the_index_of_a_cluster_makes_no_neighbour_more_probable():
    row = standard_row("uniform", 64, 8)
    frequencies = row.updated(np.bincount([30] * 8, minlength=66))
    assert frequencies[30] > TOTAL / 2
    assert frequencies[29] == frequencies[50] == pytest.approx(TOTAL / 128, rel=0.02)
    assert isinstance(row, Distribution)

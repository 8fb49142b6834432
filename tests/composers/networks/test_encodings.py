"""Encodings against loops over coordinates, axes and frequencies."""

import copy
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composers.networks import (
    CoordinateMLP,
    FourierFeatures,
    GaussianFourierFeatures,
    IdentityEncoding,
    PositionalEncoding,
)

COORDINATE = st.floats(-1, 1, width=32)


@pytest.mark.parametrize("use_pi", [True, False])
@pytest.mark.parametrize("num_frequencies", [1, 2, 5])
@pytest.mark.parametrize("shape", [(4, 1), (4, 2), (3, 4, 2), (2, 3), (2, 2, 6)])
def test_fourier_features_equal_a_loop(naive_features, shape, num_frequencies, use_pi):
    coords = torch.rand(shape) * 2 - 1
    encoding = FourierFeatures(num_frequencies, max_frequency=8, use_pi=use_pi)
    features = encoding(coords)
    expected = naive_features(coords.reshape(-1, shape[-1]), num_frequencies, 8, use_pi)
    assert features.shape == (*shape[:-1], encoding.width(shape[-1]))
    torch.testing.assert_close(features.flatten(0, -2).double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("counts", "highest", "per_axis"),
    [
        ((2, 5), 8, [(2, 8), (5, 8)]),
        (3, [4, 16.0], [(3, 4), (3, 16)]),
        ([1, 4, 2], (2, 64, 8), [(1, 2), (4, 64), (2, 8)]),
        ([3], 8, [(3, 8)]),
    ],
    ids=str,
)
def test_frequencies_per_axis_equal_a_loop(counts, highest, per_axis):
    encoding = FourierFeatures(counts, highest)
    coords = torch.rand(5, len(per_axis)) * 2 - 1
    expected = []
    for point in coords.double().tolist():
        phases = []
        for coordinate, (count, highest_of_axis) in zip(point, per_axis, strict=True):
            frequencies = [highest_of_axis ** (k / (count - 1)) if count > 1 else 1.0 for k in range(count)]
            phases += [math.pi * coordinate * frequency for frequency in frequencies]
        expected.append([math.cos(phase) for phase in phases] + [math.sin(phase) for phase in phases])
    assert encoding.width(len(per_axis)) == len(expected[0])
    torch.testing.assert_close(encoding(coords), torch.tensor(expected), atol=1e-5, rtol=0)
    assert list(encoding.state_dict()) == ["frequencies"]


def test_equal_arguments_for_all_axes_equal_a_single_one():
    coords = torch.rand(7, 2) * 2 - 1
    assert torch.equal(FourierFeatures((6, 6), (16.0, 16.0))(coords), FourierFeatures(6, 16.0)(coords))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((), 8), "num_frequencies is ()"),
        (((2, 0), 8), "num_frequencies is (2, 0)"),
        ((2, (8, 0.5)), "max_frequency is (8, 0.5)"),
        (
            ((2, 3), (8, 8, 8)),
            "num_frequencies is [2, 3] and max_frequency [8, 8, 8]: give each one number, or one per axis",
        ),
    ],
    ids=str,
)
def test_invalid_frequencies_raise_an_error(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        FourierFeatures(*arguments)


def test_frequencies_for_another_number_of_axes_raise_an_error():
    with pytest.raises(
        ValueError, match=r"for 2 axes, num_frequencies \[2, 3\]; the network has coord_dim 3: give one"
    ):
        CoordinateMLP(3, 1, encoding=FourierFeatures((2, 3)))


def test_fourier_features_of_one_point_written_out():
    actual = FourierFeatures(num_frequencies=3, max_frequency=4)(torch.tensor([0.25, -0.5]))
    phases = [math.pi * x * f for x in (0.25, -0.5) for f in (1, 2, 4)]  # frequencies vary fastest
    expected = [math.cos(phase) for phase in phases] + [math.sin(phase) for phase in phases]
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("num_frequencies", "highest"), [(64, 128.0), (2048, 1024.0), (2, 1.0)])
def test_frequencies_increase_geometrically_from_one_to_the_highest(num_frequencies, highest):
    frequencies = FourierFeatures(num_frequencies, highest).frequencies.double()
    assert frequencies[0] == 1
    assert frequencies[-1].item() == pytest.approx(highest, rel=1e-6)
    ratio = highest ** (1 / (num_frequencies - 1))
    torch.testing.assert_close(
        frequencies[1:] / frequencies[:-1], torch.full((num_frequencies - 1,), ratio).double(), atol=1e-6, rtol=0
    )


def test_nerf_frequencies_are_powers_of_two_with_equally_spaced_exponents():
    frequencies = FourierFeatures(20, max_frequency=2**8, use_pi=False).frequencies
    expected = [2 ** (8 * k / 19) for k in range(20)]
    torch.testing.assert_close(frequencies, torch.tensor(expected), atol=0, rtol=1e-6)


def test_published_widths():
    assert FourierFeatures(64).width(2) == 256
    assert FourierFeatures(2048).width(1) == 4096
    assert FourierFeatures(20).width(3) == 120


@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=1, max_size=5))
def test_squares_of_cosine_and_sine_add_up_to_one(points):
    cosines, sines = FourierFeatures(4, 16)(torch.tensor(points)).double().chunk(2, dim=-1)
    torch.testing.assert_close(cosines**2 + sines**2, torch.ones_like(cosines), atol=1e-6, rtol=0)


@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_permuted_coordinates_have_permuted_features(points, random):
    order = random.sample(range(len(points)), len(points))
    encoding = FourierFeatures(4, 16)
    coords = torch.tensor(points)
    torch.testing.assert_close(encoding(coords[order]), encoding(coords)[order], atol=1e-6, rtol=0)


@pytest.mark.parametrize("coord_dim", [1, 2, 3])
def test_gaussian_features_equal_a_loop(coord_dim):
    encoding = GaussianFourierFeatures(coord_dim, num_frequencies=5, scale=2.0, seed=3)
    coords = torch.rand(4, coord_dim) * 2 - 1
    directions = encoding.frequencies.double().tolist()
    expected = []
    for point in coords.double().tolist():
        phases = [2 * math.pi * sum(point[a] * directions[a][k] for a in range(coord_dim)) for k in range(5)]
        expected.append([math.cos(phase) for phase in phases] + [math.sin(phase) for phase in phases])
    assert encoding.width(coord_dim) == 10
    torch.testing.assert_close(encoding(coords), torch.tensor(expected), atol=1e-5, rtol=0)


def test_gaussian_directions_have_the_scale_and_depend_on_their_seed_only():
    first = GaussianFourierFeatures(2, 4000, scale=7.0, seed=1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = GaussianFourierFeatures(2, 4000, scale=7.0, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.frequencies, again.frequencies)
    assert not torch.equal(first.frequencies, GaussianFourierFeatures(2, 4000, scale=7.0, seed=2).frequencies)
    assert first.frequencies.std().item() == pytest.approx(7.0, rel=0.05)
    assert first.frequencies.mean().item() == pytest.approx(0.0, abs=0.4)


def test_identity_returns_the_coordinates():
    coords = torch.rand(2, 5, 3)
    assert torch.equal(IdentityEncoding()(coords), coords)
    assert IdentityEncoding().width(3) == 3


@pytest.mark.parametrize(
    "encoding", [FourierFeatures(64, 128), GaussianFourierFeatures(2, 64, scale=20.0), IdentityEncoding()]
)
def test_features_are_float32_under_autocast(encoding):
    coords = torch.rand(50, 2) * 2 - 1
    expected = encoding(coords)
    with torch.autocast("cpu", torch.bfloat16):
        actual = encoding(coords)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)
    assert (
        copy.deepcopy(encoding).double()(coords.double()).dtype == torch.float64
    )  # as --trainer.precision 64-true needs


@pytest.mark.parametrize("encoding", [FourierFeatures(4), GaussianFourierFeatures(2, 4), IdentityEncoding()])
def test_encodings_have_no_parameters(encoding):
    assert not list(encoding.parameters())


def test_frequencies_of_a_state_dict_are_used():
    trained, fresh = GaussianFourierFeatures(2, 4, seed=1), GaussianFourierFeatures(2, 4, seed=2)
    fresh.load_state_dict(trained.state_dict())
    coords = torch.rand(3, 2)
    assert torch.equal(fresh(coords), trained(coords))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FourierFeatures(num_frequencies=0), "num_frequencies is 0"),
        (lambda: FourierFeatures(max_frequency=0.5), "max_frequency is 0.5"),
        (lambda: GaussianFourierFeatures(None), "coord_dim of GaussianFourierFeatures is None"),
        (lambda: GaussianFourierFeatures(0), "coord_dim of GaussianFourierFeatures is 0"),
        (lambda: GaussianFourierFeatures(2, 0), "num_frequencies is 0"),
        (lambda: GaussianFourierFeatures(2, scale=0.0), "scale 0.0"),
        (lambda: GaussianFourierFeatures(2).width(3), "coord_dim 2, the network has 3"),
    ],
)
def test_arguments_out_of_range_raise_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("use_pi", [True, False])
@pytest.mark.parametrize(("shape", "num_octaves"), [((4, 3), 5), ((2, 3, 2), 1), ((5, 1), 3)])
def test_positional_encoding_equals_a_loop(shape, num_octaves, use_pi):
    coords = torch.rand(shape, dtype=torch.float64) * 2 - 1
    encoding = PositionalEncoding(num_octaves, use_pi)
    features = encoding(coords)
    assert features.shape == (*shape[:-1], encoding.width(shape[-1]))
    for point, actual in zip(coords.reshape(-1, shape[-1]).tolist(), features.flatten(0, -2).tolist(), strict=True):
        factor = math.pi if use_pi else 1
        phases = [factor * 2**k * coordinate for coordinate in point for k in range(num_octaves)]
        expected = point + [math.sin(phase) for phase in phases] + [math.cos(phase) for phase in phases]
        assert actual == pytest.approx(expected, abs=1e-12)


def test_positional_encoding_of_metasdf_has_33_features():
    assert PositionalEncoding(5).width(3) == 33
    with pytest.raises(ValueError, match="num_octaves is 0; it must be at least 1"):
        PositionalEncoding(0)

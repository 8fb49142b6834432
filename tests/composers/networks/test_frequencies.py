"""Highest frequencies of encodings against their features, and the warning that they are too low for the data."""

import math

import pytest
import torch

from composers.networks import AttentiveMLP, BandedMLP, CoordinateMLP, PatchwiseMLP, TokenAttention
from composers.networks.encodings import (
    CosineFeatures,
    FourierFeatures,
    GaussianFourierFeatures,
    IdentityEncoding,
    PositionalEncoding,
)
from composers.networks.frequencies import unreached_frequencies
from datamodules.domain import CellGrid, Grid, Rays, Volume
from datamodules.spec import DataSpec, Modality

ENCODINGS = {
    "fourier": FourierFeatures(3, 6.0),
    "fourier without pi": FourierFeatures(3, 6.0, use_pi=False),
    "fourier per axis": FourierFeatures((2, 3), (4.0, 7.0)),
    "octaves": PositionalEncoding(4),
    "octaves with pi": PositionalEncoding(3, use_pi=True),
    "cosines": CosineFeatures((5, 9)),
    "gaussian": GaussianFourierFeatures(2, 16, 2.0),
}


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_highest_frequencies_equal_the_fastest_change_of_a_feature(encoding):
    encoding = encoding.double()
    for axis, frequency in enumerate(encoding.highest_frequencies(2)):
        other = torch.linspace(-1, 1, 9, dtype=torch.float64)
        line = torch.linspace(-0.999, 0.999, 4001, dtype=torch.float64)
        coords = torch.cartesian_prod(line, other)
        points = (coords if axis == 0 else coords.flip(1)).requires_grad_()
        features = encoding.features(points)
        slopes = [
            torch.autograd.grad(features[:, index].sum(), points, retain_graph=True)[0][:, axis]
            for index in range(features.shape[1])
        ]
        fastest = max(slope.abs().max().item() for slope in slopes)
        assert frequency == pytest.approx(max(fastest, 1 if frequency < 1 / math.pi else 0) / (2 * math.pi), rel=1e-3)


def test_coordinates_themselves_have_no_frequency():
    assert IdentityEncoding().highest_frequencies(2) is None


def _speech(samples=16000, sample_rate=16000):
    half = samples / sample_rate
    return DataSpec(Grid(((-half, half),)), 1, (1, samples), Modality(), sample_rate=sample_rate)


def _images(height, width, domain=None):
    return DataSpec(domain or Grid.unit(2), 3, (3, height, width), Modality())


def _mlp(encoding, coord_dim=1):
    return CoordinateMLP(coord_dim, 1, 8, 3, encoding=encoding)


@pytest.mark.parametrize("seconds", [1, 3])
def test_the_warning_states_both_frequencies_of_audio(seconds):
    warning = unreached_frequencies(_mlp(FourierFeatures(8, 1024.0)), _speech(16000 * seconds))
    assert warning == (
        "FourierFeatures reaches 1,024 Hz, and 16,000 samples per second hold up to 8,000 Hz: details above may be lost. "
        "To reach them, raise max_frequency to 8000."
    )


@pytest.mark.parametrize(
    "encoding", [FourierFeatures(8, 1024.0), PositionalEncoding(9, use_pi=True), GaussianFourierFeatures(1, 64, 100.0)]
)
def test_following_the_advice_ends_the_warning(encoding):
    advice = unreached_frequencies(_mlp(encoding), _speech()).rpartition("raise ")[2]
    argument, _, value = advice.removesuffix(".").replace(",", "").partition(" to ")
    raised = {
        "max_frequency": lambda number: FourierFeatures(8, number),
        "num_octaves": lambda number: PositionalEncoding(int(number), use_pi=True),
        "scale": lambda number: GaussianFourierFeatures(1, 64, number),
    }[argument](float(value))
    assert unreached_frequencies(_mlp(raised), _speech()) == ""


def test_the_warning_states_periods_of_images():
    warning = unreached_frequencies(_mlp(FourierFeatures(8, 20.0), 2), _images(64, 128))
    assert warning.startswith(
        "FourierFeatures reaches 20 periods, and the 128 samples of an axis hold up to 64 periods"
    )
    in_cells = _images(64, 128, CellGrid.unit(2))
    assert unreached_frequencies(_mlp(FourierFeatures(8, 20.0), 4), in_cells) == warning


@pytest.mark.parametrize(
    ("network", "spec"),
    [
        (_mlp(FourierFeatures(8, 4000.0)), _speech()),
        (_mlp(FourierFeatures(8, 64.0), 2), _images(178, 178)),
        (_mlp(FourierFeatures(8, 256.0), 2), _images(1024, 1024)),
        (_mlp(FourierFeatures(8, 1.0), 2), _images(-1, -1)),
        (_mlp(IdentityEncoding()), _speech()),
        (PatchwiseMLP(1, 1, 200, 32, 4), _speech()),
        (_mlp(FourierFeatures(2, 1.0), 3), DataSpec(Volume(), 1, (500, 3), Modality())),
        (_mlp(FourierFeatures(2, 1.0), 3), DataSpec(Rays(), 3, (2, 3, 64, 64), Modality())),
        (_mlp(FourierFeatures(2, 1.0), 2), DataSpec(Grid.unit(2), 1, (500, 3), Modality())),
    ],
    ids=[
        "an octave below",
        "178 pixels",
        "1024 pixels",
        "any size",
        "coordinates",
        "patches",
        "points",
        "rays",
        "point set",
    ],
)
def test_there_is_no_warning_where_harmonics_reach_or_nothing_is_known(network, spec):
    assert unreached_frequencies(network, spec) == ""


@pytest.mark.parametrize("relative", [False, True])
def test_values_that_depend_on_the_offset_from_a_token_have_frequencies_of_their_own(relative):
    sizes = {"coord_dim": 1, "value_dim": 1, "token_dim": 4, "num_tokens": 80, "hidden_dim": 8}
    attention = TokenAttention(1, 4, relative=relative)
    banded = BandedMLP((16.0, 512.0), 4.0, 8, attention=attention, **sizes)
    attentive = AttentiveMLP(FourierFeatures(8, 512.0), attention=TokenAttention(1, 4, relative=relative), **sizes)
    for network in (banded, attentive):
        warning = unreached_frequencies(network, _speech())
        assert warning.startswith("" if relative else "FourierFeatures reaches 512 Hz, and 16,000 samples per second")
        assert bool(warning) is not relative

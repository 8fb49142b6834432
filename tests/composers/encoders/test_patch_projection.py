"""Projections of patches to codes: against the mixture, for every layout of codes, and errors."""

from functools import partial

import pytest
import torch

from composers.encoders import Features, MixedPatches, Patches, PatchProjection, ViewPatches
from composers.latents import PatchMixture
from composers.networks import TensorSpec


def _encoder(axes=1):
    """Return an encoder of patches of four samples along every axis, with random parameters."""
    torch.manual_seed(0)
    encoder = MixedPatches((1, *(-1,) * axes), 4, num_blocks=1, kernel_size=3, mlp_ratio=1)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def _specs(*shapes):
    """Return the specifications of latents."""
    return {f"codes{index or ''}": TensorSpec(shape, partial(torch.zeros, shape)) for index, shape in enumerate(shapes)}


def _connected(clusters, encoder, shape):
    """Return a connected readout."""
    readout = PatchProjection(clusters)
    readout.connect(encoder, _specs(shape))
    return readout


def _mixture(clusters, values=4, numbers=2):
    """Return a random mixture."""
    directions = torch.linalg.qr(torch.randn(clusters, values, numbers))[0]
    return PatchMixture(torch.rand(clusters, values), directions, 0.5 + torch.rand(numbers))


@torch.no_grad()
@pytest.mark.parametrize("clusters", [1, 3])
def test_before_training_codes_are_the_projections_of_patches(clusters):
    encoder, mixture = _encoder(), _mixture(clusters)
    readout = _connected(clusters, encoder, (-1, 2 + (clusters > 1)))
    readout.initialize(mixture)
    signal = torch.rand(2, 1, 20)
    assert torch.equal(readout(encoder(signal))["codes"], mixture.encode(signal.view(2, 5, 4)))


@torch.no_grad()
@pytest.mark.parametrize("clusters", [1, 3])
def test_a_learned_function_of_the_token_is_added_to_the_coordinates(clusters):
    encoder = _encoder()
    readout = _connected(clusters, encoder, (-1, 2 + (clusters > 1)))
    features = encoder(torch.rand(2, 1, 20))
    before = readout(features)["codes"]
    torch.nn.init.normal_(readout.correction.weight)
    torch.nn.init.normal_(readout.correction.bias)
    difference = readout(features)["codes"] - before
    first = int(clusters > 1)
    assert not difference[..., :first].any()
    weight, bias = readout.correction.weight, readout.correction.bias
    for instance, token in ((0, 0), (1, 3)):
        expected = weight @ features.tokens[instance, token] + bias
        torch.testing.assert_close(difference[instance, token, first:], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("clusters", [1, 3])
def test_training_reaches_the_correction_and_not_the_projection(clusters):
    encoder = _encoder()
    readout = _connected(clusters, encoder, (-1, 4))
    assert {name for name, _ in readout.named_parameters()} == {"correction.weight", "correction.bias"}
    readout(encoder(torch.rand(2, 1, 20)))["codes"].square().sum().backward()
    assert all(parameter.grad.any() for parameter in readout.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    ("signal", "shape", "expected"),
    [
        ((1, 20), (-1, 3), (5, 3)),
        ((1, 8, 12), (-1, -1, 3), (2, 3, 3)),
        ((1, 8, 12), (-1, 3), (6, 3)),
        ((1, 4, 8, 12), (-1, -1, -1, 3), (1, 2, 3, 3)),
    ],
    ids=str,
)
def test_codes_have_any_layout_of_patches(signal, shape, expected):
    encoder = _encoder(len(signal) - 1)
    readout = _connected(2, encoder, shape)
    features = encoder(torch.rand(2, *signal))
    codes = readout(features)["codes"]
    assert codes.shape == (2, *expected)
    every = PatchMixture(readout.means, readout.directions, readout.scales).encode(
        features.tokens[..., : encoder.patch_values]
    )
    assert torch.equal(codes.flatten(1, -2), every)


@torch.no_grad()
def test_codes_are_exact_under_autocast():
    encoder, mixture = _encoder(), _mixture(300)
    readout = _connected(300, encoder, (-1, 3))
    readout.initialize(mixture)
    signal = torch.rand(2, 1, 2000)
    with torch.autocast("cpu", torch.bfloat16):
        codes = readout(encoder(signal))["codes"]
    assert codes.dtype == torch.float32
    assert torch.equal(codes, mixture.encode(signal.view(2, 500, 4)))


@torch.no_grad()
def test_codes_are_in_float64_where_the_model_is():
    encoder, mixture = _encoder().double(), _mixture(3)
    readout = _connected(3, encoder, (-1, 3)).double()
    readout.initialize(mixture)
    signal = torch.rand(2, 1, 20)
    codes = readout(encoder(signal.double()))["codes"]
    assert codes.dtype == torch.float64
    torch.testing.assert_close(codes.float(), mixture.encode(signal.view(2, 5, 4)))


@torch.no_grad()
def test_codes_may_have_more_numbers_than_patches_have_values():
    encoder = _encoder()
    readout = _connected(2, encoder, (-1, 9))
    codes = readout(encoder(torch.rand(2, 1, 20)))["codes"]
    assert codes.isfinite().all()
    assert not codes[..., 5:].any()


def test_tokens_without_patches_are_rejected():
    with pytest.raises(ValueError, match="tokens of ViewPatches do not hold: use encoder MixedPatches or Patches"):
        PatchProjection().connect(ViewPatches((1, 3, 8, 8), 8), _specs((-1, 3)))


@pytest.mark.parametrize(
    ("clusters", "shapes"),
    [
        (1, ()),
        (1, ((3, 2),)),
        (1, ((4, -1, -1),)),
        (1, ((-1, 4, 3),)),
        (1, ((-1, 3), (-1, 3))),
        (2, ((-1, 1),)),
        (1, ((3,),)),
    ],
    ids=str,
)
def test_latents_other_than_one_code_per_patch_are_rejected(clusters, shapes):
    with pytest.raises(
        ValueError, match=f"num_clusters {clusters} predicts one code per patch.*: use parametrization Patch"
    ):
        PatchProjection(clusters).connect(_encoder(), _specs(*shapes))


@pytest.mark.parametrize(
    "other", [{"clusters": 1}, {"clusters": 3, "values": 5}, {"clusters": 3, "numbers": 3}], ids=str
)
def test_mixtures_of_other_sizes_are_rejected(other):
    readout = _connected(3, _encoder(), (-1, 3))
    with pytest.raises(
        ValueError, match=r"has 3 clusters of patches of 4 values, 2 numbers each; .*: set num_clusters"
    ):
        readout.initialize(_mixture(**other))


def test_a_grid_of_codes_requires_one_of_the_features():
    encoder = Patches((1, 8, 12), 4)
    readout = _connected(1, encoder, (-1, -1, 3))
    with pytest.raises(ValueError, match="The codes have a grid of 2 axes, and the features of this encoder have none"):
        readout(Features(torch.rand(2, 6, encoder.embed_dim)))
    assert _connected(1, encoder, (-1, 3))(Features(torch.rand(2, 6, encoder.embed_dim)))["codes"].shape == (2, 6, 3)

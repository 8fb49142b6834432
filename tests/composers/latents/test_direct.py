"""Latents that are the modulations themselves."""

import math

import pytest
import torch

from composers import PixelAligned, Refinement
from composers.codes import InstanceCode, fingerprint, interpolate
from composers.encoders import ViewFeatures
from composers.latents import Direct, Layout
from composers.networks import PixelAlignedMLP
from composers.rendering import VolumeRenderer
from datamodules.domain import Rays
from datamodules.tiles import whole


def _connect(network):
    """Return a connected `Direct` and random latents of two instances."""
    parametrization = Direct()
    parametrization.connect(network)
    return parametrization, {name: torch.randn(2, *spec.shape) for name, spec in parametrization.latents.items()}


@pytest.mark.parametrize("modulates", ["weights", "biases", "both", "shifts"])
@pytest.mark.parametrize("modulated_layers", [(1,), (0, 3), "all", "hidden"], ids=str)
def test_latents_are_the_modulations_of_the_network(make_network, modulates, modulated_layers):
    network = make_network(modulates=modulates, modulated_layers=modulated_layers)
    parametrization, latents = _connect(network)
    assert {name: spec.shape for name, spec in parametrization.latents.items()} == {
        name: spec.shape for name, spec in network.slots.items()
    }
    modulations = parametrization.compose(latents, Layout())
    assert all(modulations[name] is latent for name, latent in latents.items())
    assert network(torch.rand(5, 2), modulations).shape == (2, 5, 3)


def test_shapes_are_those_of_weights_and_biases(make_network):
    parametrization, _ = _connect(make_network(modulates="both", modulated_layers=(0, 3)))
    shapes = {name: spec.shape for name, spec in parametrization.latents.items()}
    assert shapes == {"weight.0": (8, 8), "bias.0": (8,), "weight.3": (8, 3), "bias.3": (3,)}


def test_normalised_weights_start_with_columns_of_unit_norm_on_average(make_network):
    parametrization, _ = _connect(make_network(hidden_dim=200, modulated_layers=(1,)))
    weight = parametrization.latents["weight.1"].initial()
    assert weight.std().item() == pytest.approx(1 / math.sqrt(200), rel=0.05)
    assert weight.norm(dim=0).mean().item() == pytest.approx(1, rel=0.05)


def test_other_modulations_start_as_the_network_initialises_them(make_network):
    network = make_network(modulates="both", normalize_weights=False)
    parametrization, _ = _connect(network)
    for name in ("weight.1", "bias.1"):
        torch.manual_seed(3)
        initial = parametrization.latents[name].initial()
        torch.manual_seed(3)
        assert torch.equal(initial, network.slots[name].initial())


def test_steps_on_normalised_weights_scale_with_their_squared_norm(make_network):
    for normalize in (True, False):
        parametrization, latents = _connect(make_network(modulates="both", normalize_weights=normalize))
        scales = parametrization.step_scales(latents)
        norms = [sum(x**2 for x in weight) for weight in latents["weight.1"].flatten(1).tolist()]
        expected = norms if normalize else [1.0, 1.0]
        assert scales["weight.1"].expand(2, 1, 1).flatten().tolist() == pytest.approx(expected, rel=1e-5)
        assert scales["bias.1"].item() == 1


def test_step_scales_are_exact_in_bfloat16(make_network):
    parametrization, latents = _connect(make_network())
    low = {name: latent.bfloat16() for name, latent in latents.items()}
    scale = parametrization.step_scales(low)["weight.1"]
    assert scale.dtype == torch.float32
    torch.testing.assert_close(scale.flatten(), low["weight.1"].float().square().sum((1, 2)))


def test_a_network_without_modulations_is_rejected(make_network):
    with pytest.raises(
        ValueError, match=r"Direct adapts the modulations .* CoordinateMLP has none: name its modulated_layers"
    ):
        Direct().connect(make_network(modulated_layers=()))


def _pixel_aligned(**refinement):
    """Return a model whose codes contain the cameras of two views."""
    network, encoder = PixelAlignedMLP(3, 4, 2, 4, 6), ViewFeatures((-1, 3, -1, -1), 4)
    return PixelAligned(network, encoder, refinement=Refinement(**refinement), renderer=VolumeRenderer(2.0, 6.0))


def test_codes_with_different_constants_are_not_interpolated():
    """A rotation halfway between two, entry by entry, is singular."""
    composer = _pixel_aligned(steps=0)
    generator = torch.Generator().manual_seed(0)
    layout = Layout((2, 3, 3))

    def code(cameras):
        latents = {"maps": torch.randn(1, 4, 2, 3, 3, generator=generator), "cameras": cameras}
        model = fingerprint(composer)
        return InstanceCode(latents, [whole((2, 6, 6))], (2, 6, 6), model, domain=Rays(2.0, 6.0), layout=layout)

    cameras = torch.randn(1, 2, 16, generator=generator)
    first, last = code(cameras), code(cameras.clone())
    middle = interpolate(first, last, 0.25, composer).latents
    assert torch.equal(middle["cameras"], cameras)
    torch.testing.assert_close(middle["maps"], 0.75 * first.latents["maps"] + 0.25 * last.latents["maps"])
    other = code(cameras + 1e-3)
    message = "The codes differ in cameras, .* not valid: interpolate codes with the same cameras"
    with pytest.raises(ValueError, match=message):
        interpolate(first, other, 0.25, composer)


@pytest.mark.parametrize("starts", [("prediction", "mean"), ("prediction", "random")])
def test_refinement_from_a_code_without_constants_is_refused(starts):
    message = (
        r"PixelAlignedMLP reads cameras as facts of a signal, .* set refinement.init_args.starts to \[prediction\]"
    )
    with pytest.raises(ValueError, match=message):
        _pixel_aligned(steps=2, starts=starts)
    composer = _pixel_aligned(steps=2, starts=["prediction"])
    assert _pixel_aligned(steps=2, starts=starts, stages=["predict"]).refinement.starts == starts
    composer.refinement = Refinement(steps=2, starts=starts)
    with pytest.raises(ValueError, match=message):
        composer.on_test_start()

"""LIIF and LTE as a whole: against a naive implementation, training, and combinations that are rejected."""

import naive_liif
import numpy as np
import pytest
import torch

from composers import LIIF, Composer
from composers.encoders import EDSR, RDN, Patches
from composers.losses import MeanAbsoluteError, MeanSquaredError
from composers.networks import LocalMLP
from datamodules.batch import CoordinateBatch, Observation, Samples
from datamodules.domain import CellGrid

LTE = {"features": "fourier", "skip": "bilinear", "clip_cells": True, "max_scale": 4.0}
ENCODERS = {
    "EDSR": lambda channels=3: EDSR((channels, -1, -1), width=8, num_blocks=1),
    "RDN": lambda channels=3: RDN((channels, -1, -1), width=8, growth=4, num_blocks=2, num_layers=2),
}


def _composer(encoder="EDSR", channels=3, **arguments):
    """Return a small composer with random parameters in evaluation mode."""
    torch.manual_seed(0)
    network = LocalMLP(4, channels, 8, 16, 3, **arguments)
    composer = LIIF(network, ENCODERS[encoder](channels)).eval()
    for name, parameter in composer.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2 if "bias" in name else (2 / parameter[0].numel()) ** 0.5)
    return composer


def _batch(low=(6, 5), high=(12, 15), instances=2, channels=3):
    """Return smooth images at a high resolution, observed at a low one."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(instances, channels, 4, 4, generator=generator)
    large, small = (torch.nn.functional.interpolate(noise, size, mode="bilinear") for size in (high, low))
    domain = CellGrid.unit(2)
    observed = Samples(domain.coords(low), small.flatten(2).mT)
    query = Samples(domain.coords(high), large.flatten(2).mT)
    return CoordinateBatch(Observation(small, observed), query, high, ["a", "b"])


def _naive(composer, image, coords):
    """Return the values of one image by loops, from pixels to values."""
    state = {name: weight.double().numpy() for name, weight in composer.state_dict().items()}
    names = {"start.encoder.head": "encoder.head.0", "start.encoder.tail": "encoder.body.1"}
    names |= {"start.encoder.blocks": "encoder.body", "network.first.linear": "imnet.layers.0"}
    names |= {
        "network.hidden.0": "imnet.layers.2",
        "network.hidden.1": "imnet.layers.4",
        "network.last": "imnet.layers.6",
    }
    names |= {
        f"network.first.{ours}": theirs
        for ours, theirs in (("amplitudes", "coef"), ("frequencies", "freq"), ("phases", "phase"))
    }
    weights = {}
    for name, weight in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name] = weight
    image = image.double().numpy()
    features = naive_liif.edsr(2 * image - 1, weights, 1)
    places, cells = (part.double().numpy() for part in coords.split(2, dim=1))
    if "phase.weight" in weights:
        return torch.from_numpy(naive_liif.lte(features, image, weights, places, cells, 4.0))
    return torch.from_numpy(naive_liif.liif(features, weights, places, cells))


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{}, LTE], ids=["LIIF", "LTE"])
def test_values_are_those_of_a_naive_implementation(arguments):
    composer, batch = _composer(**arguments), _batch(high=(13, 11))
    values = composer(batch.observation, batch.query.coords)
    assert values.shape == (2, 13 * 11, 3)
    for image, actual in zip(batch.observation.signal, values, strict=True):
        torch.testing.assert_close(actual.double(), _naive(composer, image, batch.query.coords), atol=1e-5, rtol=0)


@torch.no_grad()
def test_translating_an_image_translates_the_result():
    composer, image = _composer(), torch.rand(1, 3, 24, 22)
    domain, scale, border = CellGrid.unit(2), 3, composer.start.encoder.context + 2
    results = [
        composer(Observation(part), domain.coords([scale * size for size in part.shape[2:]])).mT.unflatten(
            2, [scale * size for size in part.shape[2:]]
        )
        for part in (image, image[:, :, 2:, 1:])
    ]
    whole, part = results[0][:, :, 2 * scale :, scale:], results[1]
    inner = (..., slice(border * scale, -border * scale), slice(border * scale, -border * scale))
    assert part[inner].numel() > 100
    torch.testing.assert_close(part[inner], whole[inner], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_images_of_any_size_and_scale(encoder, channels):
    composer = _composer(encoder, channels, skip="bilinear")
    for low, high in (((6, 5), (6, 5)), ((9, 4), (10, 13)), ((1, 3), (7, 7))):
        batch = _batch(low, high, channels=channels)
        assert composer.layout(batch.observation).grid == low
        assert composer(batch.observation, batch.query.coords).shape == (2, high[0] * high[1], channels)


@pytest.mark.parametrize("arguments", [{}, {"skip": "bilinear"}, LTE, {"use_cell": False, "ensemble": False}], ids=str)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_training_lowers_the_loss_and_reaches_every_parameter(encoder, arguments, monkeypatch):
    monkeypatch.setattr(Composer, "log", lambda self, name, value, **options: None)
    composer, batch = _composer(encoder, **arguments).train(), _batch()
    optimizer, losses = torch.optim.Adam(composer.parameters(), lr=3e-3), []
    for step in range(12):
        optimizer.zero_grad()
        loss = composer.training_step(batch, step)
        loss.backward()
        losses.append(loss.item())
        assert [name for name, parameter in composer.named_parameters() if not parameter.grad.any()] == []
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_the_loss_is_the_absolute_error_unless_another_is_given():
    assert isinstance(_composer().loss, MeanAbsoluteError)
    network = LocalMLP(4, 3, 8, 16)
    assert isinstance(LIIF(network, ENCODERS["EDSR"](), loss=MeanSquaredError()).loss, MeanSquaredError)


@pytest.mark.parametrize(
    ("network", "encoder", "message"),
    [
        (lambda: LocalMLP(4, 3, 16, 16), ENCODERS["EDSR"], "The latent map has 16 channels, and the encoder returns 8"),
        (
            lambda: LocalMLP(4, 3, 8, 16, skip="bilinear"),
            lambda: ENCODERS["EDSR"](1),
            "The latent image has 3 channels",
        ),
        (lambda: LocalMLP(4, 3, 48, 16), lambda: Patches((3, 8, 8), 4), r"TokenMap needs one token per sample"),
    ],
)
def test_parts_that_do_not_fit_are_rejected(network, encoder, message):
    with pytest.raises(ValueError, match=message):
        LIIF(network(), encoder()).encode(Observation(torch.zeros(1, 3, 8, 8)))


@torch.no_grad()
def test_the_result_is_no_function_of_the_batch():
    composer, batch = _composer(), _batch()
    values = composer(batch.observation, batch.query.coords)
    alone = composer(Observation(batch.observation.signal[1:]), batch.query.coords)
    np.testing.assert_allclose(alone[0].numpy(), values[1].numpy(), atol=1e-5)

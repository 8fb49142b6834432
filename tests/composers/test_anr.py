"""ANR on images, audio and views, and its options."""

import re

import pytest
import torch
from scene_cameras import cameras

from composers import ANR, Refinement
from composers.encoders import Patches, PerToken, TokenDecoder, Transformer, ViewPatches
from composers.networks import AttentiveMLP, FourierFeatures, TokenAttention
from composers.rendering import VolumeRenderer
from datamodules.batch import Observation, Samples, Views
from datamodules.domain import Grid, Rays


def _anr(encoder, axes, channels, num_tokens=5, attention=None, **arguments):
    torch.manual_seed(0)
    network = AttentiveMLP(
        FourierFeatures(3, 8.0),
        hidden_dim=12,
        num_hidden=2,
        coord_dim=axes,
        value_dim=channels,
        token_dim=6,
        num_tokens=num_tokens,
        attention=attention or TokenAttention(2, 4, threshold=0.05),
        output_offset=0.0,
    )
    transformer = Transformer(12, 1, 5, 1, residual_dropout=0.0, qkv_bias=False, head_dim=4)
    return ANR(network, encoder, transformer, num_decoder_layers=1, **arguments)


def _signal(*shape):
    """Return observations of random signals ``(B, C, *shape)`` with all of their samples."""
    signal = torch.rand(*shape, generator=torch.Generator().manual_seed(1))
    samples = Samples(Grid.unit(len(shape) - 2).coords(shape[2:]), signal.flatten(2).mT)
    return Observation(signal, samples)


def _scenes():
    images = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    poses, intrinsics = (tensor.expand(2, *tensor.shape) for tensor in cameras(2, 8))
    samples = Samples(Rays().coords((2, 8, 8), cameras=(poses, intrinsics)), images.flatten(3).mT.flatten(1, 2))
    return Observation(Views(images, poses, intrinsics), samples)


def _assert_learns(composer, observation):
    """Check that gradients reach every parameter, and that a few steps of training and of refinement lower the loss."""
    optimizer, losses = torch.optim.Adam(composer.parameters(), 1e-2), []
    for _ in range(15):
        latents = composer.encode(observation)
        modulations = composer.compose(latents, composer.layout(observation))
        loss = composer.loss(composer.reconstruct(modulations, observation.samples.coords), observation.samples).mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    for name, parameter in composer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert losses[-1] < 0.97 * losses[0]
    composer.eval()
    with torch.no_grad():
        latents, layout = composer.encode(observation), composer.layout(observation)
    refined = composer.refine(latents, observation.samples, Refinement(5, report=()), layout)
    assert (refined[5]["tokens"] != latents["tokens"]).any()


LOCAL = {"sharpness": 1.0, "relative": True, "threshold": 0.02}


def test_audio():
    _assert_learns(_anr(Patches((1, 64), patch_size=8), 1, 1), _signal(2, 1, 64))


def test_audio_with_a_token_per_patch():
    composer = _anr(Patches((1, 64), patch_size=8), 1, 1, None, TokenAttention(2, 4, **LOCAL))
    _assert_learns(composer, _signal(2, 1, 64))


def test_images_with_a_token_per_patch():
    composer = _anr(Patches((3, 8, 12), patch_size=4), 2, 3, None, TokenAttention(2, 4, **LOCAL))
    observation = _signal(2, 3, 8, 12)
    assert isinstance(composer.start.readout, PerToken)
    assert composer.encode(observation)["tokens"].shape == (2, 6, 2, 3)
    _assert_learns(composer, observation)


def test_views_behind_a_volume_renderer():
    renderer = VolumeRenderer(2.0, 6.0, 6, density="softplus")
    composer = _anr(ViewPatches((2, 3, 8, 8), patch_size=4), 3, 4, renderer=renderer)
    assert isinstance(composer.start.readout, TokenDecoder)
    assert composer.encode(_scenes())["tokens"].shape == (2, 6, 5)
    _assert_learns(composer, _scenes())


def test_a_token_per_patch_of_views_raises_an_error():
    renderer = VolumeRenderer(2.0, 6.0, 6)
    composer = _anr(ViewPatches((2, 3, 8, 8), patch_size=4), 3, 4, None, renderer=renderer)
    message = "The latent tokens is a map (6, -1, -1, -1), and the features of this encoder have no grid."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        composer.encode(_scenes())

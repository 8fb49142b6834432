"""Mixed patches: any size, padding, equivariance, and errors."""

import pytest
import torch

from composers.encoders import MixedPatches
from composers.latents import Layout
from datamodules.batch import Views

CASES = [((2, 11), 4), ((3, 6, 9), (2, 4)), ((1, 4, 3, 5), 2)]


def _encoder(channels, axes, patch_size, trained=True, **arguments):
    """Return a small encoder, with random parameters if trained."""
    torch.manual_seed(0)
    sizes = {"num_blocks": 1, "kernel_size": 3, "mlp_ratio": 1, **arguments}
    encoder = MixedPatches((channels, *(-1,) * axes), patch_size, **sizes)
    if trained:
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return encoder


@pytest.mark.parametrize(("shape", "patch_size"), CASES, ids=str)
def test_before_training_tokens_are_patches_extended_by_the_last_values(shape, patch_size):
    axes = len(shape) - 1
    encoder = _encoder(shape[0], axes, patch_size, trained=False, embed_dim=60)
    signal = torch.rand(2, *shape)
    features = encoder(signal)
    layout = encoder.layout(signal)
    assert layout.extent == shape[1:]
    assert features.grid == layout.grid
    values = encoder.patch_values
    assert features.tokens.shape[-1] == encoder.embed_dim == values + 60
    assert torch.equal(features.tokens[..., values : 2 * values], features.tokens[..., :values])
    assert not features.tokens[..., 2 * values :].any()
    sizes = encoder.patch_size
    for token, index in enumerate(torch.cartesian_prod(*map(torch.arange, layout.grid)).reshape(-1, axes).tolist()):
        patch = signal
        for axis, (place, size) in enumerate(zip(index, sizes, strict=True)):
            samples = [min(place * size + offset, shape[1 + axis] - 1) for offset in range(size)]
            patch = patch[(slice(None),) * (2 + axis) + (samples,)]
        assert torch.equal(features.tokens[:, token, :values], patch.flatten(1))


@torch.no_grad()
@pytest.mark.parametrize("trained", [False, True])
def test_the_values_of_a_patch_are_not_mixed(trained):
    encoder, signal = _encoder(3, 2, 4, trained), torch.rand(1, 3, 8, 12)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder(signal).tokens
    assert torch.equal(tokens[..., : encoder.patch_values], encoder.patches(signal).flatten(1, 2))
    assert tokens[..., encoder.patch_values :].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(("shape", "patch_size"), CASES, ids=str)
def test_padding_is_that_of_the_signal_extended_by_its_last_values(shape, patch_size):
    encoder = _encoder(shape[0], len(shape) - 1, patch_size)
    signal = torch.rand(2, *shape)
    extended = signal
    for axis, size in enumerate(encoder.patch_size, start=2):
        last = extended.narrow(axis, extended.shape[axis] - 1, 1)
        extended = torch.cat([extended, *[last] * (-extended.shape[axis] % size)], dim=axis)
    assert torch.equal(encoder(signal).tokens, encoder(extended).tokens)
    assert encoder.layout(extended).grid == encoder.layout(signal).grid


@torch.no_grad()
def test_shifting_an_image_by_a_patch_shifts_tokens_away_from_borders():
    encoder = _encoder(3, 2, 4)
    image = torch.rand(1, 3, 40, 44)
    tokens, shifted = (
        encoder(part).tokens.unflatten(1, encoder.layout(part).grid) for part in (image, image[:, :, 4:, 8:])
    )
    torch.testing.assert_close(shifted[:, 1:-1, 1:-1], tokens[:, 2:-1, 3:-1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (4, 4), (1, 9)])
def test_signals_smaller_than_a_patch_have_one_token_along_an_axis(shape):
    encoder = _encoder(3, 2, 4)
    signal = torch.rand(1, 3, *shape)
    assert encoder.layout(signal) == Layout((1, -(-shape[1] // 4)), shape)
    assert encoder(signal).tokens.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8), (3, 0, 8), (3, 8, 8, 8)])
def test_other_signals_are_rejected(shape):
    with pytest.raises(
        ValueError, match=r"The signal has shape .*; this model takes 3 channels and 2 axes of at least one"
    ):
        _encoder(3, 2, 4)(torch.rand(2, *shape))


def test_views_are_rejected():
    views = Views(torch.rand(1, 1, 3, 8, 8), torch.rand(1, 1, 3, 4), torch.rand(1, 1, 4))
    assert _encoder(3, 2, 4).layout(views) == Layout()
    with pytest.raises(ValueError, match="choose encoder ViewPatches"):
        _encoder(3, 2, 4)(views)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signal_shape": None}, "signal_shape is None"),
        ({"patch_size": [4]}, r"patch_size is \[4\] and the signal has 2 axes"),
        ({"embed_dim": 47}, "embed_dim is 47; a patch has 48 values: set at least 48, or null"),
    ],
)
def test_arguments_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        MixedPatches(**{"signal_shape": (3, -1, -1), "patch_size": 4, **arguments})

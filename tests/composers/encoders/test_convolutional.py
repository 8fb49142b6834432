"""Convolutional encoders against naive convolutions, their receptive fields, and published sizes."""

import naive_liif
import pytest
import torch

from composers.encoders import EDSR, RDN
from composers.latents import Layout

ENCODERS = {
    "EDSR": lambda channels=3, **changes: EDSR((channels, -1, -1), **{"width": 8, "num_blocks": 2} | changes),
    "RDN": lambda channels=3, **changes: RDN(
        (channels, -1, -1), **{"width": 8, "growth": 4, "num_blocks": 2, "num_layers": 3} | changes
    ),
}
RELEASED = {  # names of the released code
    "EDSR": {"head.": "head.0.", "tail.": "body.2.", "blocks.": "body."},
    "RDN": {
        "head.": "SFENet1.",
        "second.": "SFENet2.",
        "fusion.0": "GFF.0",
        "fusion.1": "GFF.1",
        ".fusion.": ".LFF.",
        ".layers.0.": ".convs.0.conv.0.",
        ".layers.1.": ".convs.1.conv.0.",
        ".layers.2.": ".convs.2.conv.0.",
        "blocks.": "RDBs.",
    },
}


@pytest.fixture(params=ENCODERS)
def name(request):
    return request.param


def _encoder(name, *args, **changes):
    """Return an encoder with random biases in evaluation mode."""
    torch.manual_seed(0)
    encoder = ENCODERS[name](*args, **changes).eval()
    for key, parameter in encoder.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "bias" in key else (2 / parameter[0].numel()) ** 0.5)
    return encoder


def _naive(name, encoder, image, **options):
    """Return the feature map of an image in [0, 1] by loops."""
    weights = {}
    for key, parameter in encoder.named_parameters():
        for ours, theirs in RELEASED[name].items():
            key = key.replace(ours, theirs)
        weights[f"encoder.{key}"] = parameter.detach().double().numpy()
    signal = 2 * image.double().numpy() - 1
    sizes = [len(encoder.blocks)] + ([encoder.num_layers] if name == "RDN" else [])
    return torch.from_numpy({"EDSR": naive_liif.edsr, "RDN": naive_liif.rdn}[name](signal, weights, *sizes, **options))


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (6, 4)], ids=str)
def test_features_are_those_of_naive_convolutions(name, channels, shape):
    encoder, images = _encoder(name, channels), torch.rand(2, channels, *shape)
    features = encoder(images)
    assert features.grid == shape
    assert features.signal is images
    assert features.tokens.shape == (2, shape[0] * shape[1], encoder.embed_dim)
    for image, tokens in zip(images, features.tokens, strict=True):
        expected = _naive(name, encoder, image)
        torch.testing.assert_close(tokens.mT.unflatten(1, shape).double(), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_factor_of_residuals_is_an_option():
    encoder, image = _encoder("EDSR", residual_scale=0.1), torch.rand(1, 3, 5, 4)
    expected = _naive("EDSR", encoder, image[0], residual_scale=0.1)
    torch.testing.assert_close(encoder.features(2 * image - 1)[0].double(), expected, atol=1e-5, rtol=0)


def test_features_depend_on_the_stated_context(name):
    encoder, side = _encoder(name), 41
    image = torch.rand(1, 3, side, side, requires_grad=True)
    centre = encoder.features(image)[0, :, side // 2, side // 2].square().sum()
    [gradient] = torch.autograd.grad(centre, image)
    reached = gradient[0].abs().sum(0).nonzero()
    assert encoder.context < side // 2
    assert (reached - side // 2).abs().max() == encoder.context


@torch.no_grad()
def test_features_are_equivariant_to_translations(name):
    encoder, image = _encoder(name), torch.rand(1, 3, 32, 30)
    border = encoder.context
    shifted = encoder.features(image[:, :, 2:, 3:])
    assert border < 12
    torch.testing.assert_close(
        shifted[:, :, border:-border, border:-border],
        encoder.features(image)[:, :, 2 + border : -border, 3 + border : -border],
        atol=1e-5,
        rtol=0,
    )


@torch.no_grad()
def test_instances_do_not_mix(name):
    encoder, images = _encoder(name), torch.rand(3, 3, 5, 6)
    torch.testing.assert_close(encoder.tokens(images)[1:2], encoder.tokens(images[1:2]), atol=1e-5, rtol=1e-5)


def test_the_layout_is_that_of_the_pixels(name):
    encoder = _encoder(name)
    assert encoder.layout(torch.empty(1, 3, 9, 4)) == Layout((9, 4), (9, 4))
    assert encoder.signal_shape == (3, -1, -1)
    assert encoder.num_tokens is None


@pytest.mark.parametrize(("kind", "parameters"), [(EDSR, 1_220_416), (RDN, 21_973_952)])
def test_published_sizes(kind, parameters):
    with torch.device("meta"):
        encoder = kind((3, -1, -1))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    assert encoder.context == {EDSR: 34, RDN: 131}[kind]


@pytest.mark.parametrize("arguments", [{"signal_shape": None}, {"signal_shape": (3, 8)}, {"width": 0}], ids=str)
def test_arguments_out_of_range_are_rejected(name, arguments):
    kind = {"EDSR": EDSR, "RDN": RDN}[name]
    with pytest.raises(ValueError, match=r"signal_shape is .* and width .*pass \(channels, -1, -1\)"):
        kind(**{"signal_shape": (3, -1, -1)} | arguments)


@pytest.mark.parametrize("shape", [(1, 5, 5), (2, 1, 5, 5), (2, 3, 5)], ids=str)
def test_other_signals_are_rejected(name, shape):
    with pytest.raises(ValueError, match=r"The signal has the shape .*; this encoder takes images \(B, 3, H, W\)"):
        _encoder(name)(torch.zeros(shape))

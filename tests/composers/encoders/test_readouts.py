"""Readouts against loops over tokens: which token becomes which part of a latent."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from composers.encoders import EDSR, Features, Patches, PerToken, TokenMap, Transformer, WeightTokens
from composers.latents import Layout, PatchMixture
from composers.networks import TensorSpec

E = 12


class _Recorder(nn.Module):
    """Stand-in for the transformer that returns the weight tokens plus the index of the instance."""

    embed_dim = E

    def forward(self, data_tokens, weight_tokens):
        self.data_tokens = data_tokens
        return weight_tokens + torch.arange(len(weight_tokens)).reshape(-1, 1, 1)


def _specs(**shapes):
    """Return the specifications of latents by name; underscores stand for dots."""
    return {name.replace("_", "."): TensorSpec(shape, partial(torch.zeros, shape)) for name, shape in shapes.items()}


def _naive_head(head, token):
    """Return LayerNorm and Linear of one token, value by value."""
    norm, linear = head
    token = token.tolist()
    mean = sum(token) / E
    deviation = math.sqrt(sum((value - mean) ** 2 for value in token) / E + 1e-5)
    normed = [(token[e] - mean) / deviation * float(norm.weight[e]) + float(norm.bias[e]) for e in range(E)]
    return [
        sum(float(linear.weight[i, e]) * normed[e] for e in range(E)) + float(linear.bias[i])
        for i in range(linear.out_features)
    ]


def _weight_tokens(latents, **arguments):
    """Return connected `WeightTokens` with a recorder and random norms."""
    readout = WeightTokens(_Recorder(), **arguments)
    readout.connect(Patches((1, 8), 4), latents)
    for head in readout.heads.values():
        nn.init.normal_(head[0].weight)
        nn.init.normal_(head[0].bias)
    return readout


@torch.no_grad()
@pytest.mark.parametrize(
    ("shapes", "num_tokens"),
    [
        ({"patterns_1": (4, 5)}, None),
        ({"patterns_1": (4, 6)}, 3),
        ({"patterns_1": (4, 6)}, 1),
        ({"scales_0": (3, 4), "scales_2": (5, 6), "scales_3": (2, 2)}, 2),
        ({"weight_0": (3, 4), "bias_0": (4,)}, None),
        ({"latent": (7,)}, None),
    ],
    ids=str,
)
def test_weight_tokens_become_their_columns_in_order(shapes, num_tokens):
    specs = _specs(**shapes)
    readout = _weight_tokens(specs, num_tokens=num_tokens)
    latents = readout(Features(torch.rand(2, 2, 4)))
    assert list(latents) == list(specs)
    place = 0
    for name, spec in specs.items():
        height, columns = spec.shape if len(spec.shape) == 2 else (spec.shape[0], 1)
        count = num_tokens or columns
        assert latents[name].shape == (2, *spec.shape)
        for token in range(count):
            for instance in range(2):
                values = _naive_head(readout.heads[name.replace(".", "_")], readout.weight_tokens[place] + instance)
                for part in range(columns // count):
                    latent = latents[name][instance].reshape(height, columns)
                    expected = torch.tensor(values[part * height : (part + 1) * height])
                    actual = latent[:, token * (columns // count) + part]
                    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
            place += 1
    assert readout.num_weight_tokens == place


def test_data_tokens_are_embedded_and_get_positions():
    readout = _weight_tokens(_specs(patterns_1=(3, 2)))
    tokens = torch.rand(3, 2, 4)
    readout(Features(tokens))
    for instance in range(3):
        for token in range(2):
            embedded = readout.embedding.weight @ tokens[instance, token] + readout.embedding.bias
            expected = embedded + readout.positions[0, token]
            actual = readout.transformer.data_tokens[instance, token]
            torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def test_encoder_with_any_number_of_tokens_has_no_positions():
    encoder = Patches((1, 8), 4)
    encoder.num_tokens = None
    readout = WeightTokens(_Recorder())
    readout.connect(encoder, _specs(patterns_1=(3, 2)))
    assert not hasattr(readout, "positions")
    tokens = torch.rand(3, 5, 4)
    readout(Features(tokens))
    torch.testing.assert_close(readout.transformer.data_tokens, readout.embedding(tokens))


def test_learned_tokens_and_positions_have_a_normal_initialisation():
    readout = WeightTokens(Transformer(96, 1, 1, 1))
    readout.connect(Patches((1, 800), 4), _specs(patterns_1=(3, 64)))
    assert readout.positions.shape == (1, 200, 96)
    assert readout.weight_tokens.shape == (64, 96)
    for values in (readout.positions, readout.weight_tokens):
        assert values.std().item() == pytest.approx(1.0, abs=0.05)
        assert values.mean().item() == pytest.approx(0.0, abs=0.05)


def test_zero_init_gives_latents_of_zero_with_gradients():
    readout = WeightTokens(Transformer(E, 2, 3, 2), zero_init=True)
    readout.connect(Patches((1, 8), 4), _specs(patterns_0=(3, 4), patterns_1=(5, 3)))
    latents = readout(Features(torch.rand(2, 2, 4)))
    assert not any(latent.any() for latent in latents.values())
    sum(latent.sum() for latent in latents.values()).backward()
    assert all(head[1].weight.grad.any() for head in readout.heads.values())
    assert all(parameter.grad is not None for parameter in readout.parameters())


@pytest.mark.parametrize(
    ("shapes", "num_tokens", "message"),
    [
        ({"patterns_1": (4, 6)}, 4, r"num_tokens of the weight tokens is 4; the latent patterns\.1 has 6 columns"),
        ({"patterns_0": (4, 6), "patterns_2": (4, 3)}, 2, r"is 2; the latent patterns\.2 has 3 columns"),
        ({"patterns_1": (4, 6)}, 0, "is 0; the latent"),
        ({"patterns_1": (4, 3)}, 6, "is 6; the latent"),
        ({"map": (4, -1, -1)}, None, r"map has shape \(4, -1, -1\): use .*PerToken"),
        ({"map": (4, 3, 2)}, None, r"map has shape \(4, 3, 2\)"),
        ({}, None, "no modulated_layers, so there is nothing to predict"),
    ],
    ids=str,
)
def test_latents_that_do_not_fit_weight_tokens_raise_an_error(shapes, num_tokens, message):
    with pytest.raises(ValueError, match=message):
        _weight_tokens(_specs(**shapes), num_tokens=num_tokens)


@torch.no_grad()
@pytest.mark.parametrize(
    ("shape", "grid"),
    [((5, -1, -1), (2, 3)), ((5, -1), (6,)), ((-1, 4, 3), None), ((-1, 7), (2, 3)), ((-1, -1, 5), (2, 3))],
    ids=str,
)
def test_every_token_becomes_the_latent_at_its_position(shape, grid):
    encoder = Patches((1, 24), 4)
    readout = PerToken()
    readout.connect(encoder, _specs(codes=shape))
    tokens = torch.rand(2, 6, encoder.embed_dim)
    latent = readout(Features(tokens, grid))["codes"]
    weight, bias = readout.heads["codes"].weight, readout.heads["codes"].bias
    fixed = [size for size in shape if size != -1]
    assert len(weight) == math.prod(fixed)
    for instance in range(2):
        for token in range(6):
            expected = (weight @ tokens[instance, token] + bias).reshape(fixed)
            if shape[:2] == (-1, -1):
                actual = latent[instance, token // grid[1], token % grid[1]]
            elif shape[0] == -1:
                actual = latent[instance, token]
            elif len(grid) == 1:
                actual = latent[instance, :, token]
            else:
                actual = latent[instance, :, token // grid[1], token % grid[1]]
            torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def test_per_token_takes_any_number_of_tokens():
    readout = PerToken()
    readout.connect(Patches((1, 24), 4), _specs(map=(5, -1, -1)))
    assert readout(Features(torch.rand(2, 20, 4), (4, 5)))["map"].shape == (2, 5, 4, 5)
    assert readout.num_weight_tokens == 0


def test_zero_init_of_per_token_gives_latents_of_zero_with_gradients():
    readout = PerToken(zero_init=True)
    readout.connect(Patches((1, 24), 4), _specs(codes=(-1, 3)))
    latent = readout(Features(torch.rand(2, 6, 4)))["codes"]
    assert not latent.any()
    latent.sum().backward()
    assert all(parameter.grad.any() for parameter in readout.parameters())


class _Context(nn.Module):
    """Stand-in for the transformer of `PerToken`: the mean of all tokens beside each token."""

    embed_dim = E

    def encode(self, tokens):
        return tokens + tokens.mean(1, keepdim=True)


def _with_context(shape, **arguments):
    """Return connected `PerToken` with a stand-in for the transformer and random norms."""
    readout = PerToken(transformer=_Context(), **arguments)
    readout.connect(Patches((1, 24), 4), _specs(tokens=shape))
    for parameter in readout.contexts.parameters():
        nn.init.normal_(parameter)
    return readout


@torch.no_grad()
@pytest.mark.parametrize(("shape", "grid"), [((5, -1), (6,)), ((5, -1, -1), (2, 3)), ((-1, 5), None)], ids=str)
def test_a_transformer_adds_a_function_of_all_tokens(shape, grid):
    readout, tokens = _with_context(shape), torch.rand(2, 6, 4)
    latent = readout(Features(tokens, grid))["tokens"]
    latent = latent if shape[0] == -1 else latent.flatten(2).mT  # (B, T, 5)
    for instance in range(2):
        embedded = [
            readout.embedding.weight @ token + readout.embedding.bias + position
            for token, position in zip(tokens[instance], readout.positions[0], strict=True)
        ]
        mean = sum(embedded) / 6
        for place, token in enumerate(tokens[instance]):
            linear = readout.heads["tokens"].weight @ token + readout.heads["tokens"].bias
            context = torch.tensor(_naive_head(readout.contexts["tokens"], embedded[place] + mean))
            torch.testing.assert_close(latent[instance, place], linear + context, atol=1e-5, rtol=0)


def test_positions_of_a_transformer_are_small_and_left_out_where_the_number_of_tokens_is_open():
    readout = _with_context((5, -1))
    assert readout.positions.shape == (1, 6, E)
    assert readout.positions.std().item() == pytest.approx(0.02, rel=0.3)
    encoder = Patches((1, 24), 4)
    encoder.num_tokens = None
    readout = PerToken(transformer=_Context())
    readout.connect(encoder, _specs(tokens=(5, -1)))
    assert not hasattr(readout, "positions")
    assert readout(Features(torch.rand(2, 9, 4)))["tokens"].shape == (2, 5, 9)


def test_zero_init_with_a_transformer_gives_latents_of_zero_with_gradients():
    readout = PerToken(zero_init=True, transformer=Transformer(E, 2, 3, 2))
    readout.connect(Patches((1, 24), 4), _specs(tokens=(3, -1)))
    latent = readout(Features(torch.rand(2, 6, 4)))["tokens"]
    assert not latent.any()
    latent.sum().backward()
    assert readout.contexts["tokens"][1].weight.grad.any()
    assert readout.heads["tokens"].weight.grad.any()


def test_without_a_transformer_there_are_no_parameters_for_it():
    readout = PerToken()
    readout.connect(Patches((1, 24), 4), _specs(tokens=(3, -1)))
    assert {name.partition(".")[0] for name, _ in readout.named_parameters()} == {"heads"}


def test_latents_that_do_not_fit_per_token_raise_an_error():
    for specs in ({}, _specs(map=(5, -1), patterns_1=(3, 2))):
        with pytest.raises(ValueError, match="use readout WeightTokens"):
            PerToken().connect(Patches((1, 24), 4), specs)
    readout = PerToken()
    readout.connect(Patches((1, 24), 4), _specs(map=(5, -1, -1)))
    with pytest.raises(ValueError, match=r"map is a map .* have no grid"):
        readout(Features(torch.rand(2, 6, 4)))


def test_per_token_fills_one_axis_with_all_tokens_of_a_grid():
    readout = PerToken()
    readout.connect(Patches((1, 4, 6), 2), _specs(tokens=(5, -1)))
    features = Features(torch.randn(3, 6, 4), (2, 3))
    expected = readout.heads["tokens"](features.tokens).mT
    assert torch.equal(readout(features)["tokens"], expected)
    assert expected.shape[1:] == Layout((2, 3)).shape((5, -1))


@pytest.mark.parametrize("readout", [PerToken(), WeightTokens(_Recorder())], ids=["per token", "weight tokens"])
def test_readouts_without_a_projection_keep_their_parameters(readout):
    shape = (-1, 3) if isinstance(readout, PerToken) else (3, 2)
    readout.connect(Patches((1, 24), 4), _specs(codes=shape))
    before = {name: value.clone() for name, value in readout.state_dict().items()}
    readout.initialize(PatchMixture(torch.rand(1, 4), torch.rand(1, 4, 3), torch.ones(3)))
    assert all(torch.equal(value, before[name]) for name, value in readout.state_dict().items())


# The feature map


def _token_map(latents):
    """Return `TokenMap`, connected to a convolutional encoder of 4 channels, and the encoder."""
    encoder, readout = EDSR((3, -1, -1), width=4, num_blocks=1), TokenMap()
    readout.connect(encoder, latents)
    return readout, encoder


@torch.no_grad()
def test_the_tokens_are_the_map():
    readout, encoder = _token_map(_specs(map=(4, -1, -1), image=(3, -1, -1)))
    images = torch.rand(2, 3, 5, 7)
    latents = readout(encoder(images))
    assert list(latents) == ["map", "image"]
    assert torch.equal(latents["map"], encoder.features(2 * images - 1))
    assert latents["image"] is images


@torch.no_grad()
def test_the_image_is_passed_on_only_as_a_latent():
    readout, encoder = _token_map(_specs(map=(4, -1, -1)))
    assert list(readout(encoder(torch.rand(2, 3, 5, 7)))) == ["map"]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"patterns_1": (4, 5)}, "TokenMap returns latents map and image; this parametrization has .*LocalMLP"),
        ({"image": (3, -1, -1)}, "TokenMap returns latents map and image"),
        ({"map": (4, -1, -1), "scales": (4,)}, "TokenMap returns latents map and image"),
        ({"map": (5, -1, -1)}, "The latent map has 5 channels, and the encoder returns 4: set feature_dim"),
        ({"map": (4, -1, -1), "image": (1, -1, -1)}, "The latent image has 1 channels, and the signal has 3"),
    ],
    ids=str,
)
def test_latents_other_than_a_map_are_rejected(shapes, message):
    with pytest.raises(ValueError, match=message):
        _token_map(_specs(**shapes))


@pytest.mark.parametrize(
    "features",
    [
        Features(torch.zeros(1, 6, 4), None, torch.zeros(1, 3, 2, 3)),
        Features(torch.zeros(1, 6, 4), (2, 3)),
        Features(torch.zeros(1, 6, 4), (2, 3), torch.zeros(1, 3, 4, 6)),
    ],
    ids=["no grid", "no signal", "coarser"],
)
def test_tokens_other_than_those_of_pixels_are_rejected(features):
    readout, _ = _token_map(_specs(map=(4, -1, -1)))
    with pytest.raises(
        ValueError, match=r"TokenMap needs one token per sample of the signal; .* use encoder EDSR or RDN"
    ):
        readout(features)

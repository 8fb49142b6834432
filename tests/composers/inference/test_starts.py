"""Starts: latents before any gradient step."""

from functools import partial

import pytest
import torch
from torch import nn

from composers.encoders import Patches, PerToken, Transformer, WeightTokens
from composers.inference import Hypernetwork, LearnedCode, LearnedStart, ZeroStart
from composers.latents import Layout
from composers.networks import TensorSpec
from datamodules.batch import Observation, Samples

B = 3
SPECS = {
    "patterns.1": TensorSpec((4, 5), partial(torch.randn, 4, 5)),
    "bias.2": TensorSpec((6,), partial(torch.ones, 6)),
}
MAP = {"map": TensorSpec((5, -1, -1), partial(torch.randn, 5, 1, 1))}


def _observation(**fields):
    """Return an observation of three instances of seven samples."""
    return Observation(samples=Samples(torch.rand(7, 2), torch.rand(B, 7, 3)), **fields)


def test_hypernetwork_reads_latents_from_the_features_of_the_signal():
    encoder, readout = Patches((3, 8, 12), 4), WeightTokens(Transformer(12, 2, 3, 2))
    start = Hypernetwork(encoder, readout).eval()
    start.connect(SPECS)
    signal = torch.rand(B, 3, 8, 12)
    latents = start(Observation(signal), start.layout(Observation(signal)))
    expected = readout(encoder(signal))
    assert {name: latent.shape for name, latent in latents.items()} == {"patterns.1": (B, 4, 5), "bias.2": (B, 6)}
    assert all(torch.equal(latents[name], expected[name]) for name in SPECS)
    assert start.layout(Observation(signal)) == Layout((2, 3), (8, 12))
    assert start.signal_shape == (3, 8, 12)
    assert start.facts() == {"tokens": "6 data + 6 weight"}


def test_hypernetwork_predicts_latents_on_the_grid_of_the_encoder():
    start = Hypernetwork(Patches((3, 8, 12), 4), PerToken())
    start.connect(MAP)
    signal = torch.rand(B, 3, 8, 12)
    layout = start.layout(Observation(signal))
    assert start(Observation(signal), layout)["map"].shape == (B, *layout.shape((5, -1, -1)))
    assert start.facts() == {"tokens": "6 data"}


def test_hypernetwork_without_a_signal_raises_an_error():
    start = Hypernetwork(Patches((3, 8, 12), 4), PerToken())
    start.connect(MAP)
    assert start.layout(_observation()) == Layout()
    with pytest.raises(ValueError, match="pass an Observation with a signal"):
        start(_observation(), Layout())


def test_learned_start_is_the_same_for_all_instances_and_learned():
    start = LearnedStart()
    start.connect(SPECS)
    assert {name: parameter.shape for name, parameter in start.named_parameters()} == {
        "latents.patterns_1": (4, 5),
        "latents.bias_2": (6,),
    }
    latents = start(_observation(), Layout())
    for name, key in (("patterns.1", "patterns_1"), ("bias.2", "bias_2")):
        assert latents[name].shape == (B, *SPECS[name].shape)
        assert all(torch.equal(instance, start.latents[key]) for instance in latents[name])
    assert torch.equal(start.latents["bias_2"], torch.ones(6))  # the initialisation of the specification
    weighting = torch.randn(B, 4, 5)
    (latents["patterns.1"] * weighting).sum().backward()
    torch.testing.assert_close(start.latents["patterns_1"].grad, weighting.sum(0))


@pytest.mark.parametrize(
    ("shape", "initial", "layout", "expected"),
    [
        ((5, -1, -1), (5, 1, 1), Layout((2, 3)), (B, 5, 2, 3)),
        ((-1, 4), (1, 4), Layout((2, 3)), (B, 6, 4)),
        ((5, -1), (5, 1), Layout((7,)), (B, 5, 7)),
    ],
    ids=str,
)
def test_learned_start_expands_over_the_layout(shape, initial, layout, expected):
    start = LearnedStart()
    start.connect({"codes": TensorSpec(shape, partial(torch.randn, initial))})
    codes = start(_observation(), layout)["codes"]
    assert codes.shape == expected
    assert torch.equal(codes, start.latents["codes"].expand(expected))
    with pytest.raises(ValueError, match="use a start whose encoder states the grid"):
        start(_observation(), Layout())


def test_zero_start_has_no_parameters():
    start = ZeroStart((3, 8, 12))
    start.connect(SPECS | MAP)
    observation = Observation(samples=Samples(torch.rand(7, 2), torch.rand(B, 7, 3, dtype=torch.float64)))
    latents = start(observation, Layout((2, 3)))
    assert not list(start.parameters())
    shapes = {name: latent.shape for name, latent in latents.items()}
    assert shapes == {"patterns.1": (B, 4, 5), "bias.2": (B, 6), "map": (B, 5, 2, 3)}
    assert not any(latent.any() or latent.dtype != torch.float64 for latent in latents.values())
    assert start.signal_shape == (3, 8, 12)
    assert start.encoder is None
    assert start.facts() == {}


def test_learned_code_returns_the_codes_of_training_instances():
    start = LearnedCode(num_instances=5)
    start.connect(SPECS)
    latents = start(_observation(index=torch.tensor([4, 0, 4])), Layout())
    assert torch.equal(latents["patterns.1"], start.codes["patterns_1"][[4, 0, 4]])
    assert torch.equal(latents["bias.2"], start.codes["bias_2"][[4, 0, 4]])
    latents["bias.2"].sum().backward()
    assert start.codes["bias_2"].grad[:, 0].tolist() == [1, 0, 0, 0, 2]


def test_learned_code_begins_at_the_mean_outside_training():
    start = LearnedCode(num_instances=5, std=1.0)
    start.connect(SPECS)
    expected = sum(start.codes["patterns_1"]) / 5
    without_index = start(_observation(), Layout())
    in_evaluation = start.eval()(_observation(index=torch.tensor([4, 0, 4])), Layout())
    for latents in (without_index, in_evaluation):
        assert latents["patterns.1"].shape == (B, 4, 5)
        for instance in latents["patterns.1"]:
            torch.testing.assert_close(instance, expected)


def test_learned_codes_are_initialised_around_the_parametrization():
    start = LearnedCode(num_instances=2000, std=0.1)
    start.connect(SPECS)
    assert start.codes["bias_2"].mean().item() == pytest.approx(1.0, abs=0.01)
    assert start.codes["bias_2"].std().item() == pytest.approx(0.1, rel=0.05)


def test_learned_code_for_an_unknown_instance_raises_an_error():
    start = LearnedCode(num_instances=5)
    start.connect(SPECS)
    with pytest.raises(ValueError, match="Instance 5 has no code: num_instances of LearnedCode is 5"):
        start(_observation(index=torch.tensor([0, 5, 1])), Layout())


def test_learned_code_of_latents_that_depend_on_the_signal_raises_an_error():
    with pytest.raises(ValueError, match="take the sizes of their -1 axes from the signal"):
        LearnedCode(num_instances=5).connect(MAP)


@pytest.mark.parametrize("arguments", [{}, {"num_instances": 0}, {"num_instances": 2, "std": -1.0}], ids=str)
def test_arguments_of_learned_code_out_of_range_raise_an_error(arguments):
    with pytest.raises(ValueError, match=r"num_instances of LearnedCode is .* and std"):
        LearnedCode(**arguments)


@pytest.mark.parametrize("start", [LearnedStart(), ZeroStart(), LearnedCode(4)], ids=lambda start: type(start).__name__)
def test_starts_are_modules_whose_state_can_be_loaded(start):
    start.connect(SPECS)
    state = {name: torch.randn_like(value) for name, value in start.state_dict().items()}
    start.load_state_dict(state)
    assert all(isinstance(parameter, nn.Parameter) for parameter in start.parameters())

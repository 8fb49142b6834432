"""Golden vectors of meta-learned models: outputs, adapted factors and second-order outer gradients."""

import json
from pathlib import Path

import pytest
import torch
from coordinates import grid
from safetensors.torch import load_file

from composers import GradientSteps, LearnedInit, MetaIPC
from composers.inference import DifferentiableSGD
from composers.metrics import instance_mse, psnr_of_mse
from composers.networks import CoordinateMLP, FourierFeatures
from datamodules.batch import CoordinateBatch, Observation, Samples

GOLDEN = Path(__file__).parents[1] / "golden"
FACTOR, SHARED, LAYER = (
    "factors.init_modulation_factors.linear_wb",
    "factors.shared_factors.linear_wb",
    "hyponet.params_dict.linear_wb",
)


@pytest.fixture(params=["ipc_meta_image", "learned_init_image"])
def golden(request):
    """Return the architecture and the vectors of a golden file."""
    arch = json.loads((GOLDEN / f"{request.param}.json").read_text())
    return arch, load_file(GOLDEN / f"{request.param}.safetensors")


def _composer(arch, vectors, **rule):
    """Return a composer with the weights of the file, copied one by one; keywords are arguments of the inner rule."""
    inner = GradientSteps(arch["n_inner_step"], DifferentiableSGD(arch["inner_lr"], **rule))
    hyponet = arch["hyponet"]
    state = {name.removeprefix("state_dict."): tensor for name, tensor in vectors.items()}
    network = CoordinateMLP(
        coord_dim=2,
        value_dim=3,
        hidden_dim=hyponet["hidden_dim"][0],
        num_layers=hyponet["n_layer"],
        modulated_layers=arch["modulated_layer_idxs"] or "all",
        encoding=FourierFeatures(hyponet["fourier_mapping"]["ff_dim"] // 2, 4),
        output_offset=hyponet["output_bias"],
    )
    network.encoding.frequencies.copy_(state["hyponet.ff_linear"])
    composer = MetaIPC(network, inner, arch["rank"][0]) if arch["use_factorization"] else LearnedInit(network, inner)
    with torch.no_grad():
        for _, released, parameter, rows in _pairs(composer):
            parameter.copy_(state[released][rows])
    return composer.train()


def _pairs(composer):
    """Return for every parameter its name, the released name, the parameter, and its rows of the released tensor."""
    pairs = []
    for name, parameter in composer.named_parameters():
        prefix, rows = {
            "start.latents.patterns_": (FACTOR, slice(None)),
            "start.latents.weight_": (FACTOR, slice(None)),
            "parametrization.bases.": (SHARED, slice(None)),
            "network.weights.": (LAYER, slice(-1)),
            "network.biases.": (LAYER, -1),
        }[name[:-1]]
        pairs.append((name, prefix + name[-1], parameter, rows))
    return pairs


def _batch(vectors):
    image = vectors["input"]
    samples = Samples(grid(image.shape[2:]), image.flatten(2).mT)
    return CoordinateBatch(Observation(None, samples), samples, tuple(image.shape[2:]), ["a", "b"])


def _outer_gradients(composer, vectors):
    """Return the evaluation of a batch in training, and the gradient of every parameter by name."""
    evaluation = composer._evaluate(_batch(vectors), "train")
    evaluation["losses"].mean().backward()
    return evaluation, {name: parameter.grad for name, parameter in composer.named_parameters()}


def _largest_differences(composer, gradients, vectors):
    """Return the largest difference of every gradient from the stored one, relative to the largest stored entry."""
    differences = {}
    for name, released, _, rows in _pairs(composer):
        expected = vectors[f"grad.{released}"][rows]
        assert gradients[name].shape == expected.shape
        differences[name] = ((gradients[name] - expected).abs().max() / expected.abs().max()).item()
    return differences


@pytest.mark.parametrize("recompute", [False, True])
def test_outputs_factors_and_outer_gradients_equal_those_of_the_released_code(golden, recompute):
    arch, vectors = golden
    composer = _composer(arch, vectors, recompute=recompute)
    evaluation, gradients = _outer_gradients(composer, vectors)
    output = evaluation["values"][0].mT.reshape(vectors["output"].shape)
    torch.testing.assert_close(output, vectors["output"], atol=1e-5, rtol=0)
    adapted = {name: tensor for name, tensor in vectors.items() if name.startswith("adapted.")}
    assert len(adapted) == len(evaluation["latents"][0]) == len(composer.network.modulated_layers)
    for name, latent in evaluation["latents"][0].items():
        expected = adapted[f"adapted.linear_wb{name.split('.')[1]}"]
        torch.testing.assert_close(latent, expected, atol=1e-6, rtol=0)
    differences = _largest_differences(composer, gradients, vectors)
    assert max(differences.values()) < 1e-5, differences


def test_every_stored_gradient_is_compared(golden):
    arch, vectors = golden
    compared = {}
    for _, released, parameter, rows in _pairs(_composer(arch, vectors)):
        covered = compared.setdefault(released, torch.zeros_like(vectors[f"grad.{released}"], dtype=torch.bool))
        covered[rows] = True
        assert covered[rows].numel() == parameter.numel()
    stored = {name.removeprefix("grad."): tensor for name, tensor in vectors.items() if name.startswith("grad.")}
    assert compared.keys() == stored.keys()
    for name, covered in compared.items():
        assert not stored[name][~covered].any()  # unused base weights of the released code
    assert sum(int((~covered).sum()) for covered in compared.values()) == (
        24 * 24 if arch["use_factorization"] else 32 * 24 + 2 * 24 * 24 + 24 * 3
    )


def test_psnr_before_every_step_equals_that_of_the_released_code(golden):
    arch, vectors = golden
    composer, batch = _composer(arch, vectors), _batch(vectors)
    psnr = []
    for latents in composer.eval().trajectory(batch.observation, (0, 1)).values():
        values = composer.render(composer.compose(latents), batch.query.coords)
        psnr.append(psnr_of_mse(instance_mse(values, batch.query)).sum())
    torch.testing.assert_close(torch.stack(psnr).detach(), vectors["inner_psnr"], atol=1e-5, rtol=0)


def test_evaluation_gives_the_same_factors(golden):
    arch, vectors = golden
    composer = _composer(arch, vectors).eval()
    for name, latent in composer.encode(_batch(vectors).observation).items():
        expected = vectors[f"adapted.linear_wb{name.split('.')[1]}"]
        torch.testing.assert_close(latent, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mistake", ["first_order", "detached", "unscaled"])
def test_wrong_gradients_exceed_the_tolerance(golden, mistake, monkeypatch):
    arch, vectors = golden
    composer = _composer(arch, vectors, outer="first_order" if mistake == "first_order" else "second_order")
    scales = composer.parametrization.step_scales
    wrong = {
        "detached": lambda latents: {name: scale.detach() for name, scale in scales(latents).items()},
        "unscaled": lambda latents: dict.fromkeys(latents, torch.ones(())),
    }
    if mistake in wrong:
        monkeypatch.setattr(composer.parametrization, "step_scales", wrong[mistake])
    evaluation, gradients = _outer_gradients(composer, vectors)
    output = evaluation["values"][0].mT.reshape(vectors["output"].shape)
    assert torch.allclose(output, vectors["output"], atol=1e-5, rtol=0) == (mistake != "unscaled")
    assert max(_largest_differences(composer, gradients, vectors).values()) > 5e-5

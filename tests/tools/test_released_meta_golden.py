"""Golden vectors of the meta-learned models: outputs, adapted factors and outer gradients of second order."""

import json
from pathlib import Path

import pytest
import torch
from coordinates import grid
from safetensors.torch import load_file

from composers import InnerLoop, LearnedInit, MetaIPC
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


def _inner_loop(arch, **changes):
    return InnerLoop(**{"steps": arch["n_inner_step"], "lr": arch["inner_lr"]} | changes)


def _composer(arch, vectors, inner_loop):
    """Return a composer with the weights of the file; every tensor is copied by hand."""
    hyponet = arch["hyponet"]
    state = {name.removeprefix("state_dict."): tensor for name, tensor in vectors.items()}
    inr = CoordinateMLP(
        coord_dim=2,
        value_dim=3,
        hidden_dim=hyponet["hidden_dim"][0],
        num_layers=hyponet["n_layer"],
        modulated_layers=arch["modulated_layer_idxs"] or "all",
        encoding=FourierFeatures(hyponet["fourier_mapping"]["ff_dim"] // 2, 4),
        output_offset=hyponet["output_bias"],
    )
    inr.encoding.frequencies.copy_(state["hyponet.ff_linear"])
    composer = MetaIPC(inr, inner_loop, arch["rank"][0]) if arch["use_factorization"] else LearnedInit(inr, inner_loop)
    with torch.no_grad():
        for _, released, parameter, rows in _pairs(composer):
            parameter.copy_(state[released][rows])
    return composer.train()


def _pairs(composer):
    """Return our name, the released name, our parameter, and its rows of the released tensor, of every parameter."""
    pairs = []
    for name, parameter in composer.named_parameters():
        kind, layer = name.rsplit(".", 1)
        prefix = {"patterns": FACTOR, "weights": FACTOR, "bases": SHARED}.get(kind, LAYER)
        rows = {"inr.weights": slice(-1), "inr.biases": -1}.get(kind, slice(None))
        pairs.append((name, prefix + layer, parameter, rows))
    return pairs


def _batch(vectors):
    image = vectors["input"]
    samples = Samples(grid(image.shape[2:]), image.flatten(2).mT)
    return CoordinateBatch(Observation(None, samples), samples, tuple(image.shape[2:]), ["a", "b"])


def _outer_gradients(composer, vectors):
    """Return what training makes of a batch, and the gradient of every parameter by name."""
    evaluation = composer._evaluate(_batch(vectors), "train")
    composer.training_losses(evaluation).mean().backward()
    return evaluation, {name: parameter.grad for name, parameter in composer.named_parameters()}


def _largest_misses(composer, gradients, vectors):
    """Return of every gradient its largest difference from the stored one, relative to the largest stored entry."""
    misses = {}
    for name, released, _, rows in _pairs(composer):
        wanted = vectors[f"grad.{released}"][rows]
        assert gradients[name].shape == wanted.shape
        misses[name] = ((gradients[name] - wanted).abs().max() / wanted.abs().max()).item()
    return misses


@pytest.mark.parametrize("recompute", [False, True])
def test_outputs_factors_and_outer_gradients_equal_those_of_the_released_code(golden, recompute):
    arch, vectors = golden
    composer = _composer(arch, vectors, _inner_loop(arch, recompute=recompute))
    evaluation, gradients = _outer_gradients(composer, vectors)
    output = evaluation["values"][0].mT.reshape(vectors["output"].shape)
    torch.testing.assert_close(output, vectors["output"], atol=1e-5, rtol=0)
    adapted = {name: tensor for name, tensor in vectors.items() if name.startswith("adapted.")}
    assert len(adapted) == len(evaluation["latents"][0]) == len(composer.network.modulated_layers)
    for name, latent in evaluation["latents"][0].items():
        wanted = adapted[f"adapted.linear_wb{name.split('.')[1]}"]
        torch.testing.assert_close(latent, wanted, atol=1e-6, rtol=0)
    misses = _largest_misses(composer, gradients, vectors)
    assert max(misses.values()) < 1e-5, misses


def test_every_stored_gradient_is_compared(golden):
    arch, vectors = golden
    compared = {}
    for _, released, parameter, rows in _pairs(_composer(arch, vectors, _inner_loop(arch))):
        covered = compared.setdefault(released, torch.zeros_like(vectors[f"grad.{released}"], dtype=torch.bool))
        covered[rows] = True
        assert covered[rows].numel() == parameter.numel()
    stored = {name.removeprefix("grad."): tensor for name, tensor in vectors.items() if name.startswith("grad.")}
    assert compared.keys() == stored.keys()
    for name, covered in compared.items():
        assert not stored[name][~covered].any()  # base weights that the released code owns and never reads
    assert sum(int((~covered).sum()) for covered in compared.values()) == (
        24 * 24 if arch["use_factorization"] else 32 * 24 + 2 * 24 * 24 + 24 * 3
    )


def test_psnr_before_every_step_equals_that_of_the_released_code(golden):
    arch, vectors = golden
    composer, batch = _composer(arch, vectors, _inner_loop(arch)), _batch(vectors)
    found = []
    for step, latents in composer.eval().trajectory(batch.observation, (0, 1)):
        values = composer.render(composer.compose(latents), batch.query.coords)
        found.append(psnr_of_mse(instance_mse(values, batch.query)).sum())
        assert len(found) == step + 1
    torch.testing.assert_close(torch.stack(found).detach(), vectors["inner_psnr"], atol=1e-5, rtol=0)


def test_evaluation_finds_the_same_factors(golden):
    arch, vectors = golden
    composer = _composer(arch, vectors, _inner_loop(arch)).eval()
    for name, latent in composer.encode(_batch(vectors).observation).items():
        wanted = vectors[f"adapted.linear_wb{name.split('.')[1]}"]
        torch.testing.assert_close(latent, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mistake", ["first_order", "detached", "unscaled"])
def test_mistakes_miss_the_tolerance(golden, mistake, monkeypatch):
    arch, vectors = golden
    composer = _composer(arch, vectors, _inner_loop(arch, first_order=mistake == "first_order"))
    scales = composer.step_scales
    wrong = {
        "detached": lambda latents: {name: scale.detach() for name, scale in scales(latents).items()},
        "unscaled": lambda latents: dict.fromkeys(latents, torch.ones(())),
    }
    if mistake in wrong:
        monkeypatch.setattr(composer, "step_scales", wrong[mistake])
    evaluation, gradients = _outer_gradients(composer, vectors)
    output = evaluation["values"][0].mT.reshape(vectors["output"].shape)
    assert torch.allclose(output, vectors["output"], atol=1e-5, rtol=0) == (mistake != "unscaled")
    assert max(_largest_misses(composer, gradients, vectors).values()) > 5e-5

"""Codes of patches found by gradient steps: from zero, from a learned code, and from a prediction."""

import pytest
import torch
from patches import random_pixels
from PIL import Image
from program import NAME, TESTS, rows, run

import composers
from composers.codes import decode
from composers.construction import build
from datamodules.batch import CoordinateBatch, Observation, Samples
from datamodules.configuration import load_layers
from datamodules.domain import Grid
from modalities.images import encode
from tools.export import export_decoder

CONFIGS = TESTS / "configs" / "patches"
NAMES = ("zero", "learned", "adapted")
SHAPE = (10, 13)


def _build(name, monkeypatch):
    """Return the composer of a config, with random weights where they are zero before training."""
    monkeypatch.chdir(CONFIGS)
    model = load_layers((CONFIGS / f"{name}.yaml").read_text())["model"]
    model["init_args"].pop("metrics", None)
    model["init_args"]["network"]["init_args"] |= {"coord_dim": 2, "value_dim": 3}
    start = model["init_args"]["start"]["init_args"]
    start.get("encoder", {"init_args": start})["init_args"]["signal_shape"] = [3, -1, -1]
    composer = build(model)
    for parameter in composer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return composer


def _batch(size=2, dtype=torch.float32):
    """Return random images whose sizes are no multiples of the patch."""
    signal = torch.rand(size, 3, *SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)
    samples = Samples(Grid.unit(2).coords(SHAPE).to(dtype), signal.flatten(2).mT)
    return CoordinateBatch(Observation(signal, samples), samples, SHAPE, ["a", "b"][:size])


def _gradients(composer, batch):
    """Return the gradients of a training step by name."""
    composer.train().zero_grad()
    composer._evaluate(batch, "train")["losses"].mean().backward()
    return {name: parameter.grad for name, parameter in composer.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_training_reaches_every_weight_through_the_steps(name, monkeypatch):
    composer = _build(name, monkeypatch)
    gradients = _gradients(composer, _batch())
    assert gradients.keys() == {parameter for parameter, _ in composer.named_parameters()}
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("name", ["learned", "adapted"])
def test_second_order_gradients_are_those_of_finite_differences(name, monkeypatch):
    composer, batch = _build(name, monkeypatch).double(), _batch(dtype=torch.float64)
    exact_gradients = _gradients(composer, batch)
    chosen = [key for key in exact_gradients if key.startswith("start.")][-1]
    weight = composer.get_parameter(chosen)
    direction, length, losses = torch.randn_like(weight), 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * length * direction
            losses.append(composer._evaluate(batch, "train")["losses"].mean().item())
            weight -= sign * length * direction
    slope = (exact_gradients[chosen] * direction).sum().item()
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * length), rel=1e-3)
    composer.inner.rule.outer = "first_order"
    assert (_gradients(composer, batch)[chosen] - exact_gradients[chosen]).norm() > 1e-3 * exact_gradients[
        chosen
    ].norm()


@pytest.mark.parametrize("name", NAMES)
def test_steps_lower_the_loss_of_images_of_any_size(name, monkeypatch):
    composer, pixels = _build(name, monkeypatch).eval(), random_pixels(*SHAPE)
    errors = []
    for steps in (1, 8):
        composer.inner.test_steps = steps
        code = encode(composer, pixels)
        assert code.layout.grid == (3, 4)
        field = torch.cat(list(decode(composer, code)))
        errors.append((field - pixels.permute(1, 2, 0) / 255).square().mean())
    assert errors[1] < errors[0]


def test_decoders_of_codes_without_an_encoder_are_exported(monkeypatch):
    composer = _build("zero", monkeypatch).eval()
    program, coords = export_decoder(composer, SHAPE).module(), 2 * torch.rand(7, 2) - 1
    latents, layout = {"codes": torch.randn(2, 3, 4, 8)}, composer.layout(_batch().observation)
    with torch.no_grad():
        expected = composer.render(composer.compose(latents, layout), coords)
        torch.testing.assert_close(program(latents, coords), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero", "adapted"])  # a learned code is one of `test_combinations`
def test_training_test_and_prediction(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ["--config", CONFIGS / f"{name}.yaml"]
    run("fit", *config, NAME, "trained")
    weights = ["--ckpt_path", "runs/trained/version_0/checkpoints/last.ckpt"]
    run("test", *config, *weights, NAME, "tested")
    for row in rows("runs/tested/version_0/test_instances.csv"):
        assert float(row["psnr@2 of the inner loop"]) > float(row["psnr@0 of the inner loop"])
    Image.fromarray(random_pixels(21, 30).permute(1, 2, 0).numpy()).save("noise.png")
    run("predict", *weights, "--images", "noise.png", "--scale", 2)
    [row] = rows("predictions/predictions.csv")
    assert (row["rows"], row["columns"], row["tiles"]) == ("21", "30", "1")
    assert composers.load(weights[1]).start.signal_shape == (3, -1, -1)

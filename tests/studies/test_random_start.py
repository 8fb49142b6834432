"""The baseline of random weights, against a naive fit of every image on its own."""

import pytest
import torch
from program import TESTS

from benchmarks.cost import build
from studies.random_start import RandomStartSettings, fitted, free_composer, main

CONFIG = TESTS / "configs" / "tiny_meta_ipc.yaml"


def _naive_psnr(network, naive_weights, image, coords, lr, steps):
    """Return the PSNR of one image after Adam on all weights and biases, without code of the composers."""
    parameters = [parameter.detach().clone().requires_grad_() for parameter in naive_weights]
    optimizer = torch.optim.Adam(parameters, lr=lr)

    def values():
        phases = (
            torch.cat([coords[:, axis : axis + 1] * network.encoding.frequencies for axis in range(2)], 1) * torch.pi
        )
        hidden = torch.cat([phases.cos(), phases.sin()], 1)
        for layer in range(network.num_layers):
            weight, bias = parameters[2 * layer : 2 * layer + 2]
            hidden = hidden @ (weight / weight.square().sum(0).sqrt()) + bias
            hidden = hidden.clamp(min=0) if layer < network.num_layers - 1 else hidden + network.output_offset
        return hidden

    for _ in range(steps):
        optimizer.zero_grad()
        (values() - image).square().mean().backward()
        optimizer.step()
    return -10 * torch.log10((values() - image).square().mean()).detach()


def test_fit_from_random_weights_equals_a_naive_fit():
    composer, data, _ = build(CONFIG)
    data.setup("test")
    batch = data.to_coordinates(next(iter(data.test_dataloader())))
    free = free_composer(composer)
    start = {name: latent[0] for name, latent in free.encode(batch.observation).items()}
    assert list(start) == [f"{kind}.{layer}" for layer in range(3) for kind in ("weight", "bias")]
    actual = fitted(free, batch, lr=0.02, steps=5)
    for instance in (0, 3):
        image = batch.query.values[instance]
        expected = _naive_psnr(free.network, start.values(), image, batch.query.coords, lr=0.02, steps=5)
        torch.testing.assert_close(actual[instance], expected, atol=1e-3, rtol=0)


def test_main_marks_the_best_learning_rate(capsys):
    results = main(["--config", str(CONFIG), "--steps", "2", "--rates", "[1e-3, 1e-2]"])
    assert list(results) == [1e-3, 1e-2]
    [best] = [line for line in capsys.readouterr().out.splitlines() if "*" in line]
    assert f"{max(results.values()):.2f} *" in best


@pytest.mark.parametrize("arguments", [{"rates": ()}, {"rates": (0.0,)}, {"steps": 0}], ids=str)
def test_settings_out_of_range_raise_an_error(arguments):
    with pytest.raises(ValueError, match="must be positive"):
        RandomStartSettings(**arguments)

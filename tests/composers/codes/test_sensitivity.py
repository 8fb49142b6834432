"""Distribution of bits over channels by their effect on the decoded values."""

import numpy as np
import pytest
import torch
from patches import build_patch_ipc, random_pixels

from composers import Refinement
from composers.codes import (
    CodeTable,
    Example,
    LatentShape,
    fingerprint,
    latent_shapes,
    quantized,
    read_code,
    sensitivities,
)
from composers.codes.quantization import Quantizer
from datamodules.domain import Grid
from modalities.images import encode


@pytest.fixture(scope="module")
def composer():
    """Return a tiny model of images of any size."""
    return build_patch_ipc()


def _example(composer, seed=0):
    code = encode(composer, random_pixels(8, 12, seed), refinement=Refinement(0))
    return Example(code.latents, code.layout, Grid.unit(2).coords((8, 12)))


def test_sensitivities_are_root_mean_squares_of_derivatives(composer):
    latents, layout, coords = _example(composer)

    def values(codes):
        return composer.render(composer.compose({"codes": codes}, layout), coords)

    derivatives = torch.autograd.functional.jacobian(values, latents["codes"])  # (1, N, C, 1, *grid, K)
    expected = derivatives.square().sum((0, 1, 2)).flatten(0, -2).mean(0).sqrt().numpy()
    actual = sensitivities(composer, [_example(composer)] * 20)["codes"]
    np.testing.assert_allclose(actual / actual.mean(), expected / expected.mean(), rtol=0.25)


def test_steps_are_inversely_proportional_to_sensitivities():
    latent = LatentShape((-1, 4), integers=1)
    values = np.random.default_rng(0).normal(size=(4, 5000)).astype(np.float32) * [[0], [1], [3], [2]]
    sensitivity = np.array([7.0, 1.0, 2.0, 0.5])
    quantizer = Quantizer.fit(latent, values.astype(np.float32), 8, sensitivity=sensitivity)
    products = quantizer.step[1:] * sensitivity[1:]
    np.testing.assert_allclose(products, products.mean(), rtol=1e-4)
    assert quantizer.step[0] == 1
    bits = np.log2(8 * values[1:].std(1) / quantizer.step[1:])
    assert bits.mean() == pytest.approx(8, abs=0.01)
    np.testing.assert_allclose(quantizer.levels[1:], 2**bits, atol=2)


def test_channels_without_effect_have_two_steps_and_others_a_limit():
    latent = LatentShape((-1, 3))
    values = np.random.default_rng(0).normal(size=(3, 5000)).astype(np.float32)
    levels = Quantizer.fit(latent, values, 4, sensitivity=np.array([0.0, 1e-6, 1.0])).levels
    assert levels.tolist() == [16, 2, 128]  # 4 bits on average of those with an effect


@pytest.mark.parametrize("bits", [4, 6, 8, 16])
def test_tables_with_sensitivities_round_trip(composer, tmp_path, bits):
    sensitivity, shapes = (
        {"codes": np.array([0.01, 0.1, 1.0, 3.0, 9.0])},
        latent_shapes(composer.parametrization.latents),
    )
    latents = [_example(composer, seed).latents for seed in range(3)]
    table = CodeTable.learn(fingerprint(composer), shapes, latents, bits, sensitivity)
    table.save(tmp_path / "t.safetensors")
    assert CodeTable.read(tmp_path / "t.safetensors").digest == table.digest
    code = quantized(encode(composer, random_pixels(9, 9), refinement=Refinement(0)), composer, bits, table)
    code.save(tmp_path / "code.inr")
    assert torch.equal(read_code(tmp_path / "code.inr").latents["codes"], code.latents["codes"])

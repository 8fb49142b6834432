"""Quantisation of latents: channels, offsets, steps, and numbers that remain exact."""

import numpy as np
import pytest
import torch

from composers.codes import BITS, check_bits, latent_shapes
from composers.codes.quantization import LatentShape, Quantizer
from composers.networks import TensorSpec

SHAPES = [(-1, -1, 5), (3, -1), (4, -1, -1, 2), (6,), (4, 3)]
SIZES = [(2, 3, 4, 5), (2, 3, 7), (2, 4, 3, 2, 2), (2, 6), (2, 4, 3)]
CASES = [*zip(SHAPES, SIZES, strict=True)]


def _latents(sizes, seed=0):
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("shape", "sizes"), CASES)
def test_channels_are_the_fixed_axes(shape, sizes):
    latent, values = LatentShape(shape), _latents(sizes).numpy()
    channels = latent.to_channels(values)
    fixed = [axis for axis, size in enumerate(shape, start=1) if size != -1]
    for channel, entry in enumerate(np.ndindex(*(sizes[axis] for axis in fixed))):
        index = [slice(None)] * len(sizes)
        for axis, position in zip(fixed, entry, strict=True):
            index[axis] = position
        assert np.array_equal(channels[channel], values[tuple(index)].reshape(-1))
    assert np.array_equal(latent.from_channels(channels, sizes), values)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("shape", "sizes"), CASES[:2])
def test_errors_are_at_most_half_a_step_of_an_eighth_of_the_range(bits, shape, sizes):
    latent, values = LatentShape(shape), 3 * _latents(sizes) + 10
    channels = latent.to_channels(values.numpy())
    quantizer = Quantizer.fit(latent, channels, bits)
    step = 8 * channels.astype(np.float64).std(1) / 2**bits
    np.testing.assert_allclose(quantizer.step, step, rtol=1e-6)
    indices = quantizer.quantize(values, "codes")
    actual = quantizer.dequantize(indices, sizes)
    error = latent.to_channels((actual - values).numpy())
    assert (np.abs(error) <= step[:, None] / 2 + 2e-6).all()
    assert actual.dtype == torch.float32
    assert np.array_equal(quantizer.quantize(actual, "codes"), indices)


def test_numbers_outside_of_the_range_are_not_clipped():
    latent, values = LatentShape((-1, 1)), _latents((1, 50, 1))
    quantizer = Quantizer.fit(latent, latent.to_channels(values.numpy()), 4)
    values[0, 7] = 1000.0
    indices = quantizer.quantize(values, "codes")
    assert indices.max() > 16
    assert abs(quantizer.dequantize(indices, values.shape)[0, 7].item() - 1000) <= quantizer.step.item() / 2 + 1e-3


@pytest.mark.parametrize("bits", BITS)
def test_integers_are_exact(bits):
    latent, values = LatentShape((-1, 3), integers=1), _latents((1, 40, 3))
    values[..., 0] = torch.randint(-3, 400, (1, 40)).float()
    quantizer = Quantizer.fit(latent, latent.to_channels(values.numpy()), bits)
    other = values.clone()
    other[0, 0, 0], other[0, 1, 0] = 1000, -77  # not among those of the range
    actual = quantizer.dequantize(quantizer.quantize(other, "codes"), values.shape)
    assert torch.equal(actual[..., 0], other[..., 0])
    assert not torch.equal(actual, other)


def test_fractions_in_a_channel_of_integers_are_refused():
    latent, values = LatentShape((-1, 2), integers=1), torch.ones(1, 4, 2)
    quantizer = Quantizer.fit(latent, latent.to_channels(values.numpy()), 8)
    values[0, 2, 0] = 0.5
    with pytest.raises(
        ValueError, match=r"codes holds fractions where its model expects integers.* without weight decay"
    ):
        quantizer.quantize(values, "codes")
    for wrong in (values, torch.tensor([[[0.0, 1.0], [70000.0, 1.0]]])):
        with pytest.raises(ValueError, match=r"holds numbers from .*must be integers, at most 65,536"):
            Quantizer.fit(latent, latent.to_channels(wrong.numpy()), 8)


@pytest.mark.parametrize("value", [0.0, 5.0, -1e-3, 1e20])
def test_channels_without_variance_keep_their_value(value):
    latent, values = LatentShape((-1, 1)), torch.full((1, 9, 1), value)
    quantizer = Quantizer.fit(latent, latent.to_channels(values.numpy()), 8)
    actual = quantizer.dequantize(quantizer.quantize(values, "codes"), values.shape)
    torch.testing.assert_close(actual, values, rtol=2.0**-20, atol=0)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_without_an_index_are_refused(wrong):
    latent, values = LatentShape((-1, 1)), _latents((1, 9, 1))
    quantizer = Quantizer.fit(latent, latent.to_channels(values.numpy()), 16)
    values[0, 3] = wrong
    with pytest.raises(ValueError, match="codes holds numbers that are not finite"):
        quantizer.quantize(values, "codes")
    values[0, 3] = 1e30
    with pytest.raises(ValueError, match="steps from the range of the quantiser"):
        quantizer.quantize(values, "codes")


@pytest.mark.parametrize("bits", [0, 5, 24, -8])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match=rf"--bits is {bits}; codes are quantised with 16, 8, 6, 4 bits"):
        check_bits(bits, "--bits")


def test_latents_are_sorted_by_name():
    specs = {
        "z": TensorSpec((2,), lambda: torch.zeros(2)),
        "a": TensorSpec((3,), lambda: torch.zeros(3), constant=True),
    }
    assert list(latent_shapes(specs).items()) == [("a", LatentShape((3,), 0, True)), ("z", LatentShape((2,)))]


def test_a_single_training_code_does_not_make_steps_of_almost_nothing():
    values = np.random.default_rng(0).normal(size=(24, 1)).astype(np.float32)
    quantizer = Quantizer.fit(LatentShape((6, 4)), values, 8)
    np.testing.assert_allclose(quantizer.step, 8 * values.std() / 256, rtol=1e-5)
    other = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 6, 4)).astype(np.float32))
    indices = quantizer.quantize(other, "patterns")
    assert (np.abs(indices - 128) < 256).all()

"""Resampling of signals, against Pillow and naive sums."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from modalities.resampling import downscaled, interpolated, upscaled


def _pillow(channel, shape):
    """Return a channel ``(H, W)`` resized by Pillow's bicubic filter in float32."""
    image = Image.fromarray(channel.numpy())
    return torch.from_numpy(np.array(image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_bicubic_resampling_is_that_of_pillow(factor):
    signal = torch.rand(2, 3, 4 * factor, 7 * factor)
    for resample, shape in ((downscaled, (4, 7)), (upscaled, (4 * factor**2, 7 * factor**2))):
        actual = resample(signal, factor, "bicubic")
        assert actual.shape == (2, 3, *shape)
        for item, resized in zip(signal.flatten(0, 1), actual.flatten(0, 1), strict=True):
            torch.testing.assert_close(resized, _pillow(item, shape), atol=1e-5, rtol=1e-4)


def _lanczos(signal, positions, scale):
    """Return samples at positions, in samples of the signal, by loops over all pairs."""
    values = []
    for position in positions:
        total = weight = 0.0
        for index, value in enumerate(signal):
            x = (index + 0.5 - position) / scale
            if abs(x) < 16:
                w = 1.0 if x == 0 else math.sin(math.pi * x) * math.sin(math.pi * x / 16) * 16 / (math.pi * x) ** 2
                total, weight = total + w * value, weight + w
        values.append(total / weight)
    return values


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_sinc_resampling_is_a_sum_over_windowed_samples(factor):
    signal = torch.randn(1, 1, 24 * factor)
    samples = signal.flatten().tolist()
    small = _lanczos(samples, [factor * (i + 0.5) for i in range(24)], factor)
    large = _lanczos(samples, [(i + 0.5) / factor for i in range(24 * factor**2)], 1)
    torch.testing.assert_close(downscaled(signal, factor, "sinc").flatten().tolist(), small, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(upscaled(signal, factor, "sinc").flatten().tolist(), large, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(50,), (12, 9), (5, 6, 7)])
@pytest.mark.parametrize("interpolation", ["bicubic", "sinc"])
def test_constants_of_any_number_of_axes_are_kept(shape, interpolation):
    signal = torch.full((1, 2, *shape), 0.7)
    large = upscaled(signal, 2, interpolation)
    torch.testing.assert_close(large, torch.full((1, 2, *(2 * size for size in shape)), 0.7))
    torch.testing.assert_close(downscaled(large, 2, interpolation), signal)


def test_sinc_keeps_low_frequencies():
    places = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    signal = torch.sin(2 * math.pi * 20 * places)[None, None]
    small = downscaled(signal, 4, "sinc")
    expected = torch.sin(2 * math.pi * 20 * (torch.arange(100, dtype=torch.float64) + 0.5) / 100)
    torch.testing.assert_close(small[0, 0, 20:-20], expected[20:-20], atol=2e-3, rtol=0)
    torch.testing.assert_close(upscaled(small, 4, "sinc")[0, 0, 100:-100], signal[0, 0, 100:-100], atol=4e-3, rtol=0)


def test_sizes_that_are_no_multiple_raise():
    with pytest.raises(ValueError, match="shape \\(10,\\) cannot be downscaled by 4: crop it to multiples of 4"):
        downscaled(torch.zeros(1, 1, 10), 4, "sinc")


@pytest.mark.parametrize("shape", [(24,), (31,), (100,)])
def test_sinc_interpolation_to_any_size_is_a_sum_over_windowed_samples(shape):
    signal = torch.randn(1, 1, 24)
    places = [(i + 0.5) * 24 / shape[0] for i in range(shape[0])]
    expected = _lanczos(signal.flatten().tolist(), places, 1)
    torch.testing.assert_close(interpolated(signal, shape, "sinc").flatten().tolist(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(7, 12), (9, 12, 1)])
def test_interpolation_to_fewer_samples_or_other_axes_raises(shape):
    with pytest.raises(ValueError, match="shape \\(8, 12\\) cannot be interpolated to shape"):
        interpolated(torch.zeros(1, 1, 8, 12), shape, "bicubic")

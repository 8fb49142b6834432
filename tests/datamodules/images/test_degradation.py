"""Degradations: filters, ranges of the realistic one, and reproducibility."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.degradation import Bicubic, Realistic
from datamodules.storage.images import grey, resized

FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BOX)


def _noise(rows=24, columns=32, channels=3):
    """Return an image of noise."""
    return torch.randint(
        0, 256, (channels, rows, columns), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def _flat(level=120, rows=64, columns=64):
    """Return an image of one level."""
    return torch.full((3, rows, columns), level, dtype=torch.uint8)


def _degraded(degradation, image, size, seed=0):
    """Return an image degraded with a seeded generator."""
    return degradation(image, size, torch.Generator().manual_seed(seed))


def _pillow(image, size, method):
    """Return an image resized by Pillow."""
    pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    result = torch.from_numpy(np.array(Image.fromarray(pixels).resize(size[::-1], method)))
    return result.unsqueeze(0) if len(image) == 1 else result.permute(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("method", FILTERS, ids=lambda method: method.name)
def test_images_are_resized_by_pillow(channels, method):
    image = _noise(channels=channels)
    assert torch.equal(resized(image, (7, 10), method), _pillow(image, (7, 10), method))
    assert resized(image, (7, 10), method).is_contiguous()


def test_bicubic_uses_no_random_numbers():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(Bicubic()(_noise(), (6, 8), generator), _pillow(_noise(), (6, 8), FILTERS[0]))
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("changes", [{"probability": 0.0}, {"blur": (0, 0), "noise": (0, 0), "quality": None}], ids=str)
def test_without_blur_noise_and_compression_a_filter_remains(changes):
    image, chosen = _noise(), set()
    for seed in range(40):
        small = _degraded(Realistic(**changes), image, (6, 8), seed)
        [method] = [method for method in FILTERS if torch.equal(small, _pillow(image, (6, 8), method))]
        chosen.add(method)
    assert chosen == set(FILTERS)


@pytest.mark.parametrize("channels", [1, 3])
def test_realistic_images_depend_on_the_generator_only(channels):
    image = _noise(channels=channels)
    first, same, other = (_degraded(Realistic(probability=1.0), image, (6, 8), seed) for seed in (3, 3, 4))
    assert first.shape == (channels, 6, 8)
    assert first.dtype == torch.uint8
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_noise_has_the_stated_deviation():
    degradation = Realistic(blur=(0, 0), noise=(5.0, 5.0), quality=None, probability=1.0)
    noisy = torch.stack([_degraded(degradation, _flat(), (32, 32), seed) for seed in range(8)]).float()
    assert noisy.std().item() == pytest.approx(5, rel=0.05)
    assert noisy.mean().item() == pytest.approx(120, abs=0.3)


def test_noise_lies_within_its_range_and_levels_within_theirs():
    degradation = Realistic(blur=(0, 0), noise=(2.0, 20.0), quality=None, probability=1.0)
    deviations = [_degraded(degradation, _flat(), (32, 32), seed).float().std().item() for seed in range(30)]
    assert 1.8 < min(deviations) < 6
    assert 15 < max(deviations) < 22
    strong = Realistic(blur=(0, 0), noise=(90.0, 90.0), quality=None, probability=1.0)
    bright = _degraded(strong, _flat(250), (32, 32))
    assert bright.max() == 255  # clipped, not wrapped around
    assert (bright < 20).float().mean() < 0.02


def test_blur_is_measured_in_pixels_of_the_low_resolution():
    image = torch.zeros(3, 63, 63, dtype=torch.uint8)
    image[:, 30:33, 30:33] = 255  # one pixel of the low resolution
    degradation = Realistic(blur=(1.0, 1.0), noise=(0, 0), quality=None, probability=1.0)
    boxes = [seed for seed in range(20) if _uses_box(seed)]
    small = _degraded(degradation, image, (21, 21), boxes[0])[0].double()
    weights = small / small.sum()
    places = torch.arange(21, dtype=torch.float64) - 10
    rows, columns = ((weights.sum(axis) * places.square()).sum().sqrt().item() for axis in (1, 0))
    assert rows == pytest.approx(columns, abs=1e-6)
    assert rows == pytest.approx(1.07, abs=0.1)  # the root of 1 and of the pixel's own 1 / 12, rounded to levels
    assert (weights.sum(1) * places).sum().item() == pytest.approx(0, abs=1e-6)


def _uses_box(seed):
    """Return whether a realistic degradation takes the box filter with this seed."""
    image = _noise()
    return torch.equal(_degraded(Realistic(probability=0.0), image, (6, 8), seed), _pillow(image, (6, 8), FILTERS[2]))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 2)])
def test_images_smaller_than_the_blur_are_blurred(shape):
    degradation = Realistic(blur=(3.0, 3.0), probability=1.0)
    assert _degraded(degradation, _noise(*shape), (1, 1)).shape == (3, 1, 1)


def test_compression_is_that_of_jpeg():
    image = _noise(32, 32)
    degradation = Realistic(blur=(0, 0), noise=(0, 0), quality=(30, 30), probability=1.0)
    for seed in range(5):
        compressed = _degraded(degradation, image, (16, 16), seed)
        candidates = []
        for method in FILTERS:
            file = io.BytesIO()
            small = _pillow(image, (16, 16), method).permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(small).save(file, format="JPEG", quality=30)
            candidates.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
        assert sum(torch.equal(compressed, candidate) for candidate in candidates) == 1


def test_parts_have_the_stated_probability():
    degradation = Realistic(blur=(0, 0), noise=(30.0, 30.0), quality=None, probability=0.25)
    noisy = sum(_degraded(degradation, _flat(), (8, 8), seed).float().std().item() > 1 for seed in range(400))
    assert 70 < noisy < 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blur": (-0.1, 1.0)}, r"blur is \[-0.1, 1.0\]; give a lower and an upper bound, at least 0"),
        ({"blur": (1.0, 0.5)}, r"blur is \[1.0, 0.5\]"),
        ({"noise": (0.0, float("inf"))}, r"noise is \[0.0, inf\]"),
        ({"noise": (float("nan"), 1.0)}, r"noise is \[nan, 1.0\]"),
        ({"quality": (0, 50)}, r"quality is \[0, 50\].*in \[1, 100\], or null"),
        ({"quality": (50, 101)}, r"quality is \[50, 101\]"),
        ({"quality": (60, 50)}, r"quality is \[60, 50\]"),
        ({"probability": 1.5}, r"probability is 1.5; it must lie in \[0, 1\]"),
        ({"probability": -0.5}, r"probability is -0.5"),
    ],
    ids=str,
)
def test_ranges_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Realistic(**arguments)


def test_luminance_has_the_weights_of_pillow():
    image = _noise()
    expected = (image.double() * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)).sum(0)
    assert grey(image).shape == (1, 24, 32)
    assert (grey(image)[0].double() - expected).abs().max() <= 1

"""Small synthetic images for super-resolution, and naive references that share no code with the implementation."""

import math

import numpy as np
import torch

from datamodules.base import CoordinateDataModule
from datamodules.domain import Grid
from datamodules.images.native import NativeImages
from datamodules.images.sample_photos import Photographs
from datamodules.randomness import generator_at
from datamodules.spec import DataSpec
from modalities import Images

SIZES = ((53, 64), (64, 47), (56, 70))


def smooth_image(shape, seed=0, detail=6):
    """Return an image ``(3, H, W)`` uint8 of random waves, at most ``detail`` along each axis; levels 26 to 229."""
    generator = generator_at("waves", seed)
    rows, columns = ((torch.arange(extent, dtype=torch.float64) + 0.5) / extent for extent in shape)
    values = torch.zeros(3, *shape, dtype=torch.float64)
    for _ in range(12):
        across, down = (torch.rand(2, generator=generator, dtype=torch.float64) * 2 - 1) * detail
        phases = torch.rand(3, generator=generator, dtype=torch.float64)
        waves = down * rows[:, None] + across * columns
        values += torch.sin(2 * math.pi * (waves + phases[:, None, None]))
    span = values.amax() - values.amin()
    return ((values - values.amin()) / span * 203 + 26).round().to(torch.uint8)


class SmallImages(NativeImages, CoordinateDataModule):
    """Three smooth images of different sizes in every split, the names of which end in the split."""

    modality = Images()
    spec = DataSpec(Grid.unit(2), 3, (3, 16, 16), modality)

    def native_images(self, split):
        return Photographs([(f"waves-{place}-{split}", smooth_image(size, place)) for place, size in enumerate(SIZES)])


def naive_bicubic(image, shape):
    """Return an image ``(C, h, w)`` enlarged by loops over pixels and all sources, in float64, neither clipped nor rounded."""
    result = np.asarray(image, dtype=np.float64)
    for axis in (1, 2):
        old, new = result.shape[axis], shape[axis - 1]
        parts = []
        for index in range(new):
            place = (index + 0.5) * old / new
            weights = [_keys(place - (source + 0.5)) for source in range(old)]
            total = sum(weights)
            parts.append(sum(result.take(source, axis) * weights[source] / total for source in range(old)))
        result = np.stack(parts, axis=axis)
    return result


def _keys(distance):
    """Return the weight of Keys' cubic convolution with a = -1/2."""
    x = abs(distance)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def naive_psnr(prediction, target, border, luma):
    """Return the PSNR of images ``(3, H, W)`` in [0, 1] as published: the differences are weighted to those of luminance."""
    height, width = target.shape[1:]
    errors = []
    for row in range(border, height - border):
        for column in range(border, width - border):
            clipped = [min(max(float(prediction[channel, row, column]), 0), 1) for channel in range(3)]
            differences = [clipped[channel] - float(target[channel, row, column]) for channel in range(3)]
            if luma:
                weighted = zip((65.738, 129.057, 25.064), differences, strict=True)
                differences = [sum(weight * difference for weight, difference in weighted) / 256]
            errors += [difference**2 for difference in differences]
    return -10 * math.log10(math.fsum(errors) / len(errors))


def shift_between(image, reference):
    """Return by how many pixels the content of an image ``(H, W)`` lies below and to the right of that of a reference.

    Solves for the shift that explains the difference by the gradients of the reference, to first order, repeatedly. Five pixels
    at the borders do not count.
    """
    image, reference = (np.asarray(part, dtype=np.float64) for part in (image, reference))
    slopes = np.stack([slope[5:-5, 5:-5].ravel() for slope in np.gradient((image + reference) / 2)], axis=1)
    difference = (reference - image)[5:-5, 5:-5].ravel()
    return np.linalg.lstsq(slopes, difference, rcond=None)[0]

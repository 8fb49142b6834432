"""Evaluation on squares of one low resolution (CelebA-HQ): sizes, order, and both resolutions against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageFolder, SuperResolution
from datamodules.batch import Signal
from datamodules.images.degradation import Bicubic
from datamodules.images.pairs import SquarePairs
from datamodules.loading import InMemory

SIZE = 8


def _pixels(rows, columns, seed):
    """Return an image of noise."""
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def _resized(pixels, size):
    """Return the central square of an image resized by Pillow, as ``(3, size, size)``."""
    side = min(pixels.shape[:2])
    top, left = ((extent - side) // 2 for extent in pixels.shape[:2])
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    return torch.from_numpy(np.array(square.resize((size, size), Image.Resampling.BICUBIC))).permute(2, 0, 1)


IMAGES = [_pixels(40, 40, 0), _pixels(33, 50, 1)]
SIGNALS = InMemory(
    [Signal(torch.from_numpy(image).permute(2, 0, 1), name) for image, name in zip(IMAGES, "ab", strict=True)]
)


def test_squares_are_resized_to_the_low_resolution_and_to_every_scale():
    pairs = SquarePairs(SIGNALS, SIZE, (2.0, 3.7), Bicubic())
    assert len(pairs) == 4
    for index, (scale, target) in enumerate([(2.0, 16), (2.0, 16), (3.7, 30), (3.7, 30)]):
        pair, image = pairs[index], IMAGES[index % 2]
        assert (pair.name, pair.scale, pair.size.tolist()) == (f"{'ab'[index % 2]}-x{scale:g}", scale, [target, target])
        assert torch.equal(pair.low, _resized(image, SIZE))
        assert torch.equal(pair.high, _resized(image, target))
        assert pair.drawn.numel() == 0


def test_grey_squares_have_one_channel():
    pair = SquarePairs(SIGNALS, SIZE, (2.0,), Bicubic(), channels=1)[0]
    assert (pair.low.shape, pair.high.shape) == ((1, SIZE, SIZE), (1, 16, 16))


def test_squares_smaller_than_their_target_raise_an_error():
    pairs = SquarePairs(SIGNALS, SIZE, (4.0, 4.5), Bicubic())
    assert pairs[1].high.shape == (3, 32, 32)
    with pytest.raises(ValueError, match=r"The image b has 33 x 50 pixels; size 8 at scale 4\.5 takes 36 x 36"):
        pairs[3]
    for index in (-1, 4):
        with pytest.raises(IndexError, match="out of range for 4 pairs"):
            pairs[index]


@pytest.mark.parametrize("crop", [True, False])
def test_models_trained_on_squares_are_evaluated_on_squares(tmp_path, crop):
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        Image.fromarray(IMAGES[0]).save(tmp_path / folder / "a.png")
    images = ImageFolder(str(tmp_path), cache=None)
    data = SuperResolution(images, size=SIZE, num_queries=16, crop=crop, border="none", val_scales=[2], test_scales=[4])
    data.setup("validate")
    data.setup("test")
    [pair], [larger] = ([items[index] for index in range(len(items))] for items in (data.val_set, data.test_set))
    expected = ((20, 40), (10, 40)) if crop else ((SIZE, 16), (SIZE, 32))
    assert tuple((item.low.shape[1], item.high.shape[1]) for item in (pair, larger)) == expected
    [batch] = data.test_dataloader()
    coordinates = data.to_coordinates(batch)
    assert coordinates.shape == larger.high.shape[1:]
    assert coordinates.query.mask is None

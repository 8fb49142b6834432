"""Pairs of resolutions: crops, drawn pixels, symmetries, and whole images at fixed or graded scales."""

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.batch import Signal
from datamodules.images.augmentation import ImageAugmentation
from datamodules.images.degradation import Bicubic, Degradation, Realistic
from datamodules.images.pairs import FixedPairs, GradedPairs, Pair, PairCrop, PairDraw, Repeated, check_shapes
from datamodules.loading import InMemory

SIZE = 6


def _image(rows, columns, seed=0, name="image"):
    """Return an image of noise."""
    generator = torch.Generator().manual_seed(seed)
    return Signal(torch.randint(0, 256, (3, rows, columns), generator=generator, dtype=torch.uint8), name)


def _crop(item, seed=0, scales=(1.0, 4.0), **options):
    """Return a pair of a random crop."""
    return PairCrop(SIZE, scales, options.pop("degradation", Bicubic()), **options)(item, _generator(seed))


def _generator(seed):
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


def _pillow(pixels, rows, columns):
    """Return an image ``(3, H, W)`` resized by Pillow's bicubic filter."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((columns, rows), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _position(part, whole):
    """Return top and left of an image within a larger one; None if it is not part of it."""
    rows, columns = part.shape[1:]
    windows = whole.unfold(1, rows, 1).unfold(2, columns, 1)  # (3, tops, lefts, rows, columns)
    same = (windows == part[:, None, None]).flatten(3).all(-1).all(0).nonzero()
    return tuple(same[0].tolist()) if len(same) else None


class _Recorded(Degradation):
    """Bicubic, keeping the random number that follows what the crop has drawn."""

    def __init__(self):
        self.drawn = []

    def __call__(self, image, size, generator):
        self.drawn.append(torch.rand((), generator=generator).item())
        return Bicubic()(image, size, generator)


def test_crops_are_parts_of_the_image_and_low_resolutions_are_their_bicubic():
    item, scales, positions = _image(30, 41), [], set()
    for seed in range(60):
        pair = _crop(item, seed)
        side = round(SIZE * pair.scale)
        assert pair.high.shape == (3, side, side)
        assert pair.size.tolist() == [side, side]
        assert pair.low.shape == (3, SIZE, SIZE)
        assert pair.drawn.numel() == 0
        assert pair.name == "image"
        assert torch.equal(pair.low, _pillow(pair.high, SIZE, SIZE))
        positions.add(_position(pair.high, item.values))
        scales.append(pair.scale)
    assert None not in positions
    assert len(positions) > 40
    assert 1 <= min(scales) < 1.3
    assert 3.7 < max(scales) <= 4


def test_crops_reach_the_borders_of_the_image():
    item, positions = _image(7, 8), set()
    for seed in range(100):
        positions.add(_position(_crop(item, seed, scales=(1.0, 1.0)).high, item.values))
    assert positions == {(top, left) for top in range(2) for left in range(3)}


def test_scale_1_keeps_the_pixels():
    pair = _crop(_image(9, 9), scales=(1.0, 1.0))
    assert torch.equal(pair.low, pair.high)


def test_small_images_draw_the_scales_that_they_can_serve():
    item = _image(12, 40)
    scales = [_crop(item, seed).scale for seed in range(100)]
    assert 1.9 < max(scales) <= 2
    assert min(scales) < 1.1
    exact = _image(SIZE, SIZE)
    assert torch.equal(_crop(exact).high, exact.values)


def test_an_image_of_just_a_rounded_crop_is_taken():
    pair = _crop(_image(6, 6), scales=(1.05, 4.0))  # round(6.3) = 6
    assert pair.high.shape == (3, 6, 6)


def test_images_smaller_than_a_crop_are_refused_with_their_name():
    with pytest.raises(
        ValueError, match=r"The image cat/small\.png has 11 x 40 pixels; size 6 at scale 2 takes 12 x 12.*lower"
    ):
        _crop(_image(11, 40, name="cat/small.png"), scales=(2.0, 4.0))


def test_crops_are_changed_before_they_are_degraded():
    item, changed = _image(30, 30), 0
    for seed in range(20):
        pair = _crop(item, seed, augment=ImageAugmentation(shuffle_colors=1.0))
        assert torch.equal(pair.low, _pillow(pair.high, SIZE, SIZE))
        changed += _position(pair.high, item.values) is None
    assert 10 < changed < 20  # one permutation of six changes nothing


def test_degradations_draw_their_numbers_from_the_generator_of_the_crop():
    recorded = _Recorded()
    for seed in (0, 0, 1):
        _crop(_image(30, 30), seed, degradation=recorded)
    assert recorded.drawn[0] == recorded.drawn[1] != recorded.drawn[2]


def _pair(rows, columns):
    """Return a pair at scale 2 whose pixels of the high resolution hold their own index, and the low ones that above left."""
    index = torch.arange(rows * columns).view(1, rows, columns).expand(3, -1, -1)
    return Pair(
        index[:, ::2, ::2], index, torch.empty(0, dtype=torch.long), torch.tensor([rows, columns]), 2.0, "index"
    )


def _undrawn(pair):
    """Return the image of the high resolution of a pair all of whose pixels were drawn."""
    pixels = torch.empty_like(pair.high)
    pixels[:, pair.drawn] = pair.high
    return pixels.view(3, *pair.size.tolist())


def test_pixels_are_drawn_without_replacement_and_hold_their_values():
    pair = _pair(8, 10)
    drawn = [PairDraw(50, "none")(pair, _generator(seed)) for seed in range(20)]
    for result in drawn:
        assert result.drawn.unique().numel() == 50
        assert result.drawn.max() < 80
        assert torch.equal(result.high, result.drawn.expand(3, -1))
        assert torch.equal(result.low, pair.low)
    assert torch.cat([result.drawn for result in drawn]).unique().numel() == 80
    assert not torch.equal(drawn[0].drawn, drawn[1].drawn)


@pytest.mark.parametrize(("symmetries", "count"), [("all", 8), ("mirror", 2), ("none", 1)])
def test_symmetries_act_on_both_resolutions_alike(symmetries, count):
    # In blocks of equal pixels, the low resolution of a changed image is the changed low resolution.
    low = torch.arange(12).view(1, 3, 4).expand(3, -1, -1)
    high = low.repeat_interleave(2, 1).repeat_interleave(2, 2)
    pair = Pair(low, high, torch.empty(0, dtype=torch.long), torch.tensor([6, 8]), 2.0, "blocks")
    counts = {}
    for seed in range(100):
        result = PairDraw(48, symmetries)(pair, _generator(seed))
        large = _undrawn(result)
        assert torch.equal(large[:, ::2, ::2], result.low)
        assert torch.equal(large[:, 1::2, 1::2], result.low)
        key = tuple(result.low[0].flatten().tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == count
    assert min(counts.values()) > 100 / count / 4
    images = [low[0], low[0].flip(-1)] if symmetries != "none" else [low[0]]
    if symmetries == "all":
        images += [image.flip(-2) for image in images]
        images += [image.mT for image in images]
    assert counts.keys() == {tuple(image.flatten().tolist()) for image in images}


def _fixed(images, scales, **options):
    """Return the pairs of images at fixed scales."""
    arguments = {"degradation": Bicubic(), "published": {}} | options
    return FixedPairs(InMemory(images), scales, **arguments)


@pytest.mark.parametrize("scale", [1.0, 2.0, 2.5, 3.0, 3.7])
def test_whole_images_are_cropped_to_the_multiple_of_the_scale(scale):
    image = _image(23, 17)
    [pair] = _fixed([image], [scale])
    low = [int(23 // scale), int(17 // scale)]
    high = [round(low[0] * scale), round(low[1] * scale)]
    assert list(pair.low.shape[1:]) == low
    assert list(pair.high.shape[1:]) == pair.size.tolist() == high
    assert torch.equal(pair.high, image.values[:, : high[0], : high[1]])
    assert torch.equal(pair.low, _pillow(pair.high, *low))
    assert (pair.scale, pair.name) == (scale, f"image-x{scale:g}")
    assert pair.drawn.numel() == 0


def test_pairs_are_ordered_by_scale_then_image():
    pairs = _fixed([_image(12, 12, seed, f"i{seed}") for seed in range(3)], [2.0, 3.0])
    assert len(pairs) == 6
    assert [pairs[index].name for index in range(6)] == ["i0-x2", "i1-x2", "i2-x2", "i0-x3", "i1-x3", "i2-x3"]
    for index in (-1, 6):
        with pytest.raises(IndexError):
            pairs[index]


def test_images_smaller_than_the_scale_are_refused():
    with pytest.raises(
        ValueError, match=r"The image image has 5 x 40 pixels, fewer than the scale 6: remove it, or lower"
    ):
        _fixed([_image(5, 40)], [2.0, 6.0])[1]


def test_published_low_resolutions_are_taken_and_images_cropped_to_their_multiple():
    images = [_image(25, 19, 0, "a"), _image(24, 18, 1, "b")]
    low = [_image(12, 9, 2, "ax2"), _image(12, 9, 3, "bx2")]
    pairs = _fixed(images, [2.0, 3.0], published={2.0: InMemory(low)})
    for index, (image, small) in enumerate(zip(images, low, strict=True)):
        assert torch.equal(pairs[index].low, small.values)
        assert torch.equal(pairs[index].high, image.values[:, :24, :18])
    assert torch.equal(pairs[2].low, _pillow(images[0].values[:, :24, :18], 8, 6))


@pytest.mark.parametrize("shape", [(13, 9), (12, 7), (9, 12), (6, 5)])
def test_published_low_resolutions_of_other_images_are_refused(shape):
    pairs = _fixed([_image(25, 19, name="0801")], [2.0], published={2.0: InMemory([_image(*shape)])})
    message = (
        rf"image 0801 has 25 x 19 pixels, and its low resolution at scale 2 {shape[0]} x {shape[1]}: .*do not belong"
    )
    with pytest.raises(ValueError, match=message):
        pairs[0]


def test_degradations_of_whole_images_depend_on_their_name_only():
    realistic = Realistic(noise=(20.0, 20.0), probability=1.0)
    one, two = _image(20, 20, 0, "one"), _image(20, 20, 0, "two")
    pairs = _fixed([one, two], [2.0, 4.0], degradation=realistic)
    reordered = _fixed([two, one], [4.0, 2.0], degradation=realistic)
    for index, other in ((0, 3), (1, 2), (2, 1), (3, 0)):
        assert pairs[index].name == reordered[other].name
        assert torch.equal(pairs[index].low, reordered[other].low)
        assert torch.equal(pairs[index].low, pairs[index].low)
    assert not torch.equal(pairs[0].low, pairs[1].low)


def test_scales_of_graded_pairs_grow_with_the_index():
    images = [_image(26, 24 + index, index, f"face{index}") for index in range(5)]
    pairs = GradedPairs(InMemory(images), SIZE, (1.0, 4.0), Bicubic())
    assert len(pairs) == 5
    assert [pairs[index].high.shape[1] for index in range(5)] == [6, 10, 15, 20, 24]  # round(6 + 18 * index / 4)
    for index in range(5):
        pair, values = pairs[index], images[index].values
        side = min(values.shape[1:])
        top, left = ((extent - side) // 2 for extent in values.shape[1:])
        square = values[:, top : top + side, left : left + side]
        target = pair.high.shape[1]
        assert torch.equal(pair.high, _pillow(square, target, target))
        assert torch.equal(pair.low, _pillow(square, SIZE, SIZE))
        assert (pair.scale, pair.size.tolist()) == (target / SIZE, [target, target])
        assert torch.equal(pair.low, pairs[index].low)
    assert GradedPairs(InMemory(images[:1]), SIZE, (2.0, 4.0), Bicubic())[0].scale == 2


def test_graded_pairs_refuse_images_smaller_than_their_target():
    pairs = GradedPairs(InMemory([_image(20, 30, name="a"), _image(20, 30, name="b")]), SIZE, (1.0, 4.0), Bicubic())
    assert pairs[0].high.shape == (3, 6, 6)
    with pytest.raises(ValueError, match="The image b has 20 x 30 pixels; size 6 at scale 4 takes 24 x 24"):
        pairs[1]


def test_images_of_one_channel_are_their_luminance():
    image = _image(12, 10)
    grey = np.array(Image.fromarray(image.values.permute(1, 2, 0).numpy()).convert("L"))
    [fixed] = _fixed([image], [2.0], channels=1)
    assert fixed.low.shape == (1, 6, 5)
    assert np.array_equal(fixed.high[0].numpy(), grey)
    [published] = _fixed([image], [2.0], channels=1, published={2.0: InMemory([_image(6, 5)])})
    assert published.low.shape == (1, 6, 5)
    graded = GradedPairs(InMemory([image]), SIZE, (1.0, 1.0), Bicubic(), channels=1)[0]
    assert graded.low.shape == graded.high.shape == (1, 6, 6)
    crop = _crop(image, scales=(1.0, 1.0), channels=1)
    assert crop.low.shape == (1, SIZE, SIZE)
    assert _position(crop.high.expand(3, -1, -1), torch.from_numpy(grey).expand(3, -1, -1)) is not None


def test_images_are_repeated():
    images = Repeated(InMemory([_image(8, 8, seed, f"i{seed}") for seed in range(3)]), 4)
    assert len(images) == 12
    assert [images[index].name for index in range(12)] == ["i0", "i1", "i2"] * 4


class _Shaped(InMemory):
    """Images that state their shapes."""

    @property
    def shapes(self):
        return [(item.name, tuple(item.values.shape[1:])) for item in self.items]


def test_shapes_are_checked_without_reading_images():
    images = [_image(12, 40, name="a"), _image(24, 24, name="b")]
    check_shapes(_Shaped(images), SIZE, (2.0, 4.0), graded=False)
    check_shapes(_Shaped(images), SIZE, (2.0, 4.0), graded=True)
    with pytest.raises(ValueError, match="The image a has 12 x 40 pixels; size 6 at scale 3 takes 18 x 18"):
        check_shapes(_Shaped(images), SIZE, (3.0, 4.0), graded=False)
    with pytest.raises(ValueError, match="The image a has 12 x 40 pixels; size 6 at scale 4 takes 24 x 24"):
        check_shapes(_Shaped(images[::-1]), SIZE, (1.0, 4.0), graded=True)
    check_shapes(InMemory(images), SIZE, (8.0, 8.0), graded=False)  # states none: refused when it is read

"""Random changes of images, against naive computations."""

import pytest
import torch

from datamodules.batch import Signal
from datamodules.images.augmentation import ImageAugmentation

IMAGE = Signal(torch.arange(48, dtype=torch.uint8).view(3, 4, 4) * 4, "image")


def changed(augmentation, seed=0):
    return augmentation(IMAGE, torch.Generator().manual_seed(seed)).values


def test_nothing_changes_by_default():
    assert changed(ImageAugmentation()).equal(IMAGE.values)


def test_rotations_are_all_four_multiples_of_90_degrees():
    rotated = {tuple(changed(ImageAugmentation(rotate=True), seed).flatten().tolist()) for seed in range(40)}
    assert rotated == {tuple(IMAGE.values.rot90(turns, (-2, -1)).flatten().tolist()) for turns in range(4)}


def test_colours_are_permuted_with_the_stated_probability():
    orders = [changed(ImageAugmentation(shuffle_colors=0.5), seed) for seed in range(300)]
    assert all(
        {channel.sum().item() for channel in order} == {c.sum().item() for c in IMAGE.values} for order in orders
    )
    unchanged = sum(order.equal(IMAGE.values) for order in orders) / len(orders)
    assert unchanged == pytest.approx(0.5 + 0.5 / 6, abs=0.08)


def test_contrast_and_brightness_scale_deviations_and_mean():
    mean = IMAGE.values.float().mean((-2, -1), keepdim=True)
    assert changed(ImageAugmentation(contrast=(0.5, 0.5))).equal(
        ((IMAGE.values - mean) * 0.5 + mean).round().to(torch.uint8)
    )
    brighter = changed(ImageAugmentation(brightness=(1.5, 1.5)))
    assert brighter.equal((IMAGE.values + 0.5 * mean).clamp(max=255).round().to(torch.uint8))


def test_a_seed_determines_the_change():
    augmentation = ImageAugmentation(True, 0.5, (0.5, 1.5), (0.8, 1.2))
    assert changed(augmentation, 3).equal(changed(augmentation, 3))
    assert not changed(augmentation, 3).equal(changed(augmentation, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shuffle_colors": 1.5}, r"shuffle_colors is 1.5; it is a probability"),
        ({"contrast": (1.2, 0.8)}, r"contrast is \[1.2, 0.8\]; give a lower and an upper factor"),
        ({"brightness": (0.0, 1.0)}, r"brightness is \[0.0, 1.0\]"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageAugmentation(**arguments)

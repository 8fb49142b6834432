"""Enlarged images: pixels, transparency, colour profile, orientation."""

import numpy as np
import pytest
import torch
from patches import random_pixels
from PIL import Image, ImageCms
from super_resolvers import tiny_liif

from datamodules.batch import Observation
from datamodules.domain import CellGrid
from datamodules.storage.images import read_layers
from modalities.enlarging import super_resolve

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _smooth(rows, columns, shift=(0.0, 0.0)):
    """Return a smooth image ``(rows, columns, 3)`` in [0, 1], sampled at the centres of cells of the unit square."""
    row = (np.arange(rows) + 0.5 + shift[0]) / rows
    column = (np.arange(columns) + 0.5 + shift[1]) / columns
    waves = [np.outer(np.cos(8 * row + phase), np.cos(12 * column - phase)) for phase in (0.0, 0.7, 1.4)]
    return 0.5 + 0.45 * np.stack(waves, axis=-1)


def _uint8(image):
    """Return an image in [0, 1] as pixels ``(3, H, W)`` uint8."""
    return torch.from_numpy((image * 255).round().astype(np.uint8)).permute(2, 0, 1)


@pytest.mark.parametrize("target", [(96, 144), (60, 77), (40, 60)])
def test_the_result_lies_where_the_image_lies(target):
    interpolate = tiny_liif(trained=False)
    result = np.asarray(super_resolve(interpolate, _uint8(_smooth(24, 36)), size=target)) / 255
    inner = (slice(8, -8), slice(8, -8))
    assert np.abs(result - _smooth(*target))[inner].max() < 0.02
    for shift in ((0.25, 0), (0, 0.25), (-0.25, 0), (0, -0.25)):  # of a pixel of the image
        shifted = super_resolve(interpolate, _uint8(_smooth(24, 36, shift)), size=target)
        assert np.abs(np.asarray(shifted) / 255 - _smooth(*target))[inner].max() > 0.03


def test_pixels_are_those_of_the_model():
    composer, pixels = tiny_liif(), random_pixels(10, 13)
    with torch.no_grad():
        values = composer(Observation(pixels[None].float() / 255), CellGrid.unit(2).coords((20, 26)))[0]
    expected = (values.clamp(0, 1) * 255).round().view(20, 26, 3)
    assert np.array_equal(np.asarray(super_resolve(composer, pixels, scale=2)), expected.byte().numpy())


def test_tiles_have_no_seams():
    composer, pixels = tiny_liif(), random_pixels(30, 40)
    whole = np.asarray(super_resolve(composer, pixels, scale=3)).astype(int)
    tiled = np.asarray(super_resolve(composer, pixels, scale=3, max_pixels=150)).astype(int)
    assert np.abs(whole - tiled).max() <= 1  # rounding


def test_transparency_is_kept():
    alpha = (np.indices((20, 30)).sum(0) * 5).astype(np.uint8)
    image = Image.fromarray(random_pixels(20, 30).permute(1, 2, 0).numpy())
    image.putalpha(Image.fromarray(alpha))
    image.save("a.png")
    result = super_resolve(tiny_liif(), "a.png", scale=2)
    assert result.mode == "RGBA"
    small = np.asarray(result.getchannel("A").resize((30, 20), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - alpha).max() <= 3


def test_colours_below_transparency_are_not_mixed_with_white():
    Image.new("RGBA", (12, 12), (200, 30, 60, 0)).save("a.png")
    result = np.asarray(super_resolve(tiny_liif(trained=False), "a.png", scale=2))
    assert (result[..., :3] == (200, 30, 60)).all()
    assert (result[..., 3] == 0).all()


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey_images_stay_grey(mode):
    grey = Image.fromarray(random_pixels(12, 15)[0].numpy())
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    (deep if mode == "I;16" else grey.convert(mode)).save("a.png")
    assert super_resolve(tiny_liif(), "a.png", scale=2).mode == ("LA" if mode == "LA" else "L")


def test_the_colour_profile_is_kept_unless_colours_were_converted():
    image = Image.fromarray(random_pixels(12, 15).permute(1, 2, 0).numpy())
    image.save("a.png", icc_profile=PROFILE)
    image.convert("CMYK").save("b.tif", icc_profile=PROFILE)
    assert super_resolve(tiny_liif(), "a.png", scale=2).info["icc_profile"] == PROFILE
    assert "icc_profile" not in super_resolve(tiny_liif(), "b.tif", scale=2).info


def test_the_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random_pixels(10, 16).permute(1, 2, 0).numpy()).save("a.png", exif=exif)
    assert super_resolve(tiny_liif(), "a.png", scale=2).size == (20, 32)


def test_the_largest_scale_of_training_is_the_default():
    assert super_resolve(tiny_liif(), random_pixels(3, 4)).size == (16, 12)


def test_a_grey_model_gives_grey_images():
    composer = tiny_liif(channels=1)
    assert super_resolve(composer, random_pixels(6, 7), scale=2).mode == "L"


def test_a_transparent_level_of_16_bits_is_kept():
    levels = np.array([[0, 1000], [30000, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save("a.png", transparency=0)
    layers = read_layers("a.png")
    assert layers.pixels[0].tolist() == [[0, 4], [117, 255]]
    assert layers.alpha.tolist() == [[0, 255], [255, 255]]
    assert super_resolve(tiny_liif(), "a.png", scale=2).mode == "LA"


def test_a_grey_model_drops_the_profile_of_colours():
    image = Image.fromarray(random_pixels(12, 15).permute(1, 2, 0).numpy())
    image.save("a.png", icc_profile=PROFILE)
    assert "icc_profile" not in super_resolve(tiny_liif(channels=1), "a.png", scale=2).info


def test_a_model_that_states_no_domain_takes_positions_with_sizes():
    composer, pixels = tiny_liif(), random_pixels(6, 7)
    expected = np.asarray(super_resolve(composer, pixels, scale=2))
    composer._trained_on = None
    assert np.array_equal(np.asarray(super_resolve(composer, pixels, size=[12, 14])), expected)


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (torch.zeros(4, 5), {}, r"shape \(4, 5\)"),
        (torch.zeros(3, 0, 5), {}, r"shape \(3, 0, 5\)"),
        (torch.zeros(3, 8, 8), {}, "torch.float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), {"scale": 4000}, "pass a smaller size or scale"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), {"scale": 0.5}, "pass a larger size, or a scale of at least 1"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), {"scale": 2, "size": 9}, "pass only one"),
    ],
)
def test_invalid_arguments_are_refused(pixels, options, message):
    with pytest.raises(ValueError, match=message):
        super_resolve(tiny_liif(), pixels, **options)

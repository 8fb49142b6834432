"""Reading of image files: supported formats, exact colours, and error messages that name the file."""

import os
import random
import re
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from datamodules.storage.images import (
    Preparation,
    center_crop,
    cut,
    read_image,
    resize_image,
    resize_short_side,
)
from datamodules.tiles import whole

WHITE = 255


@pytest.fixture
def colours():
    """Return a random image ``(9, 13, 3)`` uint8."""
    return np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)


def _read(image, path, **options):
    """Write an image, read it, and return its pixels ``(H, W, 3)`` and the notes."""
    image.save(path, **options)
    pixels, notes = read_image(path)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    return pixels.permute(1, 2, 0).numpy(), notes


def _error_message(path):
    """Return the error message for an unreadable file, after checking that it is one line that names the file."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as raised:
        read_image(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "webp", "ppm", "tga", "qoi"])
def test_lossless_formats_keep_colours(colours, extension, tmp_path):
    options = {"lossless": True} if extension == "webp" else {}
    actual, notes = _read(Image.fromarray(colours), tmp_path / f"a.{extension}", **options)
    assert np.array_equal(actual, colours)
    assert notes == ()


def test_grey_and_binary_images_become_rgb(colours, tmp_path):
    grey = colours[..., 0]
    actual, notes = _read(Image.fromarray(grey), tmp_path / "grey.png")
    assert np.array_equal(actual, np.stack([grey] * 3, -1))
    assert notes == ()
    bits = grey > 127
    actual, _ = _read(Image.fromarray(bits), tmp_path / "bits.png")
    assert np.array_equal(actual, np.stack([bits * WHITE] * 3, -1))


def _over_white(levels, alpha):
    """Return levels composited over white, without rounding."""
    share = alpha.astype(np.float64) / WHITE
    return levels * share + WHITE * (1 - share)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_transparency_is_composited_over_white(colours, mode, extension, tmp_path):
    alpha = np.random.default_rng(1).integers(0, 256, colours.shape[:2], dtype=np.uint8)
    levels = colours if mode == "RGBA" else colours[..., :1].repeat(3, -1)
    drawn = np.concatenate([levels[..., : len(mode) - 1], alpha[..., None]], -1)
    actual, notes = _read(Image.fromarray(drawn), tmp_path / f"a.{extension}")
    assert np.abs(actual - _over_white(levels, alpha[..., None])).max() <= 1
    assert notes == ("transparency composited over white",)


@pytest.mark.parametrize("extension", ["png", "gif"])
def test_palettes_become_rgb(extension, tmp_path):
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    palette = np.array([[250, 10, 20], [0, 0, 0], [30, 40, 240]], dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    actual, notes = _read(image, tmp_path / f"opaque.{extension}")
    assert np.array_equal(actual, palette[indices])
    assert notes == ()
    actual, notes = _read(image, tmp_path / f"clear.{extension}", transparency=1)
    assert np.array_equal(actual, np.where(indices[..., None] == 1, WHITE, palette[indices]))
    assert notes == ("transparency composited over white",)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_grey_levels_are_divided_by_257(order, extension, tmp_path):
    levels = np.array([[0, 128, 129, 257], [32767, 32768, 65406, 65535]])
    actual, notes = _read(Image.fromarray(levels.astype(order)), tmp_path / f"a.{extension}")
    assert actual[..., 0].tolist() == [[0, 0, 1, 1], [127, 128, 254, 255]]  # level / 257, rounded
    assert (actual == actual[..., :1]).all()
    assert notes == ("16-bit converted to 8-bit",)


def test_16_bit_colours_are_divided_by_257(tmp_path):
    actual, _ = _read(Image.fromarray(np.full((2, 3, 3), (1, 100, 254), np.uint8)), tmp_path / "eight.png")
    raw = np.full((2, 3, 3), (257, 25700, 65278), ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in raw)
    with (tmp_path / "a.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(file, b"IHDR", np.array([3, 2], ">u4").tobytes(), bytes([16, 2, 0, 0, 0]))
        PngImagePlugin.putchunk(file, b"IDAT", zlib.compress(rows))
        PngImagePlugin.putchunk(file, b"IEND", b"")
    assert np.array_equal(read_image(tmp_path / "a.png").pixels.permute(1, 2, 0).numpy(), actual)


def test_32_bit_integers_and_floating_point_levels(tmp_path):
    actual, notes = _read(Image.fromarray(np.array([[0, 257], [25700, 65535]], np.int32)), tmp_path / "a.tif")
    assert actual[..., 1].tolist() == [[0, 1], [100, 255]]
    assert notes == ("32-bit integers read as [0, 65535]",)
    actual, notes = _read(Image.fromarray(np.array([[0, 0.25], [0.5, 1.001]], np.float32)), tmp_path / "f.tif")
    assert actual[..., 2].tolist() == [[0, 64], [128, 255]]
    assert notes == ("floating point read as [0, 1]",)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (np.array([[0, 70000]], np.int32), "from 0 to 70000, but [0, 65535] is required"),
        (np.array([[-300, 9]], np.int32), "from -300 to 9"),
        (np.array([[0, 255]], np.float32), "from 0 to 255, but [0, 1] is required"),
        (np.array([[0, np.nan]], np.float32), "nan"),
        (np.array([[0, np.inf]], np.float32), "from 0 to inf"),
    ],
    ids=str,
)
def test_levels_out_of_range_raise_an_error(levels, message, tmp_path):
    Image.fromarray(levels).save(tmp_path / "a.tif")
    assert message in _error_message(tmp_path / "a.tif")


def test_cmyk_becomes_rgb(tmp_path):
    drawn = (
        np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8).repeat(8, 0).repeat(8, 1)
    )
    expected = np.array([[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]])
    image = Image.frombytes("CMYK", (32, 8), drawn.tobytes())
    actual, notes = _read(image, tmp_path / "a.tif")
    assert np.array_equal(actual[4, 4::8], expected)
    assert notes == ("CMYK converted",)
    actual, _ = _read(image, tmp_path / "adobe.jpg", quality=100)  # stored inverted, as Adobe does
    assert b"Adobe" in (tmp_path / "adobe.jpg").read_bytes()
    assert np.abs(actual[4, 4::8].astype(int) - expected).max() <= 6


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_an_animation_is_read(extension, tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if extension == "webp" else {}
    actual, notes = _read(frames[0], tmp_path / f"a.{extension}", save_all=True, append_images=frames[1:], **options)
    assert actual.shape == (6, 8, 3)
    assert (actual == (255, 0, 0)).all()
    assert notes == ("first of 3 frames",)


_UPRIGHT = {  # transformation from stored to displayed pixels by EXIF orientation
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", _UPRIGHT)
@pytest.mark.parametrize("extension", ["png", "webp", "tif", "jpg"])
def test_exif_orientation_is_applied(colours, orientation, extension, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = colours if extension != "jpg" else np.full((16, 32, 3), 20, np.uint8)
    stored[: len(stored) // 2, : stored.shape[1] // 2] = 240  # a bright corner of at least one JPEG block
    options = {"lossless": True} if extension == "webp" else {"quality": 100} if extension == "jpg" else {}
    actual, _ = _read(Image.fromarray(stored), tmp_path / f"a.{extension}", exif=exif, **options)
    expected = _UPRIGHT[orientation](stored)
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected).max() <= (3 if extension == "jpg" else 0)


def test_exif_orientation_is_applied_to_16_bit_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    actual, _ = _read(Image.fromarray(np.array([[0, 65535], [257, 514]], np.uint16)), tmp_path / "a.png", exif=exif)
    assert actual[..., 0].tolist() == [[1, 0], [2, 255]]


def test_progressive_jpeg_and_wrong_extensions_are_read(tmp_path):
    ramp = np.stack([np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))] * 3, -1)
    actual, _ = _read(Image.fromarray(ramp), tmp_path / "a.jpg", progressive=True, quality=95)
    assert np.abs(actual.astype(int) - ramp).max() <= 4
    Image.fromarray(ramp).save(tmp_path / "misnamed.jpg", format="PNG")
    assert np.array_equal(read_image(tmp_path / "misnamed.jpg").pixels.permute(1, 2, 0).numpy(), ramp)
    Image.fromarray(ramp).save(tmp_path / "without", format="PNG")
    assert read_image(str(tmp_path / "without")).pixels.shape == (3, 48, 64)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_images_one_pixel_wide_are_read_and_resized(size, tmp_path):
    actual, _ = _read(Image.new("RGB", size, (9, 8, 7)), tmp_path / "a.png")
    assert actual.shape == (size[1], size[0], 3)
    resized = cut(torch.from_numpy(actual).permute(2, 0, 1), whole(actual.shape[:2]), 16)
    assert torch.equal(resized, torch.tensor([9, 8, 7], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16))


def test_files_that_are_not_images_raise_an_error(tmp_path):
    (tmp_path / "empty.png").touch()
    assert "is empty" in _error_message(tmp_path / "empty.png")
    (tmp_path / "text.jpg").write_text("hello")
    assert "not an image in a supported format" in _error_message(tmp_path / "text.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert "Is a directory" in _error_message(tmp_path / "folder.jpg")
    assert "does not exist" in _error_message(tmp_path / "missing.jpg")
    (tmp_path / "broken.png").symlink_to(tmp_path / "missing.jpg")
    assert "does not exist" in _error_message(tmp_path / "broken.png")
    assert "too long" in _error_message(tmp_path / f"{'x' * 300}.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "it is a pipe" in _error_message(tmp_path / "pipe.png")  # and does not block


def test_decompression_bombs_raise_an_error(tmp_path):
    Image.new("1", (14000, 14000)).save(tmp_path / "bomb.png")
    assert "more than 179 megapixels" in _error_message(tmp_path / "bomb.png")


def test_the_reason_given_by_the_decoder_is_reported(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * (2 << 20), zip=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    assert "MAX_TEXT_CHUNK" in _error_message(tmp_path / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.qoi")
    (tmp_path / "a.qoi").write_bytes((tmp_path / "a.qoi").read_bytes()[:15])
    assert "not enough image data" in _error_message(tmp_path / "a.qoi")


def _damaged(content, generator):
    """Yield truncated copies of a file, and copies with some bytes changed."""
    for stop in range(1, len(content), max(1, len(content) // 20)):
        yield content[:stop]
    for _ in range(20):
        changed = bytearray(content)
        for _ in range(generator.choice([1, 2, 8])):
            changed[generator.randrange(min(len(content), generator.choice([40, 200, 10**6])))] = generator.randrange(
                256
            )
        yield bytes(changed)


@pytest.mark.parametrize(
    "extension", ["jpg", "png", "gif", "webp", "tif", "bmp", "jp2", "ico", "ppm", "qoi", "dds", "sgi"]
)
def test_corrupt_files_raise_only_errors_that_name_the_file(colours, extension, tmp_path):
    path, frames = tmp_path / f"a.{extension}", [Image.fromarray(np.roll(colours, shift)) for shift in range(2)]
    options = {"save_all": True, "append_images": frames[1:]} if extension in ("gif", "webp", "png", "tif") else {}
    frames[0].save(path, **options)
    messages = []
    for content in _damaged(path.read_bytes(), random.Random(0)):
        path.write_bytes(content)
        try:
            read_image(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) >= 10
    assert all(str(path) in message and "\n" not in message for message in messages)


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "webp", "tif"])
def test_truncated_files_raise_an_error(extension, tmp_path):
    path = tmp_path / f"a.{extension}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in _error_message(path) or "not an image" in _error_message(path)


def test_cut_at_the_original_resolution_returns_the_same_pixels(colours):
    pixels = torch.from_numpy(colours).permute(2, 0, 1)
    assert torch.equal(cut(pixels, ((2, 8), (4, 10)), 6), pixels[:, 2:8, 4:10])


def test_large_images_are_averaged_before_they_are_resized():
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8)  # 16 x 4 pixels
    large = blocks.repeat_interleave(3, 1).repeat_interleave(5, 2)
    assert torch.equal(cut(large, whole(large.shape[1:]), 4), resize_image(blocks, 4, 4))
    small = blocks[:, :, :60]  # at most 16 times the result: resized directly, as in training
    assert torch.equal(cut(small, whole((64, 60)), 4), resize_image(small, 4, 4))


@pytest.mark.slow
def test_an_image_of_100_megapixels_is_resized(tmp_path):
    pixels = np.zeros((10000, 10000, 3), np.uint8)
    pixels[:, 5000:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=1)
    resized = cut(read_image(tmp_path / "a.png").pixels, whole((10000, 10000)), 64)
    assert (resized[..., :28] == 0).all()
    assert (resized[..., 36:] == 255).all()


@pytest.mark.parametrize(
    ("shape", "short_side", "expected"),
    [
        ((320, 427), 178, (178, 237)),  # 237.5 is rounded down
        ((427, 320), 178, (237, 178)),
        ((218, 178), 178, (218, 178)),
        ((100, 100), 178, (178, 178)),
        ((7, 5000), 3, (3, 2142)),
    ],
    ids=str,
)
def test_resize_short_side_matches_published_preprocessing(shape, short_side, expected):
    pixels = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    actual = resize_short_side(pixels, short_side)
    assert actual.shape == (3, *expected)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(expected[::-1], Image.Resampling.BILINEAR)
    assert np.array_equal(actual.permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize(("extent", "start"), [(178, 0), (179, 0), (180, 1), (181, 2), (218, 20)])
def test_center_crop_matches_published_preprocessing(extent, start):
    pixels = torch.arange(extent, dtype=torch.uint8).expand(3, 178, extent)
    assert torch.equal(center_crop(pixels, 178), pixels[..., start : start + 178])
    assert torch.equal(center_crop(pixels.mT, 178), pixels[..., start : start + 178].mT)


@pytest.mark.parametrize(
    ("preparation", "shape"),
    [
        (Preparation(), (60, 90)),
        (Preparation(short_side=30), (30, 45)),
        (Preparation(smallest=60), (60, 90)),
        (Preparation(smallest=61), (61, 91)),
        (Preparation(short_side=30, smallest=40), (40, 60)),
        (Preparation(crop=50), (50, 50)),
        (Preparation(crop=70), (70, 70)),
        (Preparation(short_side=40, crop=40), (40, 40)),
    ],
    ids=str,
)
def test_preparation_resizes_and_crops(preparation, shape):
    pixels = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    actual = preparation(pixels)
    assert actual.shape == (3, *shape)
    assert actual.is_contiguous()
    if preparation.crop == 50:
        assert torch.equal(actual, pixels[:, 5:55, 20:70])

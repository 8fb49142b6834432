"""Reading of images: every kind that people have, exact colours, and refusals that name the file."""

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
    """Write an image and return what is read as ``(H, W, 3)``, and the notes."""
    image.save(path, **options)
    pixels, notes = read_image(path)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    return pixels.permute(1, 2, 0).numpy(), notes


def _refusal(path):
    """Return the reason for which a file is refused, after checking that it is one line that names the file."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as refused:
        read_image(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp", "ppm", "tga", "qoi"])
def test_colours_are_kept(colours, ending, tmp_path):
    options = {"lossless": True} if ending == "webp" else {}
    found, notes = _read(Image.fromarray(colours), tmp_path / f"a.{ending}", **options)
    assert np.array_equal(found, colours)
    assert notes == ()


def test_grey_and_black_and_white(colours, tmp_path):
    grey = colours[..., 0]
    found, notes = _read(Image.fromarray(grey), tmp_path / "grey.png")
    assert np.array_equal(found, np.stack([grey] * 3, -1))
    assert notes == ()
    bits = grey > 127
    found, _ = _read(Image.fromarray(bits), tmp_path / "bits.png")
    assert np.array_equal(found, np.stack([bits * WHITE] * 3, -1))


def _over_white(levels, alpha):
    """Return what is seen of levels over white paper, not rounded."""
    share = alpha.astype(np.float64) / WHITE
    return levels * share + WHITE * (1 - share)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_transparency_lies_over_white(colours, mode, ending, tmp_path):
    alpha = np.random.default_rng(1).integers(0, 256, colours.shape[:2], dtype=np.uint8)
    levels = colours if mode == "RGBA" else colours[..., :1].repeat(3, -1)
    drawn = np.concatenate([levels[..., : len(mode) - 1], alpha[..., None]], -1)
    found, notes = _read(Image.fromarray(drawn), tmp_path / f"a.{ending}")
    assert np.abs(found - _over_white(levels, alpha[..., None])).max() <= 1
    assert notes == ("transparency laid over white",)


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_palettes(ending, tmp_path):
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    palette = np.array([[250, 10, 20], [0, 0, 0], [30, 40, 240]], dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    found, notes = _read(image, tmp_path / f"opaque.{ending}")
    assert np.array_equal(found, palette[indices])
    assert notes == ()
    found, notes = _read(image, tmp_path / f"clear.{ending}", transparency=1)
    assert np.array_equal(found, np.where(indices[..., None] == 1, WHITE, palette[indices]))
    assert notes == ("transparency laid over white",)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits(order, ending, tmp_path):
    levels = np.array([[0, 128, 129, 257], [32767, 32768, 65406, 65535]])
    found, notes = _read(Image.fromarray(levels.astype(order)), tmp_path / f"a.{ending}")
    assert found[..., 0].tolist() == [[0, 0, 1, 1], [127, 128, 254, 255]]  # level / 257, to the nearest
    assert (found == found[..., :1]).all()
    assert notes == ("16 bits made 8",)


def test_sixteen_bits_of_colour(tmp_path):
    found, _ = _read(Image.fromarray(np.full((2, 3, 3), (1, 100, 254), np.uint8)), tmp_path / "eight.png")
    raw = np.full((2, 3, 3), (257, 25700, 65278), ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in raw)
    with (tmp_path / "a.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(file, b"IHDR", np.array([3, 2], ">u4").tobytes(), bytes([16, 2, 0, 0, 0]))
        PngImagePlugin.putchunk(file, b"IDAT", zlib.compress(rows))
        PngImagePlugin.putchunk(file, b"IEND", b"")
    assert np.array_equal(read_image(tmp_path / "a.png").pixels.permute(1, 2, 0).numpy(), found)


def test_whole_numbers_of_32_bits_and_floating_point(tmp_path):
    found, notes = _read(Image.fromarray(np.array([[0, 257], [25700, 65535]], np.int32)), tmp_path / "a.tif")
    assert found[..., 1].tolist() == [[0, 1], [100, 255]]
    assert notes == ("whole numbers, taken as levels up to 65535",)
    found, notes = _read(Image.fromarray(np.array([[0, 0.25], [0.5, 1.001]], np.float32)), tmp_path / "f.tif")
    assert found[..., 2].tolist() == [[0, 64], [128, 255]]
    assert notes == ("floating point, taken as [0, 1]",)


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        (np.array([[0, 70000]], np.int32), "from 0 to 70000, read as levels of [0, 65535]"),
        (np.array([[-300, 9]], np.int32), "from -300 to 9"),
        (np.array([[0, 255]], np.float32), "from 0 to 255, read as levels of [0, 1]"),
        (np.array([[0, np.nan]], np.float32), "nan"),
        (np.array([[0, np.inf]], np.float32), "from 0 to inf"),
    ],
    ids=str,
)
def test_levels_without_an_agreed_white_are_refused(numbers, told, tmp_path):
    Image.fromarray(numbers).save(tmp_path / "a.tif")
    assert told in _refusal(tmp_path / "a.tif")


def test_cmyk(tmp_path):
    drawn = (
        np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8).repeat(8, 0).repeat(8, 1)
    )
    wanted = np.array([[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]])
    image = Image.frombytes("CMYK", (32, 8), drawn.tobytes())
    found, notes = _read(image, tmp_path / "a.tif")
    assert np.array_equal(found[4, 4::8], wanted)
    assert notes == ("CMYK converted",)
    found, _ = _read(image, tmp_path / "adobe.jpg", quality=100)  # stored inverted, as Adobe does
    assert b"Adobe" in (tmp_path / "adobe.jpg").read_bytes()
    assert np.abs(found[4, 4::8].astype(int) - wanted).max() <= 6


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_of_several_frames_the_first(ending, tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if ending == "webp" else {}
    found, notes = _read(frames[0], tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **options)
    assert found.shape == (6, 8, 3)
    assert (found == (255, 0, 0)).all()
    assert notes == ("the first of 3 frames",)


_UPRIGHT = {  # what a viewer does with the stored pixels, by the orientation of EXIF
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
@pytest.mark.parametrize("ending", ["png", "webp", "tif", "jpg"])
def test_images_are_turned_upright(colours, orientation, ending, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = colours if ending != "jpg" else np.full((16, 32, 3), 20, np.uint8)
    stored[: len(stored) // 2, : stored.shape[1] // 2] = 240  # a bright corner; one block of JPEG or more
    options = {"lossless": True} if ending == "webp" else {"quality": 100} if ending == "jpg" else {}
    found, _ = _read(Image.fromarray(stored), tmp_path / f"a.{ending}", exif=exif, **options)
    wanted = _UPRIGHT[orientation](stored)
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= (3 if ending == "jpg" else 0)


def test_sixteen_bits_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    found, _ = _read(Image.fromarray(np.array([[0, 65535], [257, 514]], np.uint16)), tmp_path / "a.png", exif=exif)
    assert found[..., 0].tolist() == [[1, 0], [2, 255]]


def test_progressive_jpeg_and_wrong_endings(tmp_path):
    ramp = np.stack([np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))] * 3, -1)
    found, _ = _read(Image.fromarray(ramp), tmp_path / "a.jpg", progressive=True, quality=95)
    assert np.abs(found.astype(int) - ramp).max() <= 4
    Image.fromarray(ramp).save(tmp_path / "misnamed.jpg", format="PNG")
    assert np.array_equal(read_image(tmp_path / "misnamed.jpg").pixels.permute(1, 2, 0).numpy(), ramp)
    Image.fromarray(ramp).save(tmp_path / "without", format="PNG")
    assert read_image(str(tmp_path / "without")).pixels.shape == (3, 48, 64)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_thin_images(size, tmp_path):
    found, _ = _read(Image.new("RGB", size, (9, 8, 7)), tmp_path / "a.png")
    assert found.shape == (size[1], size[0], 3)
    squeezed = cut(torch.from_numpy(found).permute(2, 0, 1), whole(found.shape[:2]), 16)
    assert torch.equal(squeezed, torch.tensor([9, 8, 7], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16))


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "empty.png").touch()
    assert "is empty" in _refusal(tmp_path / "empty.png")
    (tmp_path / "text.jpg").write_text("hello")
    assert "no image of a kind that can be read" in _refusal(tmp_path / "text.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert "Is a directory" in _refusal(tmp_path / "folder.jpg")
    assert "There is no image" in _refusal(tmp_path / "missing.jpg")
    (tmp_path / "broken.png").symlink_to(tmp_path / "missing.jpg")
    assert "There is no image" in _refusal(tmp_path / "broken.png")
    assert "too long" in _refusal(tmp_path / f"{'x' * 300}.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "is empty" in _refusal(tmp_path / "pipe.png")  # and no waiting for what nobody writes


def test_more_pixels_than_can_be_meant(tmp_path):
    Image.new("1", (14000, 14000)).save(tmp_path / "bomb.png")
    assert "more than 179 megapixels" in _refusal(tmp_path / "bomb.png")


def test_decoders_that_give_a_reason_of_their_own(tmp_path):
    told = PngImagePlugin.PngInfo()
    told.add_text("comment", "a" * (2 << 20), zip=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=told)
    assert "MAX_TEXT_CHUNK" in _refusal(tmp_path / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.qoi")
    (tmp_path / "a.qoi").write_bytes((tmp_path / "a.qoi").read_bytes()[:15])
    assert "not enough image data" in _refusal(tmp_path / "a.qoi")


def _damaged(content, generator):
    """Yield a file cut off at many places, and with some bytes changed."""
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
    "ending", ["jpg", "png", "gif", "webp", "tif", "bmp", "jp2", "ico", "ppm", "qoi", "dds", "sgi"]
)
def test_damage_is_refused_or_survived(colours, ending, tmp_path):
    path, frames = tmp_path / f"a.{ending}", [Image.fromarray(np.roll(colours, shift)) for shift in range(2)]
    several = {"save_all": True, "append_images": frames[1:]} if ending in ("gif", "webp", "png", "tif") else {}
    frames[0].save(path, **several)
    refused = []
    for content in _damaged(path.read_bytes(), random.Random(0)):
        path.write_bytes(content)
        try:
            read_image(path)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) >= 10
    assert all(str(path) in message and "\n" not in message for message in refused)


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "tif"])
def test_half_a_file_is_refused(ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cut off" in _refusal(path) or "no image" in _refusal(path)


def test_a_cut_is_the_part_itself(colours):
    pixels = torch.from_numpy(colours).permute(2, 0, 1)
    assert torch.equal(cut(pixels, ((2, 8), (4, 10)), 6), pixels[:, 2:8, 4:10])


def test_large_images_are_averaged_before_they_are_squeezed():
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8)  # 16 x 4 pixels
    large = blocks.repeat_interleave(3, 1).repeat_interleave(5, 2)
    assert torch.equal(cut(large, whole(large.shape[1:]), 4), resize_image(blocks, 4, 4))
    small = blocks[:, :, :60]  # no larger than 16 x: as it was trained on
    assert torch.equal(cut(small, whole((64, 60)), 4), resize_image(small, 4, 4))


@pytest.mark.slow
def test_a_hundred_megapixels(tmp_path):
    pixels = np.zeros((10000, 10000, 3), np.uint8)
    pixels[:, 5000:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=1)
    squeezed = cut(read_image(tmp_path / "a.png").pixels, whole((10000, 10000)), 64)
    assert (squeezed[..., :28] == 0).all()
    assert (squeezed[..., 36:] == 255).all()


@pytest.mark.parametrize(
    ("shape", "short_side", "wanted"),
    [
        ((320, 427), 178, (178, 237)),  # 237.5 is rounded down
        ((427, 320), 178, (237, 178)),
        ((218, 178), 178, (218, 178)),
        ((100, 100), 178, (178, 178)),
        ((7, 5000), 3, (3, 2142)),
    ],
    ids=str,
)
def test_the_short_side_is_resized_as_in_published_preprocessing(shape, short_side, wanted):
    pixels = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = resize_short_side(pixels, short_side)
    assert found.shape == (3, *wanted)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(wanted[::-1], Image.Resampling.BILINEAR)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize(("extent", "start"), [(178, 0), (179, 0), (180, 1), (181, 2), (218, 20)])
def test_the_square_in_the_middle_begins_where_published_preprocessing_says(extent, start):
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
def test_images_are_prepared_as_said(preparation, shape):
    pixels = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = preparation(pixels)
    assert found.shape == (3, *shape)
    assert found.is_contiguous()
    if preparation.crop == 50:
        assert torch.equal(found, pixels[:, 5:55, 20:70])

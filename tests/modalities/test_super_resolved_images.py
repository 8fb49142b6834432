"""Bicubic enlargement against naive sums and Pillow, and what figures show of super-resolved images."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_pairs import SmallImages, naive_bicubic, shift_between, smooth_image

from composers import LIIF
from composers.encoders import EDSR
from composers.networks import LocalMLP
from datamodules import SuperResolution
from datamodules.batch import Cell, Instance, Observation, Samples
from datamodules.domain import CellGrid
from datamodules.images.sample_photos import Photographs
from modalities.super_resolution import SuperResolvedImages, enlarged, repeated

SHAPES = [(14, 22), (9, 11), (7, 31), (20, 25), (7, 11)]  # of an image of 7 x 11


def _pillow(image, shape):
    """Return an image ``(C, h, w)`` resized by Pillow's bicubic filter, in float32 or uint8."""
    resized = [
        np.array(Image.fromarray(channel.numpy()).resize(shape[::-1], Image.Resampling.BICUBIC)) for channel in image
    ]
    return torch.from_numpy(np.stack(resized))


@pytest.mark.parametrize("shape", SHAPES)
def test_enlarged_images_are_sums_with_the_kernel_of_keys(shape):
    image = torch.rand(3, 7, 11)
    expected = torch.from_numpy(naive_bicubic(image, shape)).clamp(0, 1).float()
    torch.testing.assert_close(enlarged(image, shape), expected, atol=1e-6, rtol=0)
    batch = torch.stack([image, 1 - image])
    torch.testing.assert_close(enlarged(batch, shape)[0], enlarged(image, shape), atol=0, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_enlarged_images_are_those_of_pillow(shape):
    image = torch.rand(3, 7, 11)
    torch.testing.assert_close(enlarged(image, shape), _pillow(image, shape).clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("shape", "tolerance"), [((30, 97), 0.51), ((71, 40), 0.51), ((71, 97), 1.2)])
def test_enlarged_images_are_those_of_pillow_in_8_bits_before_rounding(shape, tolerance):
    """Along one axis, the only difference is the rounding of the result; along two, Pillow also rounds in between."""
    image = smooth_image((30, 40))
    levels = enlarged(image.float() / 255, shape) * 255
    assert (levels - _pillow(image, shape)).abs().max() <= tolerance
    assert (levels - levels.round()).abs().max() > 0.4


def test_enlarged_images_are_clipped():
    step = torch.zeros(1, 4, 8)
    step[..., 4:] = 1
    assert naive_bicubic(step, (8, 24)).max() > 1.05
    assert (enlarged(step, (8, 24)).min(), enlarged(step, (8, 24)).max()) == (0, 1)


def test_fewer_pixels_are_refused():
    with pytest.raises(ValueError, match="shape \\(4, 8\\) cannot be interpolated to shape \\(9, 7\\)"):
        enlarged(torch.zeros(3, 4, 8), (9, 7))


@pytest.mark.parametrize("scale", [1.5, 2, 2.7, 4])
def test_repeated_pixels_are_the_nearest(scale):
    image = torch.rand(3, 6, 8)
    rows, columns = round(6 * scale), round(8 * scale)
    result = repeated(image, (rows, columns))
    for row in range(rows):
        for column in range(columns):
            source = image[:, int((row + 0.5) * 6 / rows), int((column + 0.5) * 8 / columns)]
            assert torch.equal(result[:, row, column], source)


def _instance(low_shape, shape, values=None):
    signal = torch.rand(3, *low_shape)
    query = Samples(CellGrid.unit(2).coords(shape), torch.rand(shape[0] * shape[1], 3))
    return Instance("image-x2", signal, query, shape, CellGrid.unit(2), values or {})


def test_context_is_the_input_and_its_bicubic_enlargement():
    instance = _instance((6, 9), (15, 20))
    given, bicubic = SuperResolvedImages().context(instance)
    assert (given.label, given.shape, bicubic.label, bicubic.shape) == ("input", (6, 9), "bicubic", (15, 20))
    assert torch.equal(given.values.mT.view(3, 6, 9), instance.signal)
    expected = torch.from_numpy(naive_bicubic(instance.signal, (15, 20))).clamp(0, 1).float()
    torch.testing.assert_close(bicubic.values.mT.view(3, 15, 20), expected, atol=1e-6, rtol=0)


def test_media_are_the_input_bicubic_the_reconstruction_the_original_and_the_error():
    instance = _instance((6, 9), (12, 18))
    instance = instance._replace(values={0: instance.query.values * 0.9})
    media = SuperResolvedImages().media(None, None, instance)
    sizes = {name: image.size for name, image in media.items()}
    large = (18, 12)
    assert list(sizes) == ["input", "bicubic", "reconstruction", "original", "error x 5"]
    assert sizes == dict.fromkeys(sizes, large) | {"input": (9, 6)}
    original = torch.from_numpy(np.array(media["original"]))
    assert (original.view(-1, 3) - instance.query.values * 255).abs().max() <= 0.51
    error = torch.from_numpy(np.array(media["error x 5"])).view(-1, 3)
    assert (error - instance.query.values * 0.1 * 5 * 255).abs().max() <= 0.51


def _interpolation():
    """Return a LIIF that is bilinear interpolation, as all with a bilinear skip connection before training."""
    network = LocalMLP(coord_dim=4, value_dim=3, feature_dim=4, hidden_dim=8, num_hidden=1, skip="bilinear")
    return LIIF(network, EDSR((3, -1, -1), width=4, num_blocks=1)).eval()


def test_small_targets_are_also_decoded_at_the_size_of_the_gallery_and_large_ones_are_not():
    composer, modality = _interpolation(), SuperResolvedImages()
    for shape, labels in (((32, 100), ["decoded at 3x"]), ((32, 256), []), ((300, 64), [])):
        instance = _instance((16, 32), shape)
        with torch.no_grad():
            observation = Observation(instance.signal[None])
            latents, layout = composer.encode(observation), composer.layout(observation)
            reconstruction = composer.reconstruction(latents, layout)
        cells = modality.extras(composer, reconstruction, instance)
        assert [cell.label for cell in cells] == labels
        assert [cell.shape for cell in cells] == [(96, 300)] * len(labels)


def test_cells_are_reduced_to_means_of_areas():
    values = torch.rand(1024 * 512, 3)
    reduced = SuperResolvedImages().reduced(Cell("a", values, (1024, 512), CellGrid.unit(2)))
    assert reduced.shape == (512, 256)
    expected = values.view(512, 2, 256, 2, 3).mean((1, 3)).view(-1, 3)
    torch.testing.assert_close(reduced.values, expected)
    small = Cell("a", values[:100], (10, 10), CellGrid.unit(2))
    assert SuperResolvedImages().reduced(small) is small


def test_images_in_figures_keep_their_proportions():
    def row(low, high):
        cells = [("input", low), ("bicubic", high), ("original", high)]
        return [Cell(label, torch.zeros(shape[0] * shape[1], 3), shape, CellGrid.unit(2)) for label, shape in cells]

    figure = SuperResolvedImages().figure(
        [row((16, 32), (64, 128)), row((20, 10), (80, 40)), row((300, 150), (600, 300))]
    )
    black = (np.array(figure)[..., 0] == 0) & (np.array(figure).sum(-1) == 0)
    extents = []
    top = 8 + 18
    for height in (128, 320, 512):  # 64 x 128 twice, 80 x 40 four times, 600 x 300 reduced
        inside = black[top + 5 : top + height - 5].all(0).nonzero()[0]
        extents.append((len(inside) / 3, inside[0]))
        assert not black[top + height + 1 : top + height + 5, 100].any()
        top += height + 8 + 18
    assert extents == [(256, 8), (160, 8), (256, 8)]
    assert figure.size == (3 * 264 + 8, top - 18)


def test_the_size_of_a_code_is_stated_per_pixel_of_the_input():
    assert SuperResolvedImages().code_size(35 * 64, (8, 8)).describe().endswith("1,120.00 bits per input pixel")


SHIFTS = [(0.0, 0.0), (0.25, 0.0), (0.0, -0.25), (0.5, 0.25)]


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_measure_of_alignment_measures_quarter_pixels(shift):
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(70.0), indexing="ij")

    def waves(down, across):
        return torch.sin((rows - down) / 5 + (columns - across) / 8) + torch.cos((columns - across) / 4)

    assert shift_between(waves(*shift), waves(0, 0)) == pytest.approx(shift, abs=0.01)


@pytest.mark.parametrize("scale", [2, 2.5, 3, 4, 4.7])
@pytest.mark.parametrize("shape", [(240, 250), (251, 243)])
def test_pairs_are_aligned_and_a_quarter_of_an_observed_pixel_is_detected(scale, shape):
    pairs = SuperResolution(_images(shape), size=8, num_queries=16, test_scales=[scale])
    pairs.setup("test")
    pair = pairs.test_set[0]
    low, high = pair.low.float() / 255, pair.high.float() / 255
    assert shift_between(enlarged(low, high.shape[1:])[0], high[0]) == pytest.approx([0, 0], abs=0.05 * scale)
    low_places = [
        (torch.arange(extent) + 0.5 - 0.25) / extent for extent in low.shape[1:]
    ]  # of the image, a quarter off
    moved = torch.from_numpy(_sampled(low[0], low_places)).float()
    detected = shift_between(enlarged(moved[None], high.shape[1:])[0], high[0])
    assert detected == pytest.approx([0.25 * scale] * 2, abs=0.05 * scale)


def _images(shape):
    """Return a data module of one image of a shape."""
    images = SmallImages()
    images.native_images = lambda split: Photographs([("waves", smooth_image(shape, detail=4))])
    return images


def _sampled(image, places):
    """Return an image ``(h, w)`` between its pixels, at places in [0, 1] along each axis, by Fourier series of its mirror."""
    result = image.double().numpy()
    for axis, place in enumerate(places):
        moved = np.moveaxis(result, axis, 0)
        size = len(moved)
        centres = (np.arange(size) + 0.5) / size
        basis = np.cos(np.pi * np.outer(centres, np.arange(size)))
        coefficients = np.linalg.solve(basis, moved.reshape(size, -1))
        series = np.cos(np.pi * np.outer(place.numpy(), np.arange(size))) @ coefficients
        result = np.moveaxis(series.reshape(-1, *moved.shape[1:]), 0, axis)
    return result

"""Distance maps: metrics against loops over pixels, the baseline, and figures."""

import math

import numpy as np
import pytest
import torch
from program import REPOSITORY

from composers.rendering import Reconstruction
from datamodules.batch import Instance, Samples
from datamodules.configuration import load_layers
from datamodules.domain import Grid, Volume
from modalities.distance_maps import DistanceMapError, DistanceMaps, InsideIoU, NearestPixelIoU

SHAPE = (6, 9)
DOMAIN = Grid(((-0.5, 0.5), (-0.5, 0.5)))


def _target(masked=True):
    """Return random maps of three instances, some of whose pixels are masked."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 54, 1, generator=generator)
    mask = torch.rand(3, 54, generator=generator) > 0.2
    return Samples(DOMAIN.coords(SHAPE), values, mask if masked else None)


def _prediction():
    """Return random reconstructions of three instances."""
    return Reconstruction.of_values(torch.randn(3, 54, 1, generator=torch.Generator().manual_seed(1)))


def _counted(target, index):
    """Return the pixels of an instance that count."""
    return [pixel for pixel in range(54) if target.mask is None or target.mask[index, pixel]]


@pytest.mark.parametrize("masked", [False, True])
def test_iou_and_error_equal_a_loop(masked):
    target, prediction = _target(masked), _prediction()
    ious = InsideIoU().measure(prediction, target, SHAPE).tolist()
    errors = DistanceMapError().measure(prediction, target, SHAPE).tolist()
    for index in range(3):
        counted = _counted(target, index)
        predicted, true = (
            {pixel for pixel in counted if values[index, pixel, 0] < 0} for values in (prediction.values, target.values)
        )
        assert ious[index] == pytest.approx(len(predicted & true) / len(predicted | true))
        differences = [abs(float(prediction.values[index, p, 0] - target.values[index, p, 0])) for p in counted]
        assert errors[index] == pytest.approx(sum(differences) / len(counted), abs=1e-6)


def test_nearest_pixel_equals_a_loop():
    target = _target()._replace(coords=torch.rand(54, 2))  # on a grid, several are equally near
    actual = NearestPixelIoU().measure(_prediction(), target, SHAPE).tolist()
    for index in range(3):
        counted = _counted(target, index)
        observed = [pixel for pixel in range(54) if pixel not in counted]
        predicted, true = set(), set()
        for pixel in counted:
            distances = [math.dist(target.coords[pixel].tolist(), target.coords[other].tolist()) for other in observed]
            nearest = observed[distances.index(min(distances))]
            predicted |= {pixel} if target.values[index, nearest, 0] < 0 else set()
            true |= {pixel} if target.values[index, pixel, 0] < 0 else set()
        assert actual[index] == pytest.approx(len(predicted & true) / len(predicted | true))


def test_nearest_pixel_reads_only_observed_values():
    target, metric = _target(), NearestPixelIoU()
    inside = torch.where(target.mask[..., None], -1.0, target.values.abs())  # all observed pixels are outside
    assert metric.measure(_prediction(), target._replace(values=inside), SHAPE).tolist() == [0, 0, 0]
    inside = torch.full_like(target.values, -1.0)
    assert metric.measure(_prediction(), target._replace(values=inside), SHAPE).tolist() == [1, 1, 1]


def test_nearest_pixel_is_undefined_where_nothing_is_known_to_be_observed():
    target = _target()
    mask = target.mask.clone()
    mask[1] = True
    defined = NearestPixelIoU().measure(_prediction(), target._replace(mask=mask), SHAPE)
    assert defined.isnan().tolist() == [False, True, False]
    assert NearestPixelIoU().measure(_prediction(), target._replace(mask=None), SHAPE).isnan().all()


def test_iou_of_two_empty_insides_is_undefined():
    target = Samples(DOMAIN.coords(SHAPE), torch.ones(1, 54, 1))
    assert InsideIoU().measure(Reconstruction.of_values(torch.ones(1, 54, 1)), target, SHAPE).isnan().all()
    assert InsideIoU().measure(Reconstruction.of_values(-torch.ones(1, 54, 1)), target, SHAPE).tolist() == [0]


def test_the_config_lists_the_metrics():
    text = (REPOSITORY / "configs" / "modalities" / "distance_maps.yaml").read_text()
    config = load_layers(text)["model"]["init_args"]["metrics"]
    actual = {name: entry["class_path"].rpartition(".")[2] for name, entry in config.items()}
    assert actual == {name: type(metric).__name__ for name, metric in DistanceMaps().metrics().items()}
    assert DistanceMaps.headline.metric in actual


def test_panels_show_inside_outside_outline_and_unknown():
    columns = DOMAIN.coords((16, 16))[:, 1:]
    image = np.asarray(DistanceMaps().panel(columns, (16, 16)))
    assert image.shape == (256, 256, 3)
    red, blue = image[..., 0].astype(int), image[..., 2].astype(int)
    assert (blue[:, :127] > red[:, :127]).all()  # inside
    assert (red[:, 129:] > blue[:, 129:]).all()
    dark = (image == 0).all(-1)
    assert dark[:, 126:130].any(1).all()
    assert dark.sum() == 256
    columns[5] = math.nan
    image = np.asarray(DistanceMaps().panel(columns, (16, 16)))
    assert len(np.unique(image[0:16, 80:96].reshape(-1, 3), axis=0)) == 1  # grey
    assert not (image == 0).all(-1).any()


def _instance(signal):
    """Return an instance of a map with a reconstruction."""
    coords = DOMAIN.coords((8, 8))
    values = coords.norm(dim=-1, keepdim=True) - 0.3
    return Instance("a", signal, Samples(coords, values), (8, 8), DOMAIN, {0: values + 0.1})


def test_observed_pixels_precede_a_row():
    coords = DOMAIN.coords((8, 8))[[3, 50]]
    [cell] = DistanceMaps().context(_instance(torch.cat((coords, torch.tensor([[0.7], [-0.2]])), dim=1)))
    assert cell.values[[3, 50], 0].tolist() == pytest.approx([0.7, -0.2])
    assert int(cell.values.isnan().sum()) == 62
    assert DistanceMaps().context(_instance(None)) == []
    assert DistanceMaps().context(_instance(torch.zeros(1, 8, 8))) == []


def test_media_are_images_of_the_map_and_its_reconstruction():
    media = DistanceMaps().media(None, None, _instance(None))
    assert list(media) == ["input", "reconstruction"]
    assert media["input"].tobytes() != media["reconstruction"].tobytes()


def test_planes_are_told_from_volumes():
    modality = DistanceMaps()
    assert modality.takes({"domain": DOMAIN.config()})
    assert not modality.takes({"domain": Volume(1.0).config()})
    assert not modality.takes({"domain": Grid.unit(1).config()})
    assert not modality.takes({})

"""Metrics of scenes against loops over views, closed forms and scikit-image."""

import math
import re

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import lpips as lpip

from composers.metrics import PSNR, SSIM
from composers.rendering import Reconstruction
from datamodules.batch import Samples
from modalities.perceptual import _LAYERS, PerceptualDistance
from modalities.view_metrics import LPIPS, OverWhite, ViewPSNR, ViewSSIM, WhiteView, view_psnr

of_values = Reconstruction.of_values
SHAPE = (3, 12, 14)
COUNT = math.prod(SHAPE)


def _scenes(instances=2, shape=SHAPE, seed=0):
    """Return a random target, and a prediction with a different error in every view."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(instances, *shape, 3, generator=generator)
    scale = torch.linspace(0.05, 0.4, instances * shape[0]).view(instances, shape[0], 1, 1, 1)
    prediction = values + scale * torch.randn(values.shape, generator=generator)
    target = Samples(torch.zeros(instances, math.prod(shape), 6), values.flatten(1, 3))
    return prediction.flatten(1, 3), target


def _reconstructed(**options):
    prediction, target = _scenes(**options)
    return of_values(prediction), target


def _views(values, shape=SHAPE):
    """Yield the views ``(H, W, 3)`` of every instance in float64."""
    for instance in values:
        yield [view.double().numpy() for view in instance.view(*shape, 3)]


def _naive_psnr(prediction, truth):
    return -10 * math.log10(((prediction - truth) ** 2).mean())


def test_psnr_is_the_mean_over_views():
    prediction, target = _scenes()
    pairs = zip(_views(prediction), _views(target.values), strict=True)
    expected = [[_naive_psnr(*pair) for pair in zip(*views, strict=True)] for views in pairs]
    assert view_psnr(prediction, target, SHAPE).tolist() == [pytest.approx(row, abs=1e-4) for row in expected]
    actual = ViewPSNR().measure(of_values(prediction), target, SHAPE)
    assert actual.tolist() == pytest.approx([np.mean(row) for row in expected], abs=1e-4)
    pooled = PSNR().measure(of_values(prediction), target, SHAPE)
    assert (actual - pooled > 0.2).all()  # the mean of logarithms is above the logarithm of the mean


def test_two_views_match_values_by_hand():
    target = Samples(torch.zeros(8, 6), torch.zeros(1, 8, 3))
    prediction = torch.cat([torch.full((1, 4, 3), 0.1), torch.full((1, 4, 3), 0.01)], dim=1)
    assert ViewPSNR().measure(of_values(prediction), target, (2, 2, 2)).item() == pytest.approx(30, abs=1e-4)
    assert WhiteView().measure(of_values(prediction), target, (2, 2, 2)).item() == pytest.approx(0, abs=1e-5)
    assert OverWhite().measure(of_values(prediction), target, (2, 2, 2)).item() == pytest.approx(30, abs=1e-4)
    grey = target._replace(values=torch.full((1, 8, 3), 0.9))
    assert WhiteView().measure(of_values(prediction), grey, (2, 2, 2)).item() == pytest.approx(20, abs=1e-4)
    assert OverWhite().measure(of_values(torch.ones(1, 8, 3)), grey, (2, 2, 2)).item() == pytest.approx(0, abs=1e-5)


def test_masked_pixels_are_ignored():
    prediction, target = _scenes()
    mask = torch.rand(2, COUNT) < 0.7
    corrupted = torch.where(mask.unsqueeze(-1), prediction, torch.tensor(9.0))
    actual = view_psnr(corrupted, target._replace(mask=mask), SHAPE)
    for instance in range(2):
        for view in range(3):
            counted = mask[instance].view(3, -1)[view]
            pair = (values[instance].view(3, -1, 3)[view][counted] for values in (prediction, target.values))
            assert actual[instance, view].item() == pytest.approx(_naive_psnr(*(one.numpy() for one in pair)), abs=1e-3)


def test_ssim_is_the_mean_over_views():
    shape = (2, 24, 20)
    prediction, target = _scenes(shape=shape)
    actual = ViewSSIM().measure(of_values(prediction), target, shape)
    for instance in range(2):
        views = [values[instance].view(*shape, 3) for values in (prediction, target.values)]
        single = [
            SSIM()
            .measure(
                of_values(predicted.view(1, -1, 3)),
                Samples(torch.zeros(480, 2), true.reshape(1, -1, 3)),
                shape[1:],
            )
            .item()
            for predicted, true in zip(*views, strict=True)
        ]
        assert actual[instance].item() == pytest.approx(np.mean(single), abs=1e-5)
        options = {"data_range": 1.0, "channel_axis": -1, "gaussian_weights": True, "use_sample_covariance": False}
        others = [structural_similarity(*(one.numpy() for one in pair), **options) for pair in zip(*views, strict=True)]
        assert actual[instance].item() == pytest.approx(np.mean(others), abs=0.03)  # scikit-image excludes borders
    assert ViewSSIM().measure(of_values(target.values), target, shape).tolist() == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize(
    "metric", [ViewPSNR(), WhiteView(), OverWhite(), ViewSSIM()], ids=lambda metric: type(metric).__name__
)
def test_metrics_are_nan_unless_samples_are_complete_views(metric):
    prediction, target = _scenes()
    assert metric.measure(of_values(prediction), target, SHAPE).isfinite().all()
    for shape in (None, (COUNT,), (36, 14)):
        actual = metric.measure(of_values(prediction), target, shape)
        assert actual.shape == (2,)
        assert actual.isnan().all()


def test_ssim_of_small_views_is_nan():
    assert ViewSSIM().measure(*_reconstructed(shape=(1, 10, 30)), (1, 10, 30)).isnan().all()
    assert ViewSSIM().measure(*_reconstructed(shape=(1, 11, 30)), (1, 11, 30)).isfinite().all()


def _layers(network):
    """Return random layers of a network, numbered as in torchvision."""
    torch.manual_seed(0)
    if network == "alex":
        sizes = {0: (3, 64, 11, 4, 2), 3: (64, 192, 5, 1, 2), 6: (192, 384, 3, 1, 1), 8: (384, 256, 3, 1, 1)}
        sizes[10] = (256, 256, 3, 1, 1)
        pools = {2: 3, 5: 3}
    else:
        channels = [64, 64, 128, 128, 256, 256, 256, *[512] * 6]
        places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
        inputs = [3, *channels[:-1]]
        sizes = {place: (first, last, 3, 1, 1) for place, first, last in zip(places, inputs, channels, strict=True)}
        pools = {4: 2, 9: 2, 16: 2, 23: 2}
    layers = {place: torch.nn.Conv2d(*size) for place, size in sizes.items()}
    layers |= {place: torch.nn.MaxPool2d(size, 2) for place, size in pools.items()}
    return torch.nn.Sequential(*(layers.get(place, torch.nn.ReLU()) for place in range(max(sizes) + 2)))


def _save(layers, path):
    """Write the weights of layers as torchvision does, with those of a classifier."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {f"features.{name}": value for name, value in layers.state_dict().items()}
    torch.save(weights | {"classifier.1.weight": torch.zeros(2, 2)}, path)
    return path


@pytest.mark.parametrize(
    ("network", "full_name"), [("alex", "alexnet"), pytest.param("vgg", "vgg16", marks=pytest.mark.slow)]
)
def test_lpips_is_that_of_torchmetrics_averaged_over_views(monkeypatch, tmp_path, network, full_name):
    layers = _layers(network)
    names = []
    monkeypatch.setattr(lpip, "_get_tv_model_features", lambda name, pretrained: names.append(name) or layers)
    naive = lpip._LPIPS(net=network)
    assert names == [full_name]
    shape = (2, 32, 40)
    prediction, target = _scenes(shape=shape)
    metric = LPIPS(network, str(_save(layers, tmp_path / "weights.pth")))
    actual = metric.measure(of_values(prediction), target, shape)
    pairs = zip(_views(prediction, shape), _views(target.values, shape), strict=True)
    for instance, views in enumerate(pairs):
        images = [
            [torch.from_numpy(view).float().permute(2, 0, 1)[None].clamp(0, 1) for view in pair]
            for pair in zip(*views, strict=True)
        ]
        expected = [naive(*pair, normalize=True).item() for pair in images]
        assert actual[instance].item() == pytest.approx(np.mean(expected), rel=1e-5)
        assert metric.per_view(prediction, target, shape)[instance].tolist() == pytest.approx(expected, rel=1e-5)
    assert metric.measure(of_values(target.values), target, shape).tolist() == [0, 0]
    assert metric.measure(*_reconstructed(shape=(2, 31, 40)), (2, 31, 40)).isnan().all()


def test_squeezenet_reads_its_weights(tmp_path):
    torch.manual_seed(0)
    features = _LAYERS["squeeze"]()
    path = _save(features, tmp_path / "weights.pth")
    image = torch.rand(1, 3, 33, 32)
    distance = PerceptualDistance("squeeze", path)
    assert [len(weight) for weight in distance.channel_weights] == [64, 128, 256, 384, 384, 512, 512]
    assert distance(image, 1 - image).item() > distance(image, image).item() == 0


def test_lpips_reads_the_cache_and_warns_without_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args: pytest.fail("a download was attempted"))
    path = tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"
    expected = (
        "LPIPS is NaN, because the weights of alex are missing: download "
        f"https://download.pytorch.org/models/alexnet-owt-7be5be79.pth to {path}, pass another file as weights, or remove "
        "LPIPS from the metrics."
    )
    with pytest.warns(UserWarning, match=re.escape(expected)) as warned:
        metric = LPIPS()
    assert len(warned) == 1
    shape = (1, 32, 32)
    assert metric.measure(*_reconstructed(shape=shape), shape).isnan().all()
    _save(_layers("alex"), path)
    assert (LPIPS().measure(*_reconstructed(shape=shape), shape) > 0).all()


def test_files_without_the_weights_of_the_network_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(
        ValueError, match=re.escape(f"There is no file {path} with the weights of vgg: download https:")
    ):
        LPIPS("vgg", str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=re.escape(f"{path} does not hold the weights of alex (")):
        LPIPS("alex", str(path))
    _save(_layers("alex"), path)
    with pytest.raises(ValueError, match=r"of vgg \(it lacks '2.weight'\): download https"):
        LPIPS("vgg", str(path))
    layers = _layers("alex")
    layers[3] = torch.nn.Conv2d(64, 192, 3)
    _save(layers, path)
    with pytest.raises(
        ValueError, match=r"features\.3\.weight is of shape \(192, 64, 3, 3\) rather than \(192, 64, 5, 5\)"
    ):
        LPIPS("alex", str(path))
    with pytest.raises(ValueError, match="network is 'resnet': choose one of alex, vgg, squeeze"):
        LPIPS("resnet")


def test_values_per_view_do_not_depend_on_other_views_and_instances():
    """Metrics of a batch of scenes are those of every view alone."""
    shape = (3, 12, 14)
    prediction, target = _scenes(shape=shape)
    for metric in (ViewPSNR(), WhiteView(), OverWhite(), ViewSSIM()):
        actual = metric.per_view(prediction, target, shape)
        assert actual.shape == (2, 3)
        for instance in range(2):
            for view in range(3):
                parts = (values[instance].view(3, -1, 3)[view][None] for values in (prediction, target.values))
                alone, true = parts
                expected = metric.measure(of_values(alone), Samples(target.coords[:168], true), (1, 12, 14))
                assert actual[instance, view].item() == pytest.approx(expected.item(), abs=1e-4)

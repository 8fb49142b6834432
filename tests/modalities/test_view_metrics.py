"""Metrics of scenes against loops over views, closed forms and scikit-image."""

import importlib.util
import math
import re
import sys
import types

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from composers.metrics import PSNR, SSIM
from composers.rendering import Reconstruction
from datamodules.batch import Samples
from modalities import view_metrics
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


def _torchvision(monkeypatch, tmp_path):
    """Install a fake torchvision, and return the path where it expects its weights."""
    weights = types.SimpleNamespace(DEFAULT=types.SimpleNamespace(url="https://example.org/models/alexnet-1.pth?raw=1"))
    module = types.ModuleType("torchvision")
    module.models = types.SimpleNamespace(AlexNet_Weights=weights)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints" / "alexnet-1.pth"


def test_lpips_warns_about_missing_dependencies(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(
        UserWarning, match="^LPIPS is NaN: it needs the package torchvision, .*: pip install torchvision, or"
    ):
        metric = LPIPS()
    assert metric.measure(*_reconstructed(shape=(1, 32, 32)), (1, 32, 32)).isnan().all()
    path = _torchvision(monkeypatch, tmp_path)
    expected = (
        f"it needs the file {path}: download it from https://example.org/models/alexnet-1.pth?raw=1, or remove LPIPS "
        "from the metrics."
    )
    with pytest.warns(UserWarning, match=re.escape(expected)):
        metric = LPIPS()
    assert metric.measure(*_reconstructed(shape=(1, 32, 32)), (1, 32, 32)).isnan().all()
    monkeypatch.setitem(sys.modules, "torchvision", None)  # makes the import fail
    with pytest.warns(
        UserWarning, match="^LPIPS is NaN: the package torchvision is incompatible with this torch, .*: pip install it"
    ):
        LPIPS()
    with pytest.raises(ValueError, match="network is 'resnet': choose one of alex, vgg, squeeze"):
        LPIPS("resnet")


def test_lpips_is_the_mean_over_views(monkeypatch, tmp_path):
    """A fake network receives clipped images in [0, 1]."""

    class Distance(torch.nn.Module):
        def forward(self, prediction, truth, normalize):
            assert normalize
            assert prediction.shape == truth.shape == (2, 3, 32, 40)
            assert prediction.min() >= 0
            assert prediction.max() <= 1
            return (prediction - truth).abs().mean((1, 2, 3), keepdim=True)

    path = _torchvision(monkeypatch, tmp_path)
    path.parent.mkdir()
    path.touch()
    networks = []
    monkeypatch.setattr(
        view_metrics,
        "LearnedPerceptualImagePatchSimilarity",
        lambda network, normalize: networks.append(network) or types.SimpleNamespace(net=Distance()),
    )
    shape = (2, 32, 40)
    prediction, target = _scenes(shape=shape)
    actual = LPIPS().measure(of_values(prediction), target, shape)
    assert networks == ["alex"]
    assert torch.allclose(actual, (prediction.clamp(0, 1) - target.values).abs().mean((1, 2)), atol=1e-6)
    assert LPIPS().measure(*_reconstructed(shape=(2, 31, 40)), (2, 31, 40)).isnan().all()

"""Numbers per scene against loops over its views, closed forms and scikit-image."""

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
from datamodules.batch import Samples
from modalities import view_metrics
from modalities.view_metrics import LPIPS, OverWhite, ViewPSNR, ViewSSIM, WhiteView, view_psnr

SHAPE = (3, 12, 14)
COUNT = math.prod(SHAPE)


def _scenes(instances=2, shape=SHAPE, seed=0):
    """Return a target of smooth views and a prediction that is wrong by another amount in every view."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(instances, *shape, 3, generator=generator)
    scale = torch.linspace(0.05, 0.4, instances * shape[0]).view(instances, shape[0], 1, 1, 1)
    prediction = values + scale * torch.randn(values.shape, generator=generator)
    target = Samples(torch.zeros(instances, math.prod(shape), 6), values.flatten(1, 3))
    return prediction.flatten(1, 3), target


def _views(values, shape=SHAPE):
    """Yield for every instance its views ``(H, W, 3)`` in float64."""
    for instance in values:
        yield [view.double().numpy() for view in instance.view(*shape, 3)]


def _naive_psnr(seen, true):
    return -10 * math.log10(((seen - true) ** 2).mean())


def test_psnr_is_the_mean_over_views():
    prediction, target = _scenes()
    pairs = zip(_views(prediction), _views(target.values), strict=True)
    wanted = [[_naive_psnr(*pair) for pair in zip(*views, strict=True)] for views in pairs]
    assert view_psnr(prediction, target, SHAPE).tolist() == [pytest.approx(row, abs=1e-4) for row in wanted]
    found = ViewPSNR().measure(prediction, target, SHAPE)
    assert found.tolist() == pytest.approx([np.mean(row) for row in wanted], abs=1e-4)
    pooled = PSNR().measure(prediction, target, SHAPE)
    assert (found - pooled > 0.2).all()  # the mean of logarithms is above the logarithm of the mean


def test_two_views_by_hand():
    target = Samples(torch.zeros(8, 6), torch.zeros(1, 8, 3))
    prediction = torch.cat([torch.full((1, 4, 3), 0.1), torch.full((1, 4, 3), 0.01)], dim=1)
    assert ViewPSNR().measure(prediction, target, (2, 2, 2)).item() == pytest.approx(30, abs=1e-4)
    assert WhiteView().measure(prediction, target, (2, 2, 2)).item() == pytest.approx(0, abs=1e-5)
    assert OverWhite().measure(prediction, target, (2, 2, 2)).item() == pytest.approx(30, abs=1e-4)
    grey = target._replace(values=torch.full((1, 8, 3), 0.9))
    assert WhiteView().measure(prediction, grey, (2, 2, 2)).item() == pytest.approx(20, abs=1e-4)
    assert OverWhite().measure(torch.ones(1, 8, 3), grey, (2, 2, 2)).item() == pytest.approx(0, abs=1e-5)


def test_masked_pixels_do_not_count():
    prediction, target = _scenes()
    mask = torch.rand(2, COUNT) < 0.7
    spoilt = torch.where(mask.unsqueeze(-1), prediction, torch.tensor(9.0))
    found = view_psnr(spoilt, target._replace(mask=mask), SHAPE)
    for instance in range(2):
        for view in range(3):
            counted = mask[instance].view(3, -1)[view]
            pair = (values[instance].view(3, -1, 3)[view][counted] for values in (prediction, target.values))
            assert found[instance, view].item() == pytest.approx(_naive_psnr(*(one.numpy() for one in pair)), abs=1e-3)


def test_ssim_is_the_mean_over_views():
    shape = (2, 24, 20)
    prediction, target = _scenes(shape=shape)
    found = ViewSSIM().measure(prediction, target, shape)
    for instance in range(2):
        views = [values[instance].view(*shape, 3) for values in (prediction, target.values)]
        single = [
            SSIM().measure(seen.view(1, -1, 3), Samples(torch.zeros(480, 2), true.reshape(1, -1, 3)), shape[1:]).item()
            for seen, true in zip(*views, strict=True)
        ]
        assert found[instance].item() == pytest.approx(np.mean(single), abs=1e-5)
        options = {"data_range": 1.0, "channel_axis": -1, "gaussian_weights": True, "use_sample_covariance": False}
        others = [structural_similarity(*(one.numpy() for one in pair), **options) for pair in zip(*views, strict=True)]
        assert found[instance].item() == pytest.approx(np.mean(others), abs=0.03)  # which leaves borders out
    assert ViewSSIM().measure(target.values, target, shape).tolist() == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize(
    "metric", [ViewPSNR(), WhiteView(), OverWhite(), ViewSSIM()], ids=lambda one: type(one).__name__
)
def test_only_whole_views_have_a_number(metric):
    prediction, target = _scenes()
    assert metric.measure(prediction, target, SHAPE).isfinite().all()
    for shape in (None, (COUNT,), (36, 14)):
        found = metric.measure(prediction, target, shape)
        assert found.shape == (2,)
        assert found.isnan().all()


def test_small_views_have_no_ssim():
    assert ViewSSIM().measure(*_scenes(shape=(1, 10, 30)), (1, 10, 30)).isnan().all()
    assert ViewSSIM().measure(*_scenes(shape=(1, 11, 30)), (1, 11, 30)).isfinite().all()


def _torchvision(monkeypatch, tmp_path):
    """Let there be a torchvision, whose weights would lie in a folder of ours."""
    weights = types.SimpleNamespace(DEFAULT=types.SimpleNamespace(url="https://example.org/models/alexnet-1.pth?raw=1"))
    module = types.ModuleType("torchvision")
    module.models = types.SimpleNamespace(AlexNet_Weights=weights)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints" / "alexnet-1.pth"


def test_lpips_without_its_parts_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(
        UserWarning, match="^LPIPS is NaN: it needs the package torchvision, .*: pip install torchvision, or"
    ):
        metric = LPIPS()
    assert metric.measure(*_scenes(shape=(1, 32, 32)), (1, 32, 32)).isnan().all()
    path = _torchvision(monkeypatch, tmp_path)
    wanted = (
        f"it needs the file {path}: get it from https://example.org/models/alexnet-1.pth?raw=1, or leave LPIPS out."
    )
    with pytest.warns(UserWarning, match=re.escape(wanted)):
        metric = LPIPS()
    assert metric.measure(*_scenes(shape=(1, 32, 32)), (1, 32, 32)).isnan().all()
    monkeypatch.setitem(sys.modules, "torchvision", None)  # which cannot be imported
    with pytest.warns(
        UserWarning, match="^LPIPS is NaN: the package torchvision does not fit this torch, .*: pip install it"
    ):
        LPIPS()
    with pytest.raises(ValueError, match="network of LPIPS is resnet; allowed are alex, vgg, squeeze"):
        LPIPS("resnet")


def test_lpips_is_the_mean_over_views(monkeypatch, tmp_path):
    """By a distance that stands for the network: clipped values arrive as images, in [0, 1]."""

    class Distance(torch.nn.Module):
        def forward(self, seen, true, normalize):
            assert normalize
            assert seen.shape == true.shape == (2, 3, 32, 40)
            assert seen.min() >= 0
            assert seen.max() <= 1
            return (seen - true).abs().mean((1, 2, 3), keepdim=True)

    path = _torchvision(monkeypatch, tmp_path)
    path.parent.mkdir()
    path.touch()
    made = []
    monkeypatch.setattr(
        view_metrics,
        "LearnedPerceptualImagePatchSimilarity",
        lambda network, normalize: made.append(network) or types.SimpleNamespace(net=Distance()),
    )
    shape = (2, 32, 40)
    prediction, target = _scenes(shape=shape)
    found = LPIPS().measure(prediction, target, shape)
    assert made == ["alex"]
    assert torch.allclose(found, (prediction.clamp(0, 1) - target.values).abs().mean((1, 2)), atol=1e-6)
    assert LPIPS().measure(*_scenes(shape=(2, 31, 40)), (2, 31, 40)).isnan().all()

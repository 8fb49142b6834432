"""Baselines for novel views against an explicit loop over images."""

import math

import pytest
import torch
from program import TESTS

from datamodules.scenes.sample_objects import SampleObjects
from datamodules.storage.views import read_view
from studies import copying


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _data():
    data = SampleObjects(size=16, frames=6, count=0, bundled_train=True, train_frames=6, draws=2, rays_per_view=16)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def _psnr(actual, expected):
    return -10 * math.log10((actual.double() / 255 - expected.double() / 255).square().mean())


def test_nearest_object_in_the_support_view_is_copied(capsys):
    result = copying.main(["--config", str(TESTS / "configs" / "tiny_objects.yaml")])
    data = _data()
    objects = [[read_view(path) for path in scene.images] for scene in data.train_set.scenes]
    white, copied, best = [], [], []
    for item in data.test_set:
        frames = [
            next(k for k, pose in enumerate(data.train_set.scenes[0].poses) if pose.allclose(item_pose))
            for item_pose in item.poses
        ]
        nearest = max(objects, key=lambda images: _psnr(images[frames[0]], item.images[0]))
        white.append(_psnr(torch.full_like(item.images[1], 255), item.images[1]))
        copied.append(_psnr(nearest[frames[1]], item.images[1]))
        best.append(max(_psnr(images[frames[1]], item.images[1]) for images in objects))
    expected = [sum(numbers) / 8 for numbers in (white, copied, best)]
    assert list(result) == [pytest.approx(number, abs=1e-3) for number in expected] + [8]
    assert result.best >= result.copied
    assert "8 views of tiny_objects" in capsys.readouterr().out


def test_objects_with_other_cameras_raise():
    data = _data()
    scenes = [scene._replace(poses=scene.poses + 1) for scene in data.train_set.scenes]
    with pytest.raises(ValueError, match="share the same cameras"):
        copying.measure(scenes, data.test_set, 1)


def test_data_other_than_scenes_raise():
    with pytest.raises(ValueError, match="pass the config of an experiment on scenes"):
        copying.main(["--config", str(TESTS / "configs" / "tiny_ipc.yaml")])

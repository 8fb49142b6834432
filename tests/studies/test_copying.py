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


def _data(views=1):
    data = SampleObjects(
        size=16, frames=6, count=2, bundled_train=True, train_frames=6, draws=2, rays_per_view=16, views=views
    )
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def _config(tmp_path):
    """Return the path of a config with two generated objects in addition."""
    path = tmp_path / "more_objects.yaml"
    path.write_text(f"_base_: {TESTS / 'configs' / 'tiny_objects.yaml'}\ndata:\n  init_args:\n    count: 2\n")
    return path


def _psnr(actual, expected):
    return -10 * math.log10((actual.double() / 255 - expected.double() / 255).square().mean())


def _mse(actual, expected):
    return float((actual.double() - expected.double()).square().mean())


def test_the_object_nearest_in_the_support_views_is_copied(tmp_path, capsys):
    results = copying.main(["--config", str(_config(tmp_path))])
    assert [result.views for result in results] == [1, 3]
    for result in results:
        data = _data(result.views)
        objects = [[read_view(path) for path in scene.images] for scene in data.train_set.scenes]
        assert len(objects) == 14
        white, copied, best = [], [], []
        for item in data.test_set:
            *support, query = [
                next(k for k, pose in enumerate(data.train_set.scenes[0].poses) if pose.allclose(item_pose))
                for item_pose in item.poses
            ]
            assert len(support) == result.views
            nearest = min(
                objects,
                key=lambda images: sum(
                    _mse(images[frame], image) for frame, image in zip(support, item.images[:-1], strict=True)
                ),
            )
            target = item.images[-1]
            white.append(_psnr(torch.full_like(target, 255), target))
            copied.append(_psnr(nearest[query], target))
            best.append(max(_psnr(images[query], target) for images in objects))
        expected = [sum(numbers) / 8 for numbers in (white, copied, best)]
        assert list(result[1:]) == [pytest.approx(number, abs=1e-3) for number in expected] + [8]
        assert result.best >= result.copied
    printed = capsys.readouterr().out
    assert "8 views of more_objects, 14 training objects, 1 support view(s)" in printed
    assert "14 training objects, 3 support view(s)" in printed


def test_objects_with_other_cameras_raise():
    data = _data()
    scenes = [scene._replace(poses=scene.poses + 1) for scene in data.train_set.scenes]
    with pytest.raises(ValueError, match="share the same cameras"):
        copying.measure(scenes, data.test_set, [1])


def test_numbers_of_views_out_of_range_raise():
    with pytest.raises(ValueError, match=r"views is \[0, 3\]"):
        copying.CopyingSettings(views=(0, 3))


def test_data_other_than_scenes_raise():
    with pytest.raises(ValueError, match="pass the config of an experiment on scenes"):
        copying.main(["--config", str(TESTS / "configs" / "tiny_ipc.yaml")])

"""Scenes for prediction: search for folders, selection of frames, resizing, and reasons for skipped scenes."""

import json
import math
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from coordinates import pixel_rays
from PIL import Image

from datamodules.batch import Views
from datamodules.cameras import orbit
from datamodules.scenes.prediction import SceneFiles
from datamodules.storage.images import resize_image
from datamodules.storage.views import Scene

ANGLE = 0.9


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _image(frame, size=8):
    """Return the RGBA image of a frame ``(size, size, 4)``: random squares, the lower half transparent."""
    values = np.random.default_rng(frame).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    values[:2, :, 3], values[2:, :, 3] = 255, 0
    return values.repeat(size // 4, 0).repeat(size // 4, 1)


def _over_white(image):
    """Return an image composited over white, ``(3, H, W)`` in [0, 1]."""
    alpha = image[..., 3:] / 255
    return torch.from_numpy(image[..., :3] / 255 * alpha + 1 - alpha).permute(2, 0, 1).float()


def _write(folder, frames=5, size=8, radius=4.0):
    """Write a scene with an orbiting camera, and return its poses ``(F, 3, 4)``."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    poses = orbit(frames, radius, 20.0)
    entries = []
    for frame, pose in enumerate(poses):
        Image.fromarray(_image(frame, size)).save(folder / f"r_{frame}.png")
        matrix = [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]
        entries.append({"file_path": f"./train/r_{frame}", "transform_matrix": matrix})
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": ANGLE, "frames": entries}))
    return poses


def _write_srn(folder, frames=3, size=8, focal=10.0):
    """Write a scene in the layout of scene representation networks, and return its poses ``(F, 3, 4)``."""
    folder = Path(folder)
    for name in ("pose", "rgb"):
        (folder / name).mkdir(parents=True)
    (folder / "intrinsics.txt").write_text(f"{focal} {size / 2} {size / 2} 0.\n0. 0. 0.\n1.\n{size} {size}\n")
    poses = orbit(frames, 1.3, 40.0)
    for frame, pose in enumerate(poses):
        Image.fromarray(_image(frame, size)).save(folder / "rgb" / f"{frame:06d}.png")
        square = torch.cat([pose, torch.tensor([[0.0, 0, 0, 1]])]) @ torch.diag(torch.tensor([1.0, -1, -1, 1]))
        (folder / "pose" / f"{frame:06d}.txt").write_text(
            " ".join(f"{number:.8f}" for number in square.flatten().tolist())
        )
    return poses


def _data(*scenes, **changes):
    """Return the data module for a model with one view of 8 x 8 pixels, after set-up."""
    data = SceneFiles(list(scenes), **{"signal_shape": (1, 3, 8, 8), "near": 2.0, "far": 6.0} | changes)
    data.setup("predict")
    return data


def _batches(data):
    """Return the coordinate batches of a data module."""
    return [data.to_coordinates(batch) for batch in data.predict_dataloader()]


def _close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5


def test_support_frames_are_observed_and_query_frames_compared():
    poses = _write("chair")
    data = _data("chair", support=[1], query=[4, 0])
    [batch] = _batches(data)
    views = batch.observation.signal
    assert isinstance(views, Views)
    assert (batch.names, batch.shape, data.notes) == (["chair"], (2, 8, 8), {"chair": ""})
    _close(views.images[0, 0], _over_white(_image(1)))
    _close(views.poses[0, 0], poses[1])
    focal = 4 / math.tan(ANGLE / 2)
    _close(views.intrinsics, torch.tensor([[[focal, focal, 4.0, 4.0]]]))
    _close(batch.observation.samples.coords[0], pixel_rays(poses[1], torch.full((2,), focal), (8, 8)))
    for index, frame in enumerate((4, 0)):
        part = slice(64 * index, 64 * index + 64)
        _close(batch.query.values[0, part], _over_white(_image(frame)).flatten(1).mT)
        _close(batch.query.coords[0, part], pixel_rays(poses[frame], torch.full((2,), focal), (8, 8)))


@pytest.mark.parametrize(
    ("frames", "support", "query", "expected"),
    [
        (11, [0], None, [2, 4, 7, 9]),
        (5, [2], None, [0, 1, 3, 4]),
        (3, [0], None, [1, 2]),
        (7, [0, 3], "rest", [1, 2, 4, 5, 6]),
        (7, [0, 3], [3, 6], [3, 6]),
        (2, [0, 1], None, [0, 1]),
        (1, [0], "rest", [0]),
    ],
    ids=["spread", "four", "fewer", "rest", "named", "none-left", "one"],
)
def test_query_frames_are_selected(frames, support, query, expected):
    poses = _write("chair", frames)
    data = _data("chair", support=support, query=query, signal_shape=(len(support), 3, 8, 8))
    [batch] = _batches(data)
    actual = [int((poses[:, :, 3] - view[0, :3]).norm(dim=-1).argmin()) for view in batch.query.coords[0].split(64)]
    assert actual == expected
    assert data.notes == {
        "chair": "no other frames: compared with the support frames" if frames == len(support) else ""
    }


def test_images_of_another_size_are_resized_with_their_intrinsics():
    _write("small")
    _write("large", size=32)
    small, large = (_batches(_data(name))[0] for name in ("small", "large"))
    assert _data("large").notes == {"large": "resized from 32 x 32 to 8 x 8"}
    _close(large.observation.samples.coords, small.observation.samples.coords)
    _close(large.query.coords, small.query.coords)
    mean = _over_white(_image(0, 32)).unflatten(2, (8, 4)).mean(-1).unflatten(1, (8, 4)).mean(2)
    # Away from the borders of the squares, the resampling filter does not mix colours.
    inner = large.observation.signal.images[0, 0][:, 1::2, 1::2]
    assert (inner - mean[:, 1::2, 1::2]).abs().max() < 0.25
    wide = _batches(_data("small", signal_shape=(1, 3, 4, 8)))[0].observation.signal
    assert wide.images.shape == (1, 1, 3, 4, 8)
    assert wide.intrinsics[0, 0].tolist() == pytest.approx([4 / math.tan(ANGLE / 2), 2 / math.tan(ANGLE / 2), 4, 2])


def test_images_are_resized_one_at_a_time(monkeypatch):
    """With up to 100 frames, which phones take with 12 megapixels, full-resolution images do not fit into memory."""
    _write("large", frames=6, size=32)
    alive = weakref.WeakSet()
    counts = []

    def read(scene, frame, original=Scene.read):
        image = original(scene, frame)
        alive.add(image)
        counts.append(len(alive))
        return image

    monkeypatch.setattr(Scene, "read", read)
    data = _data("large", query="rest")
    [batch] = data.predict_dataloader()
    views = data.source_of("large")["views"]
    assert len(counts) == 3 * 6
    assert max(counts) <= 2  # the next image is read before the last is released
    assert views.images.shape == (6, 3, 8, 8)
    assert views.frames == [0, 1, 2, 3, 4, 5]
    for frame in range(6):
        expected = resize_image(data.chosen[0].scene.read(frame), 8, 8)
        assert torch.equal(views.images[frame], expected)
        assert torch.equal(batch.images[0, frame], expected)
    focal = 4 / math.tan(ANGLE / 2)
    _close(batch.intrinsics, torch.tensor([focal, focal, 4, 4]).expand(1, 6, 4))


def test_folders_are_searched_for_scenes():
    _write("in/chairs/b")
    _write("in/chairs/a")
    _write("in/lamps/a")
    _write("in/.hidden/x")
    _write("in/out/x")  # results of an earlier prediction
    Path("in/out/predictions.csv").touch()
    data = _data("in", "in/chairs/a")
    assert [chosen.name for chosen in data.chosen] == ["chairs/a", "chairs/b", "lamps/a"]
    assert [batch.names for batch in _batches(data)] == [["chairs/a"], ["chairs/b"], ["lamps/a"]]
    data = _data("in/chairs", "in/lamps")
    assert [chosen.name for chosen in data.chosen] == ["a", "b", "a_2"]
    assert data.notes["a_2"] == "from in/lamps/a"


def test_scenes_with_equally_many_views_share_a_batch():
    for index, frames in enumerate((6, 3, 3, 3, 1)):
        _write(f"in/{index}", frames)
    batches = _batches(_data("in", eval_batch_size=2))
    assert [batch.names for batch in batches] == [["0"], ["1", "2"], ["3"], ["4"]]
    assert [batch.shape for batch in batches] == [(4, 8, 8), (2, 8, 8), (2, 8, 8), (1, 8, 8)]


def test_srn_scenes_are_read():
    poses = _write_srn("car")
    [batch] = _batches(_data("car", near=0.8, far=1.8, query="rest"))
    _close(batch.observation.signal.poses[0, 0], poses[0])
    assert batch.observation.signal.intrinsics[0, 0].tolist() == [10.0, 10.0, 4.0, 4.0]
    expected = torch.from_numpy(_image(2)[..., :3] / 255).float().flatten(0, 1)
    _close(batch.query.values[0, 64:], expected)  # the alpha channel is ignored


def test_images_without_transparency_are_noted():
    _write("chair", frames=2)
    for frame in range(2):
        Image.open(f"chair/r_{frame}.png").convert("RGB").save(f"chair/r_{frame}.png")
    data = _data("chair")
    assert data.notes == {"chair": "no transparency: background used as it is"}
    expected = torch.from_numpy(_image(1)[..., :3] / 255).float().flatten(0, 1)
    _close(_batches(data)[0].query.values[0], expected)


def test_unusable_scenes_are_skipped_with_a_reason():
    _write("in/good")
    _write("in/few", frames=2)
    _write("in/damaged")
    Path("in/damaged/r_3.png").write_bytes(Path("in/damaged/r_3.png").read_bytes()[:60])
    _write("in/huge", radius=400.0)
    _write("in/text")
    Path("in/text/transforms.json").write_text("{")
    data = _data("in", query=[3])
    assert [chosen.name for chosen in data.chosen] == ["good"]
    assert set(data.skipped) == {"in/few", "in/damaged", "in/huge", "in/text"}
    assert "in/few has 2 frame(s), so there is no frame 3: frames count from 0" in data.skipped["in/few"]
    assert "r_3.png" in data.skipped["in/damaged"]
    assert (
        "The cameras of in/huge are 400 to 400 from the origin, and the model renders depths from 2 to 6, which exclude the "
        "origin: scale the positions with --data.scale 0.01." in data.skipped["in/huge"]
    )
    assert "transforms.json" in data.skipped["in/text"]
    with pytest.raises(ValueError, match="damaged"):
        _data("in", query=[3], on_bad_scene="raise")
    with pytest.raises(ValueError, match=r"^in/few has 2 frame\(s\), so there is no frame 3: .* with --support .*\.$"):
        _data("in/few", query=[3])
    with pytest.raises(
        ValueError, match=r"^None of 2 scenes can be used:\n  in/few has 2 .*\n  in/text/transforms\.json is"
    ):
        _data("in/few", "in/text", query=[3])


def test_models_without_depths_accept_any_scale():
    _write("huge", radius=400.0)
    data = _data("huge", near=None, far=None)
    assert math.isnan(data.near)
    assert len(_batches(data)) == 1


def test_scenes_are_distributed_over_devices():
    for index in range(3):
        _write(f"in/{index}", frames=2)
    data = _data("in")
    names = []
    for rank in range(2):
        data.trainer = type("Trainer", (), {"global_rank": rank, "world_size": 2})()
        names.append([name for batch in data.predict_dataloader() for name in batch.name])
    assert names == [["0", "2"], ["1"]]
    data.trainer.world_size = 4
    with pytest.raises(ValueError, match=re.escape("3 batch(es) of scenes for 4 devices: lower --trainer.devices.")):
        data.predict_dataloader()


def test_invalid_arguments_are_refused():
    _write("chair")
    with pytest.raises(
        ValueError, match=r"The model takes 2 support view\(s\), but support has 1 frame\(s\), \[0\]: pass 2 with"
    ):
        SceneFiles(signal_shape=(2, 3, 8, 8)).signal_shape  # noqa: B018 - it is a property
    with pytest.raises(ValueError, match=r"signal_shape is \[3, 64, 64\], but scenes need a model of posed views"):
        SceneFiles(signal_shape=(3, 64, 64)).signal_shape  # noqa: B018
    with pytest.raises(ValueError, match=r"support is \[\], query None: support needs at least one frame"):
        SceneFiles(support=[])
    with pytest.raises(
        ValueError, match=r"support is \[0\], query \[-1\]: support needs at least one frame, and frames count from 0"
    ):
        SceneFiles(query=[-1])
    with pytest.raises(ValueError, match=r"near is 2\.0, far None: pass both or neither"):
        SceneFiles(near=2.0)
    with pytest.raises(ValueError, match="SceneFiles supports only predict, not fit"):
        SceneFiles().setup("fit")
    with pytest.raises(ValueError, match="There is no folder nowhere: pass folders of scenes with --views"):
        _data("nowhere")
    Path("empty").mkdir()
    with pytest.raises(ValueError, match="There are no scenes in empty: pass folders that contain"):
        _data("empty")
    with pytest.raises(ValueError, match="There are no scenes in an empty list of folders"):
        _data()

"""Data modules of scenes in other layouts and conventions: splits of frames, warnings, scales, and `tools.check`."""

import json

import pytest
import torch
from scene_folders import cameras, describe, save_image, write_colmap, write_scene, write_split_scene

from datamodules.scenes.prediction import SceneFiles
from datamodules.scenes.scene_folder import SceneFolder
from datamodules.storage.poses import to_convention
from tools.check.__main__ import main


def _ready(root, stage="fit", **arguments):
    """Return a data module after set-up."""
    options = {"size": 8, "batch_size": 1, "rays_per_view": 20, "draws": 5, "val_draws": 5} | arguments
    data = SceneFolder(str(root), **options)
    data.setup(stage)
    return data


def _convert(folder, convention):
    """Write the poses of a scene in a convention."""
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    for frame in frames:
        matrix = torch.tensor(frame["transform_matrix"], dtype=torch.float64)
        frame["transform_matrix"] = to_convention(matrix[:3], convention).tolist()
    describe(folder, frames=frames)


@pytest.fixture
def lego(tmp_path):
    """Return a scene with split files."""
    return write_split_scene(tmp_path / "lego", {"train": 30, "val": 6, "test": 26})


def _positions(item):
    return [tuple(position) for position in item.poses[:, :, 3].tolist()]


@pytest.mark.parametrize("protocol", ["draws", "halves", "first"])
def test_support_views_are_training_frames_and_queries_are_of_the_split(lego, protocol):
    data = _ready(lego, "test", protocol=protocol, query_views=3)
    places = [tuple(position) for position in cameras(62).float()[:, :, 3].tolist()]
    support, queries = set(), set()
    for item in data.test_set:
        first, *others = (places.index(place) for place in _positions(item))
        support.add(first)
        queries |= set(others)
    assert support <= set(range(30))
    assert queries <= set(range(36, 62))
    assert len(data.test_set) == (1 if protocol == "first" else 5)
    assert queries == set(range(36, 61)) or protocol != "first"


def test_training_draws_from_all_training_frames(lego):
    data = _ready(lego, train_frames=2, views=5, query_views=3)
    places = [tuple(position) for position in cameras(62).float()[:, :, 3].tolist()]
    scene, generator = data.train_set[0], torch.Generator().manual_seed(0)
    drawn = {places.index(place) for _ in range(40) for place in _positions(data.augmentation(scene, generator))}
    assert drawn == set(range(30))
    validated = {places.index(place) for item in data.val_set for place in _positions(item)[5:]}
    assert validated <= set(range(30, 36))
    with pytest.raises(ValueError, match="lego has 6 frames for queries, but 7 are needed"):
        _ready(lego, query_views=7)


@pytest.mark.parametrize("true", ["opencv", "opengl_w2c", "opencv_w2c"])
def test_cameras_that_look_away_are_noted_with_the_fix(tmp_path, true, capsys):
    folder = write_scene(tmp_path / "scene")
    assert "cameras" not in _ready(folder).notes
    _convert(folder, true)
    fix = f"the poses seem to be {true}, so set --data.init_args.convention {true}"
    assert fix in _ready(folder).notes["cameras"]
    corrected = _ready(folder, convention=true)
    assert "cameras" not in corrected.notes
    torch.testing.assert_close(corrected.train_set[0].poses, cameras(6).float(), atol=1e-5, rtol=0)
    files = SceneFiles([str(folder)], signal_shape=(1, 3, 8, 8), near=2.0, far=6.0)
    files.setup("predict")
    assert f"set --convention {true}" in files.notes["scene"]
    main(["--data", "SceneFolder", "--data.root", str(folder), "--data.size", "8"])
    printed = capsys.readouterr().out
    assert f"convention: warning: read as opengl, but the poses seem to be {true}" in printed


def test_scenes_in_millimetres_are_refused_with_a_scale(tmp_path):
    folder = write_scene(tmp_path / "scene", radius=4000.0)
    message = r"4,000 to 4,000 from the origin.* if the scene is in millimetres, set --data\.init_args\.scale 0\.001\."
    with pytest.raises(ValueError, match=message):
        _ready(folder)
    torch.testing.assert_close(_ready(folder, scale=0.001).train_set[0].poses, cameras(6).float(), atol=1e-5, rtol=0)
    options = {"signal_shape": (1, 3, 8, 8), "near": 2.0, "far": 6.0}
    with pytest.raises(ValueError, match=r"with --data\.scale 0\.001, because the scene seems to be in millimetres"):
        SceneFiles([str(folder)], **options).setup("predict")
    SceneFiles([str(folder)], scale=0.001, **options).setup("predict")
    for scale in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="it must be a positive factor"):
            SceneFolder(str(folder), scale=scale)


def test_images_with_and_without_alpha_are_noted_once(tmp_path):
    folder = write_scene(tmp_path / "scene")
    save_image(folder / "r_2.png", 2, mode="RGB")
    note = "1 of 6 images have no transparency and are used as they are"
    assert note in _ready(folder).notes["background"]
    files = SceneFiles([str(folder)], signal_shape=(1, 3, 8, 8), near=2.0, far=6.0)
    files.setup("predict")
    assert note in files.notes["scene"]


def test_folders_of_several_layouts_are_read(tmp_path):
    write_scene(tmp_path / "a")
    write_split_scene(tmp_path / "b", {"train": 4, "val": 2})
    write_colmap(tmp_path / "c")
    data = _ready(tmp_path, val_ratio=0.34)
    assert {scene.name for scene in (*data.train_set.scenes, *data.val_set.scenes)} == {"a", "b", "c"}
    files = SceneFiles([str(tmp_path)], signal_shape=(1, 3, 8, 8), near=2.0, far=6.0)
    files.setup("predict")
    assert [chosen.name for chosen in files.chosen] == ["a", "b", "c"]


def test_check_describes_the_cameras(tmp_path, capsys):
    folder = write_split_scene(tmp_path / "lego", {"train": 4, "val": 2, "test": 3})
    path = folder / "transforms_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cx": 5.5, "k1": -0.1}))
    main(["--data", "SceneFolder", "--data.root", str(folder), "--data.size", "8"])
    printed = capsys.readouterr().out
    assert "principal points: up to 1.5 columns and 0 rows from the centre of the images" in printed
    assert "no problems" not in printed
    assert "OPENCV distortion undone in 1 of 1 scene(s)" in printed
    assert "frames: train 4, val 2, test 3" in printed
    assert "sizes: 8 x 8 pixels" in printed

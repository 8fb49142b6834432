"""Layouts of data sets of scenes: ShapeNet, scene representation networks, and folders of scenes."""

import json
import shutil

import pytest
import torch
from coordinates import pixel_rays
from scene_folders import cameras, write_scene, write_srn

from datamodules.scenes.scene_folder import SceneFolder
from datamodules.scenes.shapenet import ShapeNet
from datamodules.scenes.srn import SRNScenes

SPLITS = {"train": ["c", "a"], "val": ["d"], "test": ["b", "e"]}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Return the folder of a scene, for copying."""
    return write_scene(tmp_path_factory.mktemp("one") / "scene", 5, 8)


def shapenet(root, scene, category="chair", folder="chairs", splits=SPLITS):
    """Write a data set in the layout of ShapeNet."""
    root.mkdir(exist_ok=True)
    (root / f"{category}_splits.json").write_text(json.dumps(splits))
    for name in sorted({name for names in splits.values() for name in names}):
        shutil.copytree(scene, root / folder / name)


def ready(data):
    """Return a data module after set-up for fitting and testing."""
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def names(items):
    return [items[index].name for index in range(len(items))]


COMMON = {"size": 8, "batch_size": 1}


@pytest.mark.parametrize(
    ("category", "folder"),
    [
        ("chairs", "chairs"),
        ("cars", "cars"),
        ("lamps", "lamps"),
        ("chairs", "03001627"),
        ("cars", "02958343"),
        ("lamps", "03636649"),
    ],
)
def test_objects_are_split_by_their_lists(tmp_path, scene, category, folder):
    shapenet(tmp_path, scene, category[:-1], folder)
    data = ready(ShapeNet(category, str(tmp_path), draws=2, **COMMON))
    assert names(data.train_set) == ["c", "a"]
    assert names(data.val_set) == ["d"]
    assert names(data.test_set) == ["b.000", "b.001", "e.000", "e.001"]
    assert (data.near, data.far, data.train_frames, data.skipped) == (2.0, 6.0, 25, {})


def test_published_numbers_are_the_defaults():
    data = ShapeNet()
    assert data.signal_shape == (1, 3, 128, 128)
    assert (data.query_views, data.rays_per_view, data.foreground_epochs) == (1, 128, 2)
    assert (data.protocol, data.draws, data.val_draws, data.repeats) == ("draws", 100, 1, 1)


def test_listed_objects_without_a_folder_are_skipped(tmp_path, scene, capsys):
    shapenet(tmp_path, scene)
    shutil.rmtree(tmp_path / "chairs" / "c")
    (tmp_path / "chairs" / "b" / "transforms.json").unlink()
    data = ready(ShapeNet("chairs", str(tmp_path), draws=1, **COMMON))
    assert (names(data.train_set), names(data.test_set)) == (["a"], ["e"])
    assert set(data.skipped) == {str(tmp_path / "chairs" / name) for name in "bc"}
    assert all("transforms.json" in reason for reason in data.skipped.values())
    assert "Skipped 1 unreadable scenes" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"1 of 2 scenes of the split train cannot be used:\n  There is no .*transforms\.json"
    ):
        ready(ShapeNet("chairs", str(tmp_path), on_bad_scene="raise", **COMMON))


def test_errors_of_missing_files_say_how_to_get_them(tmp_path, scene):
    message = (
        r"There is no .*chair_splits\.json.*: download .* by hand, .*drive\.google\.com/drive/folders/1lRfg-.*--data\."
    )
    with pytest.raises(ValueError, match=message):
        ready(ShapeNet("chairs", str(tmp_path)))
    shapenet(tmp_path, scene)
    with pytest.raises(ValueError, match=r"There is no .*car_splits\.json"):
        ready(ShapeNet("cars", str(tmp_path)))
    shutil.rmtree(tmp_path / "chairs")
    with pytest.raises(
        ValueError, match=r"no chairs, neither .*/chairs nor .*/03001627 is a folder: download them by hand"
    ):
        ready(ShapeNet("chairs", str(tmp_path)))
    (tmp_path / "chairs").mkdir()
    with pytest.raises(ValueError, match=r"2 of 2 scenes of the split train .*(\n.*)*drive\.google\.com"):
        ready(ShapeNet("chairs", str(tmp_path)))


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"train": 3}',
        '{"train": [3]}',
        '{"train": ["../a"]}',
        '{"train": [""]}',
        '{"train": [".."]}',
        "{",
        "\xff",
    ],
)
def test_invalid_split_lists_are_refused(tmp_path, text):
    (tmp_path / "chairs").mkdir()
    (tmp_path / "chair_splits.json").write_text(text, encoding="latin-1")
    with pytest.raises(
        ValueError, match=r"chair_splits\.json (has no list train|cannot be read as JSON).* again"
    ) as error:
        ready(ShapeNet("chairs", str(tmp_path)))
    assert "\n" not in str(error.value)


def test_an_empty_split_is_refused(tmp_path, scene):
    shapenet(tmp_path, scene, splits=SPLITS | {"val": []})
    with pytest.raises(ValueError, match=r"ShapeNet has no scenes of the split val in .*: download them by hand"):
        ready(ShapeNet("chairs", str(tmp_path), **COMMON))


def test_an_unknown_category_is_refused():
    with pytest.raises(ValueError, match="category is 'sofas': choose one of chairs, cars, lamps"):
        ShapeNet("sofas")


def test_srn_scenes_have_splits_and_poses(tmp_path):
    for path in ("cars_train/x", "cars_train/w", "cars_val/y", "cars_test/z"):
        write_srn(tmp_path / path, 4)
    data = ready(SRNScenes(root=str(tmp_path), draws=1, **COMMON))
    assert [names(items) for items in (data.train_set, data.val_set, data.test_set)] == [["w", "x"], ["y"], ["z"]]
    assert (data.near, data.far) == (0.8, 1.8)
    assert data.notes == {}
    item = data.test_set[0]
    frames = [int(image[0, 4, 4]) - 10 for image in item.images]
    torch.testing.assert_close(item.poses, cameras(4, 1.3).float()[frames])
    middle = pixel_rays(item.poses, item.intrinsics, (8, 8)).view(2, 64, 6).mean(1)
    towards_the_origin = -middle[:, :3] / middle[:, :3].norm(dim=-1, keepdim=True)
    torch.testing.assert_close(middle[:, 3:], towards_the_origin)


def test_test_scenes_are_used_for_validation_if_there_are_none(tmp_path):
    for path in ("boats_train/x", "boats_test/z"):
        write_srn(tmp_path / path, 4)
    data = ready(SRNScenes("boats", str(tmp_path), draws=1, **COMMON))
    assert names(data.val_set) == names(data.test_set) == ["z"]
    assert data.notes == {"split": "boats_test is used for validation and test"}


def test_errors_of_missing_srn_scenes_say_how_to_get_them(tmp_path):
    with pytest.raises(
        ValueError, match=r"There is no folder .*cars_train: download them by hand, .*drive\.google\.com.*cars_test"
    ):
        ready(SRNScenes(root=str(tmp_path)))
    write_srn(tmp_path / "cars_train" / "x", 4)
    with pytest.raises(ValueError, match=r"There is no folder .*cars_"):
        ready(SRNScenes(root=str(tmp_path), **COMMON))


def test_split_folders_are_used(tmp_path, scene):
    for path in ("train/b", "train/a", "val/c", "test/d", "train/.hidden"):
        shutil.copytree(scene, tmp_path / path)
    (tmp_path / "train" / "notes").mkdir()
    data = ready(SceneFolder(str(tmp_path), draws=1, **COMMON))
    assert [names(items) for items in (data.train_set, data.val_set, data.test_set)] == [["a", "b"], ["c"], ["d"]]
    assert data.notes["split"].startswith("by folders")
    assert data.skipped == {}


def test_splits_are_drawn_without_split_folders(tmp_path, scene):
    for number in range(10):
        shutil.copytree(scene, tmp_path / f"{number}")
    data = ready(SceneFolder(str(tmp_path), draws=1, val_ratio=0.2, test_ratio=0.1, **COMMON))
    parts = [names(items) for items in (data.train_set, data.val_set, data.test_set)]
    assert [len(part) for part in parts] == [7, 2, 1]
    assert sorted(name for part in parts for name in part) == [str(number) for number in range(10)]
    other = ready(SceneFolder(str(tmp_path), draws=1, val_ratio=0.2, test_ratio=0.1, split_seed=1, **COMMON))
    assert names(other.val_set) != parts[1]
    assert "at random with split_seed 0" in data.notes["split"]


def test_folders_with_images_but_without_transforms_are_broken_scenes(tmp_path, scene):
    for name in "abc":
        shutil.copytree(scene, tmp_path / "train" / name)
    shutil.copytree(scene, tmp_path / "val" / "d")
    (tmp_path / "train" / "b" / "transforms.json").unlink()
    data = ready(SceneFolder(str(tmp_path), draws=1, **COMMON))
    assert names(data.train_set) == ["a", "c"]
    assert list(data.skipped) == [str(tmp_path / "train" / "b")]


def test_folders_without_scenes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"contains no scenes: set --data\.init_args\.root"):
        ready(SceneFolder(str(tmp_path)))
    with pytest.raises(ValueError, match="There is no folder"):
        ready(SceneFolder(str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"val_ratio is 0\.0, test_ratio 0\.0: val_ratio must be in"):
        SceneFolder(val_ratio=0.0)

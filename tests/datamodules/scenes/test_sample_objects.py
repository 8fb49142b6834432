"""The sample objects: names, splits and licence of the bundled meshes, generated objects, and the scenes rendered from them."""

import multiprocessing
import socket
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.scenes import rendering
from datamodules.scenes.generated import GeneratedObject
from datamodules.scenes.prediction import SceneFiles
from datamodules.scenes.sample_objects import SampleObjects
from datamodules.shapes.families import generate
from datamodules.storage import folders
from datamodules.storage.folders import Split
from datamodules.storage.meshes import RADIUS, mesh_files, read_mesh
from datamodules.storage.sample_meshes import CHAIRS, LAMPS, MESHES

SMALL = {"size": 16, "frames": 4, "train_frames": 3, "rays_per_view": 8, "draws": 2, "val_draws": 1, "repeats": 2}
LESS = SMALL | {"frames": 2, "size": 8, "train_frames": 2}


@pytest.fixture(scope="module")
def lamps(tmp_path_factory):
    """Return three generated lamps and the bundled ones, rendered without network access."""

    def refuse(*arguments, **keywords):
        raise OSError("this test has no network access")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_connection", refuse)
        data = SampleObjects("lamps", root=str(tmp_path_factory.mktemp("data")), count=3, batch_size=2, **SMALL)
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
    return data


def test_every_bundled_mesh_is_in_exactly_one_split():
    names = [name for splits in (CHAIRS, LAMPS) for split in splits.values() for name in split]
    assert len(names) == len(set(names)) == 22
    assert set(names) == {mesh.name for mesh in mesh_files([MESHES])}
    assert [len(split) for split in CHAIRS.values()] == [12, 2, 4]
    assert [len(split) for split in LAMPS.values()] == [2, 1, 1]
    assert list(CHAIRS) == list(LAMPS) == list(folders._FOLDERS)


def test_the_licence_file_covers_all_meshes():
    text = (MESHES / "LICENSES.md").read_text()
    for phrase in ("CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/", "Changes made", "LICENSE.CC0.txt"):
        assert phrase in text
    assert all(f"`{mesh.path.name}`" in text for mesh in mesh_files([MESHES]))
    assert "speech" not in text
    assert (MESHES / "LICENSE.CC0.txt").exists()


def test_meshes_are_upright():
    for name, longest_axis in (("chair_chair", 2), ("chair_silla2", 2), ("lamp_desklamp", 2)):
        corners = read_mesh(MESHES / f"{name}.ply").corners.reshape(-1, 3)
        assert (corners.max(0) - corners.min(0)).argmax() == longest_axis
    seat = read_mesh(MESHES / "chair_plasticChair.ply").corners.reshape(-1, 3)
    assert seat[seat[:, 2] > 0.8][:, 1].mean() > 0.3  # the back of the chair is towards +y


def test_generated_objects_have_the_scale_axes_and_facing_of_the_meshes():
    behind = []
    for index in range(20):
        corners = GeneratedObject("chair", "chairs", (0, "train", index)).triangles().corners.reshape(-1, 3)
        assert np.linalg.norm(corners, axis=1).max() == pytest.approx(RADIUS, abs=1e-4)
        assert np.allclose(corners.min(0) + corners.max(0), 0, atol=1e-4)
        behind.append(corners[corners[:, 2] > 0.8 * corners[:, 2].max()][:, 1].mean())
    assert np.median(behind) > 0.2  # most tops are backs, towards +y
    x, y, z = generate("cars", 0, "train", 0).mesh().vertices.T
    actual = GeneratedObject("car", "cars", (0, "train", 0)).triangles().corners.reshape(-1, 3)
    expected = RADIUS * 1.03 * np.stack((x, -z, y), axis=1)
    assert np.allclose(actual.max(0), expected.max(0), atol=1e-5)
    assert np.allclose(actual.min(0), expected.min(0), atol=1e-5)


def test_half_of_the_objects_are_as_grey_as_the_meshes():
    objects = [GeneratedObject("chair", "chairs", (0, "train", index)) for index in range(400)]
    assert 160 < sum(item.is_painted for item in objects) < 240
    grey = read_mesh(MESHES / "chair_chair.ply").colours[0, 0]
    painted = next(item for item in objects if item.is_painted).triangles()
    assert (painted.colours == grey).all()
    coloured = next(item for item in objects if not item.is_painted)
    expected = np.asarray(generate("chairs", *coloured.address).mesh().visual.face_colors)[:, None, :3] / 255
    assert np.allclose(coloured.triangles().colours, expected, atol=0.003)


def test_scenes_have_the_same_cameras_and_different_images(lamps):
    assert lamps.signal_shape == (1, 3, 16, 16)
    assert [scene.name for scene in lamps.train_set.scenes] == [f"lamps-train-0000{index}" for index in range(3)]
    assert [scene.name for scene in lamps.val_set.scenes] == list(LAMPS["val"])
    assert (len(lamps.train_set), len(lamps.val_set), len(lamps.test_set)) == (6, 1, 2)
    first, second, _ = lamps.train_set.scenes
    assert torch.equal(first.poses, second.poses)
    assert torch.equal(first.poses, lamps.test_set.scenes[0].poses)
    assert len(first.poses) == 4
    assert first.images[0].read_bytes() != second.images[0].read_bytes()
    with Image.open(first.images[0]) as image:
        assert (image.mode, image.size) == ("RGBA", (16, 16))


def test_batches_are_rays_and_colours(lamps):
    batch = lamps.to_coordinates(next(iter(lamps.train_dataloader())), training=True)
    assert batch.query.coords.shape == (2, 8, 7)
    assert batch.query.values.shape == (2, 8, 3)
    [item] = [lamps.to_coordinates(batch) for batch in lamps.test_dataloader()]
    assert item.query.coords.shape == (2, 256, 6)
    assert item.names == ["lamp_wallLight.000", "lamp_wallLight.001"]
    levels = item.query.values
    assert levels.max() == 1  # the background is white
    assert levels.min() < 0.6
    assert torch.allclose(item.query.coords[..., :3].norm(dim=-1), torch.tensor(4.0))


def test_existing_images_are_kept_and_other_settings_have_other_folders(lamps):
    before = {path: path.stat().st_mtime_ns for path in lamps.folder.rglob("*.png")}
    lamps.prepare_data()
    assert {path: path.stat().st_mtime_ns for path in lamps.folder.rglob("*.png")} == before
    assert len(before) == 20
    root = str(lamps.root)
    assert SampleObjects("lamps", root=root, **SMALL).folder == lamps.folder
    for other in ({"size": 17}, {"frames": 5}, {"object_seed": 1}):
        assert SampleObjects("lamps", root=root, **SMALL | other).folder != lamps.folder


def test_a_larger_count_adds_objects(tmp_path):
    data = SampleObjects("tables", root=str(tmp_path), count=1, **LESS)
    data.prepare_data()
    before = {path: path.stat().st_mtime_ns for path in data.folder.rglob("*.png")}
    more = SampleObjects("tables", root=str(tmp_path), count=3, **LESS)
    more.prepare_data()
    after = {path: path.stat().st_mtime_ns for path in data.folder.rglob("*.png")}
    assert before.items() < after.items()
    assert len(after) - len(before) == 2 * 2
    assert [path.name for path in more.scenes("train")] == [f"tables-train-0000{index}" for index in range(3)]
    assert more.scenes("test") == data.scenes("test")


def test_a_damaged_object_is_refused_and_a_missing_one_rendered_again(tmp_path):
    data = SampleObjects("lamps", root=str(tmp_path), count=1, **LESS)
    data.prepare_data()
    [folder] = data.scenes("train")
    expected = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(expected[:-60])
    with pytest.raises(ValueError, match=r"001\.png.*\n.*remove .* call prepare_data\(\)"):
        data.setup("fit")
    (folder / "transforms.json").unlink()
    data.prepare_data()
    assert (folder / "001.png").read_bytes() == expected
    data.setup("fit")


def test_invalid_arguments_are_refused(tmp_path):
    data = SampleObjects(root=str(tmp_path), **SMALL)
    with pytest.raises(ValueError, match=r"not rendered yet: remove .* call prepare_data\(\)"):
        data.setup("fit")
    with pytest.raises(ValueError, match="objects is 'boats': choose one of chairs, tables, lamps, cars, all"):
        SampleObjects("boats")
    with pytest.raises(ValueError, match="frames is 0"):
        SampleObjects(frames=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written: .*data\.init_args\.root"):
        SampleObjects("lamps", root=str(tmp_path / "file"), **SMALL).prepare_data()


@pytest.mark.parametrize(
    "arguments", [{"count": -1}, {"count": 0}, {"objects": "cars", "count": 0, "bundled_train": True}], ids=str
)
def test_training_needs_objects(arguments):
    with pytest.raises(ValueError, match=r"count is -?\d: it must be at least 1"):
        SampleObjects(**arguments)


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    def full(task, poses):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rendering, "_transforms", full)
    data = SampleObjects("lamps", root=str(tmp_path), count=1, **LESS)
    with pytest.raises(ValueError, match=r"No space left on device.*data\.init_args\.root"):
        data.prepare_data()
    monkeypatch.undo()
    data.prepare_data()
    data.setup("fit")


def test_all_takes_the_families_in_turn(tmp_path):
    data = SampleObjects("all", root=str(tmp_path), count=6, **LESS)
    data.prepare_data()
    expected: dict[Split, list[str]] = {
        "train": [
            *("chairs-train-00000", "chairs-train-00001", "tables-train-00000", "tables-train-00001"),
            *("lamps-train-00000", "cars-train-00000"),
        ]
    }
    for split, count in (("val", 4), ("test", 8)):
        tables, cars = ([f"{family}-{split}-0000{index}" for index in range(count)] for family in ("tables", "cars"))
        expected[split] = [*CHAIRS[split], *tables, *LAMPS[split], *cars]
    for split in get_args(Split):
        assert [folder.name for folder in data.scenes(split)] == expected[split]
    assert len(list(data.folder.glob("*/*/transforms.json"))) == 6 + 6 + 12 + 2 + 12
    alone = SampleObjects("cars", root=str(tmp_path), count=1, **LESS)
    alone.setup("fit")  # rendered above


def test_bundled_meshes_are_added_to_training_on_request(tmp_path):
    data = SampleObjects("lamps", root=str(tmp_path), count=1, bundled_train=True, **LESS)
    data.prepare_data()
    assert [folder.name for folder in data.scenes("train")] == [*LAMPS["train"], "lamps-train-00000"]
    only = SampleObjects("lamps", root=str(tmp_path), count=0, bundled_train=True, **LESS)
    assert [folder.name for folder in only.scenes("train")] == list(LAMPS["train"])


def test_generated_objects_can_be_predicted(lamps):
    data = SceneFiles([str(lamps.folder / "lamps" / "lamps-train-00002")], signal_shape=(1, 3, 16, 16))
    data.setup("predict")
    assert data.chosen[0].name == "lamps-train-00002"
    assert data.chosen[0].read().images.shape == (4, 3, 16, 16)


def _prepare(root, start, log):
    """Prepare the lamps, and count the objects that this process renders."""
    write = rendering._write_part

    def counted(task):
        log.put(task.item.name)
        return write(task)

    rendering._write_part = counted
    start.wait()
    SampleObjects("lamps", root=root, count=3, **LESS).prepare_data()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_processes_render_every_object_once(tmp_path):
    context = multiprocessing.get_context("fork")
    start, log = context.Event(), context.Queue()
    processes = [context.Process(target=_prepare, args=(str(tmp_path), start, log)) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    names = [log.get(timeout=60) for _ in range(5)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert log.empty()
    assert sorted(names) == sorted([*LAMPS["val"], *LAMPS["test"], *(f"lamps-train-0000{index}" for index in range(3))])

"""The bundled objects: their names, splits and licence, and the scenes rendered from them."""

import socket

import pytest
import torch
from PIL import Image

from datamodules.scenes.sample_objects import SampleObjects
from datamodules.storage import folders
from datamodules.storage.meshes import mesh_files, read_mesh
from datamodules.storage.sample_meshes import CHAIRS, LAMPS, MESHES

SMALL = {"size": 16, "frames": 4, "train_frames": 3, "rays_per_view": 8, "draws": 2, "val_draws": 1, "repeats": 2}


@pytest.fixture(scope="module")
def lamps(tmp_path_factory):
    """Return the lamps, rendered without network access."""

    def refuse(*arguments, **keywords):
        raise OSError("this test has no network access")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_connection", refuse)
        data = SampleObjects("lamps", root=str(tmp_path_factory.mktemp("data")), batch_size=2, **SMALL)
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


def test_scenes_have_the_same_cameras_and_different_images(lamps):
    assert lamps.signal_shape == (1, 3, 16, 16)
    assert [scene.name for scene in lamps.train_set.scenes] == list(LAMPS["train"])
    assert (len(lamps.train_set), len(lamps.val_set), len(lamps.test_set)) == (4, 1, 2)
    first, second = lamps.train_set.scenes
    assert torch.equal(first.poses, second.poses)
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


def test_existing_images_are_kept_and_other_sizes_have_other_folders(lamps):
    before = {path: path.stat().st_mtime_ns for path in lamps.folder.rglob("*.png")}
    lamps.prepare_data()
    assert {path: path.stat().st_mtime_ns for path in lamps.folder.rglob("*.png")} == before
    assert len(before) == 16
    root = str(lamps.root)
    assert SampleObjects("lamps", root=root, **SMALL).folder == lamps.folder
    assert SampleObjects("lamps", root=root, **SMALL | {"size": 17}).folder != lamps.folder
    assert SampleObjects("lamps", root=root, **SMALL | {"frames": 5}).folder != lamps.folder


def test_missing_images_and_invalid_arguments_are_refused(tmp_path):
    data = SampleObjects(root=str(tmp_path), **SMALL)
    with pytest.raises(ValueError, match=r"not rendered yet: remove .* call prepare_data\(\)"):
        data.setup("fit")
    with pytest.raises(ValueError, match="objects is 'cars': choose one of chairs, lamps, all"):
        SampleObjects("cars")
    with pytest.raises(ValueError, match="frames is 0"):
        SampleObjects(frames=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written: .*data\.init_args\.root"):
        SampleObjects("lamps", root=str(tmp_path / "file"), **SMALL).prepare_data()


def test_all_contains_chairs_and_lamps(tmp_path):
    data = SampleObjects("all", root=str(tmp_path), **SMALL | {"frames": 2, "size": 8, "train_frames": 2})
    data.prepare_data()
    for split in folders._FOLDERS:
        names = [folder.name for folder in data.scenes(split)]
        assert names == [*CHAIRS[split], *LAMPS[split]]
    assert len(list(data.folder.glob("*/*/transforms.json"))) == 22

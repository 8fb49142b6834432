"""Scenes with off-centre and distorted lenses, split files, COLMAP models, conventions and scales."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scene_folders import cameras, describe, save_image, write_colmap, write_scene, write_split_scene

from datamodules.storage.colmap import read_colmap
from datamodules.storage.layouts import is_scene, read_scene
from datamodules.storage.poses import to_convention
from datamodules.storage.transforms import read_transforms


def _frames(folder):
    return json.loads((folder / "transforms.json").read_text())["frames"]


def test_principal_points_and_intrinsics_per_frame_are_read(tmp_path):
    folder = write_scene(tmp_path, frames=3)
    frames = _frames(folder)
    describe(
        folder, fl_x=9, cx=5.1, cy=2.6, frames=[frames[0], frames[1] | {"fl_x": 10, "cx": 4}, frames[2] | {"fl_y": 8}]
    )
    expected = [[9, 9, 5.1, 2.6], [10, 10, 4, 2.6], [8, 8, 5.1, 2.6]]
    assert read_scene(folder).intrinsics.tolist() == [pytest.approx(row) for row in expected]


def test_only_distorted_frames_are_undistorted(tmp_path):
    folder = write_scene(tmp_path, frames=2, size=16)
    frames = _frames(folder)
    describe(folder, fl_x=10, camera_model="OPENCV", frames=[frames[0], frames[1] | {"k1": -0.2}])
    scene = read_scene(folder)
    assert scene.distortion[:, 0].tolist() == pytest.approx([0, -0.2])
    plain = read_scene(write_scene(tmp_path / "plain", frames=2, size=16))
    assert plain.distortion is None
    assert torch.equal(scene.read(0), plain.read(0))
    assert not torch.equal(scene.read(1), plain.read(1))


@pytest.mark.parametrize("convention", ["opengl", "opencv", "opengl_w2c", "opencv_w2c"])
def test_conventions_and_scales_are_applied(tmp_path, convention):
    folder = write_scene(tmp_path, frames=4)
    last = torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)
    matrices = [torch.cat((to_convention(pose, convention), last)).tolist() for pose in cameras(4, 4000.0)]
    describe(
        folder, frames=[frame | {"transform_matrix": m} for frame, m in zip(_frames(folder), matrices, strict=True)]
    )
    scene = read_scene(folder, convention, 0.001)
    torch.testing.assert_close(scene.poses, cameras(4, 4.0).float(), atol=1e-5, rtol=0)


def test_split_files_are_one_scene(tmp_path):
    folder = write_split_scene(tmp_path / "lego", {"train": 4, "val": 2, "test": 3})
    scene = read_scene(folder)
    assert is_scene(folder)
    assert scene.splits == {"train": range(4), "val": range(4, 6), "test": range(6, 9)}
    assert [path.relative_to(folder).as_posix() for path in scene.images[3:7]] == [
        "train/r_3.png",
        "val/r_0.png",
        "val/r_1.png",
        "test/r_0.png",
    ]
    assert scene.notes == ()
    (folder / "transforms_val.json").unlink()
    assert read_scene(folder).splits["val"] == read_scene(folder).splits["test"] == range(4, 7)
    (folder / "transforms_test.json").unlink()
    assert read_scene(folder).splits is None
    (folder / "transforms_train.json").rename(folder / "transforms_val.json")
    with pytest.raises(ValueError, match=r"There is no .*transforms_train\.json beside transforms_val\.json: add it"):
        read_scene(folder)


def test_held_out_images_that_are_also_for_training_are_noted(tmp_path):
    folder = write_split_scene(tmp_path, {"train": 2, "val": 2})
    (folder / "transforms_val.json").write_text((folder / "transforms_train.json").read_text())
    assert dict(read_scene(folder).notes)["shared images"].startswith("transforms_val.json name images that are also")


def test_images_that_no_frame_names_are_noted(tmp_path):
    folder = write_scene(tmp_path, frames=2)
    save_image(folder / "extra.png", 0)
    (folder / "readme.txt").touch()
    assert dict(read_scene(folder).notes) == {
        "unused images": f"1 image(s) that no frame names are ignored, such as {folder / 'extra.png'}"
    }


def test_images_with_and_without_alpha_are_counted(tmp_path):
    folder = write_scene(tmp_path, frames=3)
    save_image(folder / "r_1.png", 1, mode="RGB")
    scene = read_transforms(folder)
    assert scene.num_opaque == 1
    assert scene.read(1)[:, 4, 4].tolist() == [11, 20, 30]
    assert scene.read(2)[:, 0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("below", ["", "sparse/0", "sparse"])
def test_colmap_models_are_read(tmp_path, below):
    folder = write_colmap(tmp_path / "room", below=below, frames=4)
    scene = read_scene(folder)
    assert is_scene(folder)
    assert [path.relative_to(folder).as_posix() for path in scene.images] == [f"images/view {i}.png" for i in range(4)]
    torch.testing.assert_close(scene.poses, cameras(4).float(), atol=1e-5, rtol=0)
    assert scene.intrinsics.tolist() == [[10, 11, 4.5, 3.5]] * 4
    assert scene.distortion is None


@pytest.mark.parametrize(
    ("camera", "intrinsics", "distortion"),
    [
        ("SIMPLE_PINHOLE 8 8 9 4 3", [9, 9, 4, 3], None),
        ("SIMPLE_RADIAL 8 8 9 4 3 0.1", [9, 9, 4, 3], [0.1, 0, 0, 0, 0]),
        ("RADIAL 8 8 9 4 3 0.1 0.02", [9, 9, 4, 3], [0.1, 0.02, 0, 0, 0]),
        ("OPENCV 8 8 9 10 4 3 0.1 0.02 0.003 0.004", [9, 10, 4, 3], [0.1, 0.02, 0.003, 0.004, 0]),
    ],
)
def test_camera_models_of_colmap_are_read(tmp_path, camera, intrinsics, distortion):
    scene = read_scene(write_colmap(tmp_path, camera=camera, frames=2))
    assert scene.intrinsics.tolist() == [intrinsics] * 2
    assert distortion is None or scene.distortion[0].tolist() == pytest.approx(distortion)
    assert (scene.distortion is None) == (distortion is None)


def _replace(name, old, new):
    def damage(folder):
        text = (folder / "sparse/0" / name).read_text()
        assert old in text
        (folder / "sparse/0" / name).write_text(text.replace(old, new))

    return damage


def _binary(folder):
    for name in ("cameras", "images"):
        (folder / f"sparse/0/{name}.txt").rename(folder / f"sparse/0/{name}.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _binary,
            r"cameras\.bin is a binary model.*: run colmap model_converter --input_path .*sparse/0 .* --output_type TXT",
        ),
        (
            _replace("cameras.txt", "PINHOLE", "OPENCV_FISHEYE"),
            "line 2: the camera model 'OPENCV_FISHEYE' is not supported",
        ),
        (_replace("cameras.txt", "10 11", "10"), "line 2: PINHOLE has 4 parameters after width and height, not 3"),
        (_replace("cameras.txt", "10 11", "10 x"), "line 2: could not convert string to float: 'x'"),
        (_replace("images.txt", " 1 view 0.png", " 7 view 0.png"), r"there is no camera 7 in .*cameras\.txt"),
        (_replace("images.txt", "view 0.png", "../view 0.png"), "the image '../view 0.png' is outside of the folder"),
        (_replace("images.txt", "view 0.png", "view 9.png"), "there is no image 'view 9.png' below"),
        (_replace("images.txt", "\n1.5 2 -1\n", "\n"), "may be empty, but not missing"),
        (_replace("images.txt", "view 1.png", ""), "a pose has ten columns"),
        (lambda folder: (folder / "sparse/0/images.txt").unlink(), r"images\.txt cannot be read: No such file"),
        (lambda folder: (folder / "sparse/0/images.txt").write_text("# none\n"), "has no images"),
    ],
)
def test_errors_of_colmap_models_name_the_file(tmp_path, damage, message):
    folder = write_colmap(tmp_path, frames=3)
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        read_colmap(folder)
    assert str(folder) in str(error.value)


def test_images_of_two_sizes_are_refused(tmp_path):
    folder = write_colmap(tmp_path, frames=2)
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(folder / "images/view 1.png")
    with pytest.raises(ValueError, match=r"view 1\.png has 9 x 8 pixels, but view 0\.png has 8 x 8"):
        read_scene(folder)
